"""What the federating commands train on: options that say who holds what, and sites made of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phosphene.cli.decoding import targets_of

if TYPE_CHECKING:
    from phosphene.federation import Missing, SiteState, StudySites, Trials
    from phosphene.recordings import Study

__all__ = ["Clusters", "Columns", "Data", "Holds", "Public", "PublicSite", "data_of", "sites_asked"]

Columns = Annotated[
    list[str] | None,
    typer.Option("--classes", help="Label column of the classes, or a pattern; may be repeated.", metavar="COLUMN"),
]
Clusters = Annotated[
    int | None,
    typer.Option("--clusters", help="Instead: so many clusters of image embeddings, fitted on --public stimuli."),
]
Public = Annotated[
    str | None,
    typer.Option(
        "--public",
        help="Stimuli everybody may know: a role of the split, such as train, or SPLIT/ROLE; none of the test.",
        metavar="[SPLIT/]ROLE",
    ),
]
Holds = Annotated[
    list[str] | None,
    typer.Option(
        "--holds",
        help="All that a site has, such as site-2=fmri,image; other sites have fmri,image,text; may be repeated.",
        metavar="SITE=MODALITIES",
    ),
]
PublicSite = Annotated[
    str | None,
    typer.Option(
        "--public-site",
        help="One site more, public, of these stimuli without a brain: a role, such as train; none of the test.",
        metavar="[SPLIT/]ROLE",
    ),
]


@dataclass(frozen=True, eq=False)
class Data:
    """Sites, what they are tested on, and who they are."""

    sites: dict[str, SiteState]
    tests: dict[str, Trials]
    units: dict[str, str]
    facts: dict[str, Any]
    notes: list[str]


def sites_asked(
    study: Study,
    n_sites: int,
    encoders: tuple[str, str],
    classes_of: tuple[list[str] | None, int | None, str | None],
    lacking: tuple[Sequence[str] | None, str | None],
    seed: int = 0,
) -> tuple[StudySites, str]:
    """People dealt to sites under the classes that were asked for, and where these come from in words."""
    from phosphene.federation import StudySites, dealt
    from phosphene.federation.holdings import check_classes, check_places, held_at
    from phosphene.federation.sites import classes_asked

    (columns, clusters, public), (holds, public_site) = classes_of, lacking
    places, held = dealt(study.split("train").subjects, n_sites), held_at(holds or ())
    check_places(study, places, held, public_site, clusters is not None)
    check_classes(study, columns or (), clusters, public)
    image, text = (targets_of(name, study) for name in encoders)  # all that can be refused without them has been
    classes, words = classes_asked(study, image, columns or (), clusters, public, seed)
    return StudySites(study, places, classes, image, text, held, public_site), words


def data_of(made: StudySites, classes_from: str, encoders: tuple[str, str], width: int, missing: Missing) -> Data:
    """Sites before their first round, and complete test trials of those that have a brain."""
    from phosphene.evaluation.missing_modalities import one_class_each

    study, sites, notes = made.study, made.sites(width, missing), []
    tests, units = (made.tests(), made.units()) if "test" in study.roles() else ({}, {})
    brains = {name: people for name, people in made.people.items() if people}
    if others := [name for name in made.names if name not in brains]:
        notes.append(f"nothing is scored at {', '.join(others)}: there is no brain")
    if blank := sorted(name for name in brains if not len(tests.get(name, ()))):
        tests = {}
        notes.append(f"nothing is scored: {', '.join(blank)} has no test trials")
    one_class_each(tests)  # what cannot be scored is refused before training
    facts = {
        "study": {"name": study.name, "split": study.current_split, "virtual": study.recipe.get("source", "")},
        "encoders": [
            f"{word} ({each.identity[:12]})" for word, each in zip(encoders, (made.image, made.text), strict=True)
        ],
        "classes_from": classes_from,
        "people": {
            name: [[who, sites[name].trials.inputs.people[who]] for who in people]
            for name, people in made.people.items()
        },
        "holds": {name: list(made.held(name)) for name in made.names},
        "test_trials": {name: len(trials) for name, trials in tests.items()},
    }
    return Data(sites, tests, units, facts, notes)
