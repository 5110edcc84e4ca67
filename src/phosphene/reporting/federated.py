"""`report_federated`: a federated run as one HTML page: who took part, what it decodes and promises, what leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phosphene.reporting import account
from phosphene.reporting.figures import number, percentage
from phosphene.reporting.page import Bar, Chart, Curve, Dot, Fact, Series
from phosphene.reporting.render import write_page
from phosphene.reporting.story import axis_end, points

__all__ = ["report_federated"]

SHOWN = {
    "all": "everything",
    "fmri": "brain alone",
    "image": "picture alone",
    "text": "words alone",
    "fmri+image": "brain and picture",
    "fmri+text": "brain and words",
    "image+text": "picture and words",
}
_BARE = "unprotected"
_PARTS = {"fmri": "fMRI", "image": "picture", "text": "words", "the fusion": "fusion"}


@dataclass(frozen=True)
class Site:
    """One site: who, how many trials, and the shares that miss something, in words and as lengths of bars."""

    name: str
    people: str
    voxels: str
    trials: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Presence:
    """What came of asking a site in a round: ``used``, ``missing``, ``refused`` or ``idle``, and why."""

    kind: str
    words: str


@dataclass(frozen=True)
class Cell:
    """A score of a table."""

    value: float | None
    worst: bool = False
    note: str = ""


@dataclass(frozen=True)
class Mark:
    """One arm of an attack: value and interval along an axis from 0 to 1."""

    arm: str
    value: float
    low: float
    high: float
    succeeds: bool


@dataclass(frozen=True)
class AttackRow:
    """An attack on a site, with and without protection; `detail` where it is of some prototypes alone."""

    kind: str
    name: str
    measure: str
    chance: float
    marks: tuple[Mark, ...]
    detail: bool


def report_federated(
    told: Mapping[str, Any], path: str | Path, *, title: str | None = None, command: str | None = None
) -> Path:
    """Write one self-contained HTML page about a federated run.

    Parameters
    ----------
    told : mapping
        What ``phosphene federate --json`` writes: plain values.
    path : str or Path
        The HTML file, replaced atomically.
    title, command : str, optional
        Name of the page, and the command that made it, printed as it stands.

    Examples
    --------
    >>> report_federated(told, "report.html")                                 # doctest: +SKIP
    PosixPath('report.html')
    """
    kind = _kind(told)
    headline, standfirst = _story(told, kind)
    return write_page(
        path,
        "federated.html.jinja",
        page=_Frame(title or f"{len(told['sites'])} sites on {told['study']['name']}"),
        headline=headline,
        standfirst=standfirst,
        created=account.today(),
        facts=_facts(told),
        chart=_chart(told, kind),
        sites=[_site(told, name) for name in told["sites"]],
        rounds=[record["round"] for record in told["history"]],
        presence={name: [_presence(record, name) for record in told["history"]] for name in told["sites"]},
        incidents=_incidents(told),
        unmoved=_unmoved(told),
        curves=_curves(told),
        patterns=list(SHOWN.values()),
        tables=_tables(told, kind),
        chances=_chances(told, kind),
        promises=list(told.get("privacy", {}).get("units", {}).values()),
        noise=_noise(told),
        secure=told["secure"],
        costs=_costs(told, kind),
        attacks=_attacks(told.get("audit", {})),
        arms=list(told.get("audit", {})),
        notes=told["notes"],
        command=command or "",
        ledger=_ledger(told),
        settings=[(name, _flat(table)) for name, table in told["settings"].items() if isinstance(table, Mapping)],
    )


@dataclass(frozen=True)
class _Frame:
    """What the shared parts of the templates ask of a page."""

    title: str
    method: str = ""
    people: tuple[str, ...] = ()
    directions: tuple[tuple[str, str], ...] = ()


# -- the result ------------------------------------------------------------------------------------------------------


def _kind(told: Mapping[str, Any]) -> str:
    """The metric of classification: ``accuracy``, or ``mAP`` with several classes a trial; "" without scores."""
    chances = told.get("scores", {}).get("chances", {})
    found = next((name for name in ("accuracy", "mAP") if name in chances), "")
    return found if found and found in told["scores"]["patterns"]["all"]["mean"] else ""


def _floor(told: Mapping[str, Any], kind: str) -> float:
    """What must be passed: always saying the commonest class, or a random order."""
    chances = told["scores"]["chances"]
    return float(max(chances[kind], chances.get("commonest", 0.0)))


def _story(told: Mapping[str, Any], kind: str) -> tuple[str, str]:
    n, rounds = len(told["sites"]), len(told["history"])
    people = sum(len(each) for each in told["sites"].values())
    virtual = "virtual " if str(told["study"]["virtual"]).startswith("phosphene.virtual") else ""
    seen = "sums over sites alone" if told["secure"] else "every site’s weights and prototype sums"
    standfirst = (
        f"{people} {virtual}people at {n} sites, one network, {number(rounds)} rounds. Recordings stayed where they "
        f"are; the server saw {seen}. {len(told['classes'])} classes, from {told['classes_from']}."
    )
    if not kind:
        return f"{n} sites trained one network for {number(rounds)} rounds", standfirst
    found, floor = told["scores"]["patterns"]["fmri"], _floor(told, kind)
    low, value = found["intervals"][kind][0], found["mean"][kind]
    what = "names the right class of" if kind == "accuracy" else "ranks the classes with a precision of"
    whole = f"{points(value)} of held-out stimuli" if kind == "accuracy" else points(value)
    if low <= floor:
        return (
            f"Across {n} sites the brain alone {what} {whole}: not told from what guessing gives, {points(floor)}",
            standfirst,
        )
    return f"Across {n} sites the brain alone {what} {whole}; guessing gives {points(floor)}", standfirst


def _facts(told: Mapping[str, Any]) -> list[Fact]:
    history, units = told["history"], told.get("privacy", {}).get("units", {})
    sent = [value for record in history for value in record["bytes_up"].values()]
    trial = units.get("trial")
    if trial is None:
        promise = Fact("Epsilon", "no promise", "no noise was asked for")
    elif trial["epsilon"] is None:
        promise = Fact("Epsilon per trial", "no promise", "a part was sent without noise")
    else:
        promise = Fact("Epsilon per trial", f"{trial['epsilon']:.3g}", f"at delta {trial['delta']:g}")
    return [
        Fact("Sites", str(len(told["sites"])), f"{sum(map(len, told['sites'].values()))} people"),
        Fact("Training trials", number(sum(told["trials"].values())), "of all sites"),
        Fact("Test trials", number(sum(told["test_trials"].values())), "never seen in training"),
        Fact("Rounds", str(len(history)), f"{number(sum(record['seconds'] for record in history))} s in all"),
        Fact("Sent a round", _size(sum(sent) / len(sent)) if sent else "nothing", "by each site"),
        Fact("Received a round", _size(history[-1]["bytes_down"]) if history else "nothing", "by each site"),
        promise,
    ]


def _chart(told: Mapping[str, Any], kind: str) -> Chart | None:
    if not kind:
        return None
    arms = [("", 0, told["scores"])] + ([(_BARE, 3, told["unprotected"])] if "unprotected" in told else [])
    floor, bars = _floor(told, kind), []
    for pattern, words in SHOWN.items():
        for arm, tone, scores in arms:
            found = scores["patterns"][pattern]
            low, high = found["intervals"][kind]
            dots = tuple(Dot(name, each[kind]) for name, each in found["sites"].items())
            bars.append(Bar(arm or words, tone, found["mean"][kind], low, high, dots))
    title = "Accuracy of the class" if kind == "accuracy" else "Mean average precision of the classes"
    return Chart(
        title,
        kind,
        "mean over sites",
        "by what is shown of a held-out trial",
        tuple(bars),
        floor,
        axis_end(bars, floor),
    )


def _tables(told: Mapping[str, Any], kind: str) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    """Scores of every site by pattern: the class, and the picture found among the test pictures."""
    if "scores" not in told:
        return []
    patterns = told["scores"]["patterns"]
    wanted = [(kind, "The class")] if kind else []
    retrieved = any("top-1 brain_to_image" in found["mean"] for found in patterns.values())
    wanted += [("top-1 brain_to_image", "The picture, found among all of the test")] if retrieved else []
    tables = []
    for metric, words in wanted:
        rows = [(name, [_cell(patterns[pattern], metric, name) for pattern in SHOWN]) for name in told["test_trials"]]
        means = [
            Cell(patterns[pattern]["mean"].get(metric), note=_interval(patterns[pattern], metric)) for pattern in SHOWN
        ]
        tables.append((words, [*rows, ("mean", means)]))
    return tables


def _cell(found: Mapping[str, Any], metric: str, site: str) -> Cell:
    if metric not in found["mean"]:
        return Cell(None)
    return Cell(found["sites"][site][metric], found["worst"][metric]["site"] == site and len(found["sites"]) > 1)


def _interval(found: Mapping[str, Any], metric: str) -> str:
    if metric not in found["intervals"]:
        return ""
    low, high = found["intervals"][metric]
    return f"{percentage(low)} to {percentage(high)}"


def _chances(told: Mapping[str, Any], kind: str) -> list[str]:
    if "scores" not in told:
        return []
    chances, words = told["scores"]["chances"], []
    if kind == "accuracy":
        words.append(
            f"a random class {percentage(chances['accuracy'])}, always the commonest {percentage(chances['commonest'])}"
        )
    elif kind:
        words.append(f"a random order {percentage(chances[kind])}")
    return [*words, f"a random picture {percentage(chances['top-1'])} of {number(round(chances['gallery']))}"]


# -- sites and rounds ------------------------------------------------------------------------------------------------


def _site(told: Mapping[str, Any], name: str) -> Site:
    shares = told["fractions"][name]
    voxels = sorted({count for _, count in told["people"][name]})
    spread = " to ".join(map(number, voxels[:: max(1, len(voxels) - 1)])) or "none"
    return Site(
        name,
        ", ".join(told["sites"][name]) or "no brain",
        spread,
        told["trials"][name],
        (*(1 - shares[f"missing {each}"] for each in ("fmri", "image", "text")), shares["complete"]),
    )


def _presence(record: Mapping[str, Any], name: str) -> Presence:
    if name in record["missing"]:
        return Presence("missing", record["missing"][name])
    if name in record["refused"]:
        return Presence("refused", record["refused"][name])
    if name in record["idle"]:
        return Presence("idle", "not drawn")
    return Presence("used", "counted")


def _incidents(told: Mapping[str, Any]) -> list[tuple[int, str, str]]:
    """Round, site and what happened; and what there is no prototype of at the end."""
    found = []
    for record in told["history"]:
        found += [(record["round"], name, f"missing: {why}") for name, why in record["missing"].items()]
        found += [(record["round"], name, f"refused: {why}") for name, why in record["refused"].items()]
    return found


def _unmoved(told: Mapping[str, Any]) -> list[str]:
    """Encoders that stayed as they were, and in which rounds."""
    rounds: dict[str, list[str]] = {}
    for record in told["history"]:
        for name in record.get("unmoved", ()):
            rounds.setdefault(name, []).append(str(record["round"]))
    return [
        f"the encoder of {_PARTS[name]} stayed as it was in "
        + ("every round" if len(each) == len(told["history"]) else f"round {', '.join(each)}")
        for name, each in rounds.items()
    ]


def _curves(told: Mapping[str, Any]) -> list[Curve]:
    losses: dict[str, list[tuple[float, float]]] = {}
    epsilons: dict[str, list[tuple[float, float]]] = {}
    for record in told["history"]:
        for name, metrics in record["metrics"].items():
            if "loss total" in metrics:
                losses.setdefault(name, []).append((record["round"], metrics["loss total"]))
        for unit, value in record["epsilon"].items():
            if value is not None:
                epsilons.setdefault(f"per {unit}", []).append((record["round"], value))
    found = [("Loss of training at the sites", "loss", losses), ("Epsilon spent", "epsilon", epsilons)]
    return [
        Curve(title, "round", label, tuple(_series(name, line) for name, line in series.items()))
        for title, label, series in found
        if series
    ]


def _series(name: str, line: Sequence[tuple[float, float]]) -> Series:
    return Series(name, tuple(float(x) for x, _ in line), tuple(float(y) for _, y in line))


# -- privacy and audit ------------------------------------------------------------------------------------------------


def _noise(told: Mapping[str, Any]) -> str:
    settings = told.get("privacy", {}).get("settings", {})
    return ", ".join(f"{name} {_plain(value)}" for name, value in settings.items() if value is not None)


def _costs(told: Mapping[str, Any], kind: str) -> list[tuple[str, float, float]]:
    """Pattern, score without protection, and with it."""
    if not kind or "unprotected" not in told:
        return []
    bare, own = told["unprotected"]["patterns"], told["scores"]["patterns"]
    return [(words, bare[p]["mean"][kind], own[p]["mean"][kind]) for p, words in SHOWN.items()]


def _attacks(audit: Mapping[str, Any]) -> dict[str, list[AttackRow]]:
    """Rows of every site; the same attack of both arms stands in one row."""
    found: dict[str, list[AttackRow]] = {}
    for site in next(iter(audit.values()), {}):
        rows: dict[str, dict[str, Mapping[str, Any]]] = {}
        for arm, sites in audit.items():
            for each in sites[site]:
                rows.setdefault(each["name"], {})[arm] = each
        found[site] = [_attack(name, arms) for name, arms in rows.items()]
    return found


def _attack(name: str, arms: Mapping[str, Mapping[str, Any]]) -> AttackRow:
    first = next(iter(arms.values()))
    marks = tuple(Mark(arm, *(each[key] for key in ("value", "low", "high", "succeeds"))) for arm, each in arms.items())
    kind, _, words = name.replace(", all counts", "").replace(", ", " ", 1 if "inversion" in name else 0).partition(" ")
    for part, said in _PARTS.items():
        words = words.replace(part, said)
    return AttackRow(
        kind, words, first["measure"], first["chance"], marks, "counts" in name and "all counts" not in name
    )


# -- ledgers --------------------------------------------------------------------------------------------------------


def _ledger(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    study = told["study"]
    return [
        ("Study", f"{study['name']}, split {study['split']}"),
        ("Source", str(study["virtual"]) or "not stated"),
        (
            "Classes",
            f"{told['classes_from']}: {', '.join(told['classes'][:12])}{' …' if len(told['classes']) > 12 else ''}",
        ),
        ("Encoders", ", ".join(told["encoders"])),
    ]


def _flat(table: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in table.items())


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({_flat(value)})"
    if isinstance(value, list):
        return "+".join(map(str, value))
    return "off" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.3g} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.3g} kB"
