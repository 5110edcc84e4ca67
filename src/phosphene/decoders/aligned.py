"""The way from one person's voxels into a common space, as a layer in front of a decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scipy import sparse
from torch import Tensor, nn

from phosphene.alignment.factored import Factored

if TYPE_CHECKING:
    from phosphene.alignment import PersonMap

__all__ = ["AlignedInput"]


class AlignedInput(nn.Module):
    """``(x - mean) M + offset``: what an aligner found for one person; nothing in it is trained.

    Its tensors belong to the aligner and are saved with that, not with the decoder.

    Parameters
    ----------
    person : PersonMap
    """

    weight: Tensor | None
    left: Tensor | None
    right: Tensor | None
    mean: Tensor
    offset: Tensor
    covered: Tensor

    def __init__(self, person: PersonMap) -> None:
        super().__init__()
        self.n_voxels, self.size = person.matrix.shape
        matrix, factors = person.matrix, {"left": None, "right": None}
        if isinstance(matrix, Factored):
            matrix, factors = matrix.rest, {"left": matrix.left, "right": matrix.right}
        self.register_buffer("weight", None if matrix is None else _transposed(matrix), persistent=False)
        arrays = {**factors, "mean": person.mean, "offset": person.offset, "covered": person.covered}
        for name, array in arrays.items():
            self.register_buffer(name, None if array is None else torch.from_numpy(array.copy()), persistent=False)

    def forward(self, responses: Tensor) -> Tensor:
        """``(b, voxels)`` to ``(b, places)``, float32; zero at places the person does not cover."""
        with torch.autocast(responses.device.type, enabled=False):
            centred = responses.float() - self.mean
            aligned = self.offset
            if self.weight is not None:
                aligned = aligned + torch.mm(self.weight, centred.T).T
            if self.left is not None and self.right is not None:
                aligned = aligned + centred @ self.left @ self.right
            return torch.where(self.covered, aligned, 0.0)


def _transposed(matrix: Any) -> Tensor:
    """So that a sparse factor stands first: torch has a gradient for that order."""
    if not sparse.issparse(matrix):
        return torch.from_numpy(matrix.T.copy())
    entries = sparse.coo_array(matrix.T)
    where = torch.stack([torch.from_numpy(axis.astype("int64")) for axis in entries.coords])
    values = torch.from_numpy(entries.data)
    return torch.sparse_coo_tensor(where, values, entries.shape, check_invariants=False).coalesce()
