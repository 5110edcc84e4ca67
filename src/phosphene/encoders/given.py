"""Targets that come as arrays: embeddings made elsewhere, under a name and a checksum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from phosphene.encoders.base import EncodedBatch, Encoder, EncoderConfig
from phosphene.encoders.targets import Targets
from phosphene.errors import InputError
from phosphene.files import digest

if TYPE_CHECKING:
    from phosphene.stimuli import StimulusSet

__all__ = ["GivenConfig", "GivenEncoder", "given_targets", "read_npz"]


class GivenConfig(EncoderConfig):
    """What is known of embeddings made elsewhere.

    Attributes
    ----------
    label : str
        What they are called.
    checksum : str
        Hash of ids and values.
    """

    label: str = "given"
    checksum: str = ""


class GivenEncoder(Encoder):
    """Stands for embeddings made elsewhere: it has an identity, and cannot encode anything more."""

    name: ClassVar[str] = "given"
    Config: ClassVar[type[EncoderConfig]] = GivenConfig

    @property
    def label(self) -> str:
        return str(self.config.label)

    def _encode(self, stimuli: StimulusSet, rows: np.ndarray) -> EncodedBatch:
        raise InputError(f"targets {self.label!r} were given as arrays; other stimuli cannot be encoded like them")

    def keys(self, stimuli: StimulusSet) -> np.ndarray:
        return stimuli.ids


def given_targets(
    ids: Sequence[str] | np.ndarray, pooled: Any = None, tokens: Any = None, label: str = "given"
) -> Targets:
    """Targets from arrays.

    Parameters
    ----------
    ids : sequence of str
        Stimulus ids, one a row.
    pooled : (n, width) array_like, optional
        Default: the mean over tokens.
    tokens : (n, tokens, width) array_like, optional
    label : str
        What to call them.

    Raises
    ------
    InputError
        Without any array, or with NaN or infinite values.

    Examples
    --------
    >>> given_targets(["a", "b"], [[0.0, 1.0], [1.0, 0.0]]).shape("pooled")
    (2,)
    """
    if pooled is None and tokens is None:
        raise InputError("give pooled embeddings, tokens, or both")
    token_array = None if tokens is None else np.asarray(tokens, dtype=np.float32)
    pooled_array = np.asarray(
        token_array.mean(axis=1) if pooled is None and token_array is not None else pooled, np.float32
    )
    arrays = [pooled_array] if token_array is None else [pooled_array, token_array]
    for array in arrays:
        if not np.isfinite(array).all():
            raise InputError(f"targets {label!r} hold NaN or infinite values")
    checksum = digest(*np.asarray(ids, dtype=str).tolist(), *arrays)
    return Targets(ids, token_array, pooled_array, GivenEncoder(GivenConfig(label=label, checksum=checksum)))


def read_npz(path: str | Path) -> Targets:
    """Targets from an ``.npz`` with ``ids`` (text) and ``pooled`` and/or ``tokens``; the file's name is their label."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not a readable .npz of plain arrays: {error}") from error
    unknown_names = sorted(set(arrays) - {"ids", "pooled", "tokens"})
    if "ids" not in arrays or unknown_names or len(arrays) < 2:
        raise InputError(
            f"{path} must hold ids and pooled and/or tokens; found {', '.join(sorted(arrays)) or 'nothing'}"
        )
    return given_targets(arrays["ids"].astype(str), arrays.get("pooled"), arrays.get("tokens"), path.stem)
