"""``z:NAME``: any encoder, each dimension z-scored over the training stimuli.

Cosines between embeddings that share a large mean tell stimuli apart poorly, and a prediction that is the mean plus a
little looks like every stimulus at once. Mean and deviation come from training stimuli only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from phosphene.encoders.base import EncodedBatch, Encoder, EncoderConfig
from phosphene.files import digest

if TYPE_CHECKING:
    from pathlib import Path

    from phosphene.stimuli import StimulusSet

__all__ = ["StandardisedConfig", "StandardisedEncoder"]

_BLOCK = 256


class StandardisedConfig(EncoderConfig):
    """Settings of the standardised encoder.

    Attributes
    ----------
    inner : str
        Name of the encoder whose embeddings are z-scored.
    settings : dict
        Its settings.
    """

    inner: str
    settings: dict[str, Any] = Field(default_factory=dict)


class StandardisedEncoder(Encoder):
    """Embeddings of another encoder minus their training mean, over their training deviation, dimension by dimension.

    Dimensions that do not vary over the training stimuli become zero.
    """

    name: ClassVar[str] = "z"
    Config: ClassVar[type[EncoderConfig]] = StandardisedConfig
    needs_fit: ClassVar[bool] = True

    def __init__(self, config: EncoderConfig | None = None) -> None:
        from phosphene.encoders.registry import make_encoder

        super().__init__(config)
        self.inner = make_encoder(self.config.inner, **self.config.settings)
        self.batch_size = self.inner.batch_size
        self._moments: dict[str, np.ndarray] = {}
        self._trained = ""

    @property
    def label(self) -> str:
        return f"{self.name}:{self.inner.label}"

    @property
    def saved_label(self) -> str:
        return f"{self.name}:{self.inner.saved_label}"

    @property
    def trained_on(self) -> frozenset[str] | None:
        inner = self.inner.trained_on
        return self.fitted_on if inner is None else inner | (self.fitted_on or frozenset())

    def remembered(self, stimuli: StimulusSet, cache: Path | None = None) -> frozenset[str] | None:
        inner = self.inner.remembered(stimuli, cache)
        return self.fitted_on if inner is None else inner | (self.fitted_on or frozenset())

    def _fit(self, stimuli: StimulusSet) -> None:
        if self.inner.needs_fit:
            self.inner.fit(stimuli)
        self.inner.device = self.device
        self._trained = digest(*sorted(self.inner.keys(stimuli).tolist()))
        total: dict[str, Any] = {}
        square: dict[str, Any] = {}
        for start in range(0, len(stimuli), _BLOCK):
            batch = self.inner.encode(stimuli, np.arange(start, min(start + _BLOCK, len(stimuli))))
            for kind, array in batch.kinds().items():
                values = array.astype(np.float64)
                total[kind] = total.get(kind, 0) + values.sum(axis=0)
                square[kind] = square.get(kind, 0) + (values**2).sum(axis=0)
        for kind, summed in total.items():
            mean = summed / len(stimuli)
            deviation = np.sqrt(np.maximum(square[kind] / len(stimuli) - mean**2, 0))
            varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-3)
            self._moments[f"{kind}_mean"] = mean.astype(np.float32)
            self._moments[f"{kind}_factor"] = np.where(varies, 1 / np.where(varies, deviation, 1), 0).astype(np.float32)

    def _encode(self, stimuli: StimulusSet, rows: np.ndarray) -> EncodedBatch:
        self.inner.device = self.device
        batch = self.inner.encode(stimuli, rows)
        scaled = {
            kind: ((array - self._moments[f"{kind}_mean"]) * self._moments[f"{kind}_factor"]).astype(np.float32)
            for kind, array in batch.kinds().items()
        }
        return EncodedBatch(scaled.get("tokens"), scaled["pooled"])

    def keys(self, stimuli: StimulusSet) -> np.ndarray:
        return self.inner.keys(stimuli)

    # As everywhere the identity holds what was learnt from, not the floats that came of it: their last bits depend on
    # threads and devices. The floats have a checksum on disk.
    def _facts(self) -> dict[str, Any]:
        return {"inner": self.inner.identity, "trained": self._trained}

    def _identity_config(self) -> dict[str, Any]:
        return {}  # the identity of the inner encoder holds its settings, and no folder names

    def _saved_config(self) -> dict[str, Any]:
        settings = self.inner._saved_config()
        for spelled in ("source", "column", "components", "inner"):
            settings.pop(spelled, None)
        return {"inner": self.inner.saved_label, "settings": settings}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {**self._moments, **{f"inner.{name}": array for name, array in self.inner._arrays().items()}}

    def _notes(self) -> dict[str, Any]:
        notes = {"inner": self.inner._notes(), "trained": self._trained}
        if not self.inner.needs_fit and self.inner.trained_on is not None:  # weights that were trained on stimuli
            notes["inner_seen"] = sorted(self.inner.trained_on)
        return notes

    def _restore(self, arrays: dict[str, np.ndarray], notes: dict[str, Any]) -> None:
        if self.inner.needs_fit:
            self.inner.fitted_on = self.fitted_on
        elif "inner_seen" in notes:
            self.inner.fitted_on = frozenset(notes["inner_seen"])
        own = {name: array for name, array in arrays.items() if not name.startswith("inner.")}
        inner = {name[len("inner.") :]: array for name, array in arrays.items() if name.startswith("inner.")}
        self.inner._restore(inner, notes["inner"])
        self._moments, self._trained = own, notes["trained"]
