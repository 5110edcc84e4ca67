"""Command `federate`: train across sites, in process; what it brings, what it costs and what leaks nevertheless."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phosphene.cli.federated_data import Clusters, Columns, Data, Holds, Public, PublicSite, data_of, sites_asked
from phosphene.cli.federated_words import lines
from phosphene.cli.options import (
    Config,
    ImageTargets,
    Json,
    Seed,
    Set,
    Split,
    StudyFile,
    TextTargets,
    given_settings,
    progress_wanted,
)
from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.federation import FederationSettings
    from phosphene.federation.privacy import PrivacySettings

__all__ = ["federate"]

_N_BOOT = 1000


def federate(
    study: StudyFile,
    targets: ImageTargets,
    text: TextTargets,
    out: Annotated[
        Path, typer.Option("--out", help="Run folder; an interrupted run is resumed to the same bits.", metavar="DIR")
    ],
    classes: Columns = None,
    clusters: Clusters = None,
    public: Public = None,
    sites: Annotated[int, typer.Option("--sites", help="How many; people are dealt to them in order.")] = 4,
    holds: Holds = None,
    public_site: PublicSite = None,
    rounds: Annotated[int, typer.Option("--rounds", help="In all; a run in DIR may be given more.")] = 10,
    missing: Annotated[float, typer.Option("--missing", help="Rate of missing modalities, in [0, 1).")] = 0.0,
    pattern: Annotated[
        str, typer.Option("--pattern", help="What is missing: drawn by instance, or the same for a whole site.")
    ] = "instance",
    preset: Annotated[str, typer.Option("--preset", help="default, modality-dropout or pmcmfl-paper.")] = "default",
    split: Split = None,
    quorum: Annotated[
        int | None,
        typer.Option("--quorum", help="Usable contributions without which a round fails; default: preset's."),
    ] = None,
    participation: Annotated[
        float, typer.Option("--participation", help="Share of the sites drawn for each round.")
    ] = 1.0,
    deadline: Annotated[
        float | None, typer.Option("--deadline", help="Seconds, for delays among the faults (simulated time).")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            help="drop, delay, nan, poison or rubbish, such as drop:site-2:3 or delay:site-1:2-4:90; may be repeated.",
            metavar="KIND:SITE:ROUNDS[:SIZE]",
        ),
    ] = None,
    secure: Annotated[
        bool, typer.Option("--secure", help="The server sees nothing but sums over sites, of at least three.")
    ] = False,
    privacy: Annotated[
        list[str] | None,
        typer.Option(
            "--privacy",
            help="Clipping and noise at the sites, such as update_limit=1 or trial_sgd.noise=2; may be repeated.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    compare: Annotated[
        bool | None,
        typer.Option(
            "--compare/--no-compare",
            help="Train without protection too, for what it costs in accuracy; default: with --privacy.",
        ),
    ] = None,
    audit: Annotated[
        bool,
        typer.Option("--audit", help="Train on half of every site's stimuli and attack what the server sees of each."),
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write all of it as one HTML page.", metavar="FILE")
    ] = None,
    seed: Seed = 0,
    config: Config = None,
    assignments: Set = None,
    json: Json = None,
) -> None:
    """Train PmcmFL across sites in this process, score what each decodes, and say what left the sites."""
    from phosphene.federation import Fault, Missing
    from phosphene.federation.audit_run import check_audit
    from phosphene.files import write_json
    from phosphene.recordings import Study
    from phosphene.reporting import report_federated

    faults = [Fault.parse(words) for words in fault or []]
    asked = _asked(preset, seed, config, assignments, privacy, secure, sites + (public_site is not None))
    if pattern != "instance" and not missing:
        raise InputError("--pattern has no use: nothing is missing without --missing")
    hidden = Missing(missing, pattern, seed)  # type: ignore[arg-type]
    if compare and asked.privacy is None:
        raise InputError("--compare has no use: without --privacy the run has no protection that could cost accuracy")
    with Study.open(study) as opened:
        if split is not None:
            opened = opened.using(split)
        encoders = (targets, text)
        made, words = sites_asked(opened, sites, encoders, (classes, clusters, public), (holds, public_site), seed)
        data = data_of(made, words, encoders, asked.settings.model.width, hidden)
    if compare and not data.tests:
        raise InputError(f"--compare has no use: {'; '.join(data.notes)}, so that there is no accuracy to compare")
    if audit:
        check_audit(data.sites, asked.privacy, seed)  # what cannot be audited is told before any training
    how = {
        "quorum": quorum,
        "participation": participation,
        "deadline": deadline,
        "faults": faults,
        "secure": secure,
        "progress": progress_wanted(),
    }
    told = _run(asked, data, rounds, out, how, asked.privacy is not None if compare is None else compare)
    if audit:
        told["audit"] = _audit(asked, data, rounds, out, how, seed)
    for line in lines(told):
        typer.echo(line)
    typer.echo(f"{out}: {len(told['history'])} rounds, {len(told['classes'])} classes")
    if json is not None:
        write_json(json, told)
    if report is not None:
        command = shlex.join(["phosphene", *sys.argv[1:]])
        typer.echo(report_federated(told, report, command=command))


# -- what was asked for ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """Settings of a run and of the run without protection beside it, and what was set without being asked for."""

    settings: FederationSettings
    bare: FederationSettings
    privacy: PrivacySettings | None
    notes: list[str]


def _asked(
    preset: str,
    seed: int,
    config: Path | None,
    assignments: list[str] | None,
    privacy: list[str] | None,
    secure: bool,
    n_sites: int,
) -> _Asked:
    from phosphene.federation import FederationSettings
    from phosphene.federation.privacy import PrivacySettings
    from phosphene.federation.protected import readable
    from phosphene.settings import merge, parse_assignments

    given = given_settings(config, assignments)
    if "seed" in given:
        raise InputError("the seed is given with --seed")
    for name, table in given.items():
        if not isinstance(table, dict):
            raise InputError(f"settings are --set TABLE.KEY=VALUE, such as model.width=64; found {name} = {table!r}")
    protection = PrivacySettings.asked(merge(given.pop("privacy", {}), parse_assignments(privacy or [])))
    notes = []
    if secure and "max_ratio" not in given.get("server", {}):
        given = merge(given, {"server": {"max_ratio": None}})
        notes.append("server.max_ratio is off: of sums alone no single update can be judged")
    bare = FederationSettings.preset(preset, seed=seed, **given)
    settings, told = readable(bare, protection, n_sites, "min_count" in given.get("library", {}))
    return _Asked(settings, bare, protection, [*notes, *told])


# -- the runs -------------------------------------------------------------------------------------------------------


def _run(asked: _Asked, data: Data, rounds: int, out: Path, how: dict[str, Any], compare: bool) -> dict[str, Any]:
    """Train and score, with protection and where asked without, and say so in plain values."""
    from dataclasses import asdict
    from typing import get_args

    from phosphene.evaluation.federated_run import score_run
    from phosphene.federation import federate, fractions
    from phosphene.federation.accounting import Unit

    done = federate(data.sites, asked.settings, rounds, out=out, privacy=asked.privacy, **how)
    told: dict[str, Any] = {
        **data.facts,
        "sites": {name: [who for who, _ in people] for name, people in data.facts["people"].items()},
        "classes": list(done.shared.agreement.classes),
        "trials": {name: len(site.trials) for name, site in data.sites.items()},
        "fractions": {name: fractions(site.trials.present.numpy()) for name, site in data.sites.items()},
        "history": [asdict(record) for record in done.history],
        "secure": how["secure"],
        "notes": [*asked.notes, *data.notes],
        "settings": asked.settings.model_dump(mode="json"),
    }
    if data.tests:
        told["scores"] = score_run(done, data.tests, asked.settings, data.units, _N_BOOT)
    if asked.privacy is not None and done.accountant is not None:
        told["privacy"] = {
            "settings": asked.privacy.model_dump(mode="json"),
            "units": {unit: done.accountant.guarantee(unit).to_dict() for unit in get_args(Unit)},
            "told": {unit: done.accountant.guarantee(unit).told() for unit in get_args(Unit)},
        }
    if compare and not data.tests:
        told["notes"].append("what protection costs in accuracy is not measured: nothing is scored")
    elif compare:
        bare = federate(data.sites, asked.bare, rounds, out=out / "unprotected", **how)
        told["unprotected"] = score_run(bare, data.tests, asked.bare, data.units, _N_BOOT)
    return told


def _audit(asked: _Asked, data: Data, rounds: int, out: Path, how: dict[str, Any], seed: int) -> dict[str, Any]:
    """Attacks on every site, without protection and, where there is some, with it; under what befell the run."""
    from phosphene.federation.audit_run import audit_run

    arms: dict[str, tuple[FederationSettings, PrivacySettings | None, bool]]
    arms = {"unprotected": (asked.bare, None, False)}
    if asked.privacy is not None or how["secure"]:
        arms["protected"] = (asked.settings, asked.privacy, how["secure"])
    told = {}
    for arm, (settings, privacy, secure) in arms.items():
        how, place = {**how, "privacy": privacy, "secure": secure}, out / f"audit-{arm}"
        found = audit_run(data.sites, settings, rounds, out=place, seed=seed, **how)
        told[arm] = {site: [attack.to_dict() for attack in attacks] for site, attacks in found.items()}
    return told
