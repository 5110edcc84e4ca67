"""Probes: what a perfect, a colour-blind and an ignorant model score; intervals held against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from tiny_pairs import coloured, tiny

from phosphene.encoders.mlip import MLIP, ImageFeatures, MLIPConfig, TextFeatures, Tokenizer
from phosphene.encoders.mlip.similarity import SCORES
from phosphene.stimuli import picture_hashes
from phosphene.stimuli.scenes import held_out
from phosphene.training.pretraining.objective import ObjectiveSettings
from phosphene.training.pretraining.probes import Probe, Retrieval, ZeroShot, held_out_probes, scene_probes, wilson
from phosphene.training.pretraining.settings import DataSettings

WORDS = ["ring", "heart", "star"], ["red", "blue"]


class Knowing:
    """Model and tokenizer in one: pictures hold the numbers of their words, embeddings have one place a word."""

    config = MLIPConfig.build()

    def __init__(self, blind: bool = False, frequency: bool = False) -> None:
        self.blind, self.frequency = blind, frequency
        self.vocabulary = [*WORDS[0], *WORDS[1]]

    def parameters(self):
        yield torch.zeros(1)

    def prepare(self, pixels):
        return pixels

    def encode_image(self, pixels, tokens=True):
        shape, colour = pixels[:, 0, 0, 0].long(), pixels[:, 0, 0, 1].long()
        embedded = torch.nn.functional.one_hot(shape, 5) + 0.0
        coloured = embedded + torch.nn.functional.one_hot(3 + colour, 5)
        return ImageFeatures(embedded if self.blind else coloured, coloured if self.frequency else None)

    def encode(self, texts, context, truncate=False):
        ids = torch.tensor([[word in text for word in self.vocabulary] for text in texts]).long()
        return ids, ids > 0

    def encode_text(self, ids, valid, tokens=True):
        return TextFeatures(ids.float(), None, valid)


def single_objects(n=60):
    rng = np.random.default_rng(0)
    truth = {"shape": rng.integers(0, 3, n), "colour": rng.integers(0, 2, n)}
    pixels = torch.zeros(n, 4, 4, 3, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = (torch.from_numpy(truth[name]) for name in truth)
    return pixels, truth


def named(scores, score=SCORES[0]):
    return {found.task: found.value for found in scores if found.score == score}


def test_attributes_are_told_apart_from_one_another():
    pixels, truth = single_objects()
    prompts = [[f"a {colour} {noun}"] for noun in WORDS[0] for colour in WORDS[1]]
    probe = Probe([ZeroShot("toys", pixels, truth, prompts, [3, 2])])
    model = Knowing()
    assert named(probe(model, model)) == {"shape": 1.0, "colour": 1.0, "all together": 1.0}
    blind = Knowing(blind=True)
    # equal similarities share the hit, as in evaluation: what is not seen is scored as chance
    assert named(probe(blind, blind)) == {"shape": 1.0, "colour": 0.5, "all together": 0.5}
    mended = Knowing(blind=True, frequency=True)
    scores = probe(mended, mended)
    assert named(scores)["colour"] == 0.5
    assert named(scores, SCORES[1]) == {"shape": 1.0, "colour": 1.0, "all together": 1.0}
    assert {score.task: round(score.chance, 3) for score in scores} == {
        "shape": 0.333,
        "colour": 0.5,
        "all together": 0.167,
    }


def test_numbers_that_are_none_are_no_hits():
    pixels, truth = single_objects()

    class Broken(Knowing):
        def encode_image(self, pixels, tokens=True):
            return ImageFeatures(torch.full((len(pixels), 5), torch.nan))

    model = Broken()
    probe = Probe([ZeroShot("toys", pixels, truth, [[f"a {c} {n}"] for n in WORDS[0] for c in WORDS[1]], [3, 2])])
    assert set(named(probe(model, model)).values()) == {0.0}
    assert set(named(Probe([Retrieval("toys", pixels, [["a ring"]] * 60)])(model, model)).values()) == {0.0}


def test_held_out_pictures_sorted_by_class_are_taken_from_all_classes():
    stimuli = coloured(30)
    order = np.argsort(stimuli.labels["paint"], kind="stable")
    stimuli = stimuli.select(stimuli.ids[order])
    prompts = {name: (name,) for name in ("blue", "green", "red")}
    (part,) = held_out_probes(stimuli, 9, picture_hashes(stimuli), prompts, "paint").parts
    assert np.bincount(part.truth["paint"]).tolist() == [3, 3, 3]
    (part,) = held_out_probes(stimuli, 100, picture_hashes(stimuli)).parts
    assert part.texts == [text for texts in stimuli.captions for text in texts]


def test_retrieval_takes_equal_captions_and_equal_pictures_for_hits():
    pixels, truth = single_objects(12)
    texts = [f"a {WORDS[1][c]} {WORDS[0][s]}" for s, c in zip(truth["shape"], truth["colour"], strict=True)]
    model = Knowing()
    scores = Probe([Retrieval("toys", pixels, [[text] for text in texts])])(model, model)
    assert named(scores) == {"image to text": 1.0, "text to image": 1.0}
    equal = np.mean([[one == other for other in texts] for one in texts])
    assert all(score.chance == pytest.approx(equal) for score in scores)
    # the same wording with another number is another caption, unless the pictures are known to be the same
    apart = [[f"{text}, number {row}"] for row, text in enumerate(texts)]
    assert named(Probe([Retrieval("toys", pixels, apart)])(model, model))["image to text"] < 1
    keys = np.array(texts)
    assert named(Probe([Retrieval("toys", pixels, apart, keys)])(model, model))["image to text"] == 1


def test_retrieval_looks_for_every_caption_of_a_picture():
    pixels, _ = single_objects(4)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 1, 1])
    captions = [["a red ring"], ["a red heart", "heart"], ["a blue star"], ["a blue ring", "blue", "star"]]
    model = Knowing()
    scores = {score.task: score for score in Probe([Retrieval("toys", pixels, captions)])(model, model)}
    assert scores["image to text"].value == 1
    assert scores["image to text"].chance == pytest.approx((1 + 2 + 1 + 3) / 7 / 4)
    # "blue" is as true of the star, and "star" is not true at all of the ring it belongs to
    assert scores["text to image"].value == pytest.approx((1 + 1 + 1 + (1 + 0.5 + 0) / 3) / 4)
    assert scores["text to image"].chance == pytest.approx(1 / 4)
    assert scores["text to image"].n == 4


def test_intervals_are_those_of_wilson():
    for hits, n in ((0, 20), (3, 20), (20, 20), (411, 512)):
        expected = binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_scene_probes_show_held_out_compositions_in_one_part_only():
    data = DataSettings.build(tiny()["data"])
    probe = scene_probes(data, 16, 16)
    kinds = [(type(part).__name__, part.part) for part in probe.parts]
    parts = ("seen compositions", "unseen compositions")
    assert kinds == [(kind, part) for kind in ("ZeroShot", "Retrieval") for part in parts]
    for part, expected in zip(scene_probes(data, 40, 16).parts[:2], (False, True), strict=True):
        assert len(part.texts) == 4 * 6 * 2
        assert part.texts[0] == "A matte red box."
        assert part.sizes == (4, 6, 2)
        whole = _positions(part.truth, data)
        assert (held_out("shape-colour")[whole] == expected).all()
    assert [part.part for part in scene_probes(DataSettings.build({"rule": "none"}), 2, 16).parts] == [parts[0]] * 2


def _positions(truth, data):
    """Positions in the whole vocabulary of what a probe counts among the words that may occur."""
    from phosphene.stimuli.scenes.vocabulary import COLOURS, SHAPES

    tables = (("shape", SHAPES), ("colour", COLOURS))
    allowed = [np.flatnonzero([word in data.only[name] for word in table]) for name, table in tables]
    return tuple(values[truth[name]] for values, (name, _) in zip(allowed, tables, strict=True))


def test_token_scores_are_added_where_they_are_asked_for():
    torch.manual_seed(0)
    model = MLIP(MLIPConfig.build(tiny()["model"])).eval()
    stimuli = coloured(9)
    tokenizer = Tokenizer.train([text for texts in stimuli.captions for text in texts], 300)
    probe = held_out_probes(stimuli, 9, picture_hashes(stimuli))
    assert {score.score for score in probe(model, tokenizer)} == set(SCORES[:2])
    pooled, every = (probe(model, tokenizer, ObjectiveSettings.build({"pool_tokens": most})) for most in (4, None))
    assert {score.score for score in pooled} == {score.score for score in every} == set(SCORES)
    prompts = {name: (f"a {name} picture", name) for name in ("blue", "green", "red")}
    named_classes = held_out_probes(stimuli, 6, picture_hashes(stimuli), prompts, "paint")
    (part,) = named_classes.parts
    assert part.truth["paint"].tolist() == [2, 0, 2, 0, 2, 0]  # rows 0, 2, 3, 5, 6, 8 of red, green, blue, red ...
    scores = named_classes(model, tokenizer)
    assert {(score.task, score.n, round(score.chance, 3)) for score in scores} == {("paint", 6, 0.333)}
