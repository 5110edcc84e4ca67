"""Rounds in one process: the same bits whatever interrupts them, and runs that bear sites that fail."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace

import pytest
import torch
from federation_sites import interrupting, made_sites, made_trials, run, same, settings

from phosphene.errors import InputError
from phosphene.federation import engine, run_state
from phosphene.federation.engine import RoundFailure, federate
from phosphene.federation.faults import Fault
from phosphene.federation.privacy import PrivacySettings
from phosphene.federation.state import SiteState

CARRYING = {
    "client": {"optimiser": "kept"},
    "objective": {"model_contrast": 0.1},
    "server": {"aggregator": "fedadam"},
}  # states that must be kept
QUIET = PrivacySettings(update_limit=1.0, update_noise=4.0, feature_limit=2.0, library_noise=4.0, seed=5)


def sites(n: int = 8) -> dict[str, SiteState]:
    return {site.site: site for site in made_sites(n=n)}


def robust(aggregator: str):
    return settings(server={"aggregator": aggregator})


def faults(*texts: str) -> list[Fault]:
    return [Fault.parse(text) for text in texts]


def told(done) -> list[dict]:
    """The history without what the clock says."""
    return [{**asdict(record), "seconds": 0.0} for record in done.history]


def check_same(one, other) -> None:
    (tensors, facts), (others, other_facts) = one.shared.to_tensors(), other.shared.to_tensors()
    assert same(tensors, others)
    assert facts == other_facts
    for name, site in one.sites.items():
        twin = other.sites[name]
        assert same(site.private, twin.private)
        assert same(site.optimiser, twin.optimiser)
        assert same(site.last, twin.last)
        assert same(site.foretold, twin.foretold)
        assert site.round == twin.round
    assert told(one) == told(other)


@pytest.fixture(scope="module")
def whole():
    """Three rounds without an interruption, in memory."""
    return federate(sites(), settings(**CARRYING), 3)


def test_rounds_are_the_two_functions_and_nothing_else(whole):
    shared, after, _ = run(list(sites().values()), settings(**CARRYING), 3)
    assert same(whole.shared.to_tensors()[0], shared.to_tensors()[0])
    assert all(same(site.private, whole.sites[site.site].private) for site in after)
    backwards = federate(dict(reversed(sites().items())), settings(**CARRYING), 3)
    check_same(backwards, whole)


def test_history_says_who_counted_with_what(whole):
    record = whole.history[1]
    assert record.round == 2
    assert record.used.keys() == record.metrics.keys() == record.bytes_up.keys() == {"north", "south", "west"}
    assert "loss total" in record.metrics["north"]
    assert record.bytes_down > 0
    assert record.bytes_up["north"] > 0
    present = torch.cat([site.trials.present for site in sites().values()])
    assert record.fractions["missing fmri"] == pytest.approx(float((~present[:, 0]).float().mean()))
    assert (record.refused, record.missing, record.idle, record.epsilon) == ({}, {}, [], {})


def test_a_run_stopped_after_each_round_goes_on_to_the_same_bits(tmp_path, whole):
    for rounds in (1, 2, 3):
        done = federate(sites(), settings(**CARRYING), rounds, out=tmp_path / "run")
    check_same(done, whole)


@pytest.mark.parametrize("call", [2, 5, 9])
def test_a_run_stopped_in_the_middle_of_a_round_goes_on_to_the_same_bits(tmp_path, whole, monkeypatch, call):
    with monkeypatch.context() as patch:
        interrupting(patch, engine, "client_update", call)
        with pytest.raises(KeyboardInterrupt):
            federate(sites(), settings(**CARRYING), 3, out=tmp_path)
    check_same(federate(sites(), settings(**CARRYING), 3, out=tmp_path), whole)


@pytest.mark.parametrize(("name", "call"), [("write_json", 3), ("shutil.rmtree", 1)])
def test_a_run_stopped_while_a_round_is_written_has_a_whole_one(tmp_path, whole, monkeypatch, name, call):
    place = run_state.shutil if "." in name else run_state
    with monkeypatch.context() as patch:
        if place is run_state:
            interrupting(patch, place, name, call)  # after run.json and round 1
        else:
            real = run_state.shutil.rmtree
            patch.setattr(run_state.shutil, "rmtree", lambda path, **how: _stop(path, real, how))
        with pytest.raises(KeyboardInterrupt):
            federate(sites(), settings(**CARRYING), 3, out=tmp_path)
    check_same(federate(sites(), settings(**CARRYING), 3, out=tmp_path), whole)
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["round-00003", "run.json"]


def _stop(path, real, how):
    """Half of an old round is gone, and then the process is."""
    if path.name.startswith("round-"):
        real(path / "server")
        raise KeyboardInterrupt
    real(path, **how)


def test_a_finished_run_is_read_back_without_training(tmp_path, whole, monkeypatch):
    done = federate(sites(), settings(**CARRYING), 3, out=tmp_path)
    monkeypatch.setattr(engine, "client_update", lambda *_: pytest.fail("trained"))
    again = federate(sites(), settings(**CARRYING), 3, out=tmp_path)
    check_same(again, whole)
    assert again.history == done.history
    assert {each.suffix for each in tmp_path.rglob("*") if each.is_file()} == {".json", ".safetensors"}


def test_a_folder_of_another_run_is_refused_with_what_differs(tmp_path):
    federate(sites(), settings(), 2, out=tmp_path / "run")
    others = sites() | {"west": SiteState("west", made_trials(9, {"p4": 15}, 8), sites()["west"].agreement)}
    for given, chosen, more, words in [
        (sites(), settings(seed=1), {}, r"settings\.seed is 1, was 0"),
        (sites(), settings(masks={"dropout": 0.4}), {}, r"settings\.masks\.dropout is 0\.4"),
        (sites(), settings(), {"quorum": 2}, r"settings\.server\.quorum is 2, was 1"),
        (sites(), settings(), {"participation": 0.5}, r"participation is 0\.5, was 1\.0"),
        (sites(), settings(), {"faults": faults("drop:west:1")}, "faults is"),
        (sites(), settings(), {"privacy": QUIET}, r"privacy\.seed is 5, was None"),
        (others, settings(), {}, "another run: west has other trials"),
    ]:
        with pytest.raises(InputError, match=words):
            federate(given, chosen, 2, out=tmp_path / "run", **more)
    with pytest.raises(InputError, match="holds 2 rounds, 1 are asked for"):
        federate(sites(), settings(), 1, out=tmp_path / "run")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no federated run"):
        federate(sites(), settings(), 1, out=tmp_path)


def test_a_run_bears_every_fault_and_resumes_with_them(tmp_path, monkeypatch):
    given = faults(
        "drop:north:1", "delay:south:2:90", "nan:west:2", "poison:north:3", "rubbish:south:4", "delay:west:4:5"
    )
    done = federate(sites(), settings(), 4, deadline=10, faults=given)
    used = [sorted(record.used) for record in done.history]
    assert used == [["south", "west"], ["north"], ["south", "west"], ["north", "west"]]
    first, second, third, fourth = done.history
    assert first.missing == {"north": "it dropped out"}
    assert second.missing == {"south": "no answer within 10 s"}
    assert "not finite" in second.refused["west"]
    assert "more than" in third.refused["north"]
    assert fourth.missing == {"south": "its training stopped with an error"}
    assert all(torch.isfinite(each).all() for each in done.shared.weights.values())
    with monkeypatch.context() as patch:
        interrupting(patch, engine, "client_update", 7)  # in the third round
        with pytest.raises(KeyboardInterrupt):
            federate(sites(), settings(), 4, out=tmp_path, deadline=10, faults=given)
    assert [each.name for each in tmp_path.glob("round-*")] == ["round-00002"]
    check_same(federate(sites(), settings(), 4, out=tmp_path, deadline=10, faults=given), done)


def test_of_an_error_at_a_site_nothing_gets_through(tmp_path, monkeypatch, caplog):
    real = engine.client_update

    def failing(site, *rest):
        if site.site == "west":
            raise ValueError("clinic/7341.h5: response 0.123456 of Smith")
        return real(site, *rest)

    monkeypatch.setattr(engine, "client_update", failing)
    with caplog.at_level(logging.DEBUG):
        done = federate(sites(), settings(), 1, out=tmp_path)
    assert done.history[0].missing == {"west": "its training stopped with an error"}
    with pytest.raises(RoundFailure) as failed:
        federate(sites(), settings(), 1, quorum=3)
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    for text in (json.dumps(told(done)), caplog.text, str(failed.value), written):
        assert not any(word in text for word in ("clinic/", "7341", "0.123", "Smith", "Traceback"))


def test_a_site_whose_adapters_are_spoilt_is_missing_and_keeps_the_old_ones(monkeypatch):
    real = engine.client_update

    def spoiling(site, *rest):
        sent, after = real(site, *rest)
        broken = {name: torch.full_like(each, torch.inf) for name, each in after.private.items()}
        return sent, replace(after, private=broken) if site.site == "west" else after

    monkeypatch.setattr(engine, "client_update", spoiling)
    done = federate(sites(), settings(), 1)
    assert "adapters are not finite" in done.history[0].missing["west"]
    assert done.sites["west"].round == 0


def test_below_the_quorum_a_run_fails_naming_who_was_missing_and_keeps_the_last_good_round(tmp_path):
    given = {"faults": faults("drop:north:2", "rubbish:south:2", "nan:west:2"), "quorum": 2, "out": tmp_path}
    with pytest.raises(RoundFailure) as failed:
        federate(sites(), settings(), 3, **given)
    for words in ("round 2", "2 are needed", "north: it dropped out", "south: its training", "west:", "not finite"):
        assert words in str(failed.value)
    assert failed.value.last.shared.round == 1
    assert [each.name for each in tmp_path.glob("round-*")] == ["round-00001"]
    with pytest.raises(RoundFailure):
        federate(sites(), settings(), 3, **given)
    with pytest.raises(RoundFailure, match="0 usable contributions, 1 are needed"):  # an empty round never passes
        federate(sites(), settings(), 1, faults=faults("drop:north:1", "drop:south:1", "drop:west:1"))
    with pytest.raises(RoundFailure, match=r"Missing: south: .*; west: it dropped out"):
        federate(sites(), robust("median"), 1, faults=faults("drop:south:1", "drop:west:1"))


def test_sites_are_drawn_by_the_seed(tmp_path):
    done = federate(sites(), settings(), 4, participation=0.6)
    assert [len(record.used) for record in done.history] == [2] * 4
    assert [sorted({*record.used, *record.idle}) for record in done.history] == [["north", "south", "west"]] * 4
    assert len({tuple(record.used) for record in done.history}) > 1
    federate(sites(), settings(), 2, participation=0.6, out=tmp_path)
    check_same(federate(sites(), settings(), 4, participation=0.6, out=tmp_path), done)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rounds": 0}, "at least one round"),
        ({"participation": 0.0}, "participation"),
        ({"quorum": 4}, "quorum is 4"),
        ({"quorum": 0}, "quorum"),
        ({"participation": 0.5, "quorum": 3}, "2 of 3 sites are asked"),
        ({"participation": 0.5, "settings": robust("median")}, "median needs 3 sites, and 2 of 3 are asked"),
        ({"settings": robust("trimmed-mean")}, r"trimmed-mean needs 5 sites at a server\.trim of 0\.2, and 3 of 3"),
        ({"faults": faults("drop:nobody:1")}, "unknown site"),
        ({"privacy": PrivacySettings()}, "protects nothing"),
        ({"privacy": QUIET.model_copy(update={"shares": 3})}, "secure sums"),
        ({"sites": {}}, "at least one site"),
        ({"sites": {"east": made_sites(n=12)[0]}}, "under the name 'east'"),
        ({"sites": {"north": replace(made_sites(n=12)[0], round=2)}}, "before the first"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_training(more, words):
    given = {"sites": sites(), "settings": settings(), "rounds": 1, **more}
    with pytest.raises(InputError, match=words):
        federate(given.pop("sites"), given.pop("settings"), given.pop("rounds"), **given)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": tuple("abce")}, r"west: .*only here e"),
        ({"image_encoder": "image:2"}, r"west: image encoder 'image:2' instead of 'image:1'"),
        ({"text_encoder": "text:2"}, r"west: text encoder 'text:2' instead of 'text:1'"),
        ({"width": 24}, r"west: width 24 instead of 16"),
    ],
)
def test_sites_that_disagree_are_named_before_any_training(changes, words, tmp_path):
    odd = sites()
    odd["west"] = replace(odd["west"], agreement=replace(odd["west"].agreement, **changes))
    with pytest.raises(InputError, match=words):
        federate(odd, settings(), 1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_of_another_width_than_the_sites_agreed_on_are_refused():
    with pytest.raises(InputError, match="width"):
        federate(sites(), settings(model={"width": 24}), 1)


def test_thirty_two_sites_and_dying_ones():
    site = made_sites(n=6)[0]
    many = {f"s{number:02d}": replace(site, site=f"s{number:02d}") for number in range(32)}
    done = federate(many, settings(), 1, quorum=20, faults=faults("drop:s03:1", "nan:s04:1", "poison:s31:1"))
    assert len(done.history[0].used) == 29


# -- privacy --------------------------------------------------------------------------------------------------------


def test_protection_is_counted_over_rounds_and_resumes_to_the_same_bits(tmp_path, monkeypatch):
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    given = {"privacy": QUIET, "faults": faults("drop:west:2")}
    done = federate(sites(), settings(), 2, **given)
    assert done.accountant.rounds == {"north": 2, "south": 2, "west": 1}
    assert 0 < done.history[0].epsilon["trial"] < done.history[1].epsilon["trial"] == done.accountant.epsilon("trial")
    assert done.history[0].epsilon["site"] is not None
    with monkeypatch.context() as patch:
        interrupting(patch, engine, "protected_update", 5)
        with pytest.raises(KeyboardInterrupt):
            federate(sites(), settings(), 2, out=tmp_path, **given)
    check_same(federate(sites(), settings(), 2, out=tmp_path, **given), done)


def test_noise_that_cannot_be_had_again_stays_counted_when_its_round_is_interrupted(tmp_path, monkeypatch):
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    given = {"privacy": QUIET.model_copy(update={"seed": None}), "out": tmp_path}
    with monkeypatch.context() as patch:
        interrupting(patch, engine, "protected_update", 2)
        with pytest.raises(KeyboardInterrupt):
            federate(sites(), settings(), 1, **given)
    done = federate(sites(), settings(), 1, **given)
    assert done.accountant.rounds == {"north": 2, "south": 2, "west": 2}


def test_a_spent_budget_silences_a_site_and_then_ends_the_run():
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    one = federate(sites(), settings(), 1, privacy=QUIET).history[0].epsilon["trial"]
    limited = QUIET.model_copy(update={"epsilon_limit": one * 1.01})
    with pytest.raises(RoundFailure, match="north: its privacy budget is spent") as failed:
        federate(sites(), settings(), 2, privacy=limited, faults=faults("drop:west:1"), quorum=2)
    assert failed.value.last.shared.round == 1
    assert (
        "north" not in federate(sites(), settings(), 2, privacy=limited, faults=faults("drop:west:1")).history[1].used
    )
