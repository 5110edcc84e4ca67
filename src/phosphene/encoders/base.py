"""The contract of all encoders: stimuli in, tokens and pooled embeddings out, under an identity that never lies."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from phosphene.errors import InputError
from phosphene.files import FolderFormat, digest, read_json, write_json
from phosphene.settings import Settings

if TYPE_CHECKING:
    from phosphene.stimuli import StimulusSet

__all__ = ["CaptionEncoder", "EncodedBatch", "Encoder", "EncoderConfig", "PixelEncoder"]

FORMAT = 1
FOLDER = FolderFormat(
    "an encoder", FORMAT, ("config.json", "state.safetensors"), keys=("encoder", "identity", "arrays")
)


@dataclass(frozen=True)
class EncodedBatch:
    """What an encoder makes of n stimuli.

    Attributes
    ----------
    tokens : float32 array of shape (n, tokens, width) or None
        A grid or sequence of local embeddings; None where the encoder has only one vector a stimulus.
    pooled : float32 array of shape (n, width)
        One vector a stimulus.
    """

    tokens: np.ndarray | None
    pooled: np.ndarray

    def kinds(self) -> dict[str, np.ndarray]:
        """The arrays that exist, by kind."""
        return {"pooled": self.pooled} if self.tokens is None else {"tokens": self.tokens, "pooled": self.pooled}


class EncoderConfig(Settings):
    """Settings of an encoder; every one of them is part of its identity."""


class Encoder(ABC):
    """Stimuli -> targets.

    A new encoder subclasses `PixelEncoder` or `CaptionEncoder` (or this class), declares `name`, `Config` and, where
    it learns from data, `needs_fit`, and gets one line in `phosphene.encoders.registry`.

    Parameters
    ----------
    config : EncoderConfig, optional
        Settings; the defaults of `Config` if left out.

    Attributes
    ----------
    batch_size : int
        Stimuli encoded at once by default.
    device : str
        Where encoders that compute with torch do so.
    fitted_on : frozenset of str or None
        Ids of the stimuli the encoder was fitted on; None for encoders that learn nothing, and before fitting.
    """

    name: ClassVar[str]
    Config: ClassVar[type[EncoderConfig]] = EncoderConfig
    needs_fit: ClassVar[bool] = False
    batch_size: int = 64

    def __init__(self, config: EncoderConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config.build()
        self.device = "cpu"
        self.fitted_on: frozenset[str] | None = None

    def __repr__(self) -> str:
        return f"<encoder {self.label}>"

    @property
    def label(self) -> str:
        """The name under which `make_encoder` builds it."""
        return self.name

    @property
    def saved_label(self) -> str:
        """The name under which `make_encoder` builds a saved one again: without folders."""
        return self.label

    @property
    def trained_on(self) -> frozenset[str] | None:
        """Ids of all stimuli that anything in it has learned from; None where nothing has."""
        return self.fitted_on

    def remembered(self, stimuli: StimulusSet, cache: Path | None = None) -> frozenset[str] | None:
        """What `Targets` of these stimuli remember: `trained_on`, and which of the stimuli are copies of such.

        What was read of the pictures for that is kept in `cache`, the folder of the target cache.
        """
        return self.trained_on

    @property
    def is_fitted(self) -> bool:
        """Whether it can encode."""
        return not self.needs_fit or self.fitted_on is not None

    @property
    def identity(self) -> str:
        """Hash of name, settings, what was fitted, weights and preprocessing: equal in every process.

        Raises
        ------
        InputError
            Before an encoder that needs fitting was fitted.
        """
        self._require_fit()
        facts = {"format": FORMAT, "name": self.name, "config": self._identity_config(), "facts": self._facts()}
        return digest(json.dumps(facts, sort_keys=True, ensure_ascii=True))

    def fit(self, stimuli: StimulusSet) -> Self:
        """Learn from training stimuli (only for encoders with `needs_fit`); returns the encoder itself."""
        if not self.needs_fit:
            raise InputError(f"encoder {self.label!r} learns nothing from data and cannot be fitted")
        if len(stimuli) == 0:
            raise InputError(f"encoder {self.label!r} cannot be fitted on no stimuli")
        self._fit(stimuli)
        self.fitted_on = frozenset(str(name) for name in stimuli.ids)
        return self

    def encode(self, stimuli: StimulusSet, rows: Any = None) -> EncodedBatch:
        """Encode some rows (all if None) of a stimulus set, in one go.

        Raises
        ------
        InputError
            When the encoder is not fitted, or the stimuli lack what it reads.
        """
        self._require_fit()
        chosen = np.arange(len(stimuli)) if rows is None else np.arange(len(stimuli))[rows]
        batch = self._encode(stimuli, np.atleast_1d(chosen))
        for kind, array in batch.kinds().items():
            if not np.isfinite(array).all():
                raise InputError(
                    f"encoder {self.label!r} gave NaN or infinite {kind} for {stimuli.ids[chosen][:3]} ..."
                )
        return batch

    @abstractmethod
    def _encode(self, stimuli: StimulusSet, rows: np.ndarray) -> EncodedBatch:
        """Encode rows (an index array)."""

    @abstractmethod
    def keys(self, stimuli: StimulusSet) -> np.ndarray:
        """Content hash of each stimulus as far as the encoder reads it, str array (n,): the key of the cache."""

    def _fit(self, stimuli: StimulusSet) -> None:
        """Learn; only for encoders with `needs_fit`."""
        raise TypeError(f"{type(self).__name__} declares needs_fit and must define _fit")

    def _identity_config(self) -> dict[str, Any]:
        """The settings that change what comes out."""
        settings: dict[str, Any] = self.config.model_dump(mode="json")
        return settings

    def _facts(self) -> dict[str, Any]:
        """JSON facts besides the settings that change what comes out: data fitted on, weights, preprocessing."""
        return {}

    def _arrays(self) -> dict[str, np.ndarray]:
        """Fitted arrays."""
        return {}

    def _notes(self) -> dict[str, Any]:
        """Fitted state that is not an array, as JSON."""
        return {}

    def _restore(self, arrays: dict[str, np.ndarray], notes: dict[str, Any]) -> None:
        """Take back what `_arrays` and `_notes` gave."""
        if arrays or notes:
            raise ValueError(f"an encoder without state was saved with {sorted([*arrays, *notes])}")

    def _require_fit(self) -> None:
        if not self.is_fitted:
            raise InputError(
                f"encoder {self.label!r} must be fitted on training stimuli first: "
                "encode(stimuli, encoder, fit_on=training_ids) or encoder.fit(training_stimuli)"
            )

    def save(self, path: str | Path) -> None:
        """Write the encoder as a folder: ``config.json`` and, where it has arrays, ``state.safetensors``."""
        from safetensors.numpy import save_file

        self._require_fit()
        arrays = {name: np.ascontiguousarray(array) for name, array in self._arrays().items()}
        content = {
            "format": FORMAT,
            "encoder": self.name,
            "config": self._saved_config(),
            "notes": self._notes(),
            "fitted_on": None if self.fitted_on is None else sorted(self.fitted_on),
            "identity": self.identity,
            "arrays": _checksums(arrays),
        }
        with FOLDER.written(path) as temporary:
            write_json(temporary / "config.json", content)
            if arrays:
                save_file(arrays, str(temporary / "state.safetensors"))

    def _saved_config(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.config.model_dump(mode="json")
        return settings

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an encoder written by `save`.

        ``Encoder.load`` reads any encoder; called on a subclass it refuses an encoder of another kind.

        Raises
        ------
        InputError
            For a missing or damaged folder, an encoder of another kind, or a state that does not match its identity.
        """
        from phosphene.encoders.registry import ENCODERS

        path = Path(path)
        content = _read_config(path)
        found = content["encoder"]
        if found not in ENCODERS:
            raise InputError(f"{path} holds an encoder {found!r}, which is not among {', '.join(sorted(ENCODERS))}")
        kind = ENCODERS[found]
        if not issubclass(kind, cls):
            raise InputError(f"{path} holds an encoder {found!r}, not {cls.name!r}")
        encoder = kind(kind.Config.build(content["config"]))
        arrays = _read_arrays(path, content["arrays"])
        if content["fitted_on"] is not None:
            encoder.fitted_on = frozenset(content["fitted_on"])
        try:
            encoder._restore(arrays, content["notes"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: the fitted state of encoder {found!r} is incomplete ({error})") from error
        if encoder.identity != content["identity"]:
            raise InputError(
                f"{path}: identity {encoder.identity} of the encoder does not match the recorded "
                f"{content['identity']}: the folder was changed, or it is a checkpoint of another encoder"
            )
        return encoder


class PixelEncoder(Encoder):
    """An encoder that looks at pixels: the picture itself, or the middle frame of a clip."""

    @abstractmethod
    def encode_pixels(self, frames: np.ndarray) -> EncodedBatch:
        """Encode pictures, uint8 array of shape (n, height, width, 3)."""

    def _encode(self, stimuli: StimulusSet, rows: np.ndarray) -> EncodedBatch:
        self._require_pixels(stimuli)
        return self.encode_pixels(stimuli.frames(rows))

    def keys(self, stimuli: StimulusSet) -> np.ndarray:
        self._require_pixels(stimuli)
        return np.asarray(stimuli.hashes, dtype=str)

    def _require_pixels(self, stimuli: StimulusSet) -> None:
        if not stimuli.has_pixels:
            raise InputError(f"encoder {self.label!r} reads pixels and these stimuli have none")


class CaptionEncoder(Encoder):
    """An encoder that reads the captions of a stimulus."""

    @abstractmethod
    def encode_captions(self, captions: Sequence[Sequence[str]]) -> EncodedBatch:
        """Encode n stimuli given as their captions (at least one each)."""

    def _encode(self, stimuli: StimulusSet, rows: np.ndarray) -> EncodedBatch:
        return self.encode_captions(self._captions(stimuli, rows))

    def keys(self, stimuli: StimulusSet) -> np.ndarray:
        return np.array([digest(*captions) for captions in self._captions(stimuli, np.arange(len(stimuli)))], dtype=str)

    def _captions(self, stimuli: StimulusSet, rows: np.ndarray) -> list[tuple[str, ...]]:
        captions = [tuple(stimuli.captions[row]) for row in rows]
        empty = [
            str(stimuli.ids[row]) for row, texts in zip(rows, captions, strict=True) if not any(map(str.strip, texts))
        ]
        if empty:
            raise InputError(
                f"encoder {self.label!r} reads captions; {len(empty)} of {len(captions)} stimuli have none: "
                f"{', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}"
            )
        return captions


def _checksums(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: digest(array) for name, array in arrays.items()}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; a saved encoder is a folder with config.json")
    content = read_json(path / "config.json")
    needed = {"format", "encoder", "config", "notes", "fitted_on", "identity", "arrays"}
    missing = needed - set(content) if isinstance(content, dict) else needed
    if missing:
        raise InputError(f"{path / 'config.json'} is not that of an encoder: missing {', '.join(sorted(missing))}")
    if content["format"] != FORMAT:
        raise InputError(f"{path} has encoder format {content['format']}, this version reads {FORMAT}")
    return dict(content)


def _read_arrays(path: Path, expected: dict[str, str]) -> dict[str, np.ndarray]:
    """Arrays of ``state.safetensors``, checked against the recorded checksums."""
    if not expected:
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = path / "state.safetensors"
    try:
        arrays: dict[str, np.ndarray] = load_file(str(file))
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; fitted state is read from safetensors only") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file} is not a readable safetensors file ({error}); nothing else is loaded") from error
    if _checksums(arrays) != expected:
        raise InputError(
            f"{file} does not hold the arrays that were saved (checksums differ): it was damaged or changed"
        )
    return arrays
