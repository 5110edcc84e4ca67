"""Voxels to tokens: orders of the voxels, patches that leave none out, and their embedding."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from phosphene.errors import InputError
from phosphene.table import Table

__all__ = ["ORDERS", "PatchEmbedding", "hilbert_index", "patch_index", "voxel_order"]

Order = Literal["scanner", "roi", "curve", "random"]
ORDERS: tuple[Order, ...] = ("scanner", "roi", "curve", "random")


def patch_index(n_voxels: int, patches: int) -> Tensor:
    """Positions of the voxels of every patch: equal patches that cover all voxels.

    Where the voxels do not divide evenly, neighbouring patches share a few voxels instead of being padded with
    zeros: nothing is dropped, and no weight looks at a constant.

    Parameters
    ----------
    n_voxels, patches : int

    Returns
    -------
    Tensor
        Integers ``(patches, ceil(n_voxels / patches))``.

    Examples
    --------
    >>> patch_index(7, 3).tolist()
    [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    """
    size = math.ceil(n_voxels / patches)
    starts = np.floor(np.linspace(0, n_voxels - size, patches) + 0.5).astype(np.int64)
    return torch.from_numpy(starts[:, None] + np.arange(size))


def voxel_order(order: Order, voxels: Table, seed: int = 0) -> np.ndarray:
    """Permutation that lists the voxels in the wanted order.

    Parameters
    ----------
    order : {"scanner", "roi", "curve", "random"}
        As recorded; by first named ROI, voxels of none last; along a Hilbert curve through the coordinates, one
        hemisphere after the other; at random (a control).
    voxels : Table
        ``roi_*`` columns for "roi"; ``x, y, z`` (mm) or ``i, j, k`` for "curve".
    seed : int
        For "random".

    Returns
    -------
    ndarray of int
        ``(V,)``: row to be listed at each place.

    Raises
    ------
    InputError
        Where the table lacks the columns that the order needs.
    """
    n = len(voxels)
    if order == "scanner":
        return np.arange(n)
    if order == "random":
        return np.random.default_rng(seed).permutation(n)
    if order == "roi":
        names = [name for name in voxels.columns if name.startswith("roi_")]
        if not names:
            raise InputError(f"order 'roi' needs voxel columns roi_<NAME>, found {list(voxels.columns)}")
        member = np.stack([voxels[name].astype(bool) for name in names] + [np.ones(n, dtype=bool)], axis=1)
        return np.argsort(member.argmax(axis=1), kind="stable")
    axes = next((axes for axes in ("xyz", "ijk") if all(axis in voxels for axis in axes)), None)
    if axes is None:
        raise InputError(f"order 'curve' needs voxel columns x, y, z or i, j, k, found {list(voxels.columns)}")
    position = np.stack([voxels[axis] for axis in axes], axis=1).astype(np.float64)
    hemisphere = voxels["hemisphere"].astype(str) if "hemisphere" in voxels else np.zeros(n, dtype=str)
    return np.lexsort((hilbert_index(position), hemisphere))


def hilbert_index(position: np.ndarray, bits: int = 10) -> np.ndarray:
    """Place of each point along a Hilbert curve through the cube that holds them all.

    Skilling's transform (AIP Conference Proceedings 707, 381, 2004): neighbours on the curve are neighbours in space.

    Parameters
    ----------
    position : ndarray
        ``(points, dimensions)``.
    bits : int
        Cells along an axis: ``2 ** bits``.

    Returns
    -------
    ndarray of int64
        ``(points,)``.
    """
    position = np.asarray(position, dtype=np.float64)
    low = position.min(axis=0, initial=np.inf)
    extent = float((position - low).max(initial=1e-12))
    cells = ((position - low) / extent * (2**bits - 1)).round().astype(np.int64).T.copy()
    dimensions = len(cells)
    bit = 1 << (bits - 1)
    while bit > 1:
        for axis in range(dimensions):
            invert = (cells[axis] & bit) != 0
            exchange = np.where(invert, 0, (cells[0] ^ cells[axis]) & (bit - 1))
            cells[0] ^= np.where(invert, bit - 1, exchange)
            cells[axis] ^= exchange
        bit >>= 1
    for axis in range(1, dimensions):
        cells[axis] ^= cells[axis - 1]
    flip = np.zeros_like(cells[0])
    bit = 1 << (bits - 1)
    while bit > 1:
        flip ^= np.where((cells[-1] & bit) != 0, bit - 1, 0)
        bit >>= 1
    cells ^= flip
    index = np.zeros_like(cells[0])
    for level in reversed(range(bits)):
        for axis in range(dimensions):
            index = (index << 1) | ((cells[axis] >> level) & 1)
    return index


class PatchEmbedding(nn.Module):
    """Voxels of one person to tokens: order, cut into patches, embed each.

    Parameters
    ----------
    n_voxels, patches, width : int
    shared : bool
        One embedding for all patches (as a strided convolution does), or one for each. The products cost the same;
        voxels at the same place of two patches have nothing in common, so the default is one for each.

    Examples
    --------
    >>> PatchEmbedding(1000, patches=16, width=8)(torch.zeros(2, 1000)).shape
    torch.Size([16, 2, 8])
    """

    index: Tensor

    def __init__(self, n_voxels: int, patches: int, width: int, shared: bool = False) -> None:
        super().__init__()
        self.n_voxels, self.patches = n_voxels, patches
        index = patch_index(n_voxels, patches)
        size = index.shape[1]
        self.register_buffer("index", index.flatten())
        self.weight = nn.Parameter(torch.randn(1 if shared else patches, size, width) / math.sqrt(size))
        self.position = nn.Parameter(0.02 * torch.randn(patches, 1, width))

    def arrange(self, order: np.ndarray) -> None:
        """List the voxels in this order before cutting (a permutation, ``(V,)``)."""
        if not np.array_equal(np.sort(order), np.arange(self.n_voxels)):
            raise InputError(
                f"a voxel order must be a permutation of {self.n_voxels} voxels, found {len(order)} entries"
            )
        plain = patch_index(self.n_voxels, self.patches).flatten()
        self.index.copy_(torch.from_numpy(np.array(order, dtype=np.int64))[plain])

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, V)`` to ``(patches, batch, width)``."""
        patches = x.index_select(1, self.index).view(len(x), self.patches, -1).transpose(0, 1)
        return torch.matmul(patches, self.weight) + self.position
