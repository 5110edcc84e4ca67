"""mindeye-mlp: published sizes, counted without allocating them, and the layout of its parts."""

import pytest
import torch

from phosphene.decoders import make_decoder
from phosphene.nn.cost import count_parameters, multiply_adds
from phosphene.settings import load_preset
from phosphene.training.settings import TrainingConfig


@pytest.mark.parametrize("preset", ["nsd", "small"])
def test_presets_hold_valid_settings(preset):
    layers = load_preset("decoders", "mindeye-mlp", preset)
    with torch.device("meta"):
        make_decoder("mindeye-mlp", preset, subjects={"a": 500}, target_shape=(30,))
    assert TrainingConfig.build(layers["training"]).epochs > 1


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        decoder = make_decoder("mindeye-mlp", "nsd", subjects={"sub-01": 15_724}, target_shape=(257, 768))
    projector = count_parameters(decoder.projector).total
    assert projector == 7_354_624
    assert count_parameters(decoder).total - projector == 940_225_280
    count = multiply_adds(lambda: decoder.eval()._decode(torch.zeros(1, 15_724, device="meta"), "sub-01"))
    backbone = 15_724 * 4096 + 4 * 4096**2 + 4096 * 257 * 768
    assert count == backbone + 257 * (2 * 768 * 2048 + 2048**2)


def test_without_projector_the_backbone_is_what_predicts():
    torch.manual_seed(0)
    decoder = make_decoder("mindeye-mlp", subjects={"a": 9}, target_shape=(3, 4), width=8, blocks=1, projector=0).eval()
    x = torch.randn(2, 9)
    hidden = decoder.inputs[0](x)
    hidden = hidden + decoder.blocks[0].branch(hidden)
    torch.testing.assert_close(decoder(x, "a").embedding, decoder.out(hidden))


def test_projector_treats_tokens_alike():
    torch.manual_seed(0)
    decoder = make_decoder("mindeye-mlp", subjects={"a": 9}, target_shape=(3, 4), width=8, blocks=1, projector=5).eval()
    x = torch.randn(2, 9)
    backbone = decoder.out(decoder.blocks(decoder.inputs[0](x))).view(2, 3, 4)
    for token in range(3):
        torch.testing.assert_close(decoder(x, "a").tokens[:, token], decoder.projector(backbone[:, token]))


def test_people_own_their_input_layer_only():
    decoder = make_decoder("mindeye-mlp", subjects={"a": 9, "b": 12}, target_shape=(4,), width=8, projector=5)
    more = make_decoder("mindeye-mlp", subjects={"a": 9}, target_shape=(4,), width=8, projector=5)
    difference = count_parameters(decoder).total - count_parameters(more).total
    assert difference == 12 * 8 + 8 + 2 * 8
