"""Cues against their formulas, and what each guide spares."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from phosphene.encoders.merging.guides import attention_cue, combine, embedding_cue, highpass_cue, zscore
from phosphene.encoders.merging.settings import MergeSettings
from phosphene.encoders.merging.step import attention_sizes, begin, merge_step
from phosphene.errors import InputError


def test_zscore_is_of_the_unprotected_tokens_of_each_image():
    torch.manual_seed(0)
    cue = torch.randn(3, 10) * torch.tensor([[1.0], [100], [1e-3]]) + 5
    scored = zscore(cue, 2)
    assert (scored[:, :2] == 0).all()
    torch.testing.assert_close(scored[:, 2:].mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scored[:, 2:].std(1, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(zscore(3 * cue[:1] - 7, 2), scored[:1], atol=1e-4, rtol=0)
    assert torch.equal(zscore(torch.full((2, 6), 0.1)), torch.zeros(2, 6))


def test_attention_cue_is_the_log_attention_of_the_class_token():
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 9, 4).unbind()
    expected = torch.stack([(q[:, h, 0, None] * k[:, h]).sum(-1).div(2).softmax(-1).log() for h in range(3)]).mean(0)
    torch.testing.assert_close(attention_cue(q, k, protected=1), expected, atol=1e-5, rtol=1e-5)
    half = attention_cue(q.bfloat16(), k.bfloat16(), protected=1)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=0.1, rtol=0)


def test_without_a_class_token_it_is_the_attention_received():
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 9, 4).unbind()
    received = torch.zeros(2, 3, 9)
    for asking in range(9):
        received += (q[:, :, asking, None] * k).sum(-1).div(2).softmax(-1) / 9
    torch.testing.assert_close(attention_cue(q, k), received.log().mean(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 5), (4, 9)])
@pytest.mark.parametrize("cutoff", [0.0, 0.5, 0.9])
def test_highpass_cue_is_its_formula(height, width, cutoff):
    grid = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) / 0.5
    spectrum = np.fft.fft2(grid, axes=(1, 2)) * (radius > cutoff)[..., None]
    expected = np.sqrt((np.fft.ifft2(spectrum, axes=(1, 2)).real ** 2).mean(-1)).reshape(2, -1)
    found = highpass_cue(torch.from_numpy(grid).flatten(1, 2), height, width, cutoff=cutoff)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_highpass_cue_finds_the_fine_texture():
    grid = torch.zeros(1, 8, 8, 2) + torch.linspace(0, 3, 8)[:, None, None]  # a slow gradient
    grid[:, 2:5, 4:7] += (torch.arange(3)[:, None] + torch.arange(3))[..., None] % 2 * 2.0  # a fine chequered patch
    cue = highpass_cue(grid.flatten(1, 2), 8, 8).view(8, 8)
    inside = cue[2:5, 4:7].mean()
    assert inside > 2 * cue[:, :3].mean()
    flat = highpass_cue(torch.ones(1, 64, 2), 8, 8)
    assert flat.max() < 1e-6


def test_embedding_cue_is_the_nearest_reference():
    torch.manual_seed(0)
    tokens, texts = torch.randn(2, 5, 6), torch.randn(3, 6)
    cosines = torch.stack([F.cosine_similarity(tokens, text, dim=-1) for text in texts])
    torch.testing.assert_close(embedding_cue(tokens, texts), cosines.amax(0))
    torch.testing.assert_close(embedding_cue(tokens, texts[1:2]), cosines[1])
    own = torch.randn(2, 1, 6)
    torch.testing.assert_close(embedding_cue(tokens, own), F.cosine_similarity(tokens, own, dim=-1))
    with pytest.raises(ValueError, match=r"\(M, 6\) or \(B, M, 6\), found \(2, 4\)"):
        embedding_cue(tokens, torch.randn(2, 4))


def scene(protected=1):
    """16 tokens on a 4 x 4 grid with keys that are all alike, so that the guide alone decides.

    The four tokens in the middle draw attention, the upper two rows hold fine texture, the first row fits the text.
    """
    n = 16 + protected
    keys = torch.zeros(1, 2, n, 4)
    keys[..., 0] = 1
    x = torch.zeros(1, n, 4)
    middle, fine, told = (torch.zeros(4, 4, dtype=torch.bool) for _ in range(3))
    middle[1:3, 1:3] = fine[:2] = told[0] = True
    keys[..., protected:, 1] = 0.05 * middle.flatten()  # hardly another key, but one that the queries look for
    queries = torch.zeros(1, 2, n, 4)
    queries[..., 1] = 40
    chequers = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 2.0 - 1
    x[0, protected:, 2] = (chequers * fine).flatten()
    x[0, protected:, 3] = told.flatten().float()
    return x, keys, queries, {"spatial": middle, "frequency": fine, "text": told}


def survivors(guide, protected=1, r=4, **options):
    """Which tokens of the grid still stand alone after merging r."""
    x, keys, queries, regions = scene(protected)
    settings = MergeSettings(r=r, guide=guide, strength=0.5, **options)
    text = embedding_cue(x, torch.tensor([[0.0, 0, 0, 1]]))
    state = begin(x, settings, protected=protected, grid=(4, 4), cue=text[:, protected:] if guide == "text" else None)
    _, state = merge_step(x, keys, state, r, settings, protected, queries=queries)
    alone = (state.sizes.gather(1, state.source) == 1)[0, protected:].view(4, 4)
    return alone, regions


@pytest.mark.parametrize("guide", ["spatial", "frequency", "text"])
@pytest.mark.parametrize("protected", [0, 1])
def test_each_guide_spares_what_it_calls_salient(guide, protected):
    alone, regions = survivors(guide, protected)
    assert alone[regions[guide]].all()
    plain, _ = survivors("none", protected)
    assert not plain[regions[guide]].all()


def test_balance_goes_from_frequency_to_spatial():
    for balance, alike in ((1.0, "spatial"), (0.0, "frequency")):
        assert torch.equal(survivors("both", balance=balance)[0], survivors(alike)[0])
    assert not torch.equal(survivors("spatial")[0], survivors("frequency")[0])
    one, other = torch.randn(2, 1, 5)
    torch.testing.assert_close(combine(one, other, 0.25), 0.25 * one + 0.75 * other)


def test_without_strength_a_guide_changes_nothing():
    x, keys, queries, _ = scene()
    settings = MergeSettings(r=4, guide="spatial", strength=0)
    plain = MergeSettings(r=4)
    guided = merge_step(x, keys, begin(x, settings), 4, settings, 1, queries=queries)[1]
    assert torch.equal(guided.source, merge_step(x, keys, begin(x, plain), 4, plain, 1)[1].source)


def test_a_cue_of_the_block_goes_before_the_carried_one():
    x, keys, _, regions = scene()
    settings = MergeSettings(r=4, guide="text", strength=0.5)
    cue = F.pad(regions["spatial"].flatten()[None].float(), (1, 0))
    state = begin(x, settings, protected=1, cue=-cue[:, 1:])
    _, state = merge_step(x, keys, state, 4, settings, 1, cue=cue)
    assert (state.sizes.gather(1, state.source)[0, 1:].view(4, 4)[regions["spatial"]] == 1).all()


def test_the_carried_cue_outlives_the_grid():
    x, keys, _, _ = scene()
    settings = MergeSettings(r=4, guide="frequency")
    state = begin(x, settings, protected=1, grid=(4, 4))
    for r in (4, 3, 2):
        x, state = merge_step(x, keys[:, :, : x.shape[1]], state, r, settings, 1)
    assert x.shape[1] == state.cue.shape[1] == 8


def test_what_a_guide_lacks_is_named():
    x, keys, *_ = scene()
    text, frequency, spatial = (MergeSettings(r=2, guide=guide) for guide in ("text", "frequency", "spatial"))
    with pytest.raises(InputError, match="text embeddings"):
        merge_step(x, keys, begin(x, text), 2, text, 1)
    with pytest.raises(ValueError, match=r"'frequency' needs the grid of the 16 tokens, found None"):
        begin(x, frequency, protected=1)
    with pytest.raises(ValueError, match=r"found \(3, 4\)"):
        begin(x, frequency, protected=1, grid=(3, 4))
    with pytest.raises(ValueError, match="needs a cue"):
        merge_step(x, keys, begin(x, spatial), 2, frequency, 1)
    with pytest.raises(ValueError, match="'spatial' needs the queries"):
        merge_step(x, keys, begin(x, spatial), 2, spatial, 1)


def test_sizes_reach_attention_once_something_is_merged():
    x, keys, _, _ = scene()
    settings, without = MergeSettings(r=2), MergeSettings(r=2, proportional=False)
    state = begin(x, settings)
    assert attention_sizes(state, settings) is None
    _, state = merge_step(x, keys, state, 2, settings, 1)
    assert attention_sizes(state, settings) is state.sizes
    assert attention_sizes(state, without) is None
