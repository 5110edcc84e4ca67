"""wills-aligner trained in its two stages: native people behind an aligner, resumed, in episodes, nothing leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from phosphene.alignment import Aligner, make_aligner
from phosphene.decoders import Decoder, Episodes, make_decoder
from phosphene.decoders.wills_aligner import WillsAligner
from phosphene.encoders import Targets, encode
from phosphene.errors import InputError
from phosphene.evaluation.multilabel import evaluate_labels
from phosphene.recordings import Study
from phosphene.settings import load_preset
from phosphene.training import fit, fit_alike
from phosphene.training.checkpoint import load_checkpoint
from phosphene.training.data import PersonSamples, StepBatch, StepLoader, TargetRows
from phosphene.training.episodes import EpisodeBatch, EpisodeLoader, EpisodeStep
from phosphene.training.loop import _Run
from phosphene.training.objective import Objective, Outputs, TrainingStep
from phosphene.training.sampling import BatchSampler
from phosphene.training.settings import TrainingConfig

SMALL: dict[str, Any] = {
    "width": 16,
    "blocks": 1,
    "projector": 8,
    "linear_rank": 8,
    "experts": 3,
    "rank": 2,
    "class_columns": ("*shape*",),
}
TRAINING: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 48,
    "class_weight": 1.0,
    "semantic_weight": 0.1,
    "validation_fraction": 0.2,
    "stage2": {"epochs": 2, "learning_rate": 0.01, "monitor": "loss"},
}


@pytest.fixture(scope="module")
def aligner(study: Study) -> Aligner:
    return make_aligner("anatomical").fit(study.split("train"))


def fitted(study: Study, targets: Targets, aligner: Aligner, out: Path | None = None, **settings: Any) -> WillsAligner:
    training = {**TRAINING, **settings.pop("training", {})}
    settings = {**SMALL, **settings}
    decoder = fit(
        "wills-aligner", study, targets, aligner=aligner, out=out, progress=False, training=training, **settings
    )
    assert isinstance(decoder, WillsAligner)
    return decoder


def same(one: Decoder, two: Decoder) -> bool:
    state = two.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


@pytest.fixture(scope="module")
def whole(study: Study, targets: Targets, aligner: Aligner, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("whole")
    return fitted(study, targets, aligner, out, private=True), out


def test_native_responses_in_and_experts_off_is_the_first_stage(study: Study, targets: Targets, whole) -> None:
    decoder, out = whole
    assert any(not aligned.all() for aligned in (decoder.aligner.covered(s) for s in decoder.subjects))
    assert decoder.fill is not None
    assert decoder.fill.abs().sum() > 0
    # what the first stage ended with, from its own checkpoint
    best, _ = load_checkpoint(out / "checkpoints" / "best.safetensors")
    first = {name.removeprefix("model/"): tensor for name, tensor in best.items()}
    assert not any("experts" in name for name in first)
    now = decoder.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in first.items())
    alone = WillsAligner(
        decoder.config, dict.fromkeys(study.subjects, decoder.aligner.template.size), targets.shape("pooled")
    )
    for subject in study.subjects:
        alone.arrange_voxels(subject, decoder.voxel_tables[subject])
    alone._make_room(first)
    alone.load_state_dict(first)
    alone.align(decoder.aligner)
    for subject in study.subjects:
        responses = study.split("test").responses(subject)
        common = alone.eval().predict(responses, subject)
        assert not np.array_equal(decoder.predict(responses, subject), common)
        with decoder.commonality():
            np.testing.assert_array_equal(decoder.predict(responses, subject), common)


def test_the_run_tells_of_its_stages_and_its_experts(study: Study, whole) -> None:
    decoder, out = whole
    told = decoder.provenance
    assert told["training"]["semantic_weight"] == 0.1
    assert told["stage2"]["training"]["learning_rate"] == 0.01
    assert told["experts"]["base"] == decoder.common
    assert 0 <= told["experts"]["information_expert_subject"] <= np.log(3)
    assert set(told["experts"]["gates"]) == set(study.subjects)
    lines = (out / "stage2" / "log.jsonl").read_text()
    assert '"balance"' in lines or "epoch" in lines
    card = evaluate_labels(decoder, study, n_boot=0)
    assert card.get("mAP").value > 0


def test_one_seed_one_decoder_and_a_stop_in_the_second_stage_loses_nothing(
    study: Study, targets: Targets, aligner: Aligner, whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = _Run.step

    def failing(self: _Run, batch: Any) -> float:
        if self.folder is not None and self.folder.parent.name == "stage2" and self.progress.step == 3:
            raise MemoryError("out of memory")
        return step(self, batch)

    monkeypatch.setattr(_Run, "step", failing)
    with pytest.raises(MemoryError):
        fitted(study, targets, aligner, tmp_path, private=True, training={"checkpoint_steps": 1})
    assert (tmp_path / "stage2" / "checkpoints" / "last.safetensors").exists()
    monkeypatch.setattr(_Run, "step", step)
    resumed = fitted(study, targets, aligner, tmp_path, private=True, training={"checkpoint_steps": 1})
    assert same(whole[0], resumed)


def test_episodes_adapt_what_is_a_persons_own(
    study: Study, targets: Targets, aligner: Aligner, monkeypatch: pytest.MonkeyPatch
) -> None:
    gains, forward = [], EpisodeStep.forward

    def looked_at(self: EpisodeStep, batch: Any, scheduled: float) -> Any:
        for (subject, _), support in zip(batch.calls, batch.support, strict=True):
            assert support.calls[0][0] == subject
            with torch.no_grad():
                before = self.objective_of(support, scheduled)
            own = self.adapted(support, scheduled)
            with torch.no_grad():
                gains.append(float(before - self.objective_of(support, scheduled, own)))
        return forward(self, batch, scheduled)

    def objective_of(self: EpisodeStep, support: Any, scheduled: float, own: Any = None) -> torch.Tensor:
        ((subject, responses),) = support.calls
        prediction = functional_call(self.decoder, own or {}, (responses, subject))
        return self.objective(Outputs.of([prediction], support.sizes), support, scheduled)[0]

    monkeypatch.setattr(EpisodeStep, "objective_of", objective_of, raising=False)
    monkeypatch.setattr(EpisodeStep, "forward", looked_at)
    stage2 = {"epochs": 2, "learning_rate": 0.01, "monitor": "loss"}
    settings: dict[str, Any] = {"input_dropout": 0.0, "dropout": 0.0, "id_dropout": 0.0, "private": True}
    decoder = fitted(study, targets, aligner, stage2="meta", inner_rate=0.02, training={"stage2": stage2}, **settings)
    # the private experts start at nothing; adapting lowers the loss on the sessions they adapt to
    assert np.mean(np.array(gains) > 0) > 0.85
    assert len(gains) == 3 * decoder.provenance["stage2"]["steps"]
    assert decoder.router is not None


def test_the_outer_gradient_is_that_at_the_adapted_place() -> None:
    torch.manual_seed(0)
    people = {"sub-01": 12, "sub-02": 12}
    settings: dict[str, Any] = {"width": 6, "blocks": 1, "projector": 0, "experts": 2, "rank": 2, "private": True}
    decoder = make_decoder("wills-aligner", subjects=people, target_shape=(5,), **settings, balance_weight=0.0).eval()
    assert isinstance(decoder, WillsAligner)
    decoder.begin("stage2")
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(std=0.3)
    step = EpisodeStep(
        decoder, Objective(TrainingConfig(contrastive="none", mse_weight=1.0)), Episodes(decoder.own, 2, 0.1)
    )
    batches = [
        StepBatch([(s, torch.randn(4, 12))], torch.randn(4, 5), torch.arange(4), None, None, (4,)) for s in people
    ]
    queries = StepBatch([(s, torch.randn(4, 12)) for s in people], torch.randn(8, 5), torch.arange(8), None, None, (8,))
    step(EpisodeBatch(queries, batches), 0.1)[0].backward()
    found = {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}
    decoder.zero_grad()
    places = [step.adapted(one, 0.1) for one in batches]
    for name, value in [pair for place in places for pair in place.items()]:
        decoder.get_parameter(name).data.copy_(value.detach())
    TrainingStep(decoder, step.objective)(queries, 0.1)[0].backward()
    wanted = {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}
    assert {name for name in wanted if "of_sub-01" in name}
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], msg=name)


def test_meta_and_plain_differ_and_meta_is_the_same_for_one_seed(
    study: Study, targets: Targets, aligner: Aligner
) -> None:
    """Without validation the last epoch is kept, whichever is better."""
    settings: dict[str, Any] = {"private": True, "training": {"validation_fraction": 0.0}}
    plain = fitted(study, targets, aligner, **settings)
    one, two = (fitted(study, targets, aligner, stage2="meta", inner_steps=1, **settings) for _ in range(2))
    assert same(one, two)
    assert one.common == plain.common
    assert not same(one, plain)


def test_episodes_need_sessions_and_single_trials(study: Study, targets: Targets, aligner: Aligner) -> None:
    with pytest.raises(InputError, match="a mean over repeats has no session"):
        fitted(study, targets, aligner, stage2="meta", training={"repeats": "average"})
    view = study.split("train").first_sessions(1).subset(["sub-01"])
    index = {name: row for row, name in enumerate(view.stimulus_ids.tolist())}
    people = [PersonSamples(view, "sub-01", index, "single")]
    rows, sampler = TargetRows(targets, view.stimulus_ids, "pooled"), BatchSampler({"sub-01": len(people[0])}, 8, 0)
    with pytest.raises(InputError, match="one only: sub-01"):
        EpisodeLoader(StepLoader(people, rows, sampler), 0)


def test_support_and_query_come_from_different_sessions(study: Study, targets: Targets) -> None:
    view = study.split("train")
    index = {name: row for row, name in enumerate(view.stimulus_ids.tolist())}
    people = [PersonSamples(view, subject, index, "single") for subject in view.subjects]
    sampler = BatchSampler({one.subject: len(one) for one in people}, 30, 0)
    loader = EpisodeLoader(StepLoader(people, TargetRows(targets, view.stimulus_ids, "pooled"), sampler), 5)
    met = set()
    for step in range(6):
        support, query = loader.draw(step)
        for subject in view.subjects:
            sessions = view.trials(subject)["session"]
            kept, asked = set(sessions[support[subject]].tolist()), set(sessions[query[subject]].tolist())
            assert kept
            assert asked
            assert not kept & asked
            met |= kept
    assert met == {1, 2, 3}
    again = EpisodeLoader(loader, 5).draw(3)
    assert all(np.array_equal(again[part][s], loader.draw(3)[part][s]) for part in (0, 1) for s in view.subjects)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"insert": ("nosuch.*",)}, "nosuch"),
        ({"insert": ("blocks.*",), "stage2": "meta"}, "blocks"),
        ({"stage2": "meta", "training": {"stage2": {"mixing_fraction": 0.3}}}, "mixing_fraction > 0"),
        ({"stage2": "meta", "training": {"mixing_fraction": 0.3, "stage2": {"epochs": 1}}}, "mixing_fraction > 0"),
        ({"training": {"stage2": {"validation_unit": "nosuch"}}}, "nosuch"),
        ({"training": {"class_weight": 0.0, "stage2": {}}}, "class_weight = 0 would leave untrained"),
        ({"class_columns": (), "training": {"stage2": {"class_weight": 2.0}, "class_weight": 0.0}}, "class_weight = 2"),
    ],
    ids=str,
)
def test_what_a_later_stage_would_stumble_over_is_refused_before_the_first(
    settings: dict[str, Any], message: str, study: Study, targets: Targets, aligner: Aligner, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        fitted(study, targets, aligner, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_episodes_of_people_with_one_session_are_refused_before_the_first_stage(
    targets: Targets, study: Study, aligner: Aligner, tmp_path: Path
) -> None:
    train, roles = study.split("train"), study.roles()
    later = {name for s in study.subjects for name in _in_later_sessions(train, s)}
    first = [name for name in roles["train"] if name not in later]
    scarce = study.with_splits({"scarce": {"train": first, "test": roles["test"]}}).using("scarce")
    own = encode(study.stimuli, "z:gabor", fit_on=first, cache=False, progress=False)
    with pytest.raises(InputError, match="one only: sub-01, sub-02, sub-03"):
        fitted(scarce, own, aligner, tmp_path / "run", stage2="meta", training={"validation_fraction": 0.0})
    assert not (tmp_path / "run").exists()


def _in_later_sessions(view: Any, subject: str) -> list[str]:
    trials = view.trials(subject)
    return list(trials["stimulus_id"][trials["session"] > 1])


def test_a_head_for_classes_is_trained_by_the_presets(study: Study, targets: Targets, aligner: Aligner) -> None:
    for preset in ("small", "nsd"):
        layers = load_preset("decoders", "wills-aligner", preset)["training"]
        assert TrainingConfig.build({k: v for k, v in layers.items() if k != "stage2"}).class_weight == 1.0
    training = {"epochs": 1, "batch_size": 48}
    trunk = {key: value for key, value in SMALL.items() if key not in ("experts", "rank")}
    settings: dict[str, Any] = {**trunk, "stage2": "none", "preset": "small", "training": training}
    decoder = fit("wills-aligner", study, targets, aligner=aligner, progress=False, **settings)
    assert bool((decoder.class_head.bias != 0).all())
    # without classes the weight of the preset asks for nothing
    fit("wills-aligner", study, targets, aligner=aligner, progress=False, **settings | {"class_columns": ()})


def test_a_stage_that_is_not_there_cannot_be_set(study: Study, targets: Targets, aligner: Aligner) -> None:
    with pytest.raises(InputError, match=r"experts = 3 has no use: stage2 = 'none' has no experts; rank = 2"):
        fitted(study, targets, aligner, stage2="none")
    with pytest.raises(InputError, match="unknown stage of wills-aligner: 'stage2'"):
        fit("wills-aligner", study, targets, aligner=aligner, progress=False, stage2="none", training=TRAINING)
    decoder = fit(
        "wills-aligner", study, targets, aligner=aligner, progress=False, stage2="none", training={"epochs": 1}, width=8
    )
    assert isinstance(decoder, WillsAligner)
    assert decoder.router is None


def test_classes_start_at_ridge_and_private_experts_at_what_is_individual(
    study: Study, targets: Targets, aligner: Aligner
) -> None:
    still = {"epochs": 1, "learning_rate": 1e-9, "stage2": {"epochs": 1, "learning_rate": 1e-9}}
    decoder = fitted(study, targets, aligner, private=True, private_rank=8, linear_rank=1024, training=still)
    train = study.split("train")
    found = evaluate_labels(decoder, study, n_boot=0).get("mAP")
    assert found.value > 1.3 * found.chance
    ids, responses = train.averaged("sub-01")
    whole = decoder.predict(responses, "sub-01")
    with decoder.commonality():
        common = decoder.predict(responses, "sub-01")
    truth = targets.of(ids, decoder.target_kind)
    assert ((whole - truth) ** 2).mean() < ((common - truth) ** 2).mean()
    zero = fitted(
        study, targets, aligner, private=True, private_rank=8, private_start="zero", linear_rank=1024, training=still
    )
    whole = zero.predict(responses, "sub-01")
    with zero.commonality():
        np.testing.assert_allclose(whole, zero.predict(responses, "sub-01"), atol=1e-4)


def test_without_validation_both_stages_have_their_logs(
    study: Study, targets: Targets, aligner: Aligner, tmp_path: Path
) -> None:
    decoder = fitted(study, targets, aligner, tmp_path, training={"validation_fraction": 0.0})
    for folder in (tmp_path, tmp_path / "stage2"):
        assert '"step": ' in (folder / "log.jsonl").read_text()
    found = Decoder.load(tmp_path / "decoder")
    assert same(decoder, found)


def test_training_once_more_keeps_what_is_not_named_of_a_stage(study: Study, targets: Targets, whole) -> None:
    decoder, _ = whole
    again = fit_alike(decoder, study, targets, progress=False, training={"stage2": {"epochs": 1}})
    before = decoder.provenance["stage2"]["training"]
    assert again.provenance["stage2"]["training"] == {**before, "epochs": 1}
    assert before["learning_rate"] == TRAINING["stage2"]["learning_rate"]
    assert again.provenance["training"] == decoder.provenance["training"]


def test_a_collapse_in_training_is_warned_of_by_name(
    study: Study, targets: Targets, aligner: Aligner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attach = WillsAligner._attach

    def one_sided(decoder: WillsAligner, *words: Any) -> None:
        attach(decoder, *words)
        with torch.no_grad():
            decoder.router.constant[0] += 50.0

    monkeypatch.setattr(WillsAligner, "_attach", one_sided)
    decoder = fitted(study, targets, aligner)
    assert "expert 0 has 100%" in decoder.provenance["experts"]["collapse"]
    assert "the experts of this wills-aligner collapsed: expert 0 has 100%" in caplog.text
