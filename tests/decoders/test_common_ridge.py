"""Counting one person's rows more often in everybody's ridge is the ridge in which they are repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phosphene.decoders.common_ridge import CommonRidge


def made(n: int, voxels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Centred responses, scores that depend on them, and pairs of rows that belong together."""
    torch.manual_seed(seed)
    x = torch.randn(n, voxels, dtype=torch.float64)
    x = x - x.mean(dim=0)
    scores = x[:, :3] + torch.randn(n, 3, dtype=torch.float64) * torch.tensor([0.1, 1.0, 5.0])
    return x, scores - scores.mean(dim=0), np.arange(n) // 2


def solved(x: torch.Tensor, scores: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    return torch.stack(
        [torch.linalg.solve(x.T @ x + p * eye, x.T @ scores[:, at]) for at, p in enumerate(penalty.double())], dim=1
    )


@pytest.mark.parametrize("shape", [(40, 12), (24, 60)], ids=["more rows", "more voxels"])
def test_counting_rows_more_often_is_repeating_them(shape: tuple[int, int]) -> None:
    x, scores, units = made(*shape)
    shared = CommonRidge()
    shared.learn(x, scores, units)
    assert len(shared.penalty.unique()) > 1  # scores of unlike noise
    common = solved(x, scores, shared.penalty)
    mine, known = x[:10], scores[:10]
    change = shared.change(mine, known - mine @ common, times=3.0)
    repeated = solved(torch.cat([x, mine, mine, mine]), torch.cat([scores, known, known, known]), shared.penalty)
    assert torch.allclose(common + change, repeated, atol=1e-4)
    assert (change.abs() > 1e-3).any()


def test_somebody_who_comes_later_is_the_ridge_of_everybody() -> None:
    x, scores, units = made(24, 60)
    shared = CommonRidge()
    shared.learn(x, scores, units)
    common = solved(x, scores, shared.penalty)
    new, said, _ = made(6, 60, seed=1)
    change = shared.change(new, said - new @ common, times=1.0)
    joined = solved(torch.cat([x, new]), torch.cat([scores, said]), shared.penalty)
    assert torch.allclose(common + change, joined, atol=1e-4)


def test_buffers_come_back_from_their_shapes() -> None:
    x, scores, units = made(24, 60)
    shared, other = CommonRidge(), CommonRidge()
    shared.learn(x, scores, units)
    other.make_room(shared.state_dict())
    other.load_state_dict(shared.state_dict())
    assert torch.equal(other.change(x[:4], scores[:4], 2.0), shared.change(x[:4], scores[:4], 2.0))
