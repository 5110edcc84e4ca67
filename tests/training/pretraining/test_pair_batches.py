"""Batches of pictures and captions: a pure function of seed and number, the same however many processes share them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from tiny_pairs import coloured

from phosphene.encoders.images import at_size
from phosphene.encoders.mlip import Tokenizer
from phosphene.encoders.mlip.tokenizer import END
from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet, picture_hashes
from phosphene.stimuli.scenes import HOLDOUTS, captions, held_out, render
from phosphene.training.pretraining.batches import PairLoader, check_lengths
from phosphene.training.pretraining.settings import DataSettings
from phosphene.training.pretraining.sources import ScenePairs, StimulusPairs

BATCH = 10


def scenes(seed=3, batch=BATCH, **data):
    return ScenePairs(DataSettings.build({"group": 5, **data}), batch, 16, seed)


def pictures(n=24, seed=3, batch=BATCH, **data):
    stimuli = coloured(n)
    return StimulusPairs(stimuli, DataSettings.build(data), batch, seed, picture_hashes(stimuli))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for source in (scenes(), pictures()) for text in source.corpus()], 400)


def loader(source, tokenizer, **processes):
    return PairLoader(source, tokenizer, 80, **processes)


def same(one, two):
    names = ("pixels", "ids", "valid", "positive")
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


SOURCES = {
    "scenes": scenes,
    "pool": lambda seed=3: scenes(seed, pool=23),
    "plain": lambda seed=3: scenes(seed, plain=0.5, sampled=2),
    "pictures": lambda seed=3: pictures(seed=seed, sampled=2),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_batch_depends_on_seed_and_number_alone(kind, tokenizer):
    make = SOURCES[kind]
    walked = dict(zip(range(2, 7), loader(make(), tokenizer).walk(2, 7), strict=True))
    fresh = loader(make(), tokenizer)
    for number in (6, 3):
        assert same(walked[number], fresh.batch(number))
    assert not same(fresh.batch(3), fresh.batch(4))
    assert not same(fresh.batch(3), loader(make(seed=4), tokenizer).batch(3))


@pytest.mark.parametrize("kind", SOURCES)
def test_processes_share_the_batch_of_one(kind, tokenizer):
    make = SOURCES[kind]
    alone = loader(make(), tokenizer).batch(1)
    parts = [loader(make(), tokenizer, rank=rank, processes=3).batch(1) for rank in range(3)]
    for name in ("pixels", "ids", "valid"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(alone, name))
    for part in parts:
        assert torch.equal(part.positive, alone.positive)
        assert part.images == (3, 3, 4)
        assert sum(part.captions) == len(alone.ids)
    with pytest.raises(InputError, match="10 pictures is too small for 11 processes"):
        loader(make(), tokenizer, processes=11)


def test_scenes_are_what_their_captions_say_and_hold_out_compositions():
    source = scenes(hard_share=1.0, sampled=2)
    chosen = source.choose(4)
    graphs = chosen.pictures
    assert graphs.index.tolist() == list(range(40, 50))
    for several, every in zip(chosen.texts, captions(graphs, 5), strict=True):
        assert set(several) <= set(every)
        assert len(several) == 2
    pixels = source.pixels(graphs, slice(2, 5), torch.device("cpu"))
    assert np.array_equal(pixels.numpy(), render(graphs, 16)[2:5])
    there = graphs.shape >= 0
    assert not held_out("shape-colour")[graphs.shape[there], graphs.colour[there]].any()
    for first in (0, 5):  # both groups of this batch are hard
        group = graphs.colour[first : first + 5][there[first : first + 5]]
        assert len(np.unique(group)) <= 2
    free = scenes(rule="none", hard_share=0.0, batch=400).choose(0).pictures
    there = free.shape >= 0
    assert held_out("shape-colour")[free.shape[there], free.colour[there]].any()


@pytest.mark.parametrize("rule", HOLDOUTS)
def test_every_rule_of_the_scenes_can_be_set(rule):
    graphs = scenes(rule=rule, batch=200).choose(0).pictures
    there = graphs.shape >= 0
    assert not held_out(rule)[tuple(getattr(graphs, name)[there] for name in HOLDOUTS[rule][0])].any()


def test_plain_captions_come_in_the_share_asked_for():
    def count(share):
        chosen = scenes(plain=share, batch=200).choose(0)
        varied = captions(chosen.pictures, 5)
        return sum(texts[0] not in every for texts, every in zip(chosen.texts, varied, strict=True))

    assert count(0.0) == 0
    assert 60 < count(0.5) < 130
    assert count(1.0) > 180  # a varied caption may happen to be plain


def test_a_pool_shows_every_scene_once_an_epoch_and_keeps_groups_together():
    source = scenes(pool=20)
    epochs = [np.concatenate([source.choose(2 * epoch + part).pictures for part in range(2)]) for epoch in range(2)]
    for rows in epochs:
        assert sorted(rows.tolist()) == list(range(20))
        assert all(len(set((rows[at : at + 5] // 5).tolist())) == 1 for at in range(0, 20, 5))
    assert not np.array_equal(*epochs)
    pixels = source.pixels(epochs[0], slice(3, 7), torch.device("cpu"))
    assert np.array_equal(pixels.numpy(), render(source.graphs(20).take(epochs[0][3:7]), 16))
    with pytest.raises(InputError, match=r"data\.pool = 9 scenes are fewer"):
        scenes(pool=9)


def test_pictures_come_once_an_epoch_with_other_captions_each_time():
    source = pictures(n=20)
    rows = [np.concatenate([source.choose(2 * epoch + part).pictures for part in range(2)]) for epoch in range(6)]
    assert all(sorted(epoch.tolist()) == list(range(20)) for epoch in rows)
    said = {}
    for number in range(12):
        chosen = source.choose(number)
        for row, texts in zip(chosen.pictures.tolist(), chosen.texts, strict=True):
            said.setdefault(row, set()).add(texts[0])
    assert np.mean([len(texts) for texts in said.values()]) > 2
    assert pictures(n=6).batch_size == 6


def test_a_caption_is_no_negative_of_a_picture_it_is_true_of(tokenizer):
    source = pictures(n=12, batch=12, sampled=3)
    batch = loader(source, tokenizer).batch(0)
    chosen = source.choose(0)
    texts = [text for several in chosen.texts for text in several]
    for row, known in enumerate(chosen.known):
        assert batch.positive[row].tolist() == [text in known for text in texts]
    # "red" is true of four pictures, the numbered captions of one
    assert sorted(batch.positive.sum(dim=0).unique().tolist()) == [1, 4]


def test_copies_of_a_picture_share_their_captions(tokenizer):
    stimuli = StimulusSet(["a", "b", "c"], np.stack([np.full((16, 16, 3), v, np.uint8) for v in (9, 9, 80)]))
    stimuli = stimuli.with_captions([["one"], ["uno"], ["two"]])
    source = StimulusPairs(stimuli, DataSettings.build(), 3, 0, picture_hashes(stimuli))
    batch, rows = loader(source, tokenizer).batch(0), source.choose(0).pictures
    order = np.argsort(rows)
    positive = batch.positive.numpy()[np.ix_(order, order)].astype(int)
    assert positive.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_pictures_are_resized_alike_in_memory_and_from_disk():
    large = coloured(5, size=32)
    held, lazy = at_size(large, 16, 1.0), at_size(large, 16, 0.0)
    assert held.frame_shape == lazy.frame_shape == (16, 16, 3)
    assert np.array_equal(held.pixels(), lazy.pixels())
    assert np.abs(held.pixels().mean((1, 2)) - large.pixels().mean((1, 2))).max() < 2
    with pytest.raises(InputError, match="no pixels"):
        at_size(StimulusSet(["a"], captions=[["a cat"]]), 16, 1.0)


def test_captions_that_are_too_long_are_refused_or_cut(tokenizer, caplog):
    texts = ["a red ring", "a red ring left of a blue heart and above a green star, all of them on a table"]
    with pytest.raises(
        InputError, match=r"1 of 2 captions are longer than the context of 12 tokens.*long_captions=cut"
    ):
        check_lengths(texts, tokenizer, 12, cut=False)
    with caplog.at_level(logging.WARNING):
        check_lengths(texts, tokenizer, 12, cut=True)
    assert "1 of 2 captions" in caplog.text
    stimuli = coloured(2).with_captions([[text] for text in texts])
    source = StimulusPairs(stimuli, DataSettings.build(), 2, 0, picture_hashes(stimuli))
    batch = PairLoader(source, tokenizer, 12).batch(0)
    whole, _ = tokenizer.encode([several[0] for several in source.choose(0).texts], 200)
    assert batch.ids.shape == (2, 12)
    assert torch.equal(batch.ids[:, :11], whole[:, :11])
    assert ((batch.ids == END).sum(dim=1) == 1).all()


def test_pictures_without_words_are_named():
    stimuli = coloured(4)
    for captions_, message in (
        ([["a"], [], ["b"], []], "2 of 4 stimuli have no caption, such as p01, p03"),
        ([["a"], ["b", "  "], ["c"], ["d"]], "1 of 4 stimuli have an empty caption, such as p01"),
    ):
        wordless = stimuli.with_captions(captions_)
        with pytest.raises(InputError, match=message):
            StimulusPairs(wordless, DataSettings.build(), 2, 0, picture_hashes(wordless))


def test_chunks_are_the_batch_in_order(tokenizer):
    batch = loader(pictures(sampled=2), tokenizer).batch(0)
    chunks = batch.chunks(4)
    assert [len(chunk.pixels) for chunk in chunks] == [3, 3, 4]
    for name in ("pixels", "ids", "valid"):
        assert torch.equal(torch.cat([getattr(chunk, name) for chunk in chunks]), getattr(batch, name))
