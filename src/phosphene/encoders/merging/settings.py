"""Settings of token merging: how much, guided by what, spread how over the blocks."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from phosphene.encoders.merging.schedule import schedule
from phosphene.settings import Settings

__all__ = ["Guide", "MergeSettings"]

Guide = Literal["none", "spatial", "frequency", "both", "text"]


class MergeSettings(Settings):
    """How tokens are merged. At most one of `tokens`, `flops` and `r` says how much; with none, nothing is.

    Attributes
    ----------
    tokens : float, optional
        Share of the tokens that remains after the last block, above 0 to 1.
    flops : float, optional
        Share of the unmerged tower's operations, above 0 to 1.
    r : int, optional
        Tokens merged away in a block; with the decreasing schedule twice that in the first, none in the last.
    guide : {"none", "spatial", "frequency", "both", "text"}
        What is spared from merging: nothing (plain merging), what draws attention, what holds fine detail, both of
        these, or what resembles a text.
    strength : float
        Weight (eta) of the guide against the likeness of keys, a cosine.
    balance : float
        Share (lambda) of the spatial guide in "both", 0 to 1.
    schedule : {"decreasing", "constant"}
        Most merges in the first blocks, which saves more for the same number of tokens at the end, or as many in each.
    proportional : bool
        Whether attention counts a merged token as many times as tokens lie in it.
    restore : bool
        Whether tokens are copied back to the full grid on output.
    """

    tokens: float | None = Field(default=None, gt=0, le=1)
    flops: float | None = Field(default=None, gt=0, le=1)
    r: int | None = Field(default=None, ge=0)
    guide: Guide = "none"
    strength: float = Field(default=0.1, ge=0)
    balance: float = Field(default=0.5, ge=0, le=1)
    schedule: Literal["constant", "decreasing"] = "decreasing"
    proportional: bool = True
    restore: bool = True

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        given = [name for name in ("tokens", "flops", "r") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"at most one of tokens, flops and r says how much to merge, found {' and '.join(given)}")
        return self

    @property
    def active(self) -> bool:
        """Whether anything is to be merged at all."""
        return self.tokens is not None or self.flops is not None or bool(self.r)

    def without_use(self) -> dict[str, str]:
        """Settings that the guide leaves without a use, or all of them where nothing is merged."""
        if not self.active:
            names = ("guide", "strength", "balance", "schedule", "proportional", "restore")
            return dict.fromkeys(names, "nothing is merged without tokens, flops or r")
        idle = {} if self.guide == "both" else {"balance": "guide = 'both' alone reads it"}
        return {**idle, "strength": "guide = 'none'"} if self.guide == "none" else idle

    def rates(
        self,
        layers: int,
        tokens: int,
        *,
        width: int,
        mlp_width: int,
        protected: int = 0,
        fixed: float = 0.0,
    ) -> tuple[int, ...]:
        """Tokens to merge away in each block of a tower; see `phosphene.encoders.merging.schedule.schedule`."""
        return schedule(
            layers,
            tokens,
            width=width,
            mlp_width=mlp_width,
            protected=protected,
            keep=self.tokens,
            flops=self.flops,
            r=self.r,
            kind=self.schedule,
            fixed=fixed,
        )
