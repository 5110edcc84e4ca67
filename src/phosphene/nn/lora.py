"""Low-rank adaptation: of linear layers, and of whole paths that skip from the voxels to a later layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phosphene.errors import unknown
from phosphene.nn.adapter import AdaptedLinear, Adapter, LowRank

__all__ = ["ACTIVATIONS", "Activation", "LoRALinear", "SkipLoRA", "decorrelation"]

Activation = Literal["gelu", "silu", "tanh", "linear"]

# each has a slope at zero, where every skip starts; ReLU has none there, and its skip would never leave zero
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "linear": lambda x: x,
}


class LoRALinear(AdaptedLinear):
    r"""A frozen linear layer and a trained change of low rank: :math:`W x + b + \frac{\alpha}{r} B A x`.

    After LoRA (Hu et al., 2022): `A` random, `B` zero, so that it starts as the layer it was made from.

    Parameters
    ----------
    base : Linear
    rank : int
    alpha : float, optional
        Default: the rank, so that nothing is scaled.
    dropout : float
        Of the input of `A`, in training.

    Examples
    --------
    >>> base, x = nn.Linear(3, 2), torch.ones(1, 3)
    >>> torch.equal(LoRALinear(base, rank=1)(x), base(x))
    True
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float | None = None, dropout: float = 0.0) -> None:
        super().__init__(base, lora=LowRank(base.in_features, base.out_features, rank, alpha, dropout))


class SkipLoRA(Adapter):
    r"""A non-linear path of low rank from the voxels to a later layer: :math:`\phi(\frac{\alpha}{r} B A x)`.

    The non-linearity is around the whole product, as MindTuner has it; with `B` zero the path starts at zero.

    Parameters
    ----------
    n_in, n_out : int
        Voxels, and units of the layer to which the path is added.
    rank : int
    alpha : float, optional
        Default: the rank, so that nothing is scaled.
    activation : {"gelu", "silu", "tanh", "linear"}
        "linear" is for ablation.

    Raises
    ------
    InputError
        For another activation, "relu" among them: without a slope at zero the path would have no gradient, ever.
    """

    def __init__(
        self, n_in: int, n_out: int, rank: int, alpha: float | None = None, activation: Activation = "gelu"
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.path = LowRank(n_in, n_out, rank, alpha)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, voxels)`` to ``(batch, n_out)``."""
        return self.activation(self.path(x))


def decorrelation(linear: Tensor, skip: Tensor, eps: float = 1e-2) -> Tensor:
    r"""Mean size of the correlation, over features, of a linear path with the skip path that is added to it.

    .. math:: \frac{1}{B} \sum_b \frac{|\mathrm{cov}(u_b, s_b)|}{\sqrt{\mathrm{var}(u_b)\,(\mathrm{var}(s_b) +
              \epsilon\,\mathrm{var}(u_b))}}

    Both paths get its gradient. A skip much smaller than :math:`\sqrt\epsilon` of the linear path, as all are at the
    start, counts in proportion to its size, so that value and gradient are finite everywhere and zero for a skip of
    zero.

    Parameters
    ----------
    linear, skip : Tensor (batch, ...)
        Outputs of the two paths at the same place; all axes but the first are features.
    eps : float
        Variance of the skip, relative to the linear path's, at which a sample counts by a factor of root half. The
        gradient for a small skip grows as one over its root: with 1e-4 it is many times that of the task in the
        second step, and the skip learns less.

    Returns
    -------
    Tensor
        A scalar in [0, 1), float32 or wider.

    Examples
    --------
    >>> u = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    >>> round(float(decorrelation(u, 9 * u)), 3), float(decorrelation(u, 0 * u))
    (1.0, 0.0)
    """
    if linear.shape != skip.shape or linear.ndim < 2:
        raise ValueError(
            f"two paths (batch, ...) of one shape are needed, found {tuple(linear.shape)} and {tuple(skip.shape)}"
        )
    u, s = (_centred(path.flatten(1)) for path in (linear, skip))
    var_u, var_s = u.square().mean(dim=1), s.square().mean(dim=1)
    floor = eps * var_u.detach() + _TINY
    return ((u * s).mean(dim=1).abs() / ((var_u + _TINY) * (var_s + floor)).sqrt()).mean()


_TINY = 1e-12  # for a linear path that is the same in all features


def _centred(x: Tensor) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x - x.mean(dim=1, keepdim=True)
