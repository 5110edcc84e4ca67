"""How many tokens each block merges away, from a rate or a budget, and what a tower then costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import Literal

from phosphene.errors import InputError

__all__ = ["flops", "patch_flops", "schedule"]

Kind = Literal["constant", "decreasing"]


def flops(tokens: int, rates: Sequence[int], *, width: int, mlp_width: int, fixed: float = 0.0) -> float:
    r"""Floating-point operations of a stack of transformer blocks for one image, a multiply-add counted as two.

    .. math:: \sum_l \underbrace{8 N_l D^2}_{q, k, v, output} + \underbrace{4 N_l^2 D}_{attention}
              + \underbrace{4 (N_l - r_l) D M}_{MLP}, \qquad N_{l+1} = N_l - r_l

    as merging stands between attention and MLP. Norms, softmax, biases and the matching itself are left out, as is
    usual. With the patch embedding this gives the figures in common tables for the image towers of CLIP.

    Parameters
    ----------
    tokens : int
        Tokens N at the first block.
    rates : sequence of int
        Tokens r merged away in each block.
    width, mlp_width : int
        Channels D of the tokens and M inside the MLP.
    fixed : float
        Operations of the tower that merging does not change: patch embedding, blocks before, heads.

    Examples
    --------
    >>> vit_b_16 = flops(197, [0] * 12, width=768, mlp_width=3072, fixed=patch_flops(196, 16, 768))
    >>> round(vit_b_16 / 1e9, 1)
    35.1
    """
    total = fixed
    for rate in rates:
        total += 8.0 * tokens * width**2 + 4.0 * tokens**2 * width
        tokens -= rate
        total += 4.0 * tokens * width * mlp_width
    return total


def patch_flops(patches: int, patch: int, width: int, channels: int = 3) -> float:
    """Operations of a linear patch embedding, a multiply-add counted as two."""
    return 2.0 * patches * channels * patch**2 * width


def schedule(
    layers: int,
    tokens: int,
    *,
    width: int,
    mlp_width: int,
    protected: int = 0,
    keep: float | None = None,
    flops: float | None = None,
    r: int | None = None,
    kind: Kind = "decreasing",
    fixed: float = 0.0,
) -> tuple[int, ...]:
    """Tokens to merge away in each block.

    A block can merge away at most half of the tokens that are not protected; what one cannot take, the next ones do.

    Parameters
    ----------
    layers, tokens : int
        Blocks of the tower, and tokens at the first one (class token and registers included).
    width, mlp_width, fixed
        See `flops`.
    protected : int
        Leading tokens that are never merged.
    keep : float, optional
        Share of all tokens that remains at the end, rounded to a whole token.
    flops : float, optional
        Share of the unmerged tower's operations; of the schedules of this kind the one that costs nearest to it.
    r : int, optional
        Tokens merged away in every block; with the decreasing kind 2r in the first, falling in a line to 0 in the last.
        A block that cannot merge so many merges what it can.
    kind : {"decreasing", "constant"}

    Returns
    -------
    tuple of int
        One number a block, 0 where nothing is merged. All 0 if neither `keep`, `flops` nor `r` is given.

    Raises
    ------
    InputError
        For a rate that cannot be reached, with the ranges of `keep` and `flops` that can; for more than one of `keep`,
        `flops` and `r`.

    Examples
    --------
    >>> schedule(4, 65, width=64, mlp_width=256, protected=1, keep=0.385, kind="decreasing")
    (21, 13, 6, 0)
    """
    if sum(value is not None for value in (keep, flops, r)) > 1:
        raise InputError("at most one of tokens, flops and r says how much to merge")
    if tokens <= protected:
        raise InputError(f"a tower of {tokens} tokens, {protected} of them protected, has none to merge")
    if r is not None:
        return _by_rate(r, layers, tokens, protected, kind)
    if keep is None and flops is None:
        return (0,) * layers
    plans = _plans(layers, tokens - protected, kind)
    costs = [_cost(tokens, plan, width, mlp_width, fixed) for plan in plans]
    shares = {
        "tokens": [(tokens - sum(plan)) / tokens for plan in plans],
        "flops": [cost / costs[0] for cost in costs],
    }
    name, wanted = ("tokens", keep) if keep is not None else ("flops", flops or 0.0)
    if not min(shares[name]) <= wanted <= 1:
        raise _out_of_reach(name, wanted, shares, tokens, fixed / costs[0])
    return min(zip(plans, shares[name], strict=True), key=lambda pair: abs(pair[1] - wanted))[0]


def _cost(tokens: int, rates: Sequence[int], width: int, mlp_width: int, fixed: float) -> float:
    return flops(tokens, rates, width=width, mlp_width=mlp_width, fixed=fixed)


def _by_rate(r: int, layers: int, tokens: int, protected: int, kind: Kind) -> tuple[int, ...]:
    """r everywhere, or from 2r in a line to 0, cut to what each block can merge."""
    rates = []
    for layer in range(layers):
        wanted = r if kind == "constant" or layers == 1 else int(2 * r * (1 - layer / (layers - 1)))
        rates.append(min(wanted, (tokens - protected) // 2))
        tokens -= rates[-1]
    return tuple(rates)


def _plans(layers: int, mergeable: int, kind: Kind) -> list[tuple[int, ...]]:
    """Rates of one kind from nothing to all that can be merged, each with one token more to go than the one before."""
    left, most = mergeable, []
    for _ in range(layers):
        most.append(left // 2)
        left -= left // 2
    plans = [(0,) * layers]
    while plans[-1] != tuple(most):
        plans.append(_capped(_apportion(len(plans), layers, kind), mergeable))
    return plans


def _apportion(total: int, layers: int, kind: Kind) -> list[int]:
    """Whole numbers in the proportions of the kind that sum to `total`, never rising from one block to the next."""
    weights = [1.0 if kind == "constant" or layers == 1 else 1 - layer / (layers - 1) for layer in range(layers)]
    unit = total / sum(weights)
    parts = [int(unit * weight + 1e-9) for weight in weights]
    rest = total - sum(parts)
    return [part + (layer < rest) for layer, part in enumerate(parts)]


def _capped(parts: Sequence[int], mergeable: int) -> tuple[int, ...]:
    """Cut each part to half of the tokens left and hand what is cut to the next block."""
    rates, over = [], 0
    for part in parts:
        rate = min(part + over, mergeable // 2)
        over += part - rate
        mergeable -= rate
        rates.append(rate)
    return tuple(rates)


def _out_of_reach(
    name: str, wanted: float, shares: Mapping[str, Sequence[float]], tokens: int, fixed: float
) -> InputError:
    """What to ask for instead, in both measures."""
    least = {key: _upwards(min(each)) for key, each in shares.items()}
    left = round(min(shares["tokens"]) * tokens)
    outside = f"; {fixed:.0%} of the operations lie outside these blocks" if fixed >= 0.05 else ""
    return InputError(
        f"{name} = {wanted:g} is out of reach: this tower can be brought to a share of {least[name]:g} at the least, "
        f"and 1 is all of it. Ask for flops (--merge-flops) from {least['flops']:g} to 1, or for tokens "
        f"(--merge-tokens) from {least['tokens']:g} to 1; the least is {left} of {tokens} tokens, as a block merges at "
        f"most half of them{outside}"
    )


def _upwards(share: float) -> float:
    """Rounded to three digits so that what is named can be asked for."""
    unit = 10.0 ** (floor(log10(share)) - 2)
    return float(f"{ceil(share / unit - 1e-9) * unit:.3g}")
