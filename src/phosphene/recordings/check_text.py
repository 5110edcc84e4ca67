"""The words of `phosphene check`: facts of a study, aligned for a human reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["report_text"]


def report_text(
    path: str,
    facts: Mapping[str, Any],
    people: Mapping[str, dict[str, Any]],
    notes: Sequence[str],
    problems: Sequence[str],
) -> str:
    """One page of text: study, splits, people, notes, problems."""
    shown = {
        "study": f"{facts['name']}  (digest {facts['digest']})",
        "stimuli": _stimulus_words(facts["stimuli"]),
        "scaling": facts["scaling"],
        "unit": facts["unit"] or "every stimulus by itself",
        "licence": facts["licence"] or "not stated",
    }
    lines = [path, *(f"  {key:<9}{value}" for key, value in shown.items()), *_split_lines(facts["splits"])]
    for subject, person in people.items():
        lines += ["", subject, *_person_lines(person)]
    for title, several in (("notes", notes), ("problems", problems)):
        if several:
            lines += ["", title, *(f"  - {line}" for line in several)]
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found" if problems else "no problem found"
    return "\n".join([*lines, "", count])


def _stimulus_words(stimuli: dict[str, Any]) -> str:
    shape = stimuli["frame_shape"]
    looks = "no pictures" if shape is None else " x ".join(map(str, shape[:-1])) + " pixels"
    names = stimuli["labels"]
    more = f" and {len(names) - 6} more" if len(names) > 8 else ""
    labels = (", ".join(names[:6] if more else names) or "none") + more
    return f"{stimuli['n']} ({looks}, {stimuli['captions']} captions, labels: {labels})"


def _split_lines(splits: dict[str, dict[str, int]]) -> list[str]:
    lines = []
    for number, (split, roles) in enumerate(splits.items()):
        if number == 6 and len(splits) > 8:
            lines.append(f"           and {len(splits) - 6} more")
            break
        counts = ", ".join(f"{n} {role}" for role, n in roles.items())
        lines.append(f"  {'splits' if number == 0 else '':<9}{split}: {counts}")
    return lines


def _person_lines(person: dict[str, Any]) -> list[str]:
    per = person["trials_per_session"]
    of_session = f"{per[0]}" if per[0] == per[1] else f"{per[0]} to {per[1]}"
    rows = {
        "trials": f"{person['trials']} in {person['sessions']} session(s) of {of_session}, {person['runs']} run(s)",
        "stimuli": f"{person['stimuli']}; "
        + ", ".join(f"{count} shown {n}x" for n, count in person["repeats"].items()),
        "voxels": f"{person['voxels']} in space {person['space']}",
    }
    if "range" in person:
        rows["voxels"] += (
            f"; missing values in {person['voxels_with_missing_values']}, constant {person['constant_voxels']}, "
            f"constant in a session {person['voxels_constant_in_a_session']}"
        )
    lines = [f"  {key:<9}{value}" for key, value in rows.items()]
    ceiling = person.get("noise_ceiling")
    if ceiling is None:
        lines.append("  ceiling  no stimulus was repeated" if "range" in person else "  ceiling  not computed")
    else:
        stored = f", stored ncsnr {_number(ceiling['stored_ncsnr'])}" if "stored_ncsnr" in ceiling else ""
        lines.append(f"  ceiling  {_ceiling_words(ceiling, ceiling['repeats'])}{stored}  (medians over voxels)")
    regions = (ceiling or {}).get("rois", {})
    width = max((len(name) for name in person["rois"]), default=0)
    for number, (name, size) in enumerate(person["rois"].items()):
        words = f"  {_ceiling_words(regions[name], ceiling['repeats'])}" if ceiling and name in regions else ""
        lines.append(f"  {'regions' if number == 0 else '':<9}{name:<{width}}  {size:>6} voxels{words}")
    return lines


def _ceiling_words(part: dict[str, Any], repeats: int) -> str:
    return (
        f"ncsnr {_number(part['ncsnr'])}, explainable {_percent(part['single_trial'])} of a trial, "
        f"{_percent(part['averaged'])} of {repeats} averaged"
    )


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}%"
