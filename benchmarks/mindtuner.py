"""A new person with one of 40 sessions (preset `hours`): every arm of `adapt`, both retrieval directions, parameters.

    OMP_NUM_THREADS=1 python benchmarks/mindtuner.py --work FOLDER [--seeds 1 2 3] [--encoder NAME] [--arms ...]

Pre-training on three virtual people with all their sessions, adaptation to a fourth with the first `--sessions` (1).
Every arm is a line of ``FOLDER/records.jsonl`` as soon as it is done; an interrupted run goes on from its checkpoint.
`--of` shortens the study (its sessions in all, and stimuli with them) to see that everything runs. Runs with another
aligner, encoder or other settings (`--set training.KEY=VALUE`, `adapter.KEY=VALUE`) are other records; `--name` keeps
apart what nothing else does; other people (`--person nonlinearity=1`) have a work folder of their own. With
`--text ENCODER ...` the arm `both` is scored on text retrieval too: by the image as pivot with so many captions
(`--captions`, a quarter of them shown to each person; `--pivot KEY=VALUE`), and by a decoder that was pre-trained and
adapted straight to the text of these. With all sessions (`--sessions 40`) `--single` adds the network fitted to the new
person alone with the settings of pre-training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import phosphene as ph
from phosphene.alignment import make_aligner
from phosphene.evaluation import compare_text, text_retrieval
from phosphene.files import digest, read_json, write_json
from phosphene.settings import parse_assignments
from phosphene.training import ARMS, adapt, fit_pivot
from phosphene.training.adapt import parameter_table, scarce_view
from phosphene.training.arms import WHOLE_ARMS, settings_of_arms

PEOPLE, NEW = ("sub-01", "sub-02", "sub-03"), "sub-04"
ENCODER = "z:pocket"
DIRECTIONS = ("brain_to_image", "image_to_brain")
SINGLE = "single-person"


class Records:
    """Lines of JSON by key; what is there is not done again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.known = {record["key"]: record for record in map(json.loads, lines)}

    def add(self, key: str, record: dict[str, Any]) -> dict[str, Any]:
        """Keep a record."""
        self.known[key] = {"key": key, **record, "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.known[key]) + "\n")
        return self.known[key]


def key_of(options: argparse.Namespace, seed: int, last: str) -> str:
    """Everything that a record depends on, the arm (or what else was measured) at the end."""
    settings = digest(*sorted(options.set))[:8] if options.set else "preset"
    encoder = f"{options.encoder.replace('/', '-').replace(':', '-')}-{options.kind}"
    parts = (options.name, seed, options.of, f"{options.sessions:g}", encoder, options.align or "alone", settings, last)
    return "/".join(map(str, parts))


def study_of(work: Path, seed: int, of: int, person: dict[str, Any]) -> Path:
    """Four people with such knobs; each sees their own scenes three times, over all sessions."""
    path = work / f"study-{seed}-{of}.h5"
    if not path.exists():
        own = max(250, of * 750 // 3 - 1000)
        stimuli = {} if of == 40 else {"own": own, "test": max(40, min(1000, of * 250 - own))}
        ph.virtual.write_study(path, "hours", seed, subjects=4, sessions=of, stimuli=stimuli, person=person)
    return path


def scores(decoder: Any, study: Any, targets: Any, person: str) -> dict[str, Any]:
    """Top-1 in the full gallery and in pools of 300, two-way; both directions."""
    card = ph.evaluate(decoder, study, targets, subjects=[person], rivals=(), n_perm=0, n_boot=300, progress=False)
    found = {}
    for direction in DIRECTIONS:
        for metric in ("top-1", "two-way"):
            for score in card.find(metric=metric, direction=direction, subject="mean", similarity="cosine"):
                pool = f" of {score.pool['size']}" if metric == "top-1" else ""
                found[f"{metric}{pool} {direction}"] = {"value": score.value, "interval": score.interval}
    return found


def aligner_of(options: argparse.Namespace, study: Any) -> Any:
    """What brings the people before to the new one, where that is asked for."""
    return make_aligner(options.align).fit(study.split("train")) if options.align else None


def arm_of(
    options: argparse.Namespace, records: Records, base: Any, study: Any, targets: Any, seed: int, arm: str
) -> None:
    """Adapt by one arm and score; the first person is scored too, before and after."""
    key = key_of(options, seed, arm)
    if key in records.known:
        record = records.known[key]
    else:
        given = parse_assignments(options.set or [])
        tables = (given.get(table, {}) for table in ("training", "adapter"))
        training, adapter = settings_of_arms(options.arms, *tables)[arm]
        aligner = None if arm == "from-scratch" else aligner_of(options, study)
        adapted = adapt(
            base,
            study,
            targets,
            NEW,
            sessions=options.sessions,
            arm=arm,
            seed=seed,
            out=options.work / f"run-{key.replace('/', '-')}",
            aligner=aligner,
            training=training,
            **adapter,
        )
        facts = adapted.provenance if arm in WHOLE_ARMS else adapted.apart[NEW]
        kept = ("trained", "seconds", "start_seconds", "n_trials", "best_epoch", "epochs", "validation_best", "adapter")
        found = scores(adapted, study, targets, NEW)
        record = records.add(key, {**{name: facts[name] for name in kept}, "scores": found, "settings": given})
    words = "  ".join(f"{name} {score['value']:.3f}" for name, score in record["scores"].items())
    print(f"seed {seed} {arm:13} {words}  {record['seconds']:.0f} s, epoch {record['best_epoch']}")
    print(parameter_table(record), flush=True)


def single_of(options: argparse.Namespace, records: Records, study: Any, targets: Any, seed: int) -> None:
    """Fit the new person alone, with everything, as people are pre-trained on, and score."""
    key = key_of(options, seed, SINGLE)
    if key not in records.known:
        start = time.perf_counter()
        out = options.work / f"run-{key.replace('/', '-')}"
        single = ph.fit("mindtuner", study, targets, subjects=[NEW], seed=seed, kind=options.kind, out=out)
        facts = {"seconds": time.perf_counter() - start, "best_epoch": single.provenance["best_epoch"]}
        records.add(key, {**facts, "trained": {"share": 0.0}, "scores": scores(single, study, targets, NEW)})


def straight_key(options: argparse.Namespace, seed: int, text: str, captions: int) -> str:
    """What a decoder trained straight to the text depends on, as a name of a folder."""
    return re.sub("[/: ]", "-", key_of(options, seed, f"text {text} {captions}"))


def text_key(options: argparse.Namespace, seed: int, text: str, captions: int) -> str:
    """The same of both ways to the text, which depend on the settings of the pivot too."""
    return key_of(options, seed, f"text {text} {captions} {' '.join(sorted(options.pivot))}")


def text_of(options: argparse.Namespace, records: Records, study: Any, images: Any, seed: int) -> None:
    """Text retrieval of the new person: by the image as pivot, and straight, with the same few captions."""
    person = ph.Decoder.load(options.work / f"run-{key_of(options, seed, 'both').replace('/', '-')}" / "decoder")
    for encoder, captions in itertools.product(options.text, options.captions):
        key = text_key(options, seed, encoder, captions)
        if key in records.known:
            continue
        picked = _few(study, options.sessions, captions // 4, seed)
        texts = ph.encode(study.stimuli, encoder, fit_on=picked, cache=options.work / "text")
        start = time.perf_counter()
        pivot = fit_pivot(
            study, images, texts, ids=picked, kind=person.target_kind, seed=seed, **parse_assignments(options.pivot)
        )
        seconds = time.perf_counter() - start
        by_pivot = text_retrieval(person, study, texts, pivot, subjects=[NEW])
        # straight to the text: the same captions, people, sessions of the new one, and aligner
        out = options.work / f"straight-{straight_key(options, seed, encoder, captions)}"
        common = {"stimuli": picked, "seed": seed}
        direct = ph.fit("mindtuner", study, texts, subjects=list(PEOPLE), out=out / "base", **common)
        common |= {"sessions": options.sessions, "aligner": aligner_of(options, study)}
        direct = adapt(direct, study, texts, NEW, out=out / "adapted", **common)
        straight = text_retrieval(direct, study, texts, subjects=[NEW], name="direct")
        paired = compare_text(by_pivot, straight)
        cards = [{"method": card.method, "scores": list(map(vars, card.scores))} for card in (by_pivot, straight)]
        facts = {"seconds": seconds, **{name: pivot.provenance[name] for name in ("best_epoch", "penalty", "settings")}}
        records.add(key, {"cards": cards, "difference": paired.to_dict(), "pivot": facts})
        for one in (by_pivot, straight, paired):
            print(one.table(), flush=True)


def _few(study: Any, sessions: float, each: int, seed: int) -> np.ndarray:
    """So many training stimuli of everybody, of the new person from the first sessions."""
    views = [scarce_view(study, person) for person in PEOPLE] + [scarce_view(study, NEW, sessions)]
    random = np.random.default_rng(seed)
    return np.unique(np.concatenate([random.permutation(view.stimulus_ids)[:each] for view in views]))


def summary(records: Records, options: argparse.Namespace) -> dict[str, Any]:
    """Scores of every arm by seed, and how far the arm `both` is ahead of the others on the same seeds."""
    by_arm: dict[str, dict[int, Any]] = {}
    seeds = {int(parts[1]) for parts in (key.split("/") for key in records.known) if parts[0] == options.name}
    for arm, seed in itertools.product((*ARMS, SINGLE), sorted(seeds)):
        if (key := key_of(options, seed, arm)) in records.known:
            by_arm.setdefault(arm, {})[seed] = records.known[key]
    rows = []
    for arm, found in by_arm.items():
        row: dict[str, Any] = {"arm": arm, "seeds": sorted(found), "trained": found[min(found)]["trained"]}
        row["seconds"] = [round(found[seed]["seconds"], 1) for seed in row["seeds"]]
        for metric in found[min(found)]["scores"]:
            values = [found[seed]["scores"][metric]["value"] for seed in row["seeds"]]
            row[metric] = {"mean": float(np.mean(values)), "by_seed": values}
            shared = [seed for seed in row["seeds"] if arm != "both" and seed in by_arm.get("both", {})]
            ahead = [by_arm["both"][s]["scores"][metric]["value"] - found[s]["scores"][metric]["value"] for s in shared]
            if ahead:
                row[metric]["both ahead by"] = {"mean": float(np.mean(ahead)), "by_seed": ahead}
        rows.append(row)
    return {
        "command": f"python benchmarks/mindtuner.py --work FOLDER --name {options.name} --seeds "
        f"{' '.join(map(str, options.seeds))} --of {options.of} --sessions {options.sessions:g} --kind {options.kind}"
        + (f" --encoder {options.encoder}" if options.encoder != ENCODER else "")
        + (f" --align {options.align}" if options.align else "")
        + (f" --person {' '.join(options.person)}" if options.person else "")
        + (f" --set {' '.join(options.set)}" if options.set else "")
        + (" --single" if options.single else "")
        + (
            f" --text {' '.join(options.text)} --captions {' '.join(map(str, options.captions))}"
            if options.text
            else ""
        )
        + (f" --pivot {' '.join(options.pivot)}" if options.pivot else ""),
        "versions": {"phosphene": ph.__version__, "torch": torch.__version__},
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads, CPU",
        "study": f"hours, {options.of} sessions, {options.sessions:g} of the new person, {len(PEOPLE)} people before",
        "person": parse_assignments(options.person),
        "settings": parse_assignments(options.set or []),
        "encoder": f"{options.encoder}, {options.kind}",
        "align": options.align,
        "arms": rows,
        "text": texts_told(records, options),
    }


def texts_told(records: Records, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both ways to the text and their difference, by number of captions, direction and metric; values by seed."""
    rows = []
    for encoder, captions in itertools.product(options.text, options.captions):
        keys = [text_key(options, seed, encoder, captions) for seed in options.seeds]
        for metric, way in itertools.product(("top-1 of 300", "two-way"), ("brain_to_text", "text_to_brain")):
            found = []
            for record in (records.known[key] for key in keys):
                pairs = record["difference"]["rows"]
                found += [row for row in pairs if (row["metric"], row["direction"]) == (metric, way)]
            row = {"text": encoder, "captions": captions, "metric": metric, "direction": way}
            row |= {"pivot_settings": parse_assignments(options.pivot)}
            row |= {"by_pivot": [one["first"] for one in found], "direct": [one["second"] for one in found]}
            row |= {name: [one[name] for one in found] for name in ("difference", "interval")}
            rows.append(row)
    return rows


def markdown(found: dict[str, Any]) -> str:
    """The table of the docs."""
    metrics = [key for key in found["arms"][0] if key.startswith(("top-1", "two-way"))]
    lines = [f"| arm | {' | '.join(metrics)} | adapters | seconds |", "|---" * (len(metrics) + 3) + "|"]
    for row in found["arms"]:
        words = [f"{row[m]['mean']:.3f} ({', '.join(f'{value:.3f}' for value in row[m]['by_seed'])})" for m in metrics]
        seconds = f"{min(row['seconds']):.0f} to {max(row['seconds']):.0f}"
        lines.append(f"| `{row['arm']}` | {' | '.join(words)} | {row['trained']['share']:.1%} | {seconds} |")
    lines += ["", f"| `both` ahead of | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    for row in found["arms"]:
        if "both ahead by" in row[metrics[0]]:
            parts = [row[m]["both ahead by"] for m in metrics]
            words = [f"{p['mean']:+.3f} ({', '.join(f'{value:+.3f}' for value in p['by_seed'])})" for p in parts]
            lines.append(f"| `{row['arm']}` | {' | '.join(words)} |")
    if found["text"]:
        lines += ["", "| text | captions | | by the image | straight | difference |", "|---" * 6 + "|"]
    for row in found["text"]:
        cells = [f"{np.mean(row[n]):.3f} ({', '.join(f'{v:.3f}' for v in row[n])})" for n in ("by_pivot", "direct")]
        each = ", ".join(
            f"{d:+.3f} [{low:+.3f}, {high:+.3f}]"
            for d, (low, high) in zip(row["difference"], row["interval"], strict=True)
        )
        what = f"{row['metric']}, {row['direction'].replace('_', ' ')}"
        cells = [row["text"], str(row["captions"]), what, *cells, f"{np.mean(row['difference']):+.3f} ({each})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/mindtuner"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--kind", choices=["pooled", "tokens"], default="pooled")
    parser.add_argument("--align", help="start the new person from the others, through this aligner (anatomical, ...)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--sessions", type=float, default=1, help="of the new person")
    parser.add_argument("--of", type=int, default=40, help="sessions of everybody in all")
    parser.add_argument(
        "--person", nargs="+", metavar="KEY=VALUE", default=[], help="virtual people, over the preset's"
    )
    parser.add_argument("--single", action="store_true", help="the new person alone too; with all sessions")
    parser.add_argument("--text", nargs="+", default=[], help="encoders of captions, e.g. z:tfidf-svd30 z:pocket-text")
    parser.add_argument("--captions", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--pivot", nargs="+", metavar="KEY=VALUE", default=[], help="of the pivot to the text")
    parser.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="of the adaptation")
    parser.add_argument("--name", default="preset")
    parser.add_argument("--json", type=Path, help="where the summary of all seeds of this name goes")
    options = parser.parse_args()
    if options.text and "both" not in options.arms:
        parser.error("--text is measured with the arm both, which is not among --arms")
    if options.single and options.sessions < options.of:
        parser.error(f"--single is for all sessions of the new person: --sessions {options.of}")
    options.work.mkdir(parents=True, exist_ok=True)
    person = parse_assignments(options.person)
    if (kept := options.work / "people.json").exists() and read_json(kept) != person:
        raise SystemExit(f"{kept} is of other people: give another --work")
    write_json(kept, person)
    records = Records(options.work / "records.jsonl")
    for seed in options.seeds:
        with ph.Study.open(study_of(options.work, seed, options.of, person)) as study:
            train = study.split("train").stimulus_ids
            targets = ph.encode(study.stimuli, options.encoder, fit_on=train, cache=options.work / "targets")
            encoder = f"{options.encoder.replace(':', '-')}-{options.kind}"
            out = options.work / f"base-{seed}-{options.of}-{encoder}"
            base = ph.fit("mindtuner", study, targets, subjects=list(PEOPLE), seed=seed, kind=options.kind, out=out)
            key = f"base/{seed}/{options.of}/{encoder}"
            if key not in records.known:
                facts = {name: base.provenance[name] for name in ("best_epoch", "epochs", "validation_best")}
                records.add(key, {**facts, "scores": {p: scores(base, study, targets, p) for p in PEOPLE}})
            for arm in options.arms:
                arm_of(options, records, base, study, targets, seed, arm)
            if options.single:
                single_of(options, records, study, targets, seed)
            if options.text and "both" in options.arms:
                text_of(options, records, study, targets, seed)
    found = summary(records, options)
    print(markdown(found))
    if options.json is not None:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
