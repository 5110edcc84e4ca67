"""From latent tokens to predictions: output tokens of full rank, a pooled vector, and a low-rank linear path."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LinearPath", "PooledReadout", "TokenMixer", "TokenReadout"]


class TokenMixer(nn.Module):
    r"""Read `tokens` hidden tokens out of n latent ones.

    .. math:: a_t = \mathrm{silu}\Big(\sum_j M^{(h)}_{tj}\, (V\,\mathrm{norm}(x_j))^{(h)} + p_t\Big)

    with one mixing matrix :math:`M^{(h)}` for each head (group of channels) and a position :math:`p_t` for each
    token **before** the non-linearity. A linear map from n latent tokens alone would leave all outputs of all
    samples in one n-dimensional subspace.

    Parameters
    ----------
    latents, width : int
        Shape of the input tokens.
    tokens, hidden : int
        Shape of the output tokens.
    heads : int
        Divisor of `hidden`.
    dropout : float
    """

    def __init__(self, latents: int, width: int, tokens: int, hidden: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or hidden % heads:
            raise ValueError(f"heads must divide the hidden width {hidden}, found {heads}")
        self.heads, self.hidden = heads, hidden
        self.norm = nn.LayerNorm(width)
        self.lift = nn.Linear(width, hidden, bias=False)
        self.mix = nn.Parameter(torch.randn(heads, tokens, latents) / math.sqrt(latents))
        self.position = nn.Parameter(0.5 * torch.randn(tokens, hidden))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(latents, batch, width)`` to ``(batch, tokens, hidden)``."""
        latents, batch, _ = x.shape
        lifted = self.lift(self.norm(x)).view(latents, batch, self.heads, -1).permute(2, 0, 1, 3)
        mixed = torch.bmm(self.mix.to(lifted.dtype), lifted.reshape(self.heads, latents, -1))
        mixed = mixed.view(self.heads, -1, batch, self.hidden // self.heads).permute(2, 1, 0, 3)
        return self.dropout(F.silu(mixed.reshape(batch, -1, self.hidden).add_(self.position)))


class TokenReadout(nn.Module):
    """Latent tokens to output tokens: `TokenMixer`, a map to the output width, and a mean for every token.

    Without gradients it works through large batches in pieces that stay in the processor's cache: hidden tokens of
    an NSD-sized batch of 300 fill 118 MB otherwise.
    """

    piece = 16

    def __init__(
        self, latents: int, width: int, shape: tuple[int, int], hidden: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.mixer = TokenMixer(latents, width, shape[0], hidden, heads, dropout)
        self.out = nn.Linear(hidden, shape[1], bias=False)
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """``(latents, batch, width)`` to ``(batch, tokens, out)``."""
        if torch.is_grad_enabled() or x.shape[1] <= self.piece:
            return self._read(x)
        return torch.cat([self._read(part) for part in x.split(self.piece, dim=1)])

    def _read(self, x: Tensor) -> Tensor:
        output: Tensor = self.out(self.mixer(x))
        return output.add_(self.bias)


class PooledReadout(nn.Module):
    """Latent tokens to one vector: a few hidden tokens, read together.

    Parameters
    ----------
    queries : int
        Number of hidden tokens.
    """

    def __init__(
        self, latents: int, width: int, out: int, hidden: int, heads: int, queries: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.mixer = TokenMixer(latents, width, queries, hidden, heads, dropout)
        self.out = nn.Linear(queries * hidden, out, bias=False)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        """``(latents, batch, width)`` to ``(batch, out)``."""
        return self.out(self.mixer(x).flatten(1)).add_(self.bias)


class LinearPath(nn.Module):
    """A linear map of low rank from the voxels of each person to outputs, its second factor shared by all.

    Parameters
    ----------
    rank, out : int
    """

    def __init__(self, rank: int, out: int) -> None:
        super().__init__()
        self.rank = rank
        self.basis = nn.Parameter(torch.randn(rank, out) / math.sqrt(out))
        self.people = nn.ModuleList()

    def add(self, n_voxels: int) -> None:
        """Give the next person an input map, small at random until `start`."""
        person = nn.Linear(n_voxels, self.rank, bias=False)
        nn.init.normal_(person.weight, std=0.1 / math.sqrt(n_voxels))
        self.people.append(person)

    @torch.no_grad()
    def start(self, basis: Tensor, maps: Sequence[Tensor]) -> None:
        """Set the first rows of the shared basis, ``(k <= rank, out)``, and every person's map, ``(V, k)``."""
        self.basis[: len(basis)] = basis
        for person, weight in zip(self.people, maps, strict=True):
            assert isinstance(person, nn.Linear)
            person.weight[: len(basis)] = weight.T

    def forward(self, x: Tensor, person: int) -> Tensor:
        """``(batch, V)`` to ``(batch, out)``."""
        return self.people[person](x) @ self.basis
