"""The way from one person's voxels into a common space, as a layer in front of a decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scipy import sparse
from torch import Tensor, nn

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

    weight: Tensor
    mean: Tensor
    offset: Tensor
    covered: Tensor

    def __init__(self, person: PersonMap) -> None:
        super().__init__()
        self.n_voxels, self.size = person.matrix.shape
        # transposed, so that the sparse factor stands first: torch has a gradient for that order
        matrix = person.matrix.T
        if sparse.issparse(matrix):
            entries = sparse.coo_array(matrix)
            where = torch.stack([torch.from_numpy(axis.astype("int64")) for axis in entries.coords])
            weight = torch.sparse_coo_tensor(
                where, torch.from_numpy(entries.data), matrix.shape, check_invariants=False
            )
            weight = weight.coalesce()
        else:
            weight = torch.from_numpy(matrix.copy())
        tensors = {"mean": person.mean, "offset": person.offset, "covered": person.covered}
        self.register_buffer("weight", weight, persistent=False)
        for name, array in tensors.items():
            self.register_buffer(name, torch.from_numpy(array.copy()), persistent=False)

    def forward(self, responses: Tensor) -> Tensor:
        """``(b, voxels)`` to ``(b, places)``, float32; zero at places the person does not cover."""
        with torch.autocast(responses.device.type, enabled=False):
            centred = responses.float() - self.mean
            aligned: Tensor = torch.mm(self.weight, centred.T).T + self.offset
            return torch.where(self.covered, aligned, 0.0)
