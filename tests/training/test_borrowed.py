"""A new person's ridge layer that starts where other people's responses, brought through an aligner, say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phosphene.alignment import Aligner, make_aligner
from phosphene.decoders import Decoder
from phosphene.decoders.borrowed import Borrowed, borrow
from phosphene.decoders.ridge import RidgeConfig, fit_ridge
from phosphene.encoders import Targets
from phosphene.errors import InputError, LeakageError
from phosphene.recordings import Study
from phosphene.training import adapt, fit

OTHERS, NEW = ["sub-01", "sub-02"], "sub-03"
TRAINING: dict[str, Any] = {"epochs": 2, "batch_size": 48, "mse_weight": 1.0}
SIZES: dict[str, Any] = {"width": 24, "blocks": 1, "projector": 8, "start_rank": 12}


@pytest.fixture(scope="module")
def base(study: Study, targets: Targets) -> Decoder:
    return fit("mindtuner", study, targets, subjects=OTHERS, training=TRAINING, progress=False, **SIZES)


@pytest.fixture(scope="module")
def aligner(study: Study) -> Aligner:
    return make_aligner("anatomical").fit(study.split("train"))


@pytest.mark.parametrize("method", ["anatomical", "procrustes"])
def test_native_voxels_reach_the_scores_that_the_template_gives(study: Study, targets: Targets, method: str) -> None:
    train = study.split("train")
    own, aligner = train.subset([NEW]).first_sessions(2), make_aligner(method).fit(train)
    _, responses = own.averaged(NEW)
    mean, deviation = responses.mean(axis=0) + 0.1, 2 * responses.std(axis=0)
    scores = lambda ids: torch.from_numpy(targets.of(ids)[:, :5])  # noqa: E731
    standardiser = (torch.from_numpy(mean), torch.from_numpy(deviation))
    found = borrow(aligner, train.subset(OTHERS), own, NEW, standardiser, scores)
    x = torch.from_numpy((responses - mean) / deviation)
    said = x @ found.matrix + found.offset
    # the same way in two steps: rows in the template, and ridge there
    weight = _in_template(aligner, train, scores)
    there = torch.from_numpy(own.through(aligner).averaged(NEW)[1]).double()
    spread = there.std(dim=0)
    there = torch.where(spread > 0, (there - there.mean(dim=0)) / spread, 0.0)
    torch.testing.assert_close(said.double(), there @ weight[0] + weight[1], atol=2e-3, rtol=2e-3)
    assert said.std(dim=0).min() > 0


def _in_template(aligner: Aligner, train: Any, scores: Any) -> tuple[torch.Tensor, torch.Tensor]:
    rows, ids = [], []
    for person in OTHERS:
        names, responses = train.subset([person]).through(aligner).averaged(person)
        x = torch.from_numpy(responses).double()
        rows.append(torch.where(x.std(dim=0) > 0, (x - x.mean(dim=0)) / x.std(dim=0), 0.0))
        ids.append(names)
    names = np.concatenate(ids)
    weight, intercept, _ = fit_ridge(torch.cat(rows), scores(names).double(), names, RidgeConfig())
    return weight, intercept


def test_what_is_borrowed_helps_where_there_is_little_of_ones_own(
    study: Study, targets: Targets, base: Decoder, aligner: Aligner, tmp_path: Path
) -> None:
    words: dict[str, Any] = {"sessions": 0.5, "arm": "ridge-only", "progress": False}
    still = {"training": {"epochs": 1, "learning_rate": 1e-9, "batch_size": 16}}
    before = base.predict(study.split("test").averaged("sub-01")[1], "sub-01")
    alone = adapt(base, study, targets, NEW, **words, **still)
    with_others = adapt(base, study, targets, NEW, aligner=aligner, out=tmp_path / "run", **words, **still)
    ids, responses = study.split("test").averaged(NEW)
    truth = targets.of(ids, base.target_kind)

    def agreement(decoder: Decoder) -> float:
        said = decoder.predict(responses, NEW)
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(said.T, truth.T, strict=True)]))

    assert agreement(with_others) > agreement(alone) + 0.02
    told = with_others.apart[NEW]["borrowed"]
    assert told["people"] == OTHERS
    assert told["aligner"] == "anatomical"
    np.testing.assert_array_equal(with_others.predict(study.split("test").averaged("sub-01")[1], "sub-01"), before)
    assert with_others.aligner is None
    with pytest.raises(InputError, match="borrowed"):
        adapt(base, study, targets, NEW, out=tmp_path / "run", **words, **still)


def test_what_cannot_lend_is_refused(study: Study, targets: Targets, base: Decoder, aligner: Aligner) -> None:
    words: dict[str, Any] = {"sessions": 1, "progress": False}
    with pytest.raises(InputError, match="knows nothing of other people"):
        adapt(base, study, targets, NEW, arm="from-scratch", aligner=aligner, **words)
    only = make_aligner("anatomical").fit(study.split("train").subset([NEW]))
    with pytest.raises(InputError, match=r"nobody of the decoder \(sub-01, sub-02\) is both in study"):
        adapt(base, study, targets, NEW, aligner=only, **words)
    leaky = make_aligner("procrustes").fit(study.split("train"))
    half = study.stimuli.ids[::2]
    other = study.with_splits({"half": {"train": half, "test": study.stimuli.ids[1::2]}}).using("half")
    with pytest.raises(LeakageError):
        adapt(base, other, targets, NEW, aligner=leaky, **words)
    settings = {**SIZES, "pool_subjects": False}
    behind = fit(
        "mindtuner", study, targets, subjects=OTHERS, aligner=aligner, training=TRAINING, progress=False, **settings
    )
    with pytest.raises(InputError, match="has an aligner in front of it"):
        adapt(behind, study, targets, NEW, aligner=aligner, **words)


@pytest.fixture(scope="module")
def few(study: Study, base: Decoder) -> tuple[Any, ...]:
    """Arguments of `RidgeLayer.solve` for a new person."""
    view = study.split("train").subset([NEW]).first_sessions(2)
    ids, responses = view.averaged(NEW)
    x = torch.from_numpy((responses - responses.mean(axis=0)) / responses.std(axis=0))
    return [ids], x, view


def test_a_prediction_that_says_nothing_is_not_borrowed(targets: Targets, base: Any, few: tuple[Any, ...]) -> None:
    seeded = torch.Generator().manual_seed(0)
    n_voxels, n_scores = few[1].shape[1], len(base.ridge.deviation)
    noise = Borrowed(torch.randn(n_voxels, n_scores, generator=seeded), torch.zeros(n_scores))
    alone = base.ridge.solve(*few, targets, base.target_kind, NEW)
    for a, b in zip(alone, base.ridge.solve(*few, targets, base.target_kind, NEW, noise), strict=True):
        assert torch.equal(a, b)
    truth = torch.linalg.lstsq(few[1].double(), base.ridge.scores(few[0][0], targets, base.target_kind).double())
    right = Borrowed(truth.solution.float(), torch.zeros(n_scores))
    assert not torch.equal(alone[0], base.ridge.solve(*few, targets, base.target_kind, NEW, right)[0])


def test_scores_of_a_new_person_are_spread_as_the_network_is_used_to(
    targets: Targets, base: Any, few: tuple[Any, ...]
) -> None:
    layer = copy.deepcopy(base.ridge)
    assert float(layer.spread) > 0

    def weight(spread: float) -> torch.Tensor:
        layer.spread.fill_(spread)
        found: torch.Tensor = layer.solve(*few, targets, base.target_kind, NEW)[0]
        return found

    torch.testing.assert_close(weight(0.02), 2 * weight(0.01))
    torch.testing.assert_close(weight(1e6), weight(1e4))  # noise is not blown up without end
    assert weight(1e4).norm() > weight(0.01).norm()


def test_the_spread_is_that_of_what_the_trained_network_reads(study: Study, targets: Targets, base: Any) -> None:
    view, kind, base = study.split("train").subset(OTHERS), base.target_kind, copy.deepcopy(base)
    base.conclude(view, targets, kind)
    pairs = [base._averaged(view, person) for person in OTHERS]
    with torch.no_grad():
        hidden = torch.cat([base._input(person)(x) for person, (_, x) in zip(OTHERS, pairs, strict=True)])
    ids = np.concatenate([each for each, _ in pairs])
    truth = base.ridge.scores(ids, targets, kind).double()
    weight, intercept, _ = fit_ridge(hidden.double(), truth, view.units_of(ids), RidgeConfig())
    said = hidden.double() @ weight + intercept
    expected = said.var(dim=0, unbiased=False).mean().sqrt()
    torch.testing.assert_close(base.ridge.spread.double(), expected, rtol=1e-4, atol=0)
