"""Residual blocks are residual; dropped branches keep the mean; the projector has the published size."""

import torch
from torch import nn

from phosphene.nn.cost import count_parameters
from phosphene.nn.residual import ChannelMixer, DropPath, ResidualBlock, TokenProjector


def test_residual_block_adds_its_input():
    torch.manual_seed(0)
    block, x = ResidualBlock(6).eval(), torch.randn(3, 6)
    linear, norm = block.branch[0], block.branch[1]
    torch.testing.assert_close(block(x), x + nn.functional.gelu(norm(linear(x))))
    nn.init.zeros_(norm.weight)
    torch.testing.assert_close(block(x), x)


def test_channel_mixer_is_residual_too():
    mixer, x = ChannelMixer(4), torch.randn(5, 2, 4)
    nn.init.zeros_(mixer.branch[4].weight)
    nn.init.zeros_(mixer.branch[4].bias)
    torch.testing.assert_close(mixer(x), x)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(1)
    drop, x = DropPath(0.25), torch.ones(3, 4000, 2)
    out = drop(x)
    assert torch.equal(out[0], out[2])
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert abs(float(out.mean()) - 1) < 0.05
    assert torch.equal(drop.eval()(x), x)


def test_projector_has_the_published_size():
    with torch.device("meta"):
        assert count_parameters(TokenProjector(768, 2048)).total == 7_354_624
