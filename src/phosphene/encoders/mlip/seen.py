"""Which pictures a model was trained on: their ids, and short digests of their pixels by which copies are known."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from phosphene.encoders.images import at_size
from phosphene.encoders.mlip.store import read_config
from phosphene.errors import InputError, LeakageError
from phosphene.files import digest, read_json, write_json
from phosphene.stimuli import StimulusSet, picture_hashes

__all__ = ["SeenPictures", "hashes_at"]

log = logging.getLogger(__name__)

_KEY = "pictures"
_DIGITS = 16  # of a hash: two of a million pictures share them once in ten million sets
_SHOWN = 5


def _short(hashes: Iterable[str]) -> np.ndarray:
    return np.unique(np.array([int(name[:_DIGITS], 16) for name in hashes], dtype="<u8"))


class SeenPictures:
    """Pictures that a model was trained on.

    Parameters
    ----------
    ids : iterable of str
    digests : (n,) array of uint64
        First 64 bits of the hash of each picture at the size of the model.

    Examples
    --------
    >>> seen = SeenPictures(["a"]).with_others(["a", "b"], ["00" * 16, "0f" * 16])
    >>> seen.ids, SeenPictures.of_facts({"data": {"fitted_on": seen.ids}, **seen.facts()}).has(["0f" * 16, "ff" * 16])
    (['a', 'b'], array([ True, False]))
    """

    def __init__(self, ids: Iterable[str] = (), digests: np.ndarray | None = None) -> None:
        self.ids = sorted(set(ids))
        self._digests = np.empty(0, dtype="<u8") if digests is None else digests

    @classmethod
    def of_model(cls, folder: Path) -> Self:
        """What a model tells of itself; one of an older version tells ids alone, and the log says so."""
        seen = cls.of_facts(read_config(folder)["facts"])
        if seen.ids and not len(seen._digests):
            log.warning("%s does not tell the pixels it was trained on: held-out pictures cannot be compared", folder)
        return seen

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Self:
        """What the facts of a model tell.

        Raises
        ------
        InputError
            For facts that are damaged.
        """
        try:
            digests = np.frombuffer(base64.b64decode(facts.get(_KEY, ""), validate=True), dtype="<u8")
        except (binascii.Error, ValueError, TypeError) as error:
            raise InputError(f"the facts of the model to start from are damaged: {_KEY}: {error}") from error
        return cls(facts.get("data", {}).get("fitted_on", ()), digests)

    @property
    def knows_pixels(self) -> bool:
        """Whether copies under other names can be recognised."""
        return len(self._digests) > 0

    def facts(self) -> dict[str, str]:
        """The digests as text, 11 characters a picture; nothing where there are none."""
        return {_KEY: base64.b64encode(self._digests.tobytes()).decode()} if len(self._digests) else {}

    def with_others(self, ids: Iterable[str], hashes: Iterable[str]) -> Self:
        """These and further pictures."""
        return type(self)([*self.ids, *ids], np.union1d(self._digests, _short(hashes)))

    def has(self, hashes: Iterable[str]) -> np.ndarray:
        """Which pictures (n,) are among these, by the hashes of their pixels."""
        return np.isin(np.array([int(name[:_DIGITS], 16) for name in hashes], dtype="<u8"), self._digests)

    def refuse(self, ids: np.ndarray, hashes: np.ndarray) -> None:
        """Refuse held-out pictures that are among these.

        Raises
        ------
        LeakageError
            Naming them.
        """
        names = ids[self.has(hashes)].tolist()
        if names:
            raise LeakageError(
                f"{len(names)} held-out picture{'s' if len(names) > 1 else ''} of {len(ids)}, such as "
                f"{', '.join(names[:_SHOWN])}: the model to start from was trained on them, and scores there would "
                "count what it knows by heart; hold out others"
            )


def hashes_at(stimuli: StimulusSet, size: int, cache: Path | None = None) -> np.ndarray:
    """Hashes (n,) of the pixels of stimuli at the size of a model.

    They are kept in the folder `cache` under the content hashes of the stimuli, where those are known: then no picture
    is read again.
    """
    square = at_size(stimuli, size, memory_gb=0.0)
    if cache is None or not stimuli.hashes_known:
        return picture_hashes(square)
    file = cache / "pictures" / f"{digest(str(size), *stimuli.hashes.tolist())}.json"
    if file.exists():
        try:
            kept = read_json(file)
            if kept["checksum"] == digest(*kept["hashes"]):
                return np.array(kept["hashes"], dtype=str)
        except (InputError, KeyError, TypeError):
            pass
        log.warning("%s is damaged; the pictures are read again", file)
    hashes = picture_hashes(square)
    write_json(file, {"hashes": hashes.tolist(), "checksum": digest(*hashes.tolist())})
    return hashes
