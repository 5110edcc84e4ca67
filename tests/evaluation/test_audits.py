"""Audits find what was planted, and stay quiet where nothing was."""

from __future__ import annotations

import numpy as np
import pytest
from linear_study import linear_study

from phosphene.errors import InputError
from phosphene.evaluation import audits, leave_cluster_out
from phosphene.stimuli import StimulusSet


def test_participation_ratio_equals_the_eigenvalues():
    generator = np.random.default_rng(0)
    for shape in ((50, 8), (8, 50)):
        x = generator.normal(size=shape) * np.linspace(0.1, 3, shape[1])
        values = np.linalg.eigvalsh(np.cov(x.T))
        assert audits.participation_ratio(x) == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert audits.participation_ratio(np.eye(12)) == pytest.approx(11)
    assert audits.participation_ratio(np.outer(np.arange(9), np.ones(4)) + 5) == pytest.approx(1)
    assert audits.participation_ratio(np.full((9, 4), 0.1, np.float32)) == 0.0


def test_overlap_by_id_content_and_caption():
    pixels = np.random.default_rng(0).integers(0, 255, (6, 4, 4, 3), dtype=np.uint8)
    train = StimulusSet(["a", "b", "c"], pixels=pixels[:3], captions=[["A dog"], ["a cat"], ["a hat"]])
    test = StimulusSet(
        ["b", "d", "e"], pixels=pixels[[3, 0, 5]], captions=[["a house"], ["A dog"], ["a bee", " A  CAT"]]
    )
    assert audits.stimulus_overlap(train, test) == {
        "ids": 1,
        "contents": 1,
        "captions": 2,
        "test_stimuli": 3,
        "examples": ["b", "d", "e"],
    }


def test_closer_to_training():
    truth, training = np.eye(4)[:3], np.array([[0.0, 0, 0, 1], [0, 0.5, 0, 0]])
    predictions = np.array([[1.0, 0, 0, 0.1], [0, 1, 0, 0.0], [0, 0, 0.2, 1]])
    # the second lies exactly on its truth and on a training item: not closer
    assert audits.closer_to_training(predictions, truth, training).tolist() == [False, False, True]


def test_semantic_leakage_tells_shared_clusters_from_new_ones():
    generator = np.random.default_rng(1)
    centres = 6 * generator.normal(size=(6, 10))
    old = np.repeat(centres[:5], 20, axis=0) + generator.normal(size=(100, 10))
    same = audits.semantic_leakage(centres[:5] + generator.normal(size=(5, 10)), old)
    new = audits.semantic_leakage(np.repeat(-centres[:2] + 9, 20, axis=0) + generator.normal(size=(40, 10)), old)
    assert same["in_training_clusters"] == 1.0
    assert new["in_training_clusters"] < 0.3
    assert new["test_to_training"] < same["test_to_training"]
    assert audits.semantic_leakage(old[:3], old)["near_duplicates"] == 1.0


def test_leave_cluster_out_holds_whole_clusters_and_units_out():
    study, targets = linear_study(n_stimuli=80)
    embeddings = targets.of(study.stimuli.ids)
    splits = leave_cluster_out(study.stimuli, embeddings, n_clusters=8, n_splits=4, unit="group")
    tested = [name for split in splits.values() for name in split["test"]]
    assert sorted(tested) == study.stimuli.ids.tolist()
    group = dict(zip(study.stimuli.ids, study.stimuli.labels["group"], strict=True))
    apart = study.with_splits(splits)
    near = []
    for name, split in splits.items():
        assert not {group[i] for i in split["train"]} & {group[i] for i in split["test"]}
        view = apart.using(name).split("test")
        near.append(audits.semantic_leakage(targets.of(view.stimulus_ids), targets.of(split["train"])))
        assert 8 <= len(split["test"]) <= 40
    random = audits.semantic_leakage(targets.of(tested[::4]), targets.of([t for t in tested if t not in tested[::4]]))
    assert np.mean([n["test_to_training"] for n in near]) < random["test_to_training"]
    assert splits == leave_cluster_out(study.stimuli, embeddings, n_clusters=8, n_splits=4, unit="group")


def test_leave_cluster_out_by_captions():
    words = ["dog", "cat", "house", "tree"]
    stimuli = StimulusSet([f"s{i}" for i in range(24)], captions=[[f"a {words[i % 4]} outside"] for i in range(24)])
    splits = leave_cluster_out(stimuli, n_clusters=4, n_splits=4)
    for split in splits.values():
        assert len({int(name[1:]) % 4 for name in split["test"]}) == 1
        assert len(split["test"]) == 6


def test_leave_cluster_out_refuses():
    stimuli = StimulusSet(["a", "b", "c"])
    with pytest.raises(InputError, match="have no caption"):
        leave_cluster_out(stimuli)
    with pytest.raises(InputError, match="one row a stimulus"):
        leave_cluster_out(stimuli, np.eye(2))
    with pytest.raises(InputError, match="between 2 and n_clusters = 3"):
        leave_cluster_out(stimuli, np.eye(3), n_clusters=3, n_splits=4)
    with pytest.raises(InputError, match="20 clusters cannot be made of 3"):
        leave_cluster_out(stimuli, np.eye(3))


def test_repeat_ceiling_follows_the_noise_and_needs_repeats():
    found = {}
    for noise in (0.5, 3.0):
        study, _ = linear_study(noise=noise)
        found[noise] = audits.repeat_ceiling([study.split("test")], "sub-01")
    assert found[0.5]["voxel_median"] > found[3.0]["voxel_median"] > 0
    assert found[0.5]["halves_two_way"] > found[3.0]["halves_two_way"] > 0.5
    study, _ = linear_study(repeats=1)
    assert audits.repeat_ceiling([study.split("test")], "sub-01") is None
