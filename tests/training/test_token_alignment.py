"""MLIP's perspectives on predicted tokens: exactness, gradients, what weight zero and missing tokens do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_losses import slow_weighted
from tiny_study import QUICK, tiny_study
from torch.nn import functional

from phosphene.encoders import Targets
from phosphene.errors import InputError
from phosphene.nn.spectral import FourierAxis
from phosphene.training import fit
from phosphene.training import token_alignment as home
from phosphene.training.data import StepBatch
from phosphene.training.losses import infonce
from phosphene.training.objective import Objective, Outputs
from phosphene.training.settings import TrainingConfig
from phosphene.training.token_alignment import equalised

PARTS = ["token", "frequency", "frequency_token"]
TOKENS, WIDTH = 6, 4


def batch(mixed=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randn(7, TOKENS * WIDTH, generator=generator, requires_grad=True)
    targets = torch.randn(4, TOKENS * WIDTH, generator=generator)
    stimulus = torch.arange(7) % 4
    partner, share = stimulus.roll(1), torch.rand(7, generator=generator)
    made = StepBatch([], targets, stimulus, partner if mixed else None, share if mixed else None, (7,))
    weights = functional.one_hot(stimulus, 4).float()
    if mixed:
        weights = share[:, None] * weights + (1 - share[:, None]) * functional.one_hot(partner, 4)
    return predictions, made, weights


def config(**values):
    return TrainingConfig.build({"contrastive": "none", "temperature": 0.2, **values})


def naive_equalised(tokens):
    spectrum = torch.fft.rfft(tokens, dim=1, norm="ortho")
    power = spectrum.abs().square().sum(dim=2, keepdim=True)
    spectrum = spectrum / (power + 1e-4 * power.mean(dim=1, keepdim=True)).sqrt()
    return torch.fft.irfft(spectrum, n=tokens.shape[1], dim=1, norm="ortho")


def naive_scores(part, found, true):
    """Similarities of all pairs in both directions, pair by pair."""
    if part != "token":
        found, true = naive_equalised(found), naive_equalised(true)
    if part == "frequency":
        similar = functional.cosine_similarity(found.flatten(1)[:, None], true.flatten(1)[None], dim=2)
        return similar, similar
    similar = torch.stack(
        [torch.stack([functional.normalize(p, dim=1) @ functional.normalize(t, dim=1).T for t in true]) for p in found]
    )
    return similar.amax(dim=3).mean(dim=2), similar.amax(dim=2).mean(dim=2)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_parts_match_the_naive_form(part, mixed):
    predictions, made, weights = batch(mixed)
    objective = Objective(config(cosine_weight=0.5, **{f"{part}_weight": 0.5}), target_shape=(TOKENS, WIDTH))
    total, parts = objective(Outputs(predictions, predictions), made, 0.2)
    assert list(parts) == ["cosine", part]
    found, true = predictions.unflatten(1, (TOKENS, WIDTH)), made.targets.unflatten(1, (TOKENS, WIDTH))
    to_image, to_brain = naive_scores(part, found, true)
    # the slow loop takes one matrix for both directions: half of each
    expected = _half(to_image, weights, rows=True) + _half(to_brain, weights, rows=False)
    assert float(parts[part]) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(total.detach(), 0.5 * parts[part] + 0.5 * parts["cosine"])
    cosine = Objective(config(cosine_weight=0.5))(Outputs(predictions, predictions), made, 0.2)[0]
    (gradient,) = torch.autograd.grad(total - cosine, predictions)
    (slow,) = torch.autograd.grad(0.5 * _fast(to_image, to_brain, weights), predictions)
    torch.testing.assert_close(gradient, slow, rtol=1e-3, atol=1e-5)


def _half(similar, weights, rows):
    """One direction of the slow loop, by taking the other direction out of it."""
    s = similar.detach() / 0.2
    both = float(slow_weighted(s, weights))
    to_image = -float((weights * s.log_softmax(dim=1)).sum()) / (2 * len(s))
    return to_image if rows else both - to_image


def _fast(to_image, to_brain, weights):
    positive = weights > 0
    first = (weights * (to_image / 0.2).log_softmax(dim=1)).sum()
    total = first
    for i, u in positive.nonzero().tolist():
        column = torch.cat([to_brain[i : i + 1, u], to_brain[~positive[:, u], u]]) / 0.2
        total = total + weights[i, u] * column.log_softmax(dim=0)[0]
    return -total / (2 * len(to_image))


def test_equalised_gives_every_frequency_the_same_energy():
    generator = torch.Generator().manual_seed(0)
    for length in (5, 6):
        tokens = torch.randn(3, length, 4, generator=generator) + 10
        found = equalised(tokens, FourierAxis(length))
        torch.testing.assert_close(found, naive_equalised(tokens), rtol=1e-4, atol=1e-5)
        power = torch.fft.rfft(found, dim=1, norm="ortho").abs().square().sum(dim=2)
        assert power[:, 0].min() > 0.999
        assert power[:, 1:].min() > 0.5
        assert power.max() <= 1.0001
    flat = torch.ones(1, 6, 4, requires_grad=True)
    equalised(flat, FourierAxis(6)).square().sum().backward()
    assert torch.isfinite(flat.grad).all()
    assert equalised(torch.zeros(1, 6, 4), FourierAxis(6)).abs().max() == 0


def test_the_frequency_domain_sees_what_a_large_common_part_hides():
    """Targets that share nearly all energy and differ in a quick change: told apart there, not by plain cosines."""
    generator = torch.Generator().manual_seed(1)
    common, quick = torch.randn(1, 1, 8, generator=generator), torch.randn(5, 1, 8, generator=generator)
    sign = torch.tensor([1.0, -1.0]).repeat(4)[None, :, None]
    targets = (10 * common + 0.3 * sign * quick).flatten(1)
    made = StepBatch([], targets, torch.arange(5), None, None, (5,))
    objective = Objective(config(frequency_weight=1.0), target_shape=(8, 8))
    right = float(objective(Outputs(targets, targets), made, 0.2)[0])
    assert right < 0.5 * float(infonce(targets, targets, torch.arange(5), 0.2))


def test_weight_zero_computes_nothing_and_changes_nothing(monkeypatch):
    def fail(*arguments):
        raise AssertionError("computed")

    monkeypatch.setattr(home, "late_interaction", fail)
    monkeypatch.setattr(home, "equalised", fail)
    predictions, made, _ = batch()
    plain = Objective(TrainingConfig())
    zero = Objective(TrainingConfig.build({f"{part}_weight": 0.0 for part in PARTS}), target_shape=(TOKENS, WIDTH))
    assert list(zero.state_dict()) == list(plain.state_dict()) == []
    one, other = plain(Outputs(predictions, predictions), made, 0.1), zero(Outputs(predictions, predictions), made, 0.1)
    assert torch.equal(one[0], other[0])
    assert list(other[1]) == ["contrastive"]
    with pytest.raises(AssertionError, match="computed"):
        Objective(TrainingConfig(token_weight=1.0), target_shape=(TOKENS, WIDTH))(
            Outputs(predictions, predictions), made, 0.1
        )


def token_study():
    study, targets = tiny_study(width=12)
    pooled = np.asarray(targets.pooled)
    return study, Targets(targets.ids, pooled.reshape(len(pooled), 4, 3), pooled, targets.encoder)


def steps_of(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


@pytest.mark.parametrize("part", PARTS)
def test_a_decoder_learns_from_each_part(part, tmp_path):
    study, targets = token_study()
    training = {**QUICK, "epochs": 12, "mse_weight": 0.1, "validation_fraction": 0.3, "log_steps": 1}
    for name, weight in (("without", 0.0), ("with", 1.0)):
        options = {**training, f"{part}_weight": weight}
        decoder = fit("tiny", study, targets, kind="tokens", training=options, progress=False, out=tmp_path / name)
    assert decoder.provenance["curves"][-1]["validation"]["two-way"] > 0.7
    values = [step[part] for step in steps_of(tmp_path / "with")]
    assert np.mean(values[-4:]) < 0.6 * np.mean(values[:4])
    errors = [np.mean([step["mse"] for step in steps_of(tmp_path / name)[-4:]]) for name in ("without", "with")]
    assert errors[0] != errors[1]


def test_parts_and_temperature_are_logged_and_learned(tmp_path):
    study, targets = token_study()
    training = {**QUICK, "epochs": 1, "token_weight": 0.5, "frequency_weight": 0.5, "frequency_token_weight": 0.5}
    training |= {"contrastive": "softclip", "learn_temperature": True, "mixing_fraction": 0.5, "log_steps": 1}
    fit("tiny", study, targets, kind="tokens", training=training, progress=False, out=tmp_path / "run")
    steps = steps_of(tmp_path / "run")
    assert {"contrastive", "token", "frequency", "frequency_token", "temperature"} <= steps[0].keys()
    assert steps[-1]["temperature"] != steps[0]["temperature"]


def test_targets_without_tokens_are_refused_before_anything_is_written(tmp_path):
    study, targets = token_study()
    for part in PARTS:
        with pytest.raises(InputError, match=rf"training.{part}_weight above 0.*\(12,\).*kind='tokens'"):
            fit("tiny", study, targets, kind="pooled", training={f"{part}_weight": 1.0}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    study, two = tiny_study()
    with pytest.raises(InputError, match=r"frequency_weight above 0: the frequency domain needs at least 3 tokens.*2"):
        fit("tiny", study, two, kind="tokens", training={"frequency_weight": 1.0})
    with pytest.raises(InputError, match="frequency_token_weight"):
        Objective(TrainingConfig(frequency_token_weight=1.0))


def test_settings_ask_for_a_part_that_knows_the_order_of_tokens():
    assert config(token_weight=1.0, cosine_weight=0.1).contrasts
    assert config(frequency_weight=1.0, learn_temperature=True).alignment == {"frequency": 1.0}
    for part in ("token", "frequency_token"):
        with pytest.raises(InputError, match="leave the order of tokens open"):
            config(**{f"{part}_weight": 1.0})
    with pytest.raises(InputError, match="learn_temperature needs a contrastive part"):
        config(mse_weight=1.0, learn_temperature=True)
    with pytest.raises(InputError, match="contrastive = 'none' needs mse_weight"):
        config()


def test_late_interaction_leaves_the_order_of_tokens_open():
    predictions, made, _ = batch()
    shuffled = predictions.unflatten(1, (TOKENS, WIDTH))[:, torch.randperm(TOKENS)].flatten(1)
    objective = Objective(config(token_weight=1.0, cosine_weight=1.0), target_shape=(TOKENS, WIDTH))
    before, after = (objective(Outputs(one, one), made, 0.2)[1] for one in (predictions, shuffled))
    torch.testing.assert_close(before["token"], after["token"])
    assert before["cosine"] != after["cosine"]
