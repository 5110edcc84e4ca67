"""Meaning comes from scene graphs, labels or captions, and from no encoder."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np

import phosphene.virtual
from phosphene.stimuli import StimulusSet
from phosphene.stimuli.scenes import scene_set
from phosphene.virtual.semantics import GROUPS, facts, semantic_features, source_of


def test_no_module_of_the_simulator_imports_an_encoder() -> None:
    # the decoding target must not be what drives the virtual brain
    modules = list(Path(phosphene.virtual.__file__).parent.glob("*.py"))
    assert len(modules) > 5
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any("encoders" in name or "transformers" in name for name in names), module.name


def test_scene_graph_is_preferred_and_captions_then_do_not_matter() -> None:
    scenes = scene_set(20, seed=1, size=16)
    assert source_of(scenes) == "scene graph"
    mute = StimulusSet(scenes.ids, labels=scenes.labels)
    np.testing.assert_array_equal(semantic_features(scenes), semantic_features(mute))


def test_facts_of_a_scene_name_its_objects() -> None:
    scenes = scene_set(30, seed=2, size=16)
    for record, known in zip(scenes.labels.to_records(), facts(scenes), strict=True):
        named = {fact for _, fact, _ in known}
        for slot in range(3):
            assert (f"shape={record[f'shape_{slot}']}" in named) == (slot < record["n_objects"])
        assert f"background={record['background']}" in named
        assert all(group in GROUPS for group, _, _ in known)


def test_equal_labels_mean_the_same_and_more_shared_labels_mean_more_alike() -> None:
    labels = {"animal": ["cat", "cat", "cat", "dog"], "place": ["house", "house", "lawn", "beach"]}
    features = semantic_features(StimulusSet(["a", "b", "c", "d"], labels=labels)).sum(1)
    np.testing.assert_array_equal(features[0], features[1])
    similarity = np.corrcoef(features)
    assert similarity[0, 2] > similarity[0, 3] + 0.2


def test_number_columns_are_not_taken_for_categories() -> None:
    stimuli = StimulusSet(["a", "b"], labels={"loudness": [0.1, 0.2]}, captions=[["a red cat"], ["a red dog"]])
    assert source_of(stimuli) == "captions"
    words = [{fact for _, fact, _ in known} for known in facts(stimuli)]
    assert words == [{"red", "cat"}, {"red", "dog"}]


def test_longer_captions_are_not_louder() -> None:
    words = ["river", "bridge", "tower", "cloud", "boat", "tree", "window", "horse"]
    stimuli = StimulusSet(["a", "b"], captions=[[" ".join(words[:2])], [" ".join(words)]])
    short, long = np.linalg.norm(semantic_features(stimuli).sum(1), axis=1)
    assert 0.6 < short / long < 1.6


def test_nothing_known_means_nothing() -> None:
    assert source_of(StimulusSet(["a", "b"])) == "nothing"
    assert not semantic_features(StimulusSet(["a", "b"])).any()
