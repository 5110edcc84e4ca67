"""Maps as thin factors: held against the whole matrix, in aligners, on disk and in front of a decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from people_who_share import one_grid, shared_study
from scipy import sparse

from phosphene.alignment import Aligner, PersonMap, make_aligner
from phosphene.alignment.factored import Factored, factored, onto, parts_of, reached
from phosphene.decoders.aligned import AlignedInput
from phosphene.recordings import Study

WIDE = ("ridge", "procrustes", "hybrid")  # of these the template has many places, and few stimuli tell of them


@pytest.fixture(scope="module")
def study() -> Study:
    """48 shared stimuli for training, people of 160 voxels on one grid."""
    return shared_study((160, 160, 160), n=72, space=one_grid(160))


def random(seed: int, rest: bool, shape: tuple[int, int] = (30, 40)) -> Factored:
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(shape[0], 4)), rng.normal(size=(4, shape[1]))
    left[3], right[:, 5] = 0, 0
    return Factored(left, right, sparse.random_array(shape, density=0.02, rng=seed, format="csr") if rest else None)


def damped(whole: np.ndarray, share: float) -> np.ndarray:
    """Pseudo-inverse with singular values s inverted as s / (s^2 + d^2), d a share of the largest."""
    u, s, vt = np.linalg.svd(whole.astype(np.float64), full_matrices=False)
    return (vt.T * (s / (s**2 + (share * s[0]) ** 2))) @ u.T


@pytest.mark.parametrize("rest", [False, True])
def test_it_does_what_the_whole_matrix_does(rest: bool) -> None:
    matrix = random(0, rest)
    whole, x = np.asarray(matrix), np.random.default_rng(1).normal(size=(5, 30))
    assert matrix.shape == whole.shape == (30, 40)
    np.testing.assert_allclose(x @ matrix, x @ whole)
    places = np.array([7, 5, 30])
    np.testing.assert_allclose(np.asarray(onto(matrix, places)), whole[:, places])
    np.testing.assert_array_equal(onto(whole, places), whole[:, places])
    for axis in (0, 1):
        np.testing.assert_array_equal(reached(matrix, axis), np.abs(whole).sum(axis=axis) > 0)
        np.testing.assert_array_equal(reached(whole, axis), np.abs(whole).sum(axis=axis) > 0)
    y = np.random.default_rng(2).normal(size=(5, 40))
    for rcond in (1e-3, 0.5):
        back = damped(whole, rcond) if rest else np.linalg.pinv(whole, rcond=rcond)
        np.testing.assert_allclose(y @ matrix.pinv(rcond), y @ back, atol=1e-4)
        np.testing.assert_allclose(y[0] @ matrix.pinv(rcond), y[0] @ back, atol=1e-4)
    assert matrix.astype(np.float32).left.dtype == np.float32


def test_no_way_back_makes_the_matrix_whole() -> None:
    """20,000 x 20,000 numbers, of which both factors are a thousandth: dense it would be 3 GB, and hours."""
    n, rng = 20_000, np.random.default_rng(0)
    factors = rng.normal(size=(n, 10)) / n**0.5, rng.normal(size=(10, n)) / n**0.5
    for matrix in (Factored(*factors), Factored(*factors, sparse.eye_array(n, format="csr"))):
        y = rng.normal(size=n) @ matrix
        back = y @ matrix.pinv(0.01)
        # what the way there has kept comes back
        assert np.linalg.norm(back @ matrix - y) < 0.01 * np.linalg.norm(y)


def test_factors_only_where_they_are_fewer_numbers() -> None:
    left, right = np.ones((30, 4)), np.ones((4, 40))
    assert isinstance(factored(left, right), Factored)
    assert isinstance(factored(np.ones((30, 20)), np.ones((20, 40))), np.ndarray)
    eye = sparse.eye_array(30, 40, format="csr")
    np.testing.assert_array_equal(factored(np.ones((30, 20)), np.ones((20, 40)), eye), 20 + eye.toarray())


@pytest.mark.parametrize("name", WIDE)
def test_functional_maps_of_wide_people_are_thin(name: str, study: Study, tmp_path: Path) -> None:
    settings = {"weight": 0.5} if name == "hybrid" else {}
    aligner = make_aligner(name, **settings).fit(study.split("train"))
    matrix = aligner.matrix("sub-02")
    assert isinstance(matrix, Factored)
    assert (matrix.rest is not None) == (name == "hybrid")
    dense = sum(array.size for key, array in parts_of(matrix).items() if key in ("left", "right"))
    assert dense < 0.75 * np.prod(matrix.shape)
    # the same map made whole gives the same, forth and back, and in front of a decoder
    person = aligner.person("sub-02")
    whole = PersonMap(np.asarray(matrix), person.mean, person.offset, person.covered)
    responses = study.split("test").responses("sub-02")
    np.testing.assert_allclose(person.apply(responses), whole.apply(responses), atol=1e-4)
    front, plain = (AlignedInput(each)(torch.from_numpy(responses)) for each in (person, whole))
    np.testing.assert_allclose(front, plain, atol=1e-4)
    np.testing.assert_allclose(front, np.nan_to_num(person.apply(responses)), atol=1e-4)
    maps = np.random.default_rng(0).normal(size=(3, aligner.template.size)).astype(np.float32)
    back = aligner.inverse("sub-02", maps)
    whole_back = damped(whole.matrix, 0.01) if name == "hybrid" else np.linalg.pinv(whole.matrix, rcond=0.01)
    np.testing.assert_allclose(back, maps @ whole_back, atol=2e-3)
    loaded = Aligner.load(aligner.save(tmp_path / "aligner"))
    assert loaded.identity == aligner.identity
    assert isinstance(loaded.matrix("sub-02"), Factored)
    np.testing.assert_array_equal(loaded.transform("sub-02", responses), aligner.transform("sub-02", responses))
