"""A new person: what is trained, what is not, where it is kept, and what is refused."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from tiny_study import tiny_study

from phosphene.decoders import Decoder, make_decoder
from phosphene.decoders.adaptable import settings_of_arm
from phosphene.encoders import Targets, make_encoder
from phosphene.errors import InputError, LeakageError
from phosphene.nn.freezing import adapter_names, state_digest
from phosphene.recordings import Recording, Study
from phosphene.training import ARMS, adapt, arms, fit
from phosphene.training.adapt import parameter_table
from phosphene.training.checkpoint import load_checkpoint
from phosphene.training.loop import _Run
from phosphene.training.validation import retrieval

SIZES = {"n_stimuli": 150, "repeats": 2, "voxels": (24, 20, 22), "width": 8, "noise": 1.0, "sessions": 5}
NEW = "sub-03"
QUICK = {"epochs": 3, "batch_size": 32, "accelerator": "cpu", "checkpoint_steps": 1}
WORDS = {"sessions": 1, "training": QUICK}
SMALL = {"width": 16, "blocks": 2, "projector": 8, "start_rank": 8, "dropout": 0.1}


@pytest.fixture(scope="module")
def study():
    """Three people, z-scored by session; all that must not be read is NaN: test trials, later sessions of sub-03."""
    made, _ = tiny_study(n_test=50, **SIZES)
    recordings = dict(made.recordings)
    last = recordings[NEW]
    responses = np.array(last.responses)
    responses[last.trials["session"] > 1] = np.nan
    recordings[NEW] = Recording(NEW, responses, last.trials, last.voxels)
    return Study(made.stimuli, recordings, {"default": made.roles()}, scaling="session")


@pytest.fixture(scope="module")
def targets():
    return tiny_study(n_test=50, **SIZES)[1]


def pretrained(study, targets, **words):
    training = {"epochs": 3, "batch_size": 64, "accelerator": "cpu", "mse_weight": 1.0}
    people = ["sub-01", "sub-02"]
    return fit("mindtuner", study, targets, subjects=people, training=training, progress=False, **SMALL, **words)


@pytest.fixture(scope="module")
def base(study, targets):
    """Pre-trained on two people."""
    return pretrained(study, targets)


@pytest.fixture(scope="module")
def held_out():
    whole, targets = tiny_study(n_test=0, **SIZES)
    ids = whole.stimuli.ids[:50]
    found = {}
    for name, recording in whole.recordings.items():
        shown = np.isin(recording.trials["stimulus_id"], ids)
        x = np.array(recording.responses)[shown]
        found[name] = ((x - x.mean(axis=0)) / x.std(axis=0), recording.trials["stimulus_id"][shown])
    return found, targets


def run(base, study, targets, arm="both", **words):
    small = {name: 2 for name in ("rank", "skip_rank") if name in settings_of_arm(arm)}
    return adapt(base, study, targets, NEW, arm=arm, progress=False, **{**WORDS, **small, **words})


def same(one, two):
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(each, second[name]) for name, each in first.items())


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_what_it_says_and_decodes(arm, base, study, targets, held_out):
    before = copy.deepcopy(base.state_dict())
    adapted = run(base, study, targets, arm)
    assert all(torch.equal(each, before[name]) for name, each in base.state_dict().items())
    x, shown = held_out[0][NEW]
    predicted = torch.from_numpy(adapted.predict(x, NEW))
    assert retrieval(predicted, torch.from_numpy(held_out[1].of(shown)))["two-way"] > 0.7
    alone = arm in ("full", "from-scratch")
    facts = adapted.provenance if alone else adapted.apart[NEW]
    trained = facts["trained"]
    assert trained["own"] == 22 * 16 + 16
    assert (trained["base"] > 0) == alone
    assert (trained["adapters"] > 0) == (arm in ("lora", "skip-lora", "both"))
    assert trained["shared"] == sum(p.numel() for n, p in base.named_parameters() if not n.startswith("inputs"))
    assert 0 < facts["start_seconds"] < facts["seconds"]
    assert f"{trained['own']:,}" in parameter_table(facts)
    if alone:
        assert list(adapted.subjects) == [NEW]
        return
    # the others: their weights, and with them their predictions, to the bit
    state = adapted.state_dict()
    assert all(torch.equal(state[name], each) for name, each in before.items())
    for subject in ("sub-01", "sub-02"):
        responses = held_out[0][subject][0]
        np.testing.assert_array_equal(adapted.predict(responses, subject), base.predict(responses, subject))


def test_adapters_moved_and_decorrelation_is_part_of_the_loss(base, study, targets, tmp_path):
    training = {**QUICK, "log_steps": 1, "validation_fraction": 0.0, "patience": 0}
    adapted = run(base, study, targets, training=training, out=tmp_path)
    mine = {n: t for n, t in adapted.state_dict().items() if adapter_names(adapted).get(n, ("",))[0] == NEW}
    assert len(mine) == 2 * (8 + 3)
    assert all(bool((each != 0).any()) for each in mine.values())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = [line["decorrelation"] for line in lines if line["event"] == "step"]
    assert found[0] == 0 < found[-1]


def test_the_validation_part_lies_inside_the_scarce_data(base, study, targets, monkeypatch):
    asked = []

    def noted(self, samples):
        asked.append((self.view.n_trials(self.subject), samples))
        return read(self, samples)

    from phosphene.training.data import PersonSamples

    read = PersonSamples.read
    monkeypatch.setattr(PersonSamples, "read", noted)
    adapted = run(base, study, targets)
    facts = adapted.apart[NEW]
    assert facts["sessions"] == [1]
    assert facts["validation_best"] is not None
    sizes = {size for size, _ in asked}
    assert len(sizes) == 2
    assert sum(sizes) == facts["n_trials"]
    assert set(facts["training_content"]) <= set(study.split("train").stimulus_ids)


@pytest.mark.parametrize("arm", ["both", "full"])
def test_the_base_given_is_not_modified_and_not_copied(arm, base, study, targets, tmp_path):
    given = copy.deepcopy(base).train()
    for each in given.inputs.parameters():
        each.requires_grad_(False)
    flags = {name: each.requires_grad for name, each in given.named_parameters()}
    before, provenance = state_digest(given), copy.deepcopy(given.provenance)
    training = {**QUICK, "ema": 0.9, "weight_decay": 0.5}
    adapted = run(given, study, targets, arm, out=tmp_path, training=training)
    assert state_digest(given) == before
    assert {name: each.requires_grad for name, each in given.named_parameters()} == flags
    assert all(module.training for module in given.modules())
    assert not any(module.training for module in adapted.modules())
    assert (list(given.subjects), given.apart, given.provenance) == (["sub-01", "sub-02"], {}, provenance)
    if arm == "both":
        known = adapted.state_dict()
        assert all(each.data_ptr() == known[name].data_ptr() for name, each in given.state_dict().items())
    assert adapted.encoder is given.encoder


def test_the_other_peoples_layers_are_not_in_its_checkpoints(base, study, targets, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    adapted = run(base, study, targets, out=tmp_path)
    kept, _ = load_checkpoint(tmp_path / "checkpoints" / "last.safetensors")
    assert {name.split("inputs.")[1][0] for name in kept if "inputs." in name} == {"2"}
    assert {name.split("standardisers.")[1][0] for name in kept if "standardisers." in name} == {"2"}
    assert [type(each) for each in adapted.inputs] == [torch.nn.Linear] * 3


def test_a_finished_run_is_not_read_back_for_a_base_of_other_people(base, study, targets, tmp_path):
    run(base, study, targets, out=tmp_path)
    grown = copy.deepcopy(base)
    grown.adopt("sub-09", 30)
    with pytest.raises(
        InputError, match=r"a decoder of sub-01, sub-02, sub-03, but the base now knows .*sub-09: name an"
    ):
        run(grown, study, targets, out=tmp_path)


def test_one_seed_one_result(base, study, targets):
    first = run(base, study, targets)
    assert same(first, run(base, study, targets))
    assert not same(first, run(base, study, targets, seed=1))


def test_an_interrupted_pretraining_goes_on_to_the_same_bits(base, study, targets, tmp_path, monkeypatch):
    step = _Run.step

    def failing(self, batch):
        if self.progress.step == 2 * self.loader.sampler.steps_per_epoch:
            raise MemoryError
        return step(self, batch)

    monkeypatch.setattr(_Run, "step", failing)
    with pytest.raises(MemoryError):
        pretrained(study, targets, out=tmp_path)
    monkeypatch.setattr(_Run, "step", step)
    resumed = pretrained(study, targets, out=tmp_path)
    assert same(base, resumed)
    assert same(base, Decoder.load(tmp_path / "decoder"))


@pytest.mark.parametrize("arm", ["both", "full", "from-scratch"])
def test_an_interrupted_adaptation_goes_on_to_the_same_bits(arm, base, study, targets, tmp_path, monkeypatch):
    whole, step, taken = run(base, study, targets, arm), _Run.step, 0

    def failing(self, batch):
        nonlocal taken
        taken += 1
        if taken == 5:
            raise MemoryError
        return step(self, batch)

    monkeypatch.setattr(_Run, "step", failing)
    with pytest.raises(MemoryError):
        run(base, study, targets, arm, out=tmp_path)
    monkeypatch.setattr(_Run, "step", step)
    assert same(whole, run(base, study, targets, arm, out=tmp_path))
    assert not (tmp_path / "checkpoints").exists()
    monkeypatch.setattr(_Run, "step", None)
    assert same(whole, run(base, study, targets, arm, out=tmp_path))
    assert same(whole, Decoder.load(tmp_path / "decoder"))
    with pytest.raises(InputError, match="seed was 0, is now 2"):
        run(base, study, targets, arm, out=tmp_path, seed=2)


def test_in_a_decoder_folder_one_person_is_added_and_no_file_changed(base, study, targets, tmp_path, monkeypatch):
    folder = base.save(tmp_path / "decoder")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    adapted = run(folder, study, targets)
    assert all(path.read_bytes() == content for path, content in before.items())
    new = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        str(path.relative_to(folder)) for path in before
    }
    place = f"people/{NEW}"
    files = ("adapter/adapter.safetensors", "adapter/config.json", "adapter/voxels.tsv", "config.json", "log.jsonl")
    assert new == {f"{place}/{name}" for name in files}
    assert (folder / place / "adapter/adapter.safetensors").stat().st_size < 20_000
    everybody = Decoder.load(folder)
    assert same(adapted, everybody)
    assert everybody.apart[NEW]["trained"] == adapted.apart[NEW]["trained"]
    monkeypatch.setattr(_Run, "step", None)  # finished: read back
    assert same(adapted, run(folder, study, targets))
    with pytest.raises(InputError, match="arm was 'both', is now 'lora'"):
        run(folder, study, targets, "lora")
    with pytest.raises(InputError, match=r"model of sub-03 alone.*name a run folder"):
        run(folder, study, targets, "full")


def test_the_decoder_remembers_what_new_people_were_trained_on(base, study, targets):
    fewer = copy.deepcopy(base)
    fewer.provenance["training_content"] = {"elsewhere": "x"}
    adapted = run(fewer, study, targets)
    assert set(adapted.apart[NEW]["training_content"]) | {"elsewhere"} == set(adapted.provenance["training_content"])
    assert fewer.provenance["training_content"] == {"elsewhere": "x"}
    quick = {**QUICK, "epochs": 1}
    own = set(adapted.apart[NEW]["training_content"])
    full = run(fewer, study, targets, "full", training=quick)
    assert set(full.provenance["training_content"]) == own | {"elsewhere"}
    assert set(run(fewer, study, targets, "from-scratch", training=quick).provenance["training_content"]) == own


def test_all_sessions_without_a_number(base, study, targets):
    with pytest.raises(InputError, match="sub-03 has 5 sessions; asked for the first 6"):
        run(base, study, targets, sessions=6)
    everything, _ = tiny_study(n_test=50, **SIZES)
    adapted = run(base, everything, targets, sessions=None, training={**QUICK, "epochs": 1})
    assert adapted.apart[NEW]["sessions"] == [1, 2, 3, 4, 5]
    assert adapted.apart[NEW]["n_trials"] == 200
    some = run(base, study, targets, sessions=0.5, training={**QUICK, "epochs": 1})
    assert 0 < some.apart[NEW]["n_trials"] < 30


def test_what_is_refused(base, study, targets):
    with pytest.raises(InputError, match=r"'sub-01' is in this mindtuner decoder already \(sub-01, sub-02\)"):
        adapt(base, study, targets, "sub-01")
    with pytest.raises(InputError, match="unknown subject of study 'study': 'sub-33'; did you mean 'sub-03'"):
        adapt(base, study, targets, "sub-33")
    with pytest.raises(InputError, match="unknown arm 'bothh'; did you mean 'both'"):
        run(base, study, targets, "bothh")
    with pytest.raises(InputError, match="unknown setting of AdapterConfig: 'ranks'; did you mean 'rank'"):
        run(base, study, targets, ranks=3)
    trials, voxels = study.recordings[NEW].trials.take([0, 1]), study.recordings[NEW].voxels
    silent = Recording(NEW, np.zeros((2, 22), "float32"), trials, voxels)
    shown = np.isin(study.stimuli.ids, trials["stimulus_id"])
    roles = {"train": study.stimuli.ids[~shown], "test": study.stimuli.ids[shown]}
    empty = Study(study.stimuli, [study.recordings["sub-01"], silent], {"default": roles})
    with pytest.raises(InputError, match="no trials in the training part of split 'default' in the first 1 session"):
        run(base, empty, targets)
    ridge = make_decoder("ridge", subjects={"sub-01": 24}, target_shape=(8,))
    with pytest.raises(InputError, match="ridge has no shared weights"):
        run(ridge, study, targets)
    other = Targets(targets.ids, None, targets.pooled, make_encoder("pixels"))
    with pytest.raises(InputError, match="this mindtuner decoder was made for"):
        run(base, study, other)
    leaky = Targets(targets.ids, targets.tokens, targets.pooled, targets.encoder, study.stimuli.ids)
    with pytest.raises(LeakageError, match="fitted on 50 stimuli outside"):
        run(base, study, leaky)


@pytest.mark.parametrize(
    ("arm", "words", "message"),
    [
        (
            "full",
            {"lora": ["out"]},
            r"lora = \['out'\] is a setting of the arms lora and both, found arm 'full', which has voxel",
        ),
        (
            "from-scratch",
            {"skip_rank": 3},
            "skip_rank = 3 is a setting of the arms skip-lora and both, found arm 'from-scr",
        ),
        ("ridge-only", {"rank": 3}, "rank = 3 is a setting of the arms lora and both, found arm 'ridge-only'"),
        (
            "lora",
            {"decorrelation": 0.5},
            "decorrelation = 0.5 is a setting .*which has voxel_dropout, lora, rank, alpha, dr",
        ),
        ("skip-lora", {"dropout": 0.1}, "dropout = 0.1 is a setting .*found arm 'skip-lora'"),
        ("both", {"training": {"class_weight": 1.0}}, "class_weight = 1 needs a decoder with a head for classes"),
    ],
    ids=str,
)
def test_settings_that_the_arm_has_no_use_for_are_refused(arm, words, message, base, study, targets, tmp_path):
    with pytest.raises(InputError, match=message):
        run(base, study, targets, arm, out=tmp_path / "run", **words)
    assert not (tmp_path / "run").exists()
    assert run(base, study, targets, arm, voxel_dropout=0.1, training={**QUICK, "epochs": 1}).voxel_dropout.p == 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"lora": ["nobody.*"]}, "no shared linear layer is named like 'nobody"),
        ({"training": {**QUICK, "validation_unit": "nobody"}}, "validation_unit: label column 'nobody'"),
    ],
    ids=str,
)
def test_what_is_refused_leaves_no_folder_that_refuses_other_settings(words, message, base, study, targets, tmp_path):
    place = base.save(tmp_path / "decoder")
    with pytest.raises(InputError, match=message):
        run(place, study, targets, **words)
    assert not (place / "people").exists()
    assert NEW in run(place, study, targets).subjects


def test_a_preset_may_hold_settings_of_single_arms(base, study, targets, monkeypatch):
    table = {"adapting": {**QUICK, "full": {"epochs": 1}}, "adapter": {"rank": 3, "lora": {"rank": 1}}}
    monkeypatch.setattr(arms, "load_preset", lambda *_: table)
    words = {"sessions": 1, "progress": False, "preset": "by-arm"}
    assert adapt(base, study, targets, NEW, arm="full", **words).provenance["training"]["epochs"] == 1
    lora = adapt(base, study, targets, NEW, arm="lora", **words).apart[NEW]
    assert (lora["training"]["epochs"], lora["adapter"]["rank"]) == (3, 1)
    table["adapting"]["fulll"] = {}
    with pytest.raises(InputError, match="unknown arm with settings of its own: 'fulll'; did you mean 'full'"):
        adapt(base, study, targets, NEW, arm="full", **words)


def test_input_layers_may_learn_at_a_rate_of_their_own(base, study, targets):
    training = {**QUICK, "validation_fraction": 0.0, "patience": 0, "monitor": "loss"}
    moved = {}
    for rate in (0.0, 0.1, 1.0, None):
        adapted = run(base, study, targets, training={**training, "input_rate": rate})
        moved[rate] = adapted.state_dict()["inputs.2.weight"]
        lora = adapted.state_dict()["out.parts.own.of_sub-03.b"]
        assert bool((lora != 0).any())
    start = moved[0.0]
    assert float((moved[0.1] - start).abs().mean()) < 0.3 * float((moved[1.0] - start).abs().mean())
    torch.testing.assert_close(moved[1.0], moved[None])
