"""Low-rank experts on a frozen linear layer, mixed sample by sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phosphene.nn.adapter import AdaptedLinear, Adapter, Held, adapter_scale, as_dtype_of

__all__ = ["ExpertLinear", "Experts", "Gates"]


class Gates(Held[Tensor]):
    """Gates of the moment, read by all experts of a network.

    ``(batch, K)``, a row for each sample; ``(1, K)`` for all samples alike; ``(batch, tokens, K)`` for each token.
    None switches the experts off.
    """


class Experts(Adapter):
    r"""The gated sum :math:`\frac{\alpha}{r} \sum_k \pi_k B_k A_k x`, zero to begin with.

    Parameters
    ----------
    n_in, n_out, experts, rank : int
    gates : Gates
        Where it finds :math:`\pi`.
    alpha : float, optional
        Default: the rank, so that nothing is scaled.
    batch_axis : {0, 1}
        Axis of the samples where the input has three axes (Lite-Mind's latent tokens have it on 1).

    Attributes
    ----------
    a : Parameter (K, rank, n_in)
        Random.
    b : Parameter (K, rank, n_out)
        Zero; an expert's matrix is ``b[k].T @ a[k]``.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        experts: int,
        rank: int,
        gates: Gates,
        alpha: float | None = None,
        batch_axis: int = 0,
    ) -> None:
        super().__init__()
        if experts < 1:
            raise ValueError(f"at least one expert is needed, found {experts}")
        if batch_axis not in (0, 1):
            raise ValueError(f"the batch is on axis 0 or 1, found {batch_axis}")
        self.scale, self.gates, self.batch_axis = adapter_scale(rank, alpha), gates, batch_axis
        self.a = nn.Parameter(torch.empty(experts, rank, n_in).uniform_(-1, 1) / math.sqrt(n_in))
        self.b = nn.Parameter(torch.zeros(experts, rank, n_out))

    def forward(self, x: Tensor) -> Tensor | None:
        """``(batch, n_in)``, ``(batch, tokens, n_in)`` or ``(tokens, batch, n_in)`` to the same with `n_out`.

        None while the gates are None.
        """
        if self.gates.value is None:
            return None
        gates = self._beside(self.gates.value, x)
        # two products for all experts together, whatever their number
        parts = F.linear(as_dtype_of(x, self.a), self.a.flatten(0, 1)).unflatten(-1, self.a.shape[:2])
        weighted = (parts * gates.to(parts.dtype).unsqueeze(-1)).flatten(-2)
        return self.scale * torch.matmul(weighted, self.b.flatten(0, 1))

    def _beside(self, gates: Tensor, x: Tensor) -> Tensor:
        """Gates with the axes of `x`, its last one now the experts."""
        axis = 0 if x.ndim == 2 else self.batch_axis
        samples = x.shape[axis]
        fits = x.ndim in (2, 3) and gates.shape[-1] == len(self.a) and gates.shape[0] in (1, samples)
        if fits and gates.ndim == 2:
            return gates if x.ndim == 2 else gates.unsqueeze(1 - axis)
        if fits and gates.ndim == 3 and x.ndim == 3 and gates.shape[1] == x.shape[1 - axis]:
            return gates.transpose(0, 1) if axis else gates
        raise ValueError(
            f"gates (batch, {len(self.a)}), (1, {len(self.a)}) or (batch, tokens, {len(self.a)}) are needed for an "
            f"input of shape {tuple(x.shape)} with its batch on axis {axis}, found {tuple(gates.shape)}"
        )

    def delta(self, gate: Tensor | None = None) -> Tensor | None:
        """The change as one matrix, ``(n_out, n_in)``, for one gate.

        Parameters
        ----------
        gate : Tensor (K,) or (1, K), optional
            Default: the gates of the moment, which must then be one for all samples; None where these are None.
        """
        gate = self.gates.value if gate is None else gate
        if gate is None:
            return None
        if gate.numel() != len(self.a):
            raise ValueError(
                f"experts become one matrix for one gate of {len(self.a)} only, found gates {tuple(gate.shape)}"
            )
        weighted = self.b * gate.flatten()[:, None, None].to(self.b.dtype)
        return self.scale * (weighted.flatten(0, 1).T @ self.a.flatten(0, 1))


class ExpertLinear(AdaptedLinear):
    r"""A frozen linear layer and a gated mixture of low-rank experts: :math:`W x + b + \frac{\alpha}{r} \sum_k \pi_k
    B_k A_k x`.

    While the gates are None nothing but the base is computed.

    Parameters
    ----------
    base : Linear
    experts, rank : int
    gates : Gates
        Where it finds :math:`\pi`.
    alpha : float, optional
        Default: the rank, so that nothing is scaled.
    batch_axis : {0, 1}
        Axis of the samples where the input has three axes; `phosphene.nn.attach.batch_axes` finds it.

    Examples
    --------
    >>> base, gates, x = nn.Linear(3, 2), Gates(), torch.ones(4, 3)
    >>> layer = ExpertLinear(base, experts=2, rank=1, gates=gates)
    >>> with gates.using(torch.rand(4, 2)):
    ...     torch.equal(layer(x), base(x))
    True
    """

    def __init__(
        self,
        base: nn.Linear,
        experts: int,
        rank: int,
        gates: Gates,
        alpha: float | None = None,
        batch_axis: int = 0,
    ) -> None:
        sizes = (base.in_features, base.out_features, experts, rank)
        super().__init__(base, experts=Experts(*sizes, gates, alpha, batch_axis))
        self.gates = gates

    def merged_with(self, gate: Tensor) -> nn.Linear:
        """A plain layer that computes what this one does under one gate, ``(K,)``."""
        with self.gates.using(gate.reshape(1, -1)):
            return self.plain(merge=True)
