"""What a decoder says of some trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """What a decoder says of b trials.

    Attributes
    ----------
    tokens : Tensor of shape (b, tokens, width) or None
        Predicted tokens; None where the target is one pooled embedding.
    pooled : Tensor of shape (b, width)
        The predicted pooled embedding; of a token prediction, the mean over tokens.
    retrieval : Tensor of the shape of the target, or None
        What is compared with targets, from decoders that project their prediction once more for that.
    classes : Tensor of shape (b, classes) or None
        Logits of several labels, from decoders with a head for them.
    """

    tokens: Tensor | None
    pooled: Tensor
    retrieval: Tensor | None = None
    classes: Tensor | None = None

    @classmethod
    def of(cls, output: Tensor, target_shape: Sequence[int]) -> Prediction:
        """From raw outputs, ``(b, tokens, width)`` or ``(b, width)`` (or flat), by the shape of the target."""
        output = output.reshape(len(output), *target_shape)
        if len(target_shape) == 2:
            return cls(output, output.mean(dim=1))
        return cls(None, output)

    @property
    def target(self) -> Tensor:
        """The predicted target: flattened tokens ``(b, tokens * width)``, or the pooled embedding."""
        return self.pooled if self.tokens is None else self.tokens.flatten(1)

    @property
    def embedding(self) -> Tensor:
        """What is compared with targets: of `retrieval` if there is one, else `target`; flat."""
        return self.target if self.retrieval is None else self.retrieval.flatten(1)
