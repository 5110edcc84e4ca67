"""Class labels as one-hot targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from phosphene.encoders.base import EncodedBatch, Encoder, EncoderConfig
from phosphene.errors import InputError
from phosphene.files import digest

if TYPE_CHECKING:
    from phosphene.stimuli import StimulusSet

__all__ = ["LabelEncoder", "LabelsConfig"]


class LabelsConfig(EncoderConfig):
    """Settings of the label encoder.

    Attributes
    ----------
    column : str
        Column of the stimuli's labels.
    """

    column: str = "label"


class LabelEncoder(Encoder):
    """One-hot vector of a label column; the classes are those of the training stimuli, in sorted order.

    Pooled has one entry a class; there are no tokens. A label that training never showed is an error, because a row
    of zeros would look like an answer.
    """

    name: ClassVar[str] = "labels"
    Config: ClassVar[type[EncoderConfig]] = LabelsConfig
    needs_fit: ClassVar[bool] = True
    batch_size = 4096

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__(config)
        self.classes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        default = self.Config().model_dump()["column"]
        return self.name if self.config.column == default else f"{self.name}:{self.config.column}"

    def _fit(self, stimuli: StimulusSet) -> None:
        self.classes = tuple(sorted(set(self._column(stimuli).tolist())))

    def _encode(self, stimuli: StimulusSet, rows: np.ndarray) -> EncodedBatch:
        values = self._column(stimuli)[rows]
        new = sorted(set(values.tolist()) - set(self.classes))
        if new:
            raise InputError(
                f"label {new[0]!r} in column {self.config.column!r} does not occur in the training stimuli; "
                f"classes seen there: {', '.join(self.classes)}"
            )
        hits = values[:, None] == np.array(self.classes)[None, :]
        return EncodedBatch(tokens=None, pooled=hits.astype(np.float32))

    def keys(self, stimuli: StimulusSet) -> np.ndarray:
        return np.array([digest(value) for value in self._column(stimuli).tolist()], dtype=str)

    def _column(self, stimuli: StimulusSet) -> np.ndarray:
        column = self.config.column
        if column not in stimuli.labels:
            found = ", ".join(stimuli.labels.columns) or "none"
            raise InputError(f"encoder {self.label!r} reads the label column {column!r}; columns found: {found}")
        return np.array([str(value) for value in stimuli.labels[column].tolist()], dtype=str)

    def _facts(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def _notes(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def _restore(self, arrays: dict[str, np.ndarray], notes: dict[str, Any]) -> None:
        self.classes = tuple(notes["classes"])
