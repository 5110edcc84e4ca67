"""Small studies with a known answer, and fitted decoders to score on them."""

from __future__ import annotations

import pytest
from linear_study import linear_study

from phosphene.training import fit


@pytest.fixture(scope="session")
def linear():
    return linear_study()


@pytest.fixture(scope="session")
def ridge(linear):
    study, targets = linear
    return fit("ridge", study, targets, progress=False)


@pytest.fixture(scope="session")
def folded():
    study, targets = linear_study(folds=3, n_stimuli=54, noise=4.0)
    decoders = {f"fold-{n}": fit("ridge", study.using(f"fold-{n}"), targets, progress=False) for n in range(3)}
    return study, targets, decoders


@pytest.fixture(scope="session")
def scorecard(linear, ridge):
    from phosphene.evaluation import evaluate

    study, targets = linear
    return evaluate(ridge, study, targets, n_boot=200, n_perm=200, csls=True, name="decoder", progress=False)
