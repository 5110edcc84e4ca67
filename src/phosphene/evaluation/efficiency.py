"""How much data of a new person, and how many people before them, a decoder needs: curves by one call."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene._version import __version__
from phosphene.alignment import Aligner, make_aligner
from phosphene.decoders.adaptable import check_adaptable
from phosphene.decoders.registry import decoder_class
from phosphene.decoders.wills_aligner import WillsAligner
from phosphene.errors import InputError, refuse_doubles, unknown
from phosphene.evaluation.evaluate import evaluate
from phosphene.evaluation.metrics import DIRECTIONS
from phosphene.files import atomic_path, read_json, write_json
from phosphene.training import fit
from phosphene.training.adapt import adapt
from phosphene.training.arms import ARMS, WHOLE_ARMS, settings_of_arms
from phosphene.training.sampling import check_seed

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import Study

__all__ = ["SESSIONS", "Efficiency", "Point", "efficiency"]

log = logging.getLogger(__name__)

SESSIONS = (1 / 6, 0.5, 1.0, 2.0, 10.0, 40.0)
"""Ten minutes to forty hours, with sessions of an hour."""

_ALONE = "from-scratch"


@dataclass(frozen=True)
class Point:
    """One decoder of the new person, scored on the test part.

    Attributes
    ----------
    arm : str
    people : int
        Whom the decoder was trained on before; 0 for a model of the new person alone.
    sessions : float
        Of the new person, from the first on.
    seed : int
    trials : int
        Training trials of the new person.
    scores : dict
        ``"top-1 brain_to_image"`` and the like: value, 95 % interval, chance, and the pool (``kind`` and ``size``: how
        many stimuli were to choose from).
    trained : dict of str to int or float
        Parameters that were trained.
    seconds : float
        Of the adaptation, without the training before.
    """

    arm: str
    people: int
    sessions: float
    seed: int
    trials: int
    scores: dict[str, dict[str, Any]]
    trained: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Efficiency:
    """All points of one new person.

    Attributes
    ----------
    subject, decoder : str
    facts : dict
        Study, split, targets, people trained on before, aligner, versions, and how was scored: ``stimuli``, how many of
        the test part the person saw, ``repeats`` averaged (None: all), ``unit`` of the intervals.
    points : list of Point
    """

    subject: str
    decoder: str
    facts: dict[str, Any]
    points: list[Point]

    def table(self) -> str:
        """Means over seeds as text, with their spread where there are several."""
        lines = [
            f"{'arm':13} {'people':>6} {'sessions':>8} {'trials':>7} {'top-1 brain to image':>21} "
            f"{'top-1 image to brain':>21} {'adapters':>9} {'seconds':>8}"
        ]
        for (arm, people, sessions), points in self.grouped():
            cells = [_cell([point.scores[f"top-1 {way}"]["value"] for point in points]) for way in DIRECTIONS]
            seconds = np.mean([point.seconds for point in points])
            lines.append(
                f"{arm:13} {people:6d} {sessions:8.3g} {points[0].trials:7d} {cells[0]:>21} {cells[1]:>21} "
                f"{points[0].trained.get('adapters', 0):9,d} {seconds:8.1f}"
            )
        return "\n".join([*lines, self._protocol()])

    def _protocol(self) -> str:
        """What the figures were measured on."""
        score, facts = self.points[0].scores["top-1 brain_to_image"], self.facts
        pool = score.get("pool") or {"size": facts["stimuli"]}  # points of older versions do not tell
        return (
            f"top-1 among {pool['size']} (chance {score['chance']:.3f}); {facts['stimuli']} test stimuli of split "
            f"{facts['split']!r}, all repeats averaged; ± is the deviation over seeds"
        )

    def grouped(self) -> Iterator[tuple[tuple[str, int, float], list[Point]]]:
        """Points by arm, people and sessions, in that order."""
        keys = sorted({(point.arm, point.people, point.sessions) for point in self.points})
        for key in keys:
            yield key, [point for point in self.points if (point.arm, point.people, point.sessions) == key]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in ``efficiency.json``."""
        return {"format": "phosphene-efficiency", **asdict(self)}

    def save(self, folder: str | Path) -> Path:
        """Write ``efficiency.json`` and ``efficiency.png``."""
        folder = Path(folder)
        write_json(folder / "efficiency.json", self.to_dict())
        self._draw(folder / "efficiency.png")
        return folder

    def _draw(self, path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        FigureCanvasAgg(figure)
        lines: dict[tuple[str, int], list[tuple[float, list[Point]]]] = {}
        for (arm, people, sessions), points in self.grouped():
            lines.setdefault((arm, people), []).append((sessions, points))
        both = figure.subplots(1, 2, sharey=True)
        for axes, way in zip(both, DIRECTIONS, strict=True):
            for (arm, people), course in lines.items():
                x = [sessions for sessions, _ in course]
                y = [np.mean([point.scores[f"top-1 {way}"]["value"] for point in points]) for _, points in course]
                axes.plot(x, y, marker="o", label=f"{arm}, {people} people before" if people else arm)
            axes.axhline(self.points[0].scores[f"top-1 {way}"]["chance"], color="grey", linestyle="--", linewidth=1)
            axes.set(xscale="log", xlabel=f"sessions of {self.subject}", title=way.replace("_", " "), ylim=(0, None))
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(fontsize="small", frameon=False)
        both[0].set_ylabel("top-1")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def efficiency(
    study: Study,
    targets: Targets,
    subject: str,
    out: str | Path,
    *,
    decoder: str = "mindtuner",
    preset: str | None = None,
    kind: str | None = None,
    sessions: Sequence[float] = SESSIONS,
    people: Sequence[int] = (1, 3, 7),
    arms: Sequence[str] = ("both", _ALONE),
    seeds: Sequence[int] = (0,),
    training: Mapping[str, Any] | None = None,
    adapting: Mapping[str, Any] | None = None,
    adapter: Mapping[str, Any] | None = None,
    aligner: Aligner | str | None = None,
    report: Callable[[str], None] = log.info,
    progress: bool = True,
    **settings: Any,
) -> Efficiency:
    """Train on some people, adapt to a new one from more and more of their sessions, and score every step.

    The first people of the study (in its order, without the new one) are trained on. Every decoder and every point is
    kept in `out`; what is there is not done again. What a study is too small for is left out, and said.

    Parameters
    ----------
    study : Study
        Its current split.
    targets : Targets
    subject : str
        The new person.
    out : path
        Folder of all runs, ``efficiency.json`` and ``efficiency.png``.
    decoder, preset, kind, settings
        As of `phosphene.fit`; the preset is that of the adaptation too.
    sessions : sequence of float
        Of the new person; 0.5 is the first half of the first session.
    people : sequence of int
        How many people are trained on before; of no account for ``"from-scratch"``, which takes the first number.
    arms : sequence of str
        Of `adapt`; ``"from-scratch"`` does not depend on the people before and is run once a seed.
    seeds : sequence of int
    training, adapting, adapter : mapping, optional
        Settings of both trainings, and of the adapters, over those of the presets. Every arm gets those of the
        adapters it has; one that none of the arms has is refused. In `adapting` and `adapter` a table under the name of
        an arm holds settings of that arm alone: ``{"learning_rate": 5e-4, "full": {"learning_rate": 1e-4}}``.
    aligner : Aligner or str, optional
        Through it every arm but ``"from-scratch"`` borrows from the people trained on before, as of `adapt`. Of a
        method by name (``"anatomical"``) one is fitted to just these people, their training part.
    report : callable
        Told of every finished point.
    progress : bool

    Raises
    ------
    InputError
        For an unknown person or arm, or when nothing is left that the study is large enough for.
    """
    if subject not in study.subjects:
        raise unknown("subject", subject, study.subjects)
    if wrong := [arm for arm in arms if arm not in ARMS]:
        raise unknown("arm", wrong[0], ARMS)
    if not arms or not seeds:
        raise InputError(f"one arm and one seed are needed at least, found {len(arms)} and {len(seeds)}")
    if aligner is not None and set(arms) == {_ALONE}:
        raise InputError(f"arm {_ALONE!r} knows nothing of other people: an aligner has no use")
    for seed in seeds:
        check_seed(seed)
    for what, each in (("arm", arms), ("seed", seeds), ("number of people", people), ("number of sessions", sessions)):
        refuse_doubles(what, map(str, each))
    of_arms = settings_of_arms(arms, adapting or {}, adapter or {})
    if decoder == WillsAligner.name:
        raise InputError(
            f"{decoder} has no arms to compare: a new person gets gates over its experts (adapt, add_subject); "
            "mindtuner has"
        )
    check_adaptable(decoder_class(decoder))
    others = [name for name in study.subjects if name != subject]
    recorded = len(np.unique(study.recordings[subject].trials["session"]))
    sizes = _within("people before", people, len(others), study.name)
    sizes = sizes[:1] if set(arms) == {_ALONE} else sizes
    lengths = _within(f"sessions of {subject}", sessions, recorded, study.name)
    out, points = Path(out), []
    fronts: dict[int, Aligner] = {}
    for seed, (number, size) in itertools.product(seeds, enumerate(sizes)):
        base = out / f"seed-{seed}" / f"people-{size}"
        fitted = fit(
            decoder,
            study,
            targets,
            preset=preset,
            subjects=others[:size],
            seed=seed,
            out=base,
            kind=kind,
            progress=progress,
            training=training,
            **settings,
        )
        if isinstance(aligner, str) and size not in fronts:  # the same for every seed
            fronts[size] = make_aligner(aligner).fit(study.split("train").subset(others[:size]))
        front = fronts.get(size) if isinstance(aligner, str) else aligner
        for length, arm in itertools.product(lengths, arms):
            alone = arm == _ALONE
            if alone and number:
                continue
            folder = base.parent / f"{arm}{'' if alone else f'-people-{size}'}-sessions-{length:.4g}"
            # a finished run is read back, and one with other settings refused: points and runs belong together
            adapted = adapt(
                fitted,
                study,
                targets,
                subject,
                sessions=length,
                arm=arm,
                out=folder,
                seed=seed,
                preset=preset,
                aligner=None if alone else front,
                progress=progress,
                training=of_arms[arm][0],
                **of_arms[arm][1],
            )
            if not (folder / "point.json").exists():
                before = 0 if alone else size
                write_json(folder / "point.json", _scored(adapted, study, targets, subject, arm, before, length, seed))
            points.append(Point(**read_json(folder / "point.json")))
            report(_told(points[-1]))
    facts = _facts(study, targets, subject, others, aligner)
    found = Efficiency(subject, decoder, facts, points)
    found.save(out)
    return found


def _facts(
    study: Study, targets: Targets, subject: str, others: Sequence[str], aligner: Aligner | str | None
) -> dict[str, Any]:
    """What all points have in common, with what they were scored on."""
    test = study.split("test")
    return {
        "study": study.name,
        "study_digest": study.digest,
        "split": study.current_split,
        "targets": targets.encoder.label,
        "targets_identity": targets.identity,
        "people": list(others),
        "aligner": aligner if aligner is None or isinstance(aligner, str) else f"{aligner.name} {aligner.identity}",
        "stimuli": len(np.unique(test.trials(subject)["stimulus_id"])),
        "repeats": None,
        "unit": study.unit or "stimulus",
        "software": f"phosphene {__version__}",
    }


def _within(what: str, asked: Sequence[Any], most: int, study: str) -> list[Any]:
    """Those of the asked sizes that there are enough of."""
    if wrong := [size for size in asked if size <= 0]:
        raise InputError(f"{what} count from more than 0, found {wrong[0]}")
    kept = [size for size in asked if size <= most]
    if len(kept) < len(asked):
        left = ", ".join(f"{size:g}" for size in asked if size > most)
        log.warning("%s: study %s has %d, left out: %s", what, study, most, left)
    if not kept:
        raise InputError(
            f"{what}: study {study!r} has {most}, none of {', '.join(f'{s:g}' for s in asked)} is possible"
        )
    return kept


def _scored(
    adapted: Any, study: Study, targets: Targets, subject: str, arm: str, people: int, sessions: float, seed: int
) -> dict[str, Any]:
    card = evaluate(
        adapted,
        study,
        targets,
        subjects=[subject],
        rivals=(),
        protocols=["retrieval", "two-way-cosine"],
        n_perm=0,
        progress=False,
    )
    scores = {}
    for metric, way in itertools.product(("top-1", "two-way"), DIRECTIONS):
        score = card.get(metric, way)
        scores[f"{metric} {way}"] = {
            **{"value": score.value, "interval": score.interval, "chance": score.chance},
            "pool": score.pool,
        }
    facts = adapted.provenance if arm in WHOLE_ARMS else adapted.apart[subject]
    return asdict(
        Point(arm, people, float(sessions), seed, facts["n_trials"], scores, facts["trained"], facts["seconds"])
    )


def _told(point: Point) -> str:
    first, second = (point.scores[f"top-1 {way}"]["value"] for way in DIRECTIONS)
    before = f", {point.people} people before" if point.people else ""
    return f"{point.arm}{before}, {point.sessions:g} sessions, seed {point.seed}: top-1 {first:.3f} / {second:.3f}"
