"""What people share in a ridge solution, kept so that one person's responses can be counted more often in it.

With centred rows X, scores Z and penalty p ridge has ``W = (X'X + p I)^-1 X'Z``. Rows x of one person, with scores z,
that count k times more change it by::

    P x' (I / k + x P x')^-1 (z - x W)        P = (X'X + p I)^-1

The directions and squares of X are all that this needs of everybody's responses, so that it also tells what the
solution becomes when a person comes later.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from phosphene.decoders.ridge import RidgeConfig, inner_folds, ridge_path, ridge_penalties

__all__ = ["CommonRidge"]

_MOST = 1024  # directions that are kept, the strongest
_TINY = 1e-9  # of the largest square: what is smaller is rounding


class CommonRidge(nn.Module):
    """Directions in which all people's training responses vary, and the penalty of each score; empty until learnt.

    Examples
    --------
    >>> shared = CommonRidge()
    >>> rows = torch.eye(6, 4)
    >>> shared.learn(rows, rows[:, :2], np.arange(6))
    >>> shared.change(rows[:2], torch.ones(2, 2), times=3.0).shape
    torch.Size([4, 2])
    """

    directions: Tensor
    squares: Tensor
    penalty: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("directions", "squares", "penalty"):
            self.register_buffer(name, torch.empty(0))

    def learn(self, x: Tensor, scores: Tensor, units: np.ndarray) -> None:
        """Take the directions of standardised responses, and the penalty of each score from inner folds over units.

        Parameters
        ----------
        x : Tensor of shape (n, V)
        scores : Tensor of shape (n, k)
        units : (n,) ndarray
        """
        x, scores = x.double(), scores.double()
        config, device = RidgeConfig(), self.squares.device
        penalties = ridge_penalties(x, config, "everybody")
        error = torch.zeros(len(penalties), scores.shape[1], dtype=x.dtype)
        for train, held in inner_folds(units, config.folds):
            error += (ridge_path(x[train], scores[train], x[held], penalties) - scores[held]).square().sum(dim=1)
        self.penalty = torch.tensor(penalties)[error.argmin(dim=0)].to(device)
        x = x - x.mean(dim=0)
        wide = x.shape[0] <= x.shape[1]
        squares, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
        kept = squares > _TINY * squares[-1]
        kept[: max(0, len(kept) - _MOST)] = False
        squares, vectors = squares[kept], vectors[:, kept]
        directions = x.T @ vectors / squares.sqrt() if wide else vectors
        self.directions, self.squares = directions.T.float().contiguous().to(device), squares.float().to(device)

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the buffers the shapes they have in a file."""
        for name, tensor in tensors.items():
            self.register_buffer(name, torch.empty(tensor.shape))

    def change(self, x: Tensor, rest: Tensor, times: float) -> Tensor:
        """Change of the weights, ``(V, k)`` in double precision, when a person's rows count so many times more.

        Parameters
        ----------
        x : Tensor of shape (n, V)
            The person's standardised responses.
        rest : Tensor of shape (n, k)
            Scores that the common weights leave over.
        times : float
            Above 0.
        """
        x, rest = x.double(), rest.double()
        directions, squares = self.directions.double(), self.squares.double()
        along, gram, own = x @ directions.T, x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device) / times
        found = torch.empty(x.shape[1], rest.shape[1], dtype=x.dtype, device=x.device)
        for penalty in self.penalty.unique().double():
            which, share = self.penalty.double() == penalty, squares / (squares + penalty)
            spread = (gram - (along * share) @ along.T) / penalty
            dual = torch.linalg.solve(spread + own, rest[:, which])
            found[:, which] = (x.T @ dual - directions.T @ (share[:, None] * (along.T @ dual))) / penalty
        return found
