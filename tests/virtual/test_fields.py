"""Random fields against their kernel and finite differences; rotations against linear algebra."""

from __future__ import annotations

import numpy as np
import pytest

from phosphene.virtual.fields import Field, random_rotation, stream


def test_field_has_unit_variance_and_the_kernel_of_its_length() -> None:
    field = Field.draw(stream(0, "test"), length=5.0, fields=4000, waves=400)
    near, far = np.array([[0.0, 0.0], [5.0, 0.0]]), np.array([[0.0, 0.0], [40.0, 0.0]])
    first, second = field(near)
    assert first.var() == pytest.approx(1, abs=0.12)
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(np.exp(-0.5), abs=0.12)
    assert abs(np.corrcoef(*field(far))[0, 1]) < 0.2


def test_laplacian_is_the_second_derivative() -> None:
    field = Field.draw(stream(1, "test"), length=3.0, fields=2)
    point, step = np.array([[1.0, -2.0]]), 1e-3
    moves = np.array([[step, 0], [-step, 0], [0, step], [0, -step]])
    numeric = (field(point + moves).sum(0) - 4 * field(point)[0]) / step**2
    np.testing.assert_allclose(field.laplacian(point)[0], numeric, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rank", "moved"), [(0, 0), (2, 2), (7, 6), (40, 12)])
def test_rotation_moves_a_subspace_of_its_rank(rank: int, moved: int) -> None:
    rotation = random_rotation(stream(2, "test"), size=12, rank=rank, angle=0.7)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(12), atol=1e-12)
    assert np.linalg.matrix_rank(rotation - np.eye(12), tol=1e-9) == moved
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert np.trace(rotation) == pytest.approx(12 - moved + moved * np.cos(0.7))


def test_streams_are_named_apart() -> None:
    draws = {name: stream(0, *name).integers(2**60) for name in [("a",), ("b",), ("a", "b"), ("ab",)]}
    assert len(set(draws.values())) == 4
    assert stream(1, "a").integers(2**60) != draws["a",]
