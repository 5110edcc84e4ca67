"""What a site insists on, and what a run promises: no noise that the server knows, and the same words as in process."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

pytest.importorskip("flwr", reason="the Flower app needs phosphene[federated]: run make federated")
pytest.importorskip("dp_accounting", reason="privacy needs phosphene[privacy]")

from loopback_grid import LoopbackGrid, made_sites, partitions, run_config

from phosphene.errors import FederationError, InputError
from phosphene.federation import RoundFailure, federate
from phosphene.federation.accounting import Accountant, Release, Unit
from phosphene.federation.flower import RunSettings, federate_over
from phosphene.federation.flower.messages import unpacked
from phosphene.federation.flower.promise import counted
from phosphene.federation.privacy import PrivacySettings
from phosphene.federation.protected import planned_releases

PRIVACY = "update_limit=1 update_noise=4 feature_limit=1 library_noise=4"
RELEASES = [Release("weights", 4.0), Release("library", 4.0)]  # of one round


def named(study: Path, folder: Path, **own) -> dict[int, dict]:
    """Two sites with names; `own` is of the first."""
    nodes = {
        number + 1: {"site": name, "people": f"sub-0{number + 1}", "study": str(study), "keep": str(folder / name)}
        for number, name in enumerate(("north", "south"))
    }
    nodes[1] |= {key.replace("_", "-"): value for key, value in own.items()}
    return nodes


def over(study: Path, folder: Path, nodes: dict[int, dict], behaviour=None, **changes):
    given = {"rounds": 1, "wait": 0.05, "missing": 0.0, "privacy": PRIVACY, **changes}
    given = run_config(study, folder, **given)
    return federate_over(LoopbackGrid(nodes, given, behaviour), RunSettings.of_config(given), pause=0.01)


def spent(rounds: int) -> Accountant:
    """What so many rounds of a site cost."""
    made = Accountant(1e-5)
    for _ in range(rounds):
        made.spend("north", RELEASES)
    return made


def test_noise_that_the_server_could_take_off_is_refused_in_fixed_words(study: Path, tmp_path: Path) -> None:
    said = []

    def watched(message, answer):
        said.append(unpacked(answer(message).content)[0])
        return answer(message)

    with pytest.raises(FederationError, match=r"node 1: it does not take part with this run's privacy"):
        over(study, tmp_path, named(study, tmp_path), {1: watched}, privacy=f"{PRIVACY} seed=5")
    assert said == [{"failed": "it does not take part with this run's privacy"}]
    assert not (tmp_path / "north").exists()


def test_a_site_that_insists_on_its_privacy_takes_part_with_no_less(study: Path, tmp_path: Path) -> None:
    nodes = named(study, tmp_path, privacy=PRIVACY)
    assert list(over(study, tmp_path / "a", nodes, quorum=1).history[0].used) == ["north", "south"]
    less = PRIVACY.replace("update_noise=4", "update_noise=1")
    assert list(over(study, tmp_path / "b", nodes, quorum=1, privacy=less).history[0].used) == ["south"]
    assert list(over(study, tmp_path / "c", nodes, quorum=1, privacy="").history[0].used) == ["south"]


def test_a_limit_of_a_site_holds_over_all_runs(study: Path, tmp_path: Path) -> None:
    limit = (spent(2).epsilon("trial") + spent(3).epsilon("trial")) / 2
    nodes = named(study, tmp_path, privacy=PRIVACY, epsilon_limit=limit)
    over(study, tmp_path / "a", nodes, quorum=1)
    there = over(study, tmp_path / "b", nodes, quorum=1, rounds=2)
    assert [sorted(record.used) for record in there.history] == [["north", "south"], ["south"]]
    assert there.history[1].missing == {"north": "its privacy budget is spent: it releases nothing more"}


def test_a_run_ends_with_what_it_promises_in_the_words_of_the_engine(study: Path, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO, "phosphene")
    given = run_config(study, tmp_path, rounds=2, privacy=f"{PRIVACY} seed=5")
    run = RunSettings.of_config(given)
    there = federate_over(LoopbackGrid(partitions(2), given), run, pause=0.01)
    said = list(caplog.messages)
    here = federate(made_sites(study, 2), run.federation(), 2, progress=False, privacy=run.protection())
    promises = [here.accountant.guarantee(unit).told() for unit in get_args(Unit)]
    assert said[-2:] == promises
    assert "at delta 1e-05, rounds 2" in promises[0]
    assert "Not protected:" in promises[0]
    assert there.accountant.state() == here.accountant.state()
    assert [line.partition(" is ")[0] for line in said[:2]] == ["privacy.seed", "library.min_count"]
    own = [line for line in said if line.startswith("released in this run, with the round that follows")]
    assert len(own) == 4
    assert f"epsilon {here.accountant.epsilon('trial'):.3g} per trial" in own[-1]


def test_a_run_that_fails_promises_too_and_counts_what_came(study: Path, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO, "phosphene")
    asked = []

    def dies(message, answer):
        asked.append(message.metadata.message_type)
        return None if asked.count("train") == 2 else answer(message)

    nodes = named(study, tmp_path)
    with pytest.raises(RoundFailure) as failed:
        over(study, tmp_path, nodes, {2: dies}, quorum=2, rounds=3, deadline=0.05)
    assert failed.value.last.accountant.rounds == {"north": 2, "south": 1}
    assert caplog.messages[-2] == failed.value.last.accountant.guarantee("trial").told()
    resumed = over(study, tmp_path, nodes, quorum=2, rounds=2)
    assert resumed.accountant.rounds == {"north": 3, "south": 2}


def test_what_sites_counted_and_the_server_never_saw_is_told(study: Path, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO, "phosphene")

    def killed(message, answer):
        answer(message)
        if message.metadata.message_type == "train":  # the site has counted, the server hears nothing of it
            raise KeyboardInterrupt
        return answer(message)

    nodes = named(study, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        over(study, tmp_path, nodes, {1: killed})
    there = over(study, tmp_path, nodes)
    assert there.accountant.rounds == {"north": 1, "south": 1}
    assert there.history[0].epsilon["trial"] == pytest.approx(spent(2).epsilon("trial"))
    more, promise = caplog.messages[-4:-2]
    assert more.startswith("Sites count more per trial than came here")
    assert f": epsilon {spent(2).epsilon('trial'):.3g} at delta 1e-05" in promise


def test_a_run_goes_on_under_the_same_privacy_alone(study: Path, tmp_path: Path) -> None:
    nodes = named(study, tmp_path)
    over(study, tmp_path, nodes)
    for other, differs in ((PRIVACY.replace("update_noise=4", "update_noise=3"), "3.0, was 4.0"), ("", "was ")):
        with pytest.raises(InputError, match=rf"belongs to another run: .*privacy.*{differs}"):
            over(study, tmp_path, nodes, rounds=2, privacy=other)
    assert over(study, tmp_path, nodes, rounds=2).accountant.rounds == {"north": 2, "south": 2}


def test_private_training_is_counted_as_planned(study: Path) -> None:
    privacy = PrivacySettings(trial_sgd={"batch_size": 8})
    settings = RunSettings(classes="group", set="model.width=16 client.epochs=2").federation()
    site = next(iter(made_sites(study, 2).values()))
    planned = Accountant(1e-5)
    planned.spend("a", planned_releases(site, settings, privacy))
    made = counted(Accountant(1e-5), {"a": SimpleNamespace(n_trials=len(site.trials))}, settings, privacy)
    assert made.state() == planned.state()
