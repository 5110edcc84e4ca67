"""Step batches: the right responses and targets, from memory or from disk, mixed within a person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from phosphene.encoders import Targets, make_encoder
from phosphene.recordings import Study
from phosphene.training.data import Budget, PersonSamples, StepLoader, TargetRows, plan_memory
from phosphene.training.sampling import BatchSampler


def loader(study, targets, repeats="single", gigabytes=0.0, mixing_steps=0, rank=0, processes=1, batch_size=12):
    view = study.split("train")
    ids = view.stimulus_ids
    index = {name: row for row, name in enumerate(ids.tolist())}
    people = [PersonSamples(view, subject, index, repeats) for subject in view.subjects]
    rows, budget = TargetRows(targets, ids, "pooled"), Budget(gigabytes)
    for samples in people:
        samples.hold(budget)
    rows.hold(budget)
    sampler = BatchSampler({s.subject: len(s) for s in people}, batch_size, 0, processes)
    return StepLoader(people, rows, sampler, rank, processes, mixing_steps=mixing_steps)


def test_predictions_meet_the_target_of_their_own_stimulus(tiny):
    study, targets = tiny
    made = loader(study, targets)
    view = study.split("train")
    for step in range(5):
        batch, drawn = made.batch(step), made.sampler.draw(step)
        shown = []
        for subject, responses in batch.calls:
            np.testing.assert_array_equal(responses, view.responses(subject, drawn[subject]))
            shown += view.trials(subject)["stimulus_id"][drawn[subject]].tolist()
        np.testing.assert_array_equal(batch.targets[batch.stimulus], targets.of(shown))
        assert len(batch.targets) == len(set(shown))


def test_averages_are_those_of_the_view(tiny):
    study, targets = tiny
    made = loader(study, targets, repeats="average")
    view = study.split("train")
    for samples in made.people.values():
        ids, averaged = view.averaged(samples.subject)
        assert made.targets.ids[samples.stimulus].tolist() == ids.tolist()
        order = np.random.default_rng(0).permutation(len(samples))
        np.testing.assert_allclose(samples.read(order), averaged[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("repeats", ["single", "average"])
def test_disk_memory_and_prefetching_give_the_same_bits(tiny, tmp_path, repeats):
    study, targets = tiny
    stored = Study.open(replace_nan(study).save(tmp_path / "study.h5"))
    held = loader(stored, targets, repeats, gigabytes=0.1, mixing_steps=3)
    streamed = loader(stored, targets, repeats, gigabytes=0.0, mixing_steps=3)
    assert held.targets.held
    assert not streamed.targets.held
    for one, two in zip(held.walk(1, 8), streamed.walk(1, 8), strict=True):
        assert torch.equal(one.targets, two.targets)
        assert all(torch.equal(a[1], b[1]) for a, b in zip(one.calls, two.calls, strict=True))


def replace_nan(study):
    """The same study without its unreadable test part, which no file would take."""
    train = study.roles()["train"]
    recordings = []
    for recording in study.recordings.values():
        rows = np.flatnonzero(np.isin(recording.trials["stimulus_id"], train))
        kept = type(recording)(recording.subject, recording.read(rows), recording.trials.take(rows), recording.voxels)
        recordings.append(kept)
    return Study(study.stimuli, recordings, {"default": {"train": train}}, scaling="none")


def test_leaving_a_walk_early_ends_its_thread(tiny):
    import threading

    made = loader(*tiny)
    walk = made.walk(0, 100)
    next(walk)
    walk.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("phosphene-loader")]


def test_mixing_stays_within_a_person_and_knows_both_stimuli(tiny):
    study, targets = tiny
    made = loader(study, targets, mixing_steps=1)
    batch, drawn, mixing = made.batch(0), made.sampler.draw(0), made.sampler.mixing(0, 0.5, 0.15)
    view, start = study.split("train"), 0
    for subject, responses in batch.calls:
        partner, share = mixing[subject]
        own = view.responses(subject, drawn[subject])
        expected = share[:, None] * own + (1 - share[:, None]) * own[partner]
        np.testing.assert_allclose(responses, expected, rtol=1e-4, atol=1e-5)
        part = slice(start, start + len(own))
        shown = view.trials(subject)["stimulus_id"][drawn[subject]]
        np.testing.assert_array_equal(batch.targets[batch.stimulus[part]], targets.of(shown))
        np.testing.assert_array_equal(batch.targets[batch.partner[part]], targets.of(shown[partner]))
        np.testing.assert_array_equal(batch.share[part], share)
        start += len(own)
    assert made.batch(1).partner is None


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_one_and_the_same_batch(tiny, processes):
    study, targets = tiny
    whole = loader(study, targets, mixing_steps=9).batch(2)
    parts = [loader(study, targets, mixing_steps=9, rank=r, processes=processes).batch(2) for r in range(processes)]
    for subject, responses in whole.calls:
        dealt = [dict(part.calls)[subject] for part in parts]
        for rank, rows in enumerate(dealt):
            torch.testing.assert_close(rows, responses[rank::processes])
    first = parts[0]
    assert first.sizes == tuple(sum(len(rows) for _, rows in part.calls) for part in parts)
    assert all(torch.equal(first.stimulus, part.stimulus) and torch.equal(first.share, part.share) for part in parts)
    # the same pairs of stimulus, partner and weight as in one process, in another order
    key = [sorted(zip(*(v.tolist() for v in (b.stimulus, b.partner, b.share)), strict=True)) for b in (whole, first)]
    assert key[0] == key[1]


def test_moments_are_those_of_all_samples(tiny, monkeypatch):
    monkeypatch.setattr("phosphene.training.data._BLOCK_BYTES", 4 * 12 * 7)
    study, targets = tiny
    for samples in loader(study, targets).people.values():
        everything = samples.read(np.arange(len(samples))).astype(np.float64) + 0
        mean, deviation = samples.moments()
        np.testing.assert_allclose(mean, everything.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(deviation, everything.std(0), rtol=1e-5)


def test_target_variance(tiny):
    study, targets = tiny
    rows = TargetRows(targets, study.split("train").stimulus_ids, "tokens")
    truth = targets.of(study.split("train").stimulus_ids, "tokens").reshape(len(rows.ids), -1)
    assert rows.variance() == pytest.approx(float(truth.var(0).mean()), rel=1e-5)


def test_budget_is_never_overdrawn():
    budget = Budget(1e-6)
    assert budget.take(600)
    assert not budget.take(600)
    assert budget.take(400)
    assert not budget.take(1)


def test_memory_is_planned_within_the_limit():
    gigabyte = 10**9
    budget, ahead = plan_memory(0.5, everything=gigabyte // 4, batch=10**8)
    assert (budget.left, ahead) == (gigabyte // 2, 0)
    for batch, expected in ((10**7, 2), (2 * 10**8, 1), (3 * 10**8, 0)):
        budget, ahead = plan_memory(0.5, everything=gigabyte, batch=batch)
        assert ahead == expected
        assert budget.left + (ahead + 1) * batch * (ahead > 0) <= gigabyte // 2


def test_half_precision_targets_stay_as_stored(tiny):
    _, targets = tiny
    halved = Targets(targets.ids, targets.tokens.astype(np.float16), targets.pooled, targets.encoder)
    rows = TargetRows(halved, halved.ids[10:], "tokens")
    assert rows.read(np.array([3])).dtype == np.float16
    assert rows.nbytes == 30 * 6 * 2
    before = rows.read(np.arange(30))
    rows.hold(Budget(1e-3))
    assert rows.held
    np.testing.assert_array_equal(rows.read(np.arange(30)), before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read resident pages from")
def test_pages_of_stored_targets_are_let_go_and_come_back(tmp_path):
    import resource

    stored = np.arange(2**22, dtype=np.float32).reshape(64, 2**8, 2**8)
    np.save(tmp_path / "tokens.npy", stored)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    targets = Targets([f"s{i}" for i in range(64)], mapped, np.zeros((64, 1), np.float32), make_encoder("gabor"))
    rows = TargetRows(targets, targets.ids, "tokens")
    page = resource.getpagesize()

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[2]) * page  # file-backed pages

    rows.read(np.array([0]))
    before = resident()
    for start in range(0, 64, 8):
        np.testing.assert_array_equal(rows.read(np.arange(start, start + 8)), stored[start : start + 8].reshape(8, -1))
    assert resident() - before < stored.nbytes // 4
