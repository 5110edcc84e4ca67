"""`Score` and `Scorecard`: every number with its protocol, chance level, interval and null; plain JSON on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.errors import InputError
from phosphene.evaluation.metrics import DIRECTIONS
from phosphene.files import read_json, write_text

__all__ = ["FORMAT", "MEAN", "Score", "Scorecard", "aligned", "plain"]

FORMAT = "phosphene-scorecard/1"
MEAN = "mean"  # the subject of scores averaged over people


@dataclass(frozen=True)
class Score:
    """One number and what is needed to believe it.

    Attributes
    ----------
    method : str
        ``decoder`` name or rival.
    subject : str
        A person, or ``"mean"`` over people.
    metric : str
        ``top-1``, ``top-5``, ``median-rank``, ``two-way`` or ``accuracy``.
    direction : str
        ``brain_to_image`` (find the picture given the response), ``image_to_brain``, or ``brain_to_label``.
    similarity : str
        ``cosine`` or ``pearson``.
    pool : dict
        ``size`` (largest number of candidates), ``smallest``, ``draws`` (1: the full gallery).
    value, chance : float
        Shares as fractions, ranks from 1.
    interval : (low, high) or None
        95 % percentile bootstrap over units, and over people for the mean over several.
    interval_over : str
        What was resampled.
    null : dict or None
        ``mean``, ``std`` and one-sided ``p`` under permutation of stimuli.
    n : int
        Stimuli scored (for the mean: of all people together).
    task : str
        Short name of the protocol, e.g. ``retrieval-full-cosine``.
    protocol : str
        Full name: task, split, role, repeats, seed.
    transductive : bool
        Uses the other test predictions (CSLS): never beside ordinary figures.
    extra : dict
        ``expected`` (drawn pools: mean over all possible pools), ``interval_fixed_people``, ``majority`` (accuracy of
        always naming the commonest class).
    """

    method: str
    subject: str
    metric: str
    direction: str
    similarity: str
    pool: dict[str, int]
    value: float
    chance: float
    interval: tuple[float, float] | None
    interval_over: str
    null: dict[str, float] | None
    n: int
    task: str
    protocol: str
    transductive: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Metric, direction and similarity in one word, e.g. ``two_way_brain_to_image_cosine``."""
        return f"{self.metric.replace('-', '_')}_{self.direction}_{self.similarity}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**plain(asdict(self)), "name": self.name, "also_called": DIRECTIONS.get(self.direction, "")}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Score:
        """The score written by `to_dict`."""
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in content.items() if key in known}
        if values.get("interval") is not None:
            values["interval"] = tuple(values["interval"])
        return cls(**values)


@dataclass
class Scorecard:
    """All scores of one evaluation.

    Attributes
    ----------
    method : str
        What was evaluated.
    protocol : dict
        Study (name, digest), splits, role, target encoder, repeats averaged, unit, people, seeds, versions.
    scores : list of Score
        The method's and its rivals', for every person and ``"mean"``.
    comparisons : list of dict
        Paired differences of the method to each rival: ``rival, subject, metric, direction, task, difference,
        interval, p``.
    stimuli : list of dict
        Per method and person: stimulus ``ids``, ``split`` and ``unit`` of each, ``rank`` and ``ties`` in both
        directions among ``candidates`` (cosine, full gallery), ``accuracy`` of each classification, and, of the
        method itself, the ``top`` five ids retrieved.
    audits : dict
        Overlap, leakage, effective rank, closeness to training items, noise ceiling.
    notes : list of str
        What was left out and why.
    """

    method: str
    protocol: dict[str, Any]
    scores: list[Score]
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    stimuli: list[dict[str, Any]] = field(default_factory=list)
    audits: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def find(self, **wanted: Any) -> list[Score]:
        """Scores whose fields equal all of these, e.g. ``find(metric="top-1", subject="mean")``."""
        names = {f.name for f in fields(Score)}
        if strange := sorted(set(wanted) - names):
            raise InputError(f"a score has no field {strange[0]!r}; it has {', '.join(sorted(names))}")
        return [score for score in self.scores if all(getattr(score, key) == value for key, value in wanted.items())]

    def get(self, metric: str, direction: str = "brain_to_image", **wanted: Any) -> Score:
        """The one score of that metric: of the evaluated method, the mean over people, cosine, full gallery.

        Any other field can be asked for by name.

        Raises
        ------
        InputError
            When there is none, or more than one.
        """
        if metric == "accuracy" and direction == "brain_to_image":
            direction = "brain_to_label"
        fixed = {"method": self.method, "subject": MEAN, "similarity": "cosine", "transductive": False}
        found = self.find(**{**fixed, "metric": metric, "direction": direction, **wanted})
        if "task" not in wanted and len(found) > 1:
            found = [score for score in found if score.pool["draws"] == 1]
        if len(found) != 1:
            tasks = sorted({f"{score.metric} ({score.task})" for score in self.scores})
            raise InputError(
                f"{len(found)} scores match {metric} {direction} {wanted}; the scorecard has {', '.join(tasks)}"
            )
        return found[0]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; the layout is stable within a format number."""
        return {
            "format": FORMAT,
            "method": self.method,
            "protocol": plain(self.protocol),
            "scores": [score.to_dict() for score in self.scores],
            "comparisons": plain(self.comparisons),
            "audits": plain(self.audits),
            "notes": list(self.notes),
            "stimuli": plain(self.stimuli),
        }

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically; one line an entry, so that a thousand stimuli stay readable."""
        lines = []
        for key, value in self.to_dict().items():
            if isinstance(value, list) and value:
                entries = ",\n    ".join(_json(entry) for entry in value)
                lines.append(f"  {_json(key)}: [\n    {entries}\n  ]")
            else:
                lines.append(f"  {_json(key)}: {_json(value)}")
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Scorecard:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            For a file that is not a scorecard, or of another format.
        """
        content = read_json(path)
        if not isinstance(content, dict) or "format" not in content:
            raise InputError(f"{path} is not a scorecard: it has no 'format'")
        if content["format"] != FORMAT:
            raise InputError(f"{path} has format {content['format']!r}, this version reads {FORMAT!r}")
        try:
            return cls(
                method=content["method"],
                protocol=content["protocol"],
                scores=[Score.from_dict(score) for score in content["scores"]],
                comparisons=content["comparisons"],
                stimuli=content["stimuli"],
                audits=content["audits"],
                notes=content["notes"],
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is an incomplete scorecard: {error}") from error

    def rows(self, subjects: Iterable[str] | None = (MEAN,)) -> list[dict[str, str]]:
        """Formatted cells of the table, one dictionary a score; ``subjects=None`` for every person.

        Scores of one kind stand together, the evaluated method first.
        """
        wanted = None if subjects is None else set(subjects)
        kinds = list(dict.fromkeys((score.task, score.direction, score.metric) for score in self.scores))
        chosen = [score for score in self.scores if wanted is None or score.subject in wanted]
        chosen.sort(key=lambda score: kinds.index((score.task, score.direction, score.metric)))
        return [_cells(score) for score in chosen]

    def table(self, subjects: Iterable[str] | None = (MEAN,)) -> str:
        """The scores as aligned text, below what they were measured on."""
        facts = self.protocol
        head = [
            f"{self.method} on {facts.get('study', {}).get('name', '?')}: {facts.get('role', '?')} part of "
            f"{', '.join(facts.get('splits', [])) or '?'}; {len(facts.get('subjects', []))} people",
            f"target {facts.get('target', {}).get('name', '?')} ({facts.get('target', {}).get('kind', '?')}); "
            f"repeats averaged: {facts.get('repeats', '?')}; unit: {facts.get('unit', '?')}; "
            f"seed {facts.get('seed', '?')}",
        ]
        used = {score.direction for score in self.scores}
        foot = [f"{name}: called {alias}" for name, alias in DIRECTIONS.items() if name in used]
        if any(score.transductive for score in self.scores):
            foot.append("csls: transductive, uses all test predictions at once; not comparable with the other rows")
        return "\n".join([*head, "", *aligned(self.rows(subjects)), "", *foot, *(f"note: {n}" for n in self.notes)])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _cells(score: Score) -> dict[str, str]:
    sizes = score.pool
    pool = str(sizes["size"]) if sizes["size"] == sizes["smallest"] else f"{sizes['smallest']}-{sizes['size']}"
    digits = 1 if score.metric == "median-rank" else 3
    return {
        "method": score.method,
        "subject": score.subject,
        "score": score.metric + (" (csls)" if score.transductive else ""),
        "direction": score.direction,
        "similarity": score.similarity,
        "pool": pool + (f" x {sizes['draws']} draws" if sizes["draws"] > 1 else ""),
        "value": f"{score.value:.{digits}f}",
        "95 % interval": "-" if score.interval is None else "{:.{d}f} to {:.{d}f}".format(*score.interval, d=digits),
        "chance": f"{score.chance:.{digits}f}",
        "p": "-" if score.null is None else f"{score.null['p']:.4f}",
    }


def aligned(rows: Sequence[dict[str, str]]) -> list[str]:
    """Lines of text, one a row below the heads, in columns."""
    if not rows:
        return ["no scores"]
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = ["  ".join(key.ljust(width) for key, width in widths.items())]
    lines += ["  ".join(row[key].ljust(width) for key, width in widths.items()) for row in rows]
    return [line.rstrip() for line in lines]


def plain(value: Any) -> Any:
    """Numpy scalars and arrays, tuples and NaN as what JSON knows; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [plain(entry) for entry in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
