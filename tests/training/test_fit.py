"""`fit` from study to decoder: what it may see, what it refuses, what it returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_study import QUICK, Tiny, tiny_study

from phosphene.encoders import Targets
from phosphene.errors import InputError, LeakageError
from phosphene.nn import LoRALinear, attach
from phosphene.training import TrainingError, fit
from phosphene.training.fit import choose_preset
from phosphene.training.log import read_log
from phosphene.training.loop import _Run
from phosphene.training.optimise import MovingAverage, adamw, decay_groups
from phosphene.training.settings import TrainingConfig


def quick(study, targets, out=None, seed=0, kind=None, subjects=None, settings=None, **training):
    training = {**QUICK, **training}
    return fit(
        "tiny", study, targets, out=out, seed=seed, kind=kind, subjects=subjects, training=training, **(settings or {})
    )


def two_way(decoder, study, targets, role="train"):
    from phosphene.training.validation import retrieval

    view, values = study.split(role), []
    for subject in view.subjects:
        ids, responses = view.averaged(subject)
        predicted = torch.from_numpy(decoder.predict(responses, subject)).flatten(1)
        true = torch.from_numpy(targets.of(ids, decoder.target_kind)).flatten(1)
        values.append(retrieval(predicted, true)["two-way"])
    return float(np.mean(values))


@pytest.mark.parametrize("contrastive", ["infonce", "softclip", "none"])
@pytest.mark.parametrize("repeats", ["single", "average"])
def test_it_learns_what_there_is_to_learn(contrastive, repeats):
    study, targets = tiny_study(n_stimuli=80, n_test=20, seed=1)
    for recording in study.recordings.values():  # make the test part readable, to score on it
        recording.responses[np.isnan(recording.responses)] = 0
    hidden, _ = tiny_study(n_stimuli=80, n_test=0, seed=1)
    decoder = quick(
        study, targets, epochs=25, contrastive=contrastive, repeats=repeats, mse_weight=0.5, cosine_weight=0.1
    )
    study = type(study)(study.stimuli, hidden.recordings, {"default": study.roles()}, scaling="none")
    # a linear map of 6 dimensions seen through noise: measured 0.95 to 0.99 over seeds; chance is 0.5
    assert two_way(decoder, study, targets, "test") > 0.9


def test_only_the_training_part_is_read(tiny):
    study, targets = tiny
    # responses to test stimuli are NaN: had anything of them entered, means or loss would be NaN as well
    decoder = quick(study, targets)
    assert all(torch.isfinite(tensor).all() for tensor in decoder.state_dict().values())
    assert decoder.provenance["n_training_stimuli"] == 30


def test_standardisers_come_from_the_rows_trained_on(tiny):
    study, targets = tiny
    decoder = quick(study, targets, validation_fraction=0.0)
    view = study.split("train")
    for number, subject in enumerate(view.subjects):
        responses = view.responses(subject).astype(np.float64)
        np.testing.assert_allclose(decoder.standardisers[number].mean, responses.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(decoder.standardisers[number].deviation, responses.std(0), rtol=1e-4)


def test_targets_fitted_on_other_stimuli_are_refused(tiny):
    study, targets = tiny
    leaky = Targets(targets.ids, None, targets.pooled, targets.encoder, fitted_on=["stim-001", "stim-020"])
    with pytest.raises(LeakageError, match=r"1 stimuli outside of the training part .* such as stim-001"):
        quick(study, leaky)
    quick(study, Targets(targets.ids, None, targets.pooled, targets.encoder, fitted_on=["stim-020"]), epochs=1)


def test_stimuli_without_targets_are_named(tiny):
    study, targets = tiny
    with pytest.raises(InputError, match=r"stimuli have no targets .* such as stim-035"):
        quick(study, targets.select(targets.ids[:35]))
    # those of the test part need none
    quick(study, targets.select(targets.ids[10:]), epochs=1)


def test_unknown_names_are_refused(tiny):
    study, targets = tiny
    with pytest.raises(InputError, match="unknown decoder 'tinny'; did you mean 'tiny'"):
        fit("tinny", study, targets)
    with pytest.raises(InputError, match="unknown kind of targets 'patches'"):
        quick(study, targets, kind="patches")
    with pytest.raises(InputError, match="did you mean 'dropout'"):
        quick(study, targets, settings={"dropuot": 0.1})
    with pytest.raises(InputError, match="did you mean 'sub-01'"):
        quick(study, targets, subjects=["sub-1"])
    with pytest.raises(InputError, match="label column 'action'"):
        quick(study, targets, validation_unit="action")
    with pytest.raises(InputError, match="unknown preset of tiny 'large'"):
        fit("tiny", study, targets, preset="large")


def test_tokens_pooled_and_people(tiny):
    study, targets = tiny
    tokens = quick(study, targets, kind="tokens", subjects=["sub-02"])
    assert tokens.target_kind == "tokens"
    assert tokens.target_shape == (2, 3)
    assert list(tokens.subjects) == ["sub-02"]
    pooled = quick(study, targets)
    assert pooled.target_shape == (6,)
    assert not pooled.training
    assert pooled.encoder is targets.encoder


def test_pooled_people_share_one_input():
    study, targets = tiny_study(voxels=(12, 12))
    decoder = quick(study, targets, settings={"pool_subjects": True})
    assert decoder.subject_free
    assert len(decoder.inputs) == 1
    assert decoder.predict(study.split("train").responses("sub-01")[:2], None).shape == (2, 6)


def test_validation_units_are_kept_whole(tiny, monkeypatch):
    study, targets = tiny
    seen = {}

    def spy(decoder, objective, people, rows, temperature, device):
        seen["ids"] = rows.ids
        return {"loss": 1.0, "top-1": 0.5, "two-way": 0.5}

    monkeypatch.setattr("phosphene.training.loop.validate", spy)
    quick(study, targets, validation_unit="group", validation_fraction=0.25)
    view = study.split("train")
    group = dict(zip(view.stimulus_ids, view.stimuli.labels["group"], strict=True))
    aside = {group[name] for name in seen["ids"]}
    assert len(aside) == 2
    assert set(seen["ids"]) == {name for name in view.stimulus_ids if group[name] in aside}


def test_the_best_weights_are_returned_and_patience_stops(tiny, tmp_path, monkeypatch):
    study, targets = tiny
    scores = iter([0.5, 0.7, 0.6, 0.6, 0.9])
    weights = []

    def scripted(decoder, *rest):
        weights.append({name: tensor.clone() for name, tensor in decoder.state_dict().items()})
        return {"loss": 1.0, "top-1": 0.5, "two-way": next(scores)}

    monkeypatch.setattr("phosphene.training.loop.validate", scripted)
    decoder = quick(study, targets, out=tmp_path, epochs=10, patience=2)
    assert len(weights) == 4
    assert decoder.provenance["best_epoch"] == 2
    assert decoder.provenance["validation_best"] == 0.7
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in decoder.state_dict().items())
    epochs = [line for line in read_log(tmp_path / "log.jsonl") if line["event"] == "epoch"]
    assert [line["validation"]["two-way"] for line in epochs] == [0.5, 0.7, 0.6, 0.6]


def test_a_loss_is_better_when_it_is_lower(tiny, monkeypatch):
    scores = iter([3.0, 1.0, 2.0, 2.5])
    fake = lambda *a: {"loss": next(scores), "top-1": 0.0, "two-way": 0.0}  # noqa: E731
    monkeypatch.setattr("phosphene.training.loop.validate", fake)
    assert quick(*tiny, monitor="loss").provenance["best_epoch"] == 2


def test_a_warm_start_sees_no_validation_stimulus_and_is_kept_when_training_makes_it_worse(tiny, monkeypatch):
    study, targets = tiny
    started, validated = [], []

    def warm_start(self, view, targets, kind, progress, stage):
        started.append(view)
        with torch.no_grad():
            self.output.bias.fill_(7.0)
        return True

    def scripted(decoder, objective, people, rows, temperature, device):
        validated.append(rows.ids)
        return {"loss": 1.0, "top-1": 0.5, "two-way": 0.9 if len(validated) == 1 else 0.6}

    monkeypatch.setattr(Tiny, "warm_start", warm_start)
    monkeypatch.setattr("phosphene.training.loop.validate", scripted)
    decoder = quick(study, targets)
    assert decoder.provenance["best_epoch"] == 0
    assert [record["epoch"] for record in decoder.provenance["curves"]] == [0, 1, 2, 3, 4]
    assert (decoder.output.bias == 7.0).all()
    both = [*started[0].stimulus_ids, *validated[0]]
    assert sorted(both) == sorted(study.split("train").stimulus_ids)


def test_clipping_bounds_the_gradient_that_is_applied(tiny, tmp_path, monkeypatch):
    norms, clip = [], _Run._clip

    def spy(self):
        before = clip(self)
        gradients = [parameter.grad for parameter in self.plain.parameters()]
        norms.append((before, float(torch.stack([gradient.norm() for gradient in gradients]).norm())))
        return before

    monkeypatch.setattr(_Run, "_clip", spy)
    quick(*tiny, gradient_clip=0.05)
    assert all(after <= 0.05 * (1 + 1e-4) for _, after in norms)
    assert max(before for before, _ in norms) > 0.5
    norms.clear()
    quick(*tiny, gradient_clip=0.0)
    assert all(after == pytest.approx(before, rel=1e-5) for before, after in norms)
    assert max(after for _, after in norms) > 0.5


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(tiny, tmp_path, monkeypatch):
    study, targets = tiny
    decode, calls = Tiny._decode, 0

    def exploding(self, responses, subject):
        nonlocal calls
        calls += self.training
        return decode(self, responses, subject) * (torch.nan if calls > 20 else 1.0)

    monkeypatch.setattr(Tiny, "_decode", exploding)
    with pytest.raises(TrainingError, match=r"the loss became nan in step 11 of 28 .*after step 7 are in .*checkpo"):
        quick(study, targets, out=tmp_path)
    from phosphene.training.checkpoint import load_checkpoint

    tensors, state = load_checkpoint(tmp_path / "checkpoints" / "last.safetensors")
    assert state["step"] == 7
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_after_a_loss_that_is_not_finite_the_rate_may_be_lowered(tiny, tmp_path, monkeypatch):
    study, targets = tiny
    decode, step = Tiny._decode, _Run.step

    def exploding(self, batch):
        if self.progress.step == 10 and self.config.learning_rate > 0.005:
            raise self._not_finite("the loss", torch.nan)
        return step(self, batch)

    monkeypatch.setattr(_Run, "step", exploding)
    for _ in range(2):  # the same call meets the same number
        with pytest.raises(TrainingError, match=r"lower training\.learning_rate .* with the same run folder"):
            quick(study, targets, out=tmp_path)
    with pytest.raises(InputError, match=r"training\.epochs was 4, is now 5; training\.learning_rate was"):
        quick(study, targets, out=tmp_path, learning_rate=1e-3, epochs=5)
    decoder = quick(study, targets, out=tmp_path, learning_rate=1e-3)
    why = "the loss became nan in step 11 of 28"
    change = {"step": 10, "what": why, "changed": {"training.learning_rate": [0.01, 1e-3]}}
    assert decoder.provenance["changes"] == [change]
    assert decoder.provenance["training"]["learning_rate"] == 1e-3
    assert {"event": "change", **change} in read_log(tmp_path / "log.jsonl")
    with pytest.raises(InputError, match=r"training\.learning_rate was 0\.001, is now 0\.01"):
        quick(study, targets, out=tmp_path)
    monkeypatch.setattr(Tiny, "_decode", lambda self, responses, subject: decode(self, responses, subject) * torch.nan)
    with pytest.raises(TrainingError, match="with the same run folder, and the run starts over"):
        quick(study, targets, out=tmp_path / "at once")
    with pytest.raises(TrainingError, match="32-true'; or look for extreme responses"):
        quick(study, targets)


def test_moving_average_is_what_is_returned(tiny, monkeypatch):
    study, targets = tiny
    live, kept, step = [], {}, _Run.step

    def spy(self, batch):
        if not kept:
            kept.update({n: p.detach().clone() for n, p in self.plain.decoder.named_parameters()})
        value = step(self, batch)
        live.append({name: p.detach().clone() for name, p in self.plain.decoder.named_parameters()})
        return value

    monkeypatch.setattr(_Run, "step", spy)
    decoder = quick(study, targets, ema=0.8, validation_fraction=0.0)
    for name, parameter in decoder.named_parameters():
        expected = kept[name]
        for count, state in enumerate(live, start=1):
            decay = min(0.8, (1 + count) / (10 + count))
            expected = decay * expected + (1 - decay) * state[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)
        assert not torch.equal(parameter, live[-1][name])


def test_moving_average_swaps_back():
    module = torch.nn.Linear(2, 2)
    average = MovingAverage(module, 0.9)
    with torch.no_grad():
        module.weight += 1
    average.update()
    before, held = module.weight.detach().clone(), average.averages["weight"].clone()
    average.swap()
    assert torch.equal(module.weight, held)
    average.swap()
    assert torch.equal(module.weight, before)


def test_weight_decay_spares_biases_and_norms(tiny):
    decoder = Tiny(Tiny.Config(), {"a": 5}, (4,))
    decayed, spared = decay_groups(decoder)
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    assert {names[id(p)] for p in decayed} == {"inputs.0.weight", "output.weight"}
    assert {names[id(p)] for p in spared} == {"inputs.0.bias", "output.bias", "norm.weight", "norm.bias"}


def test_temperature_is_learned_and_kept_in_range(tiny, tmp_path):
    quick(*tiny, out=tmp_path, learn_temperature=True, temperature=0.5, log_steps=1)
    course = [line["temperature"] for line in read_log(tmp_path / "log.jsonl") if line["event"] == "step"]
    assert course[0] != course[-1]
    assert all(1e-3 <= value <= 1 for value in course)


@pytest.mark.parametrize("training", [{"precision": "bf16-mixed"}, {"schedule": "one-cycle"}, {"mixing_fraction": 1.0}])
def test_options_train(tiny, training):
    study, targets = tiny
    decoder = quick(study, targets, epochs=20, **training)
    assert decoder.output.weight.dtype == torch.float32
    assert two_way(decoder, study, targets) > 0.85


def test_compiled_training_gives_the_same_decoder(tiny, monkeypatch):
    study, targets = tiny
    plain, compiled, compile_ = quick(study, targets, epochs=1), [], torch.compile

    def traced(module):  # the tracer without the C++ compiler behind it, which takes a minute
        compiled.append(module)
        return compile_(module, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    decoder = quick(study, targets, epochs=1, compile=True)
    assert compiled == [decoder]
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(decoder.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_closed_form_decoders_are_solved_and_saved(tiny, tmp_path):
    study, targets = tiny
    ridge = fit("ridge", study, targets, out=tmp_path)
    assert two_way(ridge, study, targets) > 0.9
    again = fit("ridge", study, targets, out=tmp_path)
    view = study.split("train")
    responses = view.responses("sub-01")[:3]
    np.testing.assert_array_equal(ridge.predict(responses, "sub-01"), again.predict(responses, "sub-01"))
    assert ridge.provenance["study_digest"] == study.digest
    with pytest.raises(InputError, match="no training settings"):
        fit("ridge", study, targets, training={"epochs": 3})


def test_preset_follows_the_size_of_the_data(tiny):
    study, targets = tiny
    view = study.split("train")
    assert choose_preset("tiny", view, targets) is None
    assert choose_preset("ridge", view, targets) == "default"
    assert choose_preset("lite-mind", view, targets) == "tiny"
    assert choose_preset("mindeye-mlp", view, targets) == "small", "it has no preset for so few stimuli"

    class Large:
        kinds = ("tokens", "pooled")

        @staticmethod
        def shape(kind):
            return (257, 768)

    class Many:
        subjects: tuple[str, ...] = ("sub-01",)
        stimulus_ids = range(8_859)

        @staticmethod
        def n_trials(subject):
            return 24_980

    assert choose_preset("lite-mind", Many, Large) == "nsd"
    assert choose_preset("lite-mind", view, Large) == "tiny"


def test_global_random_state_is_left_alone(tiny):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    quick(*tiny, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_no_output_without_a_terminal(tiny, capfd):
    quick(*tiny, epochs=1)
    assert capfd.readouterr() == ("", "")


def test_stimuli_without_targets_leave_no_run_folder(tiny, tmp_path):
    study, targets = tiny
    few = targets.select(targets.ids[:3])
    for name in ("ridge", "tiny"):
        with pytest.raises(InputError, match="have no targets"):
            fit(name, study, few, out=tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_on_an_input_layer_learns_like_all_adapters():
    """`input_rate` is for wide layers that start in closed form; experts on them would hardly move."""
    decoder = Tiny(Tiny.Config(), {"sub-01": 12, "sub-02": 9}, (6,))
    attach(decoder, ["inputs.*"], lambda name, linear: LoRALinear(linear, rank=2))
    decoder.requires_grad_(True)
    optimizer = adamw(decoder, TrainingConfig(input_rate=0.03))
    share = {id(each): group["share"] for group in optimizer.param_groups for each in group["params"]}
    found = {name: share[id(each)] for name, each in decoder.named_parameters()}
    assert found["inputs.0.weight"] == found["inputs.1.bias"] == 0.03
    assert found["inputs.0.parts.lora.a"] == found["output.weight"] == 1.0
