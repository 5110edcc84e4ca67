import itertools

import numpy as np
import pytest
from scipy import stats

from phosphene.errors import InputError
from phosphene.stimuli.scenes import count_graphs, held_out, sample_graphs, silhouettes
from phosphene.stimuli.scenes.grammar import HOLDOUTS
from phosphene.stimuli.scenes.randoms import uniforms
from phosphene.stimuli.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    LIGHT_COLOURS,
    LIGHTS,
    MATERIALS,
    PALETTES,
    RELATIONS,
    SHAPES,
)

GRAPHS = sample_graphs(3000, seed=4)


def test_uniforms_are_uniform_and_independent():
    u = uniforms(3, np.arange(20000), "a", 2)
    other = uniforms(3, np.arange(20000), "b", 1)[:, 0]
    assert stats.kstest(u[:, 0], "uniform").pvalue > 1e-3
    for pair in (
        (u[:, 0], u[:, 1]),
        (u[:-1, 0], u[1:, 0]),
        (u[:, 0], other),
        (u[:, 0], uniforms(4, np.arange(20000), "a", 1)[:, 0]),
    ):
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.03


def test_a_scene_depends_on_its_seed_and_number_alone():
    part = sample_graphs(7, seed=4, start=1000)
    for name, column in part.to_table().take(slice(None)).to_records()[3].items():
        expected = GRAPHS.take([1003]).to_table()[name][0]
        assert column == expected or (column != column and expected != expected)
    assert part.ids[3] == "scene-4-001003"
    assert not np.array_equal(sample_graphs(7, seed=5, start=1000).shape, part.shape)


def test_every_word_of_the_vocabulary_occurs():
    for column, words in (
        (GRAPHS.shape[:, 0], SHAPES),
        (GRAPHS.colour[:, 0], COLOURS),
        (GRAPHS.material[:, 0], MATERIALS),
        (GRAPHS.background, BACKGROUNDS),
        (GRAPHS.palette, PALETTES),
        (GRAPHS.light, LIGHTS),
        (GRAPHS.light_colour, LIGHT_COLOURS),
        (GRAPHS.relation[GRAPHS.n_objects > 1], RELATIONS),
    ):
        assert set(column.tolist()) == set(range(len(words)))
    assert len(SHAPES) >= 16
    assert set(GRAPHS.n_objects.tolist()) == {1, 2, 3}


def test_slots_and_labels_agree():
    table = GRAPHS.to_table()
    assert np.array_equal(table["category"], table["shape_0"])
    for slot in range(3):
        absent = GRAPHS.n_objects <= slot
        for name in ("shape", "colour", "material", "size"):
            assert np.array_equal(table[f"{name}_{slot}"] == "none", absent)
        for name in ("x", "y", "scale", "angle", "depth"):
            assert np.array_equal(np.isnan(table[f"{name}_{slot}"]), absent)
    assert np.array_equal(table["relation"] == "none", GRAPHS.n_objects == 1)
    assert np.array_equal(table["relation_2"] == "none", GRAPHS.n_objects < 3)
    several = GRAPHS.n_objects > 1
    assert (GRAPHS.scale[several, 0] > np.nanmax(GRAPHS.scale[several, 1:], axis=1)).all(), "slot 0 is the largest"
    triple = GRAPHS.shape[GRAPHS.n_objects == 3]
    assert all(len(set(row)) == 3 for row in triple.tolist())


def test_objects_stay_inside_the_picture():
    for centre in (GRAPHS.x, GRAPHS.y):
        assert np.nanmax(np.abs(centre) + GRAPHS.scale) <= 0.9602


@pytest.mark.parametrize(("name", "slot"), [("relation", 1), ("relation_2", 2)])
def test_directions_hold_in_the_coordinates(name, slot):
    words = GRAPHS.to_table()[name]
    dx, dy = GRAPHS.x[:, 0] - GRAPHS.x[:, slot], GRAPHS.y[:, 0] - GRAPHS.y[:, slot]
    for relation, along, across in (
        ("left of", -dx, dy),
        ("right of", dx, dy),
        ("above", dy, dx),
        ("below", -dy, dx),
    ):
        rows = words == relation
        assert rows.sum() > 30
        assert (along[rows] > 1.5 * np.abs(across[rows])).all(), relation


def test_overlap_occurs_exactly_where_the_relation_says_so():
    graphs = GRAPHS.take(slice(0, 300))
    cover = silhouettes(graphs, size=48)
    shared = np.minimum(cover[:, 0], cover[:, 1]).sum((1, 2))
    words = graphs.to_table()["relation"]
    overlapping = (words == "in front of") | (words == "behind")
    assert (shared[~overlapping] < 1.0).all()
    assert (shared[overlapping] > 1.0).mean() > 0.95
    front = graphs.depth[:, 0] > graphs.depth[:, 1]
    assert np.array_equal(front[overlapping], (words == "in front of")[overlapping])


@pytest.mark.parametrize("rule", sorted(HOLDOUTS))
def test_held_out_combinations_never_occur_in_training_and_always_in_unseen(rule):
    names, _ = HOLDOUTS[rule]
    combinations = held_out(rule)
    # a single value under a rule of pairs, a pair of values under one of triples
    for axis in range(len(names)):
        assert combinations.any(axis).all()
        assert not combinations.all(axis).any()
    for role in ("train", "unseen"):
        graphs = sample_graphs(2000, seed=2, holdout=role, rule=rule)
        there = graphs.shape >= 0
        occurs = combinations[tuple(getattr(graphs, name)[there] for name in names)]
        assert (occurs == (role == "unseen")).all()
        for name, words in (("shape", SHAPES), ("colour", COLOURS), ("material", MATERIALS)):
            assert len(np.unique(getattr(graphs, name)[there])) == len(words), "every single attribute is seen"


@pytest.mark.parametrize(
    ("rule", "words", "step", "share"),
    [
        ("shape-colour", (SHAPES, COLOURS), 6, 48 / 288),
        ("shape-material", (SHAPES, MATERIALS), 4, 48 / 192),
        ("colour-material", (COLOURS, MATERIALS), 4, 24 / 96),
        ("shape-colour-material", (SHAPES, COLOURS, MATERIALS), 6, 384 / 2304),
    ],
)
def test_rules_are_the_documented_ones(rule, words, step, share):
    table = held_out(rule)
    expected = [sum(places) % step == 0 for places in itertools.product(*(range(len(kind)) for kind in words))]
    assert table.shape == tuple(map(len, words))
    assert table.ravel().tolist() == expected
    assert table.mean() == share


def test_the_count_of_graphs_matches_an_enumeration():
    looks = len(list(itertools.product(COLOURS, MATERIALS)))
    around = len(list(itertools.product(BACKGROUNDS, LIGHTS, LIGHT_COLOURS)))
    relations = [(a, b) for a in RELATIONS for b in list(RELATIONS)[:4] if a != b]
    counts = count_graphs()
    assert counts[1] == len(SHAPES) * looks * around
    assert counts[2] == len(list(itertools.permutations(SHAPES, 2))) * looks**2 * len(RELATIONS) * around
    assert counts[3] == len(list(itertools.permutations(SHAPES, 3))) * looks**3 * len(relations) * around
    assert sum(counts.values()) > 5_000_000


def test_scenes_hardly_ever_repeat():
    graphs = sample_graphs(20000, seed=0)
    columns = (graphs.shape, graphs.colour, graphs.material, graphs.relation[:, None], graphs.background[:, None])
    rows = np.concatenate([*columns, graphs.light[:, None], graphs.light_colour[:, None]], axis=1)
    assert len(np.unique(rows, axis=0)) > 0.98 * len(rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "n must be an integer of at least 1"),
        ({"n": 2.5}, "n must be"),
        ({"n": 2, "seed": -1}, "seed must be"),
        ({"n": 2, "start": "3"}, "start must be"),
        ({"n": 2, "holdout": "test"}, "train, unseen"),
        ({"n": 2, "rule": "shape-color"}, "did you mean 'shape-colour'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        sample_graphs(**arguments)
    with pytest.raises(InputError, match="compositional hold-out"):
        held_out("size")
