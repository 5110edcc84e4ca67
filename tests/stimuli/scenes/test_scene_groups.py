"""Restricted draws and hard groups: what is left is what was allowed, and the hold-out holds."""

from __future__ import annotations

import itertools
from dataclasses import fields

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.files import digest
from phosphene.stimuli.scenes import HOLDOUTS, hard_groups, held_out, sample_graphs
from phosphene.stimuli.scenes.vocabulary import COLOURS, MATERIALS, SHAPES

VOCABULARY = {"shape": SHAPES, "colour": COLOURS, "material": MATERIALS}
ROLES = [(None, "shape-colour"), *itertools.product(("train", "unseen"), HOLDOUTS)]


def fingerprint(graphs):
    return digest(*(np.asarray(getattr(graphs, f.name)) for f in fields(graphs)))


def held_out_share(graphs, rule):
    there = graphs.shape >= 0
    return held_out(rule)[tuple(getattr(graphs, name)[there] for name in HOLDOUTS[rule][0])].mean()


@pytest.mark.parametrize(
    ("role", "rule", "expected"),
    [
        (None, "shape-colour", "6c22986b0c7de992d93647e5e5532e8b"),
        ("train", "shape-colour", "465d0c8cac508fa6acd0c8604ffda49b"),
        ("unseen", "shape-material", "235c47a691e302190f060a225873d823"),
        ("train", "colour-material", "a00c38c0f76bcc1ae9c77f43c81dc85d"),
    ],
)
def test_unrestricted_scenes_are_those_of_earlier_versions(role, rule, expected):
    # digests taken before restrictions existed
    assert fingerprint(sample_graphs(500, seed=4, start=7, holdout=role, rule=rule)) == expected


def test_allowing_everything_changes_nothing():
    every = {"shape": list(SHAPES), "background": np.ones(10, dtype=bool), "light": np.ones((300, 8), dtype=bool)}
    assert fingerprint(sample_graphs(300, seed=2, only=every, objects=3)) == fingerprint(sample_graphs(300, seed=2))


def test_fewer_objects_leave_the_other_scenes_as_they_are():
    whole, fewer = sample_graphs(300, seed=2), sample_graphs(300, seed=2, objects=2)
    same = whole.n_objects <= 2
    assert 0.5 < same.mean() < 1
    assert fingerprint(whole.take(same)) == fingerprint(fewer.take(same))
    assert fewer.n_objects.max() == 2
    assert (fewer.relation_2 == -1).all()
    assert set(sample_graphs(50, objects=1).n_objects.tolist()) == {1}


def test_only_the_allowed_words_occur():
    only = {
        "shape": ["star", "ball", "key"],
        "colour": ["red", "blue"],
        "material": np.array(["striped"]),
        "background": ["mist", "dead-leaves"],
        "light": ["left", "right"],
    }
    table = sample_graphs(400, seed=3, only=only).to_table()
    for name, words in only.items():
        column = table[name] if name in table.columns else table[f"{name}_0"]
        assert set(column.tolist()) == set(words)
    triples = [row for row in zip(*(table[f"shape_{k}"].tolist() for k in range(3)), strict=True) if "none" not in row]
    assert triples
    assert all(len(set(row)) == 3 for row in triples)


# the words of benchmarks/mlip_arms.py
FEW_WORDS = [
    {
        "shape": ["ball", "box", "ring", "cross", "star", "crescent"],
        "colour": ["red", "green", "blue", "yellow"],
        "material": ["matte", "striped", "dotted", "checkered", "rough", "faded"],
    },
    {
        "shape": ["heart", "house", "flower", "tree", "gear", "arrow"],
        "colour": ["orange", "teal", "white", "black"],
        "material": ["glossy", "metallic", "striped", "dotted", "rough", "faded"],
    },
]


def looks(graphs, only):
    """(shapes, colours, materials) which triples of the allowed words occur."""
    occurs, there = np.zeros([len(words) for words in VOCABULARY.values()], dtype=bool), graphs.shape >= 0
    occurs[tuple(getattr(graphs, name)[there] for name in VOCABULARY)] = True
    return occurs[np.ix_(*([list(VOCABULARY[name]).index(word) for word in only[name]] for name in VOCABULARY))]


@pytest.mark.parametrize("draw", [sample_graphs, hard_groups])
@pytest.mark.parametrize("only", FEW_WORDS)
def test_of_few_words_all_pairs_are_trained_on_where_triples_are_held_out(draw, only):
    rule = "shape-colour-material"
    trained = looks(draw(4000, seed=6, holdout="train", rule=rule, only=only, objects=2), only)
    unseen = looks(draw(2000, seed=6, holdout="unseen", rule=rule, only=only, objects=2), only)
    assert np.array_equal(trained, ~unseen), "all that a role may show does occur, and nothing else"
    assert 0.1 < unseen.mean() < 0.25
    for axis in range(3):
        assert trained.any(axis).all()
        assert unseen.any(axis).mean() > 0.6


def test_triples_are_drawn_attribute_by_attribute_among_what_is_left():
    held, n = held_out("shape-colour-material"), 48_000
    only = {"shape": ["ball", "box", "star"], "colour": ["red", "yellow"], "material": ["matte", "faded", "rough"]}
    graphs = sample_graphs(n, seed=8, objects=1, holdout="unseen", rule="shape-colour-material", only=only)
    places = [[list(VOCABULARY[name]).index(word) for word in words] for name, words in only.items()]
    expected = np.zeros(held.shape)
    shapes = [s for s in places[0] if held[np.ix_([s], *places[1:])].any()]
    for shape in shapes:
        colours = [c for c in places[1] if held[shape, c, places[2]].any()]
        for colour in colours:
            materials = [m for m in places[2] if held[shape, colour, m]]
            expected[shape, colour, materials] = 1 / (len(shapes) * len(colours) * len(materials))
    assert len(shapes) > 1
    found = np.zeros(held.shape)
    np.add.at(found, (graphs.shape[:, 0], graphs.colour[:, 0], graphs.material[:, 0]), 1 / n)
    assert np.abs(found - expected).max() < 0.015


@pytest.mark.parametrize(("role", "rule"), ROLES[1:])
def test_masks_of_scenes_and_the_hold_out_hold_together(role, rule):
    n = 1500
    rng = np.random.default_rng(0)
    only = {"colour": np.eye(len(COLOURS), dtype=bool)[rng.integers(0, len(COLOURS), n)]}
    if rule != "colour-material":  # there a lone colour and a lone material may exclude each other
        only["material"] = np.eye(len(MATERIALS), dtype=bool)[rng.integers(0, len(MATERIALS), n)]
    graphs = sample_graphs(n, seed=5, holdout=role, rule=rule, only=only)
    assert held_out_share(graphs, rule) == (role == "unseen")
    for name, mask in only.items():
        rows, slots = np.nonzero(graphs.shape >= 0)
        assert mask[rows, getattr(graphs, name)[rows, slots]].all()


@pytest.mark.parametrize("role", ["train", "unseen"])
def test_triples_hold_where_every_scene_has_words_of_its_own(role):
    n, rng = 1500, np.random.default_rng(1)
    only = {name: rng.random((n, len(words))).argsort(1) < len(words) // 2 for name, words in VOCABULARY.items()}
    graphs = sample_graphs(n, seed=5, objects=1, holdout=role, rule="shape-colour-material", only=only)
    assert held_out_share(graphs, "shape-colour-material") == (role == "unseen")
    for name, mask in only.items():
        assert mask[np.arange(n), getattr(graphs, name)[:, 0]].all()


def test_small_objects():
    graphs = sample_graphs(300, seed=2, scale=(0.12, 0.2))
    assert graphs.scale[:, 0].min() >= 0.12
    assert graphs.scale[:, 0].max() <= 0.2
    assert graphs.scale[:, 0].max() - graphs.scale[:, 0].min() > 0.07
    assert np.nanmax(np.abs(graphs.x) + graphs.scale) <= 0.9602
    assert np.nanstd(graphs.x[:, 0]) > 1.3 * np.nanstd(sample_graphs(300, seed=2).x[:, 0]), "they roam the picture"


@pytest.mark.parametrize("objects", [1, None])
@pytest.mark.parametrize(("role", "rule"), ROLES)
def test_hard_groups_share_colours_and_materials_and_keep_the_hold_out(role, rule, objects):
    graphs = hard_groups(64 * 60, seed=3, holdout=role, rule=rule, objects=objects)
    numbers = graphs.index // 64
    if role is not None:
        assert held_out_share(graphs, rule) == (role == "unseen")
    hard = []
    for number in range(60):
        rows = graphs.take(numbers == number)
        shared = [len(set(column[column >= 0].tolist())) for column in (rows.colour, rows.material)]
        hard.append(max(shared) <= 2)
        if hard[-1] and role != "unseen":
            assert len(set(rows.shape[:, 0].tolist())) > 10, "shape must tell them apart"
    # colour-material under a role cannot fill every group: two colours and two materials may exclude one another
    assert abs(np.mean(hard) - 0.75) < 0.15 or (rule == "colour-material" and 0.3 < np.mean(hard) <= 0.85)


def test_single_objects_of_a_hard_group_are_all_different():
    graphs = hard_groups(64 * 20, seed=3, objects=1, share=1.0, holdout="train")
    looks = np.stack([graphs.shape[:, 0], graphs.colour[:, 0], graphs.material[:, 0]], axis=1).reshape(20, 64, 3)
    assert all(len(np.unique(group, axis=0)) == 64 for group in looks)
    pairs = {tuple(sorted(set(group[:, 1].tolist()))) for group in looks}
    assert len(pairs) > 10, "groups differ in what they share"


def test_a_scene_of_a_group_depends_on_seed_and_number_alone():
    for objects in (1, None):
        whole = hard_groups(640, seed=3, objects=objects, holdout="train")
        part = hard_groups(100, seed=3, objects=objects, holdout="train", start=330)
        assert fingerprint(whole.take(slice(330, 430))) == fingerprint(part)
    assert fingerprint(hard_groups(100, seed=4)) != fingerprint(hard_groups(100, seed=3))
    free = hard_groups(100, seed=3, share=0.0, objects=2)
    assert fingerprint(free) == fingerprint(sample_graphs(100, seed=3, objects=2))


def test_groups_take_what_they_share_from_what_is_allowed():
    graphs = hard_groups(256, share=1.0, only={"colour": ["red", "green", "blue"], "background": ["mist"]}, objects=1)
    table = graphs.to_table()
    assert set(table["colour_0"].tolist()) == {"red", "green", "blue"}
    assert set(table["background"].tolist()) == {"mist"}
    assert all(len(set(group.tolist())) == 2 for group in graphs.colour[:, 0].reshape(4, 64))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"objects": 0}, "objects must be an integer from 1 to 3, found 0"),
        ({"only": {"size": ["small"]}}, "unknown attribute of `only` 'size'.*background, colour"),
        ({"only": {"colour": ["gren"]}}, "did you mean 'green'"),
        ({"only": {"colour": "red"}}, r"several names in a sequence, such as \['red'\]"),
        (
            {"only": {"colour": np.ones((3, 12), dtype=bool)}},
            r"shape \(12,\) or \(4, 12\), found bool of shape \(3, 12\)",
        ),
        ({"only": {"colour": np.ones(12)}}, "found float64"),
        ({"only": {"colour": []}}, "leaves nothing to scene 0"),
        ({"only": {"shape": ["ball"]}}, "leaves 1 of the shapes to scene 0 .* 3 are needed with up to 3 objects"),
        (
            {"only": {"shape": ["ball"], "colour": ["red"]}, "holdout": "train", "objects": 1},
            "leaves 0 of the shapes to scene 0 of the batch under the role 'train' of the hold-out 'shape-colour'",
        ),
        (
            {
                "only": {"shape": ["ball"], "colour": ["red"], "material": ["matte"]},
                "holdout": "train",
                "rule": "shape-colour-material",
                "objects": 1,
            },
            "leaves 0 of the shapes .* role 'train' of the hold-out 'shape-colour-material'",
        ),
        ({"scale": (0.5, 0.2)}, "scale must be"),
        ({"scale": (0.01, 0.2)}, "within 0.05 to 0.72"),
    ],
)
def test_wrong_restrictions_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        sample_graphs(4, **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"group": 1}, "group must be an integer of at least 2"),
        ({"share": 1.5}, "share must be from 0 to 1"),
        ({"colours": 13}, "colours a group must be an integer from 1 to 12"),
        (
            {"materials": 3, "only": {"material": ["matte", "faded"]}},
            "materials a group must be an integer from 1 to 2",
        ),
        ({"holdout": "test"}, "train, unseen"),
    ],
)
def test_wrong_groups_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        hard_groups(4, **arguments)
