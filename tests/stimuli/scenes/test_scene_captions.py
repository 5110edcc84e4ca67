import re

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.stimuli.scenes import captions, sample_graphs
from phosphene.stimuli.scenes.vocabulary import BACKGROUNDS, COLOURS, LIGHTS, MATERIALS, RELATIONS, SHAPES, SIZES

GRAPHS = sample_graphs(250, seed=8)
CAPTIONS = captions(GRAPHS)
TABLE = GRAPHS.to_table().to_records()


def _mentions(text: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", text) for word in words)


def _core(text: str) -> str:
    """A caption without the phrases on background and light, whose words could be taken for attributes."""
    for phrases in BACKGROUNDS.values():
        for phrase in phrases:
            text = text.replace(phrase, "")
    return re.split(r", lit from|, under \w+ light", text.lower())[0]


def test_every_caption_names_every_object_with_its_colour():
    for texts, row in zip(CAPTIONS, TABLE, strict=True):
        for text in texts:
            for slot in range(row["n_objects"]):
                noun, colour = SHAPES[row[f"shape_{slot}"]].nouns, COLOURS[row[f"colour_{slot}"]].words
                pairs = [f"{paint} {name}" for paint in colour for name in noun]
                assert _mentions(_core(text), tuple(pairs)), (text, row)


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("shape", {name: entry.nouns for name, entry in SHAPES.items()}),
        ("material", {name: entry.words for name, entry in MATERIALS.items()}),
        ("size", {name: entry for name, (_, entry) in SIZES.items()}),
    ],
)
def test_captions_mention_no_attribute_that_is_not_there(attribute, words):
    mentioned = 0
    for texts, row in zip(CAPTIONS, TABLE, strict=True):
        there = {row[f"{attribute}_{slot}"] for slot in range(3)}
        for text in texts:
            for name, synonyms in words.items():
                if _mentions(_core(text), synonyms):
                    assert name in there, (text, name)
                    mentioned += 1
    assert mentioned > 300


def test_background_and_light_are_mentioned_truly():
    found = {"background": 0, "light": 0}
    for texts, row in zip(CAPTIONS, TABLE, strict=True):
        for text in texts:
            for name, phrases in BACKGROUNDS.items():
                if any(phrase in text for phrase in phrases):
                    assert name == row["background"]
                    found["background"] += 1
            if light := re.search(r"(?:lit|light) from ([\w ]+)", text):
                assert light.group(1) in LIGHTS[row["light"]][1]
                found["light"] += 1
    assert min(found.values()) > 0.3 * 5 * len(TABLE)


def test_the_relation_in_a_pair_reads_the_right_way_round():
    checked = 0
    for texts, row in zip(CAPTIONS, TABLE, strict=True):
        if row["n_objects"] != 2:
            continue
        for text in texts:
            places = [
                min(
                    found.start()
                    for noun in SHAPES[row[f"shape_{slot}"]].nouns
                    for found in re.finditer(rf"\b{noun}\b", _core(text))
                )
                for slot in range(2)
            ]
            inverse = dict(
                zip(RELATIONS, ("right of", "left of", "below", "above", "behind", "in front of"), strict=True)
            )
            stated = row["relation"] if places[0] < places[1] else inverse[row["relation"]]
            between = _core(text)[min(places) : max(places)]
            assert _mentions(between, RELATIONS[stated][1]), text
            # ... and agrees with the coordinates
            if row["relation"] == "left of":
                assert row["x_0"] < row["x_1"]
            checked += 1
    assert checked > 200


def test_captions_vary():
    flat = [text for texts in CAPTIONS for text in texts]
    assert all(len(set(texts)) == 5 for texts in CAPTIONS)
    assert len(set(flat)) > 0.97 * len(flat)
    frames = {" ".join(text.split()[:3]) for text in flat}
    assert len(frames) > 100
    nouns = {noun for entry in SHAPES.values() for noun in entry.nouns}
    used = {noun for noun in nouns if any(_mentions(text.lower(), (noun,)) for text in flat)}
    assert len(used) > 0.95 * len(nouns)


def test_captions_read_as_sentences():
    for texts in CAPTIONS:
        for text in texts:
            assert text[0].isupper()
            assert text.endswith(".")
            assert "  " not in text
            assert not re.search(r"\b[Aa] [aeiou]", text)
            assert not re.search(r"\b[Aa]n [^aeiou]", text)


def test_captions_depend_on_the_scene_alone():
    part = sample_graphs(5, seed=8, start=100)
    assert captions(part) == CAPTIONS[100:105]
    assert captions(part, count=2) == tuple(texts[:2] for texts in CAPTIONS[100:105])
    assert captions(part, count=0) == ((),) * 5
    assert captions(sample_graphs(5, seed=9, start=100)) != CAPTIONS[100:105]


@pytest.mark.parametrize("count", [-1, 21, 2.0, True])
def test_a_wrong_count_is_refused(count):
    with pytest.raises(InputError, match="0 to 20"):
        captions(GRAPHS, count=count)


def test_synonyms_belong_to_one_word_only():
    for vocabulary in (
        [entry.nouns for entry in SHAPES.values()],
        [entry.words for entry in COLOURS.values()],
        [entry.words for entry in MATERIALS.values()],
        [words for _, words in SIZES.values()],
        [words for _, words in RELATIONS.values()],
        list(BACKGROUNDS.values()),
    ):
        flat = np.concatenate([np.array(words) for words in vocabulary])
        assert len(set(flat.tolist())) == len(flat)
