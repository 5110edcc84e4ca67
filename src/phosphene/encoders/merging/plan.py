"""What merge settings come to in a tower of given sizes: tokens after each block, share of the operations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from phosphene.encoders.merging.schedule import flops
from phosphene.encoders.merging.settings import MergeSettings

__all__ = ["MergePlan", "TowerShape"]


@dataclass(frozen=True)
class MergePlan:
    """A schedule and what it saves.

    Attributes
    ----------
    rates : tuple of int
        Tokens merged away in each block.
    tokens : int
        Tokens at the first block, class token included.
    flops : float
        Share of the unmerged tower's operations, above 0 to 1.
    """

    rates: tuple[int, ...]
    tokens: int
    flops: float

    @property
    def remaining(self) -> int:
        """Tokens after the last block."""
        return self.tokens - sum(self.rates)

    @property
    def active(self) -> bool:
        """Whether anything is merged."""
        return any(self.rates)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"rates": list(self.rates), "tokens": self.tokens, "remaining": self.remaining, "flops": self.flops}

    def __str__(self) -> str:
        return f"{self.tokens} -> {self.remaining} tokens, {self.flops:.0%} of the operations"


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a vision tower that decide a schedule.

    Attributes
    ----------
    layers : int
        Blocks.
    grid : (int, int)
        Rows and columns of patches.
    protected : int
        Leading tokens that are never merged: the class token, where there is one.
    width, mlp_width : int
        Channels of a token, and inside the MLP.
    fixed : float
        Operations that merging does not change, a multiply-add counted as two: patch embedding, blocks before, heads.
    """

    layers: int
    grid: tuple[int, int]
    protected: int
    width: int
    mlp_width: int
    fixed: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens at the first block."""
        return self.grid[0] * self.grid[1] + self.protected

    def plan(self, settings: MergeSettings) -> MergePlan:
        """The schedule of some settings.

        Raises
        ------
        InputError
            For a rate out of reach, with the range that can be reached.

        Examples
        --------
        >>> vit_b_16 = TowerShape(layers=12, grid=(14, 14), protected=1, width=768, mlp_width=3072)
        >>> str(vit_b_16.plan(MergeSettings(r=8, schedule="constant")))
        '197 -> 101 tokens, 74% of the operations'
        """
        return _plan(self, settings)


@lru_cache(maxsize=256)
def _plan(shape: TowerShape, settings: MergeSettings) -> MergePlan:
    width, mlp_width, fixed, tokens = shape.width, shape.mlp_width, shape.fixed, shape.tokens
    rates = settings.rates(
        shape.layers, tokens, width=width, mlp_width=mlp_width, protected=shape.protected, fixed=fixed
    )
    full, merged = (
        flops(tokens, plan, width=width, mlp_width=mlp_width, fixed=fixed) for plan in ([0] * shape.layers, rates)
    )
    return MergePlan(rates, tokens, merged / full)
