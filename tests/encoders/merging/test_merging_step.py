"""Merging inside a small transformer: identity, duplicated tokens, compilation, precision, checkpointing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from phosphene.encoders.merging.attention import attention
from phosphene.encoders.merging.guides import embedding_cue
from phosphene.encoders.merging.matching import unmerge
from phosphene.encoders.merging.settings import MergeSettings
from phosphene.encoders.merging.step import attention_sizes, begin, merge_step

GUIDES = ["none", "spatial", "frequency", "both", "text"]
HEADS, WIDTH = 2, 16


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def split(self, x):
        return self.qkv(self.before(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x, state=None, r=0, settings=None):
        q, k, v = self.split(x)
        sizes = None if state is None else attention_sizes(state, settings)
        x = x + self.out(attention(q, k, v, sizes).transpose(1, 2).flatten(2))
        if state is not None:
            x, state = merge_step(x, k, state, r, settings, 1, queries=q)
        return x + self.mlp(self.after(x)), state


class Tower(nn.Module):
    """Three layers, the first token protected; `rates` None is the tower without any merging code."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Layer() for _ in range(3)])

    def forward(self, x, rates=None, settings=None, recompute=False):
        state = None
        if rates is not None:
            side = int((x.shape[1] - 1) ** 0.5)
            text = embedding_cue(x[:, 1:], torch.ones(2, WIDTH)) if settings.guide == "text" else None
            state = begin(x, settings, protected=1, grid=(side, side), cue=text)
        for layer, r in zip(self.layers, rates or [0] * len(self.layers), strict=True):
            if recompute:
                x, state = checkpoint(layer, x, state, r, settings, use_reentrant=False)
            else:
                x, state = layer(x, state, r, settings)
        return x, state


def images(batch=2, tokens=17, dtype=torch.float32):
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("guide", GUIDES)
def test_nothing_merged_is_the_tower_bit_for_bit(guide):
    tower, x = Tower(), images()
    merged, state = tower(x, (0, 0, 0), MergeSettings(r=0, guide=guide))
    assert torch.equal(merged, tower(x)[0])
    assert torch.equal(unmerge(merged, state), merged)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("batch", [1, 3])
def test_merging_through_a_tower(guide, batch):
    tower, x = Tower(), images(batch)
    y, state = tower(x, (5, 99, 2), MergeSettings(r=5, guide=guide))
    assert y.shape == (batch, 17 - 5 - 5 - 2, WIDTH)
    assert (state.sizes.sum(1) == 17).all()
    assert (state.source[:, 0] == 0).all()
    assert (state.sizes[:, 0] == 1).all()
    assert torch.isfinite(y).all()
    full = unmerge(y, state)
    assert full.shape == x.shape
    assert torch.equal(full[:, 0], y[:, 0])
    if batch > 1:  # an image is merged as it would be alone
        alone, _ = tower(x[1:2], (5, 99, 2), MergeSettings(r=5, guide=guide))
        torch.testing.assert_close(alone[0], y[1], atol=1e-5, rtol=1e-4)


def test_sizes_make_duplicated_tokens_count_as_often_as_they_are_there():
    tower = Tower()
    repeats = torch.tensor([12, 1, 1, 2])
    x = torch.cat([images(4, 1), images(4, 5)[:, 1:].repeat_interleave(repeats, dim=1)], dim=1)
    full, _ = tower(x)
    errors = {}
    for proportional in (True, False):
        settings = MergeSettings(r=6, proportional=proportional)
        merged, state = tower(x, (6, 3, 0), settings)
        assert state.sizes[:, 1:].max() >= 4
        errors[proportional] = ((unmerge(merged, state) - full).norm() / full.norm()).item()
    assert errors[True] < 1e-5
    assert errors[False] > 1000 * errors[True]


@pytest.mark.parametrize(("guide", "batches"), [("none", (2, 1)), ("spatial", (2,)), ("both", (2,)), ("text", (1,))])
def test_compiles_without_a_break(guide, batches):
    tower, settings = Tower(), MergeSettings(r=4, guide=guide)
    del tower.layers[2]
    torch._dynamo.reset()
    compiled = torch.compile(tower, fullgraph=True, backend="eager")
    for batch in batches:
        found, state = compiled(images(batch), (4, 3), settings)
        expected, plain = tower(images(batch), (4, 3), settings)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(state.source, plain.source)


def test_compiled_gradients():
    tower, settings = Tower(), MergeSettings(r=4, guide="both")
    del tower.layers[2]
    torch._dynamo.reset()
    compiled = torch.compile(tower, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (tower, compiled):
        x = images().requires_grad_()
        run(x, (4, 3), settings)[0].square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("guide", GUIDES)
def test_bfloat16(guide):
    tower = Tower().bfloat16()
    y, state = tower(images(dtype=torch.bfloat16), (4, 3, 1), MergeSettings(r=4, guide=guide))
    assert y.dtype == torch.bfloat16
    assert torch.isfinite(y).all()
    assert state.sizes.dtype == torch.float32
    assert state.cue is None or state.cue.dtype == torch.float32


def test_autocast():
    x = torch.cat([images(4, 1), images(4, 9)[:, 1:].repeat_interleave(2, dim=1)], dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = Tower()(x, (8, 0, 0), MergeSettings(r=8))
    assert state.sizes.dtype == torch.float32
    assert torch.equal(state.source[:, 1::2], state.source[:, 2::2])  # every token found its copy
    torch.testing.assert_close(unmerge(y, state).float(), Tower()(x)[0], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("guide", ["none", "both"])
def test_gradients_are_the_same_when_recomputed(guide):
    tower, settings = Tower(), MergeSettings(r=4, guide=guide)
    gradients = []
    for recompute in (False, True):
        tower.zero_grad()
        tower(images(), (4, 3, 1), settings, recompute)[0].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in tower.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


def test_runs_in_between_do_not_disturb_each_other():
    tower, settings = Tower(), MergeSettings(r=3)
    alone = [tower(x, (3, 3, 3), settings)[0] for x in (images(2), images(3, 26))]
    runs = [(x, begin(x, settings, protected=1)) for x in (images(2), images(3, 26))]
    for layer in tower.layers:
        runs = [layer(x, state, 3, settings) for x, state in runs]
    for (x, _), expected in zip(runs, alone, strict=True):
        assert torch.equal(x, expected)


def test_keys_alone_without_gradient_decide():
    tower, settings = Tower(), MergeSettings(r=4)
    x = images()
    keys = torch.randn(2, HEADS, 17, 8, requires_grad=True)
    y, state = merge_step(x.requires_grad_(), keys, begin(x, settings), 4, settings, 1)
    y.sum().backward()
    assert keys.grad is None
    expected = merge_step(x, keys.mean(1, keepdim=True), begin(x, settings), 4, settings, 1)[1]
    assert torch.equal(state.source, expected.source)
    assert F.cosine_similarity(y[:, 0], x[:, 0]).min() > 0.999
    assert tower.layers[0].qkv.weight.grad is None
