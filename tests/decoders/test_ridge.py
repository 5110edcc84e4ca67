"""Ridge against scikit-learn, in every shape that breaks solvers; penalties chosen by inner folds over units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from phosphene.decoders import Decoder, make_decoder
from phosphene.decoders.ridge import (
    RidgeConfig,
    fit_ridge,
    fit_ridge_beside,
    inner_folds,
    ridge_out_of_fold,
    ridge_path,
    ridge_weights,
)
from phosphene.encoders import given_targets
from phosphene.errors import InputError
from phosphene.recordings import Recording, Study
from phosphene.table import Table
from phosphene.training import fit


@pytest.mark.parametrize(("trials", "voxels", "outputs"), [(40, 10, 3), (10, 40, 3), (12, 12, 1), (5, 30, 8)])
def test_agrees_with_scikit_learn(trials, voxels, outputs):
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(2, 1, (trials, voxels)), rng.normal(3, 1, (trials, outputs)), rng.normal(2, 1, (7, voxels))
    penalties = np.geomspace(0.1, 100, outputs)
    weights, intercept = ridge_weights(torch.tensor(x), torch.tensor(y), torch.tensor(penalties))
    theirs = SklearnRidge(alpha=penalties).fit(x, y)
    np.testing.assert_allclose(weights.T, np.atleast_2d(theirs.coef_), atol=1e-8)
    np.testing.assert_allclose(intercept, theirs.intercept_, atol=1e-8)
    path = ridge_path(torch.tensor(x), torch.tensor(y), torch.tensor(new), [0.5, 20.0])
    for found, penalty in zip(path, (0.5, 20.0), strict=True):
        expected = SklearnRidge(alpha=penalty).fit(x, y).predict(new).reshape(7, outputs)
        np.testing.assert_allclose(found, expected, atol=1e-8)


def test_inner_folds_keep_units_together():
    units = np.repeat(["a", "b", "c", "d"], 3)
    for train, validation in inner_folds(units, 3):
        assert set(units[train]) & set(units[validation]) == set()
    with pytest.raises(InputError, match="at least two units"):
        inner_folds(np.array(["a", "a"]), 3)


def test_beside_a_prediction_ridge_trusts_it_as_far_as_it_is_right():
    """Targets are what the prediction says and a little of their own; or it says nothing true of them."""
    rng = torch.Generator().manual_seed(0)
    x, noise = torch.randn(80, 12, generator=rng).double(), torch.randn(80, 2, generator=rng).double()
    weights = torch.randn(12, 2, generator=rng).double()
    prior = torch.randn(80, 2, generator=rng).double() * 5
    units = np.arange(80).astype(str)
    right, wrong = prior + x @ weights + 0.1 * noise, x @ weights + 0.1 * noise
    found, share = fit_ridge_beside(x, right, prior, units, RidgeConfig())
    assert share > 0.95
    torch.testing.assert_close(found, weights, atol=0.15, rtol=0.1)
    alone, _, _ = fit_ridge(x, right, units, RidgeConfig())
    assert (found - weights).norm() < 0.2 * (alone - weights).norm()
    found, share = fit_ridge_beside(x, wrong, prior, units, RidgeConfig())
    assert share < 0.05
    torch.testing.assert_close(found, weights, atol=0.15, rtol=0.1)


def test_out_of_fold_predictions_know_nothing_of_their_fold():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 5, generator=rng).double(), torch.randn(30, 2, generator=rng).double()
    units, config = np.repeat(np.arange(10), 3).astype(str), RidgeConfig(penalties=(1.0,), folds=3)
    said = ridge_out_of_fold(x, y, units, config)
    for _, held in inner_folds(units, 3):
        changed = y.clone()
        changed[held] += 100
        assert torch.equal(ridge_out_of_fold(x, changed, units, config)[held], said[held])
        assert not torch.equal(ridge_out_of_fold(x, changed, units, config), said)


def test_each_target_has_the_penalty_it_needs(made_study):
    """A target that the responses carry gets a small penalty, pure noise the largest."""
    rng = np.random.default_rng(1)
    view = made_study.split("train")
    ids, responses = view.averaged("sub-01")
    signal = responses @ rng.normal(size=responses.shape[1])
    pooled = np.zeros((40, 2))
    rows = made_study.stimuli.rows(ids)
    pooled[rows, 0], pooled[rows, 1] = signal, rng.normal(size=len(ids))
    decoder = fit(
        "ridge", made_study, given_targets(made_study.stimuli.ids, pooled), subjects=["sub-01"], progress=False
    )
    weight = decoder.state_dict()["weight_0"].norm(dim=0) / torch.tensor(pooled[rows].std(axis=0))
    assert weight[0] > 10 * weight[1]
    shared = fit(
        "ridge",
        made_study,
        given_targets(made_study.stimuli.ids, pooled),
        subjects=["sub-01"],
        progress=False,
        penalty="shared",
    )
    assert not torch.equal(shared.state_dict()["weight_0"], decoder.state_dict()["weight_0"])


def test_wide_targets_are_reduced_without_loss_at_full_rank(made_study, tmp_path):
    """200 outputs of rank 5 through 16 components are what they are without."""
    rng = np.random.default_rng(2)
    ids = made_study.stimuli.ids
    tokens = (rng.normal(size=(40, 5)) @ rng.normal(size=(5, 200))).reshape(40, 10, 20)
    targets = given_targets(ids, tokens=tokens)
    settings = {"penalty": "shared", "progress": False, "kind": "tokens"}
    full = fit("ridge", made_study, targets, target_rank=1000, **settings)
    reduced = fit("ridge", made_study, targets, target_rank=16, **settings)
    _, x = made_study.split("test").averaged("sub-02")
    np.testing.assert_allclose(reduced.predict(x, "sub-02"), full.predict(x, "sub-02"), atol=1e-3)
    assert reduced.state_dict()["weight_0"].shape[1] == 5
    reduced.save(tmp_path / "d")
    np.testing.assert_array_equal(Decoder.load(tmp_path / "d").predict(x, "sub-02"), reduced.predict(x, "sub-02"))


def test_before_fitting_it_predicts_zero_and_weighs_nothing():
    decoder = make_decoder("ridge", subjects={"sub-01": 15724}, target_shape=(257, 768))
    assert decoder(torch.zeros(2, 15724), "sub-01").tokens.shape == (2, 257, 768)
    assert sum(t.numel() for t in decoder.state_dict().values()) < 1e6


def test_pooling_takes_new_people(made_study):
    people = made_study.recordings
    with pytest.raises(InputError, match="one voxel grid: subject 'sub-02' has 31 voxels, the others 30"):
        make_decoder(
            "ridge", subjects={s: r.n_voxels for s, r in people.items()}, target_shape=(3,), pool_subjects=True
        )
    rng = np.random.default_rng(3)
    targets = given_targets(made_study.stimuli.ids, rng.normal(size=(40, 3)))
    decoder = fit("ridge", made_study, targets, subjects=["sub-01"], pool_subjects=True, progress=False)
    assert decoder.subject_free
    assert decoder.predict(np.zeros((2, 30), np.float32), None).shape == (2, 3)


def test_responses_that_do_not_vary_are_refused(made_study):
    stimuli = made_study.stimuli.select(made_study.stimuli.ids[:12])
    person = Recording(
        "sub-01", np.ones((12, 1), np.float32), Table({"stimulus_id": stimuli.ids}), Table({"voxel": [0]})
    )
    study = Study(stimuli, [person], {"default": {"train": stimuli.ids[:8], "test": stimuli.ids[8:]}})
    targets = given_targets(stimuli.ids, np.random.default_rng(0).normal(size=(12, 2)))
    for pooled in (False, True):
        with pytest.raises(InputError, match=r"responses that do not vary: 8 training stimuli, 1 voxel, each with one"):
            fit("ridge", study, targets, progress=False, pool_subjects=pooled)
