"""In process and over Flower: the same bits, also after a kill, with protection, and with a share of the sites."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the Flower app needs phosphene[federated]: run make federated")

from loopback_grid import LoopbackGrid, in_process, made_sites, partitions, run_config, same

from phosphene.errors import InputError
from phosphene.federation import RoundFailure, federate
from phosphene.federation.flower import RunSettings, federate_over
from phosphene.federation.flower.messages import unpacked
from phosphene.federation.privacy import PrivacySettings


def over(study: Path, folder: Path, n: int = 2, behaviour=None, **changes):
    given = run_config(study, folder, sites=n, **changes)
    return federate_over(LoopbackGrid(partitions(n), given, behaviour), RunSettings.of_config(given), pause=0.01)


def test_weights_and_library_are_those_of_the_engine_in_process(study: Path, tmp_path: Path) -> None:
    there, here = over(study, tmp_path), in_process(study, 2, 3)
    assert same(there.shared, here.shared)
    for mine, other in zip(there.history, here.history, strict=True):
        assert (mine.used, mine.metrics, mine.bytes_up, mine.bytes_down) == (
            other.used, other.metrics, other.bytes_up, other.bytes_down
        )  # fmt: skip
        assert mine.fractions == pytest.approx(other.fractions)


def test_a_run_that_was_killed_goes_on_to_the_same_bits(study: Path, tmp_path: Path) -> None:
    asked = []

    def killed_in_round_3(message, answer):
        asked.append(message.metadata.message_type)
        reply = answer(message)
        if asked.count("train") == 3:  # the site has trained and kept its state, the server hears nothing of it
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        over(study, tmp_path, behaviour={1: killed_in_round_3})
    assert (tmp_path / "run" / "round-00002").exists()
    here = in_process(study, 2, 3)
    assert same(over(study, tmp_path).shared, here.shared)
    kept = sorted((tmp_path / "keep").glob("*/site-1/round-*"))
    assert [each.name for each in kept] == ["round-00002", "round-00003"]
    with pytest.raises(InputError, match=r"settings\.seed is 1, was 0"):
        over(study, tmp_path, seed=1)
    with pytest.raises(InputError, match="holds 3 rounds, 2 are asked for"):
        over(study, tmp_path, rounds=2)


def test_a_share_of_the_sites_is_drawn_alike(study: Path, tmp_path: Path) -> None:
    there = over(study, tmp_path, n=4, participation=0.5)
    here = in_process(study, 4, 3, participation=0.5)
    assert [record.idle for record in there.history] == [record.idle for record in here.history]
    assert same(there.shared, here.shared)


def test_sites_clip_and_blur_themselves_and_count_on_their_own_disk(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason="privacy needs phosphene[privacy]")
    words = "update_limit=1.0 feature_limit=1.0 seed=5"
    privacy = PrivacySettings(update_limit=1.0, feature_limit=1.0, seed=5)
    there = over(study, tmp_path, privacy=words)
    settings = RunSettings.of_config(run_config(study, tmp_path, privacy=words)).federation()
    here = federate(made_sites(study, 2), settings, 3, progress=False, privacy=privacy)
    assert same(there.shared, here.shared)
    assert there.history[-1].epsilon == pytest.approx(here.history[-1].epsilon)
    assert len(list((tmp_path / "keep").glob("*/site-*/accountant.json"))) == 2
    limit = here.history[0].epsilon["trial"] * 1.01
    with pytest.raises(RoundFailure, match="its privacy budget is spent") as failed:
        over(study, tmp_path / "limited", privacy=f"{words} epsilon_limit={limit}")
    assert failed.value.last.shared.round == 1


def test_nothing_but_weights_sums_counts_and_metrics_leaves_a_site(study: Path, tmp_path: Path) -> None:
    sent = []

    def watched(message, answer):
        sent.append(answer(message))
        return sent[-1]

    over(study, tmp_path, behaviour={1: watched}, rounds=1)
    names = {name for reply in sent for record in reply.content.array_records.values() for name in record}
    assert {name.partition("/")[0] for name in names} == {"weights", "library"}
    people = made_sites(study, 2)["site-1"].trials.inputs.people
    assert not [name for name in names for person in people if person in name]
    facts = [unpacked(reply.content)[0] for reply in sent]
    assert [set(each) for each in facts] == [{"site", "agreement"}, {"contribution", "epsilon"}]
