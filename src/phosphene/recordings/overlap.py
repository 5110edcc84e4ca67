"""The same stimulus on two sides of a split: equal pictures under two ids, equal captions, units torn apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from phosphene.recordings.study import Study
from phosphene.stimuli import StimulusSet, picture_hashes

__all__ = ["Overlap", "caption_keys", "overlaps", "picture_keys"]


@dataclass(frozen=True)
class Overlap:
    """Stimuli of one role that are also in another, under another id.

    Attributes
    ----------
    splits : tuple of str
        The splits in which this is so.
    roles : (str, str)
    kind : str
        What is equal: ``"picture"``, ``"captions"`` or ``"unit:<label column>"``.
    n : int
        Stimuli concerned, in the split with most of them.
    examples : tuple of (str, str)
        Up to three pairs of ids.
    """

    splits: tuple[str, ...]
    roles: tuple[str, str]
    kind: str
    n: int
    examples: tuple[tuple[str, str], ...]

    @property
    def touches_training(self) -> bool:
        """Whether one of the sides is what decoders learn from."""
        return bool({"train", "validation"} & set(self.roles))

    def words(self) -> str:
        """One line."""
        what = {"picture": "the same picture", "captions": "exactly the same captions"}.get(
            self.kind, f"the same {self.kind.removeprefix('unit:')}"
        )
        where = f"split {self.splits[0]!r}" if len(self.splits) == 1 else f"{len(self.splits)} splits"
        pairs = ", ".join(f"{a} = {b}" for a, b in self.examples)
        return f"{self.n} stimuli have {what} in both {self.roles[0]} and {self.roles[1]} of {where}: {pairs}"


def picture_keys(stimuli: StimulusSet) -> np.ndarray | None:
    """A digest of every stimulus's pixels, read block by block; None without pixels."""
    if not stimuli.has_pixels:
        return None
    return picture_hashes(stimuli)


def caption_keys(stimuli: StimulusSet) -> np.ndarray | None:
    """All captions of a stimulus without order, case and outer spaces ("" where it has none); None without captions."""
    if not any(stimuli.captions):
        return None
    return np.array(
        ["\n".join(sorted({c.strip().lower() for c in several})) for several in stimuli.captions], dtype=str
    )


def overlaps(study: Study, keys: Mapping[str, np.ndarray]) -> list[Overlap]:
    """Find keys that occur in two roles of a split.

    Parameters
    ----------
    study : Study
    keys : mapping of str to (stimuli,) ndarray of str
        By kind; an empty key equals nothing.
    """
    found: dict[tuple[str, tuple[str, str]], list[tuple[str, list[tuple[str, str]]]]] = defaultdict(list)
    for kind, key in keys.items():
        repeated = _repeated(key)
        if not repeated:
            continue
        for split in study.split_names:
            role_of = {stimulus: role for role, ids in study.roles(split).items() for stimulus in ids}
            pairs = defaultdict(list)
            for rows in repeated:
                for roles, pair in _crossing(study.stimuli.ids[rows].tolist(), role_of):
                    pairs[roles].append(pair)
            for roles, several in pairs.items():
                found[kind, roles].append((split, several))
    return [
        Overlap(
            tuple(split for split, _ in where),
            roles,
            kind,
            max(len(pairs) for _, pairs in where),
            tuple(where[0][1][:3]),
        )
        for (kind, roles), where in found.items()
    ]


def _repeated(key: np.ndarray) -> list[np.ndarray]:
    """Rows of every non-empty key that occurs more than once."""
    order = np.argsort(key, kind="stable")
    edges = np.flatnonzero(key[order][1:] != key[order][:-1]) + 1
    return [rows for rows in np.split(order, edges) if len(rows) > 1 and key[rows[0]] != ""]


def _crossing(ids: Sequence[str], role_of: Mapping[str, str]) -> Iterable[tuple[tuple[str, str], tuple[str, str]]]:
    """For a group of equal stimuli: each one of a later role, with one of the first role."""
    by_role: dict[str, list[str]] = defaultdict(list)
    for stimulus in ids:
        if stimulus in role_of:
            by_role[role_of[stimulus]].append(stimulus)
    roles = sorted(by_role, key=lambda role: (role != "train", role))
    for role in roles[1:]:
        for stimulus in by_role[role]:
            yield (roles[0], role), (by_role[roles[0]][0], stimulus)
