"""Sites that die, hang, lie or send rubbish: the others go on, and a run without an update ends with an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the Flower app needs phosphene[federated]: run make federated")

import numpy as np
from flwr.app import Array, ConfigRecord, Error, Message, RecordDict
from loopback_grid import LoopbackGrid, in_process, partitions, run_config, same

from phosphene.errors import FederationError, InputError
from phosphene.federation import Fault, RoundFailure
from phosphene.federation.flower import RunSettings, federate_over, members
from phosphene.federation.flower.messages import packed, unpacked

SECRET = "/srv/hospital/patient-7.h5"


def over(study: Path, folder: Path, behaviour=None, nodes=None, n: int = 3, grid=None, **changes):
    given = run_config(study, folder, sites=n, **{"rounds": 2, "deadline": 0.05, "wait": 0.05, **changes})
    grid = grid or LoopbackGrid(nodes or partitions(n), given, behaviour)
    return federate_over(grid, RunSettings.of_config(given), pause=0.01)


def training(act):
    """Do something else than training."""
    return lambda message, answer: act(message, answer) if message.metadata.message_type == "train" else answer(message)


def _error(message, answer):
    return Message(Error(code=3, reason=f"<class 'OSError'>:<{SECRET}>"), reply_to=message)


def _words(message, answer):
    return Message(packed({"failed": f"cannot read {SECRET}"}), reply_to=message)


def _no_records(message, answer):
    return Message(RecordDict(), reply_to=message)


def _no_json(message, answer):
    return Message(RecordDict({"facts": ConfigRecord({"json": "{"})}), reply_to=message)


def _no_contribution(message, answer):
    return Message(packed({"contribution": 5}), reply_to=message)


def _damaged_arrays(message, answer):
    reply = answer(message)
    name = next(iter(reply.content.array_records["tensors"]))
    reply.content.array_records["tensors"][name] = Array("float32", (3,), "numpy.ndarray", b"\x93NUMPY rubbish")
    return reply


def _objects(message, answer):
    reply = answer(message)
    name = next(iter(reply.content.array_records["tensors"]))
    reply.content.array_records["tensors"][name] = Array(np.array(["a", "b"]))
    return reply


def _other_name(message, answer):
    facts, tensors = unpacked(answer(message).content)
    facts["contribution"]["site"] = "site-1"
    return Message(packed(facts, tensors), reply_to=message)


def _untold_trials(message, answer):
    facts, tensors = unpacked(answer(message).content)
    facts["contribution"]["n_trials"] = 10**400
    return Message(packed(facts, tensors), reply_to=message)


def _strange_epsilon(message, answer):
    facts, tensors = unpacked(answer(message).content)
    return Message(packed({**facts, "epsilon": {"trial": "none", "site": [1]}}, tensors), reply_to=message)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda message, answer: None, "no answer within 0.05 s"),
        (_error, "its app stopped with an error, or the connection to it was lost"),
        (_words, "its answer cannot be read"),
        (_no_records, "its answer cannot be read"),
        (_no_json, "its answer cannot be read"),
        (_no_contribution, "its contribution cannot be read, or stands under another name"),
        (_damaged_arrays, "its answer cannot be read"),
        (_objects, "its answer cannot be read"),
        (_other_name, "its contribution cannot be read, or stands under another name"),
        (_untold_trials, "its contribution cannot be read, or stands under another name"),
    ],
)
def test_a_site_that_sends_nothing_of_use_is_missing(study, tmp_path, act, reason) -> None:
    there = over(study, tmp_path, {2: training(act)}, rounds=1)
    assert there.history[0].missing == {"site-2": reason}
    assert SECRET not in json.dumps(there.history[0].missing)
    drop = in_process(study, 3, 1, faults=[Fault.parse("drop:site-2:1")])
    assert same(there.shared, drop.shared)


def test_what_a_site_says_of_its_privacy_is_not_believed_blindly(study: Path, tmp_path: Path) -> None:
    there = over(study, tmp_path, {2: training(_strange_epsilon)}, rounds=1)
    assert there.history[0].epsilon == {"trial": None, "site": None}


def test_a_poisoned_update_is_refused_by_name(study: Path, tmp_path: Path) -> None:
    def poisoned(message, answer):
        facts, tensors = unpacked(answer(message).content)
        return Message(packed(facts, {n: t * 100 if n[:8] == "weights/" else t for n, t in tensors.items()}),
                       reply_to=message)  # fmt: skip

    there = over(study, tmp_path, {2: training(poisoned)}, rounds=1)
    assert list(there.history[0].used) == ["site-1", "site-3"]
    assert "times the median" in there.history[0].refused["site-2"]


def test_errors_at_a_site_reach_the_server_in_fixed_words(study: Path, tmp_path: Path) -> None:
    sent = []

    def watched(message, answer):
        sent.append(answer(message))
        return sent[-1]

    nodes = partitions(3)
    nodes[2] = {**nodes[2], "study": SECRET, "keep": str(tmp_path / "own")}
    there = over(study, tmp_path, {2: watched}, nodes, quorum=2)
    assert sorted(there.history[-1].used) == ["site-1", "site-3"]
    facts = [unpacked(reply.content)[0] for reply in sent]
    assert {each["failed"] for each in facts} == {"its data or settings were refused there"}
    assert SECRET not in json.dumps(facts)


def test_too_few_answers_end_the_run_and_keep_the_last_good_round(study: Path, tmp_path: Path) -> None:
    asked = []

    def dies(message, answer):
        asked.append(message)
        return answer(message) if len(asked) == 1 else None

    with pytest.raises(RoundFailure, match=r"2 usable contributions, 3 are needed.*site-2: no answer") as failed:
        over(study, tmp_path, {2: training(dies)}, quorum=3)
    assert failed.value.last.shared.round == 1
    assert same(over(study, tmp_path, quorum=3).shared, in_process(study, 3, 2).shared)


def test_a_site_that_loses_its_connection_and_comes_back(study: Path, tmp_path: Path) -> None:
    given = run_config(study, tmp_path, sites=3, rounds=3)
    grid = LoopbackGrid(partitions(3), given)

    def gone_for_a_round(message, answer):
        round_ = unpacked(message.content)[0]["shared"]["round"]
        grid.gone = {2} if round_ == 0 else set()
        return answer(message)

    grid.behaviour = {1: training(gone_for_a_round)}
    there = over(study, tmp_path, grid=grid, rounds=3)
    assert [record.missing for record in there.history] == [{}, {"site-2": "it is not connected"}, {}]
    assert same(there.shared, in_process(study, 3, 3, faults=[Fault.parse("drop:site-2:2")]).shared)


def test_a_quorum_starts_and_who_comes_later_joins(study: Path, tmp_path: Path) -> None:
    given = run_config(study, tmp_path, sites=3, rounds=2)
    grid = LoopbackGrid(partitions(3), given)
    grid.gone = {3}

    def arrives(message, answer):
        grid.gone = set()
        return answer(message)

    grid.behaviour = {1: training(arrives)}
    there = over(study, tmp_path, grid=grid, rounds=2)
    assert [len(record.used) for record in there.history] == [2, 3]


def test_a_site_that_could_not_say_who_it_is_is_asked_again_in_the_next_round(study: Path, tmp_path: Path) -> None:
    asked = []

    def first_fails(message, answer):
        asked.append(message.metadata.message_type)
        failed = packed({"failed": "the system refused it a file or a resource"})
        return Message(failed, reply_to=message) if len(asked) == 1 else answer(message)

    there = over(study, tmp_path, {2: first_fails}, n=2, rounds=2, quorum=1)
    assert [sorted(record.used) for record in there.history] == [["site-1", "site-2"]] * 2
    assert asked == ["query", "query", "train", "train"]


def test_a_site_that_could_not_say_who_it_is_is_asked_again_while_the_others_wait(study, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(members, "_AGAIN", 0.05)
    asked = []

    def first_fails(message, answer):
        asked.append(message.metadata.message_type)
        failed = packed({"failed": "the system refused it a file or a resource"})
        return Message(failed, reply_to=message) if len(asked) == 1 else answer(message)

    there = over(study, tmp_path, {2: first_fails}, n=2, rounds=1, quorum=2, wait=60.0)
    assert sorted(there.history[0].used) == ["site-1", "site-2"]


def test_a_site_that_never_says_who_it_is_is_asked_once_a_round(study: Path, tmp_path: Path) -> None:
    asked = []

    def fails(message, answer):
        asked.append(message.metadata.message_type)
        return Message(packed({"failed": "its data or settings were refused there"}), reply_to=message)

    there = over(study, tmp_path, {2: fails}, n=2, rounds=2, quorum=1)
    assert [list(record.used) for record in there.history] == [["site-1"]] * 2
    assert asked == ["query"] * 3


@pytest.mark.parametrize("quorum", [1, 2])
def test_waiting_for_sites_has_an_end(study: Path, tmp_path: Path, quorum: int) -> None:
    nodes = {1: partitions(3)[1]} if quorum == 2 else {99: {"site": "north"}}
    with pytest.raises(FederationError, match=rf"of 3 sites said who they are, and {quorum} are needed"):
        over(study, tmp_path, nodes=nodes, quorum=quorum)
    assert not (tmp_path / "run").exists()


def test_two_sites_of_one_name_and_sites_that_disagree_are_told_before_any_training(study, tmp_path) -> None:
    nodes = partitions(2) | {3: partitions(2)[1]}
    with pytest.raises(InputError, match="two nodes call themselves site-1"):
        over(study, tmp_path, nodes=nodes)
    own = {"study": str(study), "keep": str(tmp_path / "own"), "targets": "gabor"}
    nodes = partitions(3)
    nodes[2] = {**nodes[2], **own}
    with pytest.raises(InputError, match=r"site-2: image width"):
        over(study, tmp_path, nodes=nodes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"site": "a\nround 1: 9 of 9 sites", "agreement": None},
        {"site": "x" * 200},
        {"site": "north", "agreement": {"classes": 3}},
        {"site": "north", "agreement": {"classes": ["a", "b"], "image_width": "wide", "text_width": 1, "width": 1}},
    ],
)
def test_who_a_site_is_cannot_be_said_in_rubbish(study: Path, tmp_path: Path, facts: dict) -> None:
    def says(message, answer):
        told = unpacked(answer(message).content)[0]
        return Message(packed({**told, **facts} if facts else {}), reply_to=message)

    with pytest.raises(FederationError, match=r"2 of 3 sites .*node 2: its answer cannot be read"):
        over(study, tmp_path, {2: says}, quorum=3)


def test_a_site_goes_on_with_its_data_alone(study: Path, tmp_path: Path) -> None:
    nodes = {
        number + 1: {"site": name, "people": f"sub-0{number + 1}", "study": str(study), "keep": str(tmp_path / name)}
        for number, name in enumerate(("north", "south", "west"))
    }
    over(study, tmp_path, nodes=nodes, rounds=1, missing=0.0)
    nodes[2]["people"] = "sub-04"
    there = over(study, tmp_path, nodes=nodes, rounds=2, missing=0.0)
    assert there.history[-1].missing == {"south": "its data or settings were refused there"}
