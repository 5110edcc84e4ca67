"""Command `federate-matrix`: what is missing in training by what is shown in test, for PmcmFL and its rivals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phosphene.cli.federated_data import Clusters, Columns, Holds, Public, PublicSite, sites_asked
from phosphene.cli.options import (
    Config,
    ImageTargets,
    Set,
    Split,
    StudyFile,
    TextTargets,
    given_settings,
    numbers_of,
    progress_wanted,
    words_of,
)
from phosphene.errors import InputError, unknown

if TYPE_CHECKING:
    from phosphene.evaluation.federated_matrix import Plan
    from phosphene.evaluation.federated_rivals import Arm
    from phosphene.evaluation.hospitals import Cell, Hospitals
    from phosphene.recordings import Study

__all__ = ["federate_matrix"]

_DEVELOPMENT = (1000, 1001)


def federate_matrix(
    study: StudyFile,
    targets: ImageTargets,
    text: TextTargets,
    out: Annotated[
        Path, typer.Option("--out", help="Records and tables; an interrupted matrix goes on there.", metavar="DIR")
    ],
    classes: Columns = None,
    clusters: Clusters = None,
    public: Public = None,
    sites: Annotated[int, typer.Option("--sites", help="How many; people are dealt to them in order.")] = 4,
    holds: Holds = None,
    public_site: PublicSite = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Of every arm.")] = 15,
    arms: Annotated[
        str | None,
        typer.Option("--arms", help="Names with commas, ablations included; default: pmcmfl and all rivals."),
    ] = None,
    rates: Annotated[str, typer.Option("--rates", help="Rates of missing modalities, in [0, 1).")] = "0,0.3,0.5,0.8",
    patterns: Annotated[
        str, typer.Option("--patterns", help="What is missing: by instance, the same for a whole site.")
    ] = "instance,site",
    seeds: Annotated[str, typer.Option("--seeds", help="Of masks, weights and training.")] = "0,1,2,3,4",
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose each arm's settings first, on training stimuli that are held out.")
    ] = False,
    split: Split = None,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Compare PmcmFL with its rivals under missing modalities, in training and in test; tables are printed."""
    from phosphene.evaluation.federated_matrix import Plan, run_matrix
    from phosphene.evaluation.federated_rivals import ARMS, check_common
    from phosphene.evaluation.federated_summary import Records, claims, rows
    from phosphene.evaluation.federated_tables import markdown
    from phosphene.evaluation.scorecard import plain
    from phosphene.files import write_json, write_text

    common = given_settings(config, assignments)
    check_common(common)
    asked = _arms(arms)
    cells = _cells(numbers_of("--rates", rates, float), words_of(patterns), numbers_of("--seeds", seeds, int))
    classes_of, lacking = (classes, clusters, public), (holds, public_site)
    hospitals, told = _hospitals(study, split, sites, (targets, text), classes_of, lacking, tune)
    plan = Plan(asked, common=common, rounds=rounds)
    if tune:
        tuned = {arm.like or name: ARMS[arm.like or name] for name, arm in asked.items()}
        plan = Plan(asked, _tuned(hospitals, Plan(tuned, common=common, rounds=rounds), out), common, rounds)
    records = run_matrix(hospitals, plan, cells, out, progress_wanted())
    found = Records(records)
    table = markdown(found)
    facts: dict[str, Any] = {
        "arms": {name: arm.what for name, arm in asked.items()},
        "chosen": plan.chosen,
        "common": common,
    }
    facts |= {"rounds": rounds, "classes": hospitals.classes, "shares": hospitals.shares, **told}
    write_json(out / "matrix.json", plain({**facts, "claims": claims(found), "rows": rows(found)}))
    write_text(out / "matrix.md", table + "\n")
    typer.echo(table)
    if not tune:
        typer.echo("Settings are first candidates: without --tune no arm was tuned.")
    typer.echo(f"{out}: {len(records)} records, matrix.json, matrix.md")


def _hospitals(
    study: Path,
    split: str | None,
    n_sites: int,
    encoders: tuple[str, str],
    classes_of: tuple[list[str] | None, int | None, str | None],
    lacking: tuple[list[str] | None, str | None],
    tune: bool,
) -> tuple[Hospitals, dict[str, Any]]:
    """Hospitals of the study, and where their classes come from and what each holds, for JSON."""
    from phosphene.evaluation.hospitals import hospitals_of_sites
    from phosphene.federation.trials import MODALITIES
    from phosphene.recordings import Study

    with Study.open(study) as opened:
        if split is not None:
            opened = opened.using(split)
        _check_scored(opened, n_sites, lacking[0] or (), tune)
        dealt, words = sites_asked(opened, n_sites, encoders, classes_of, lacking)
        made = hospitals_of_sites(dealt)
    for name, people in dealt.people.items():
        shares = ", ".join(f"{each} {share:.2f}" for each, share in made.shares[name].items())
        typer.echo(f"{name}: {', '.join(people) or 'no brain'}; {len(made.train[name])} training trials ({shares})")
        if len(held := dealt.held(name)) < len(MODALITIES):
            typer.echo(f"{name} holds {', '.join(held)}" + ("" if people else ": it is not scored"))
    return made, {"classes_from": words, "holds": {name: list(dealt.held(name)) for name in dealt.names}}


def _check_scored(study: Study, n_sites: int, holds: Sequence[str], tune: bool) -> None:
    """Refuse a matrix in which nothing could be scored, or chosen, before anything is encoded."""
    from phosphene.federation import dealt
    from phosphene.federation.holdings import held_at
    from phosphene.federation.trials import FMRI, MODALITIES

    study.split("test")
    given = held_at(holds)
    held = [given.get(name, MODALITIES) for name in dealt(study.split("train").subjects, n_sites)]
    if not any(MODALITIES[FMRI] in each for each in held):
        raise InputError("no site holds fmri: nothing would be scored")
    if tune and not any(len(each) == len(MODALITIES) for each in held):
        raise InputError(f"--tune chooses where a site holds {', '.join(MODALITIES)}, and none does")


def _tuned(hospitals: Hospitals, plan: Plan, out: Path) -> dict[str, Any]:
    """Choices on held-out training stimuli, written before the comparison begins."""
    from phosphene.evaluation.federated_matrix import chosen_of, tune
    from phosphene.evaluation.federated_tables import choices_table
    from phosphene.evaluation.hospitals import held_out
    from phosphene.evaluation.scorecard import plain
    from phosphene.files import write_json

    cells = _cells([0.5], ["instance"], list(_DEVELOPMENT))
    tried = tune(held_out(hospitals), plan, cells, out / "tuning", progress_wanted())
    chosen = chosen_of(tried)
    write_json(out / "choices.json", plain({"tried": tried, "chosen": chosen}))
    typer.echo(choices_table(tried))
    return chosen


def _arms(words: str | None) -> dict[str, Arm]:
    from phosphene.evaluation.federated_rivals import ABLATIONS, ARMS

    if words is None:
        return dict(ARMS)
    known, found = {**ARMS, **ABLATIONS}, {}
    for name in words_of(words):
        if name not in known:
            raise unknown("arm", name, known)
        found[name] = known[name]
    return found


def _cells(rates: list[float], kinds: list[str], seeds: list[int]) -> list[Cell]:
    """Cells in order; where nothing is missing there is but one kind."""
    from phosphene.evaluation.hospitals import Cell

    for kind in kinds:
        if kind not in ("instance", "site"):
            raise unknown("kind of missing pattern", kind, ("instance", "site"))
    return [
        Cell("study", kind, rate, seed)  # type: ignore[arg-type]
        for rate in rates
        for kind in (kinds if rate else kinds[:1])
        for seed in seeds
    ]
