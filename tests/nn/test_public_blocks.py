"""The blocks that `phosphene.nn` offers for any decoder: by name pattern, off is the base, and back to plain layers."""

import pytest
import torch

from phosphene.decoders import Decoder, make_decoder
from phosphene.nn import (
    ExpertLinear,
    Gates,
    LoRALinear,
    attach,
    batch_axes,
    detach,
    load_adapter,
    matching,
    read_adapter,
    save_adapter,
    train_only,
)

SETTINGS = {
    "lite-mind": {"patches": 3, "width": 4, "hidden": 8, "heads": 2, "blocks": 1, "linear_rank": 0},
    "mindeye-mlp": {"width": 8, "blocks": 1},
    "mindtuner": {"width": 8, "blocks": 1, "projector": 4},
    "wills-aligner": {"width": 8, "blocks": 1, "projector": 4},
}


def made(name: str) -> Decoder:
    torch.manual_seed(0)
    return make_decoder(name, subjects={"sub-01": 30}, target_shape=(5,), **SETTINGS[name]).eval()


def trained(decoder: Decoder, x: torch.Tensor) -> list[str]:
    """Names of the adapters' parameters, after two steps of descent that let no other move."""
    names = train_only(decoder)
    optimiser = torch.optim.SGD([decoder.get_parameter(name) for name in names], lr=0.05)
    for _ in range(2):
        optimiser.zero_grad()
        decoder(x, "sub-01").embedding.square().sum().backward()
        optimiser.step()
    return names


@pytest.mark.parametrize("name", SETTINGS)
def test_lora_on_any_decoder_by_name(name, tmp_path):
    decoder, x = made(name), torch.randn(3, 30)
    base = decoder(x, "sub-01").embedding
    attach(decoder, ["*"], lambda _, linear: LoRALinear(linear, rank=2))
    assert torch.equal(decoder(x, "sub-01").embedding, base)
    names = trained(decoder, x)
    assert all(bool((decoder.get_parameter(each).grad != 0).any()) for each in names)
    adapted = decoder(x, "sub-01").embedding
    assert not torch.allclose(adapted, base)
    file = read_adapter(save_adapter(tmp_path / "one.safetensors", decoder))
    fresh = made(name)
    attach(fresh, ["*"], lambda _, linear: LoRALinear(linear, rank=2))
    load_adapter(fresh, file.tensors, file.base)
    assert torch.equal(fresh(x, "sub-01").embedding, adapted)
    detach(fresh, merge=True)
    torch.testing.assert_close(fresh(x, "sub-01").embedding, adapted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_experts_on_any_decoder_by_name(name):
    decoder, gates, x = made(name), Gates(), torch.randn(3, 30)
    base = decoder(x, "sub-01").embedding
    axes = batch_axes(decoder, matching(decoder, ["*"]), lambda n: decoder(torch.zeros(n, 30), "sub-01"))
    attach(decoder, list(axes), lambda each, linear: ExpertLinear(linear, 2, 1, gates, batch_axis=axes[each]))
    with gates.using(torch.tensor([[0.3, 0.7]])):
        assert torch.equal(decoder(x, "sub-01").embedding, base)
        trained(decoder, x)
        adapted = decoder(x, "sub-01").embedding
        assert not torch.allclose(adapted, base)
    assert torch.equal(decoder(x, "sub-01").embedding, base)
    with gates.using(torch.tensor([[0.3, 0.7]])):
        detach(decoder, merge=True)
    torch.testing.assert_close(decoder(x, "sub-01").embedding, adapted, atol=1e-5, rtol=1e-5)
