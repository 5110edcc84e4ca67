"""Merging in the vision towers of transformers: nothing changes without it, and what it changes is what it says."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

transformers = pytest.importorskip("transformers", reason="vision towers need transformers: not installed")
import tiny_models  # noqa: E402

from phosphene.encoders.merging.attention import attention  # noqa: E402
from phosphene.encoders.merging.hosts import find_tower, tower_shape, with_merging  # noqa: E402
from phosphene.encoders.merging.schedule import flops  # noqa: E402
from phosphene.encoders.merging.settings import MergeSettings  # noqa: E402
from phosphene.errors import InputError  # noqa: E402

GUIDES = ["none", "spatial", "frequency", "both", "text"]
KINDS = ["clip", "siglip"]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("models")
    return {"clip": tiny_models.clip(folder / "clip"), "siglip": tiny_models.siglip(folder / "siglip")}


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _settings(**settings: object) -> MergeSettings:
    return MergeSettings.build(settings)


def _texts(kind: str, guide: str) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 24 if kind == "clip" else 32, generator=generator) if guide == "text" else None


def _own(kind: str, network: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Last tokens and pooled embedding as transformers gives them."""
    output = network.vision_model(pixel_values=pixels)
    if kind == "siglip":
        return output.last_hidden_state, output.pooler_output
    tokens = network.visual_projection(network.vision_model.post_layernorm(output.last_hidden_state))
    return tokens, network.visual_projection(output.pooler_output)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [{}, {"r": 0}, {"tokens": 1.0}, {"flops": 1.0, "guide": "both"}], ids=str)
def test_without_merging_bit_for_bit_the_tower_itself(
    kind: str, rate: dict, networks: dict[str, torch.nn.Module], pixels: torch.Tensor
) -> None:
    with torch.no_grad():
        tokens, pooled = _own(kind, networks[kind], pixels)
        found = with_merging(networks[kind], _settings(**rate))(pixels)
    assert torch.equal(found.tokens, tokens)
    assert torch.equal(found.pooled, pooled)
    assert torch.equal(found.sizes, torch.ones_like(found.sizes))


def test_hidden_states_of_every_layer(networks: dict[str, torch.nn.Module], pixels: torch.Tensor) -> None:
    network = networks["clip"]
    tower = with_merging(network, _settings())
    with torch.no_grad():
        states = network.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
        for layer in (0, 1, 2, 3, -1, -4):
            assert torch.equal(tower(pixels, layer=layer, projected=False).tokens, states[layer])


def test_an_eager_tower_agrees_within_rounding(pixels: torch.Tensor, tmp_path: Path) -> None:
    tiny_models.clip(tmp_path)
    network = transformers.CLIPModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        torch.testing.assert_close(with_merging(network, _settings())(pixels).pooled, _own("clip", network, pixels)[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guide", GUIDES)
def test_merging_keeps_count_and_restores_the_grid(
    kind: str, guide: str, networks: dict[str, torch.nn.Module], pixels: torch.Tensor
) -> None:
    settings = _settings(tokens=0.5, guide=guide, strength=1.0)
    texts = _texts(kind, guide)
    with torch.no_grad():
        tower = with_merging(networks[kind], settings, texts=texts)
        kept = with_merging(networks[kind], settings.model_copy(update={"restore": False}), texts=texts)
        restored, rest, full = tower(pixels), kept(pixels), _own(kind, networks[kind], pixels)
    assert restored.tokens.shape == full[0].shape
    assert rest.tokens.shape[1] == rest.sizes.shape[1] == tower.plan.remaining < full[0].shape[1]
    assert torch.equal(rest.sizes.sum(dim=1), torch.full((3,), float(full[0].shape[1])))
    assert torch.equal(restored.tokens, rest.tokens.gather(1, rest.source[..., None].expand_as(restored.tokens)))
    assert torch.equal(restored.pooled, rest.pooled)
    assert not torch.equal(restored.pooled, full[1])
    if kind == "clip":  # the class token is first, alone, and what is pooled
        assert torch.equal(rest.sizes[:, 0], torch.ones(3))
        torch.testing.assert_close(rest.tokens[:, 0], rest.pooled)


def test_each_guide_is_read(networks: dict[str, torch.nn.Module], pixels: torch.Tensor) -> None:
    for kind in KINDS:
        found = set()
        for guide in GUIDES:
            tower = with_merging(
                networks[kind], _settings(tokens=0.6, guide=guide, strength=2.0), texts=_texts(kind, guide)
            )
            with torch.no_grad():
                found.add(tuple(tower(pixels).source.flatten().tolist()))
        assert len(found) == len(GUIDES)


@pytest.mark.parametrize("proportional", [True, False])
def test_clip_block_by_block_against_a_plain_writing(
    proportional: bool, networks: dict[str, torch.nn.Module], pixels: torch.Tensor
) -> None:
    """The patch against loops over images and tokens, with an explicit softmax and a matching of our own."""
    tower = networks["clip"].vision_model
    settings = _settings(r=3, schedule="constant", proportional=proportional)
    with torch.no_grad():
        found = with_merging(tower, settings)(pixels, projected=False)
        for image, x in enumerate(tower.pre_layrnorm(tower.embeddings(pixels))):
            sizes, members = torch.ones(len(x)), [[n] for n in range(len(x))]
            for block in tower.encoder.layers:
                x, sizes, members = _slow_block(block, x, sizes, members, 3, proportional)
            slow = torch.empty(17, x.shape[1])
            for token, rows in zip(x, members, strict=True):
                slow[rows] = token
            torch.testing.assert_close(found.tokens[image], slow, rtol=1e-4, atol=1e-4)
            assert torch.equal(found.sizes[image], sizes)


def _slow_block(
    block: torch.nn.Module, x: torch.Tensor, sizes: torch.Tensor, members: list[list[int]], r: int, proportional: bool
) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    normed, layer, heads = block.layer_norm1(x), block.self_attn, []
    q, k, v = (part(normed).view(len(x), 4, 8) for part in (layer.q_proj, layer.k_proj, layer.v_proj))
    for head in range(4):
        logits = q[:, head] @ k[:, head].T / 8**0.5
        heads.append((logits + (sizes.log() if proportional else 0)).softmax(dim=-1) @ v[:, head])
    x = x + layer.out_proj(torch.cat(heads, dim=-1))
    keys = functional.normalize(k.mean(dim=1), dim=-1)
    proposals = []
    for a in range(1, len(x), 2):
        b = max(range(2, len(x), 2), key=lambda n: float(keys[a] @ keys[n]))
        proposals.append((float(keys[a] @ keys[b]), a, b))
    into = {a: b for _, a, b in sorted(proposals, reverse=True)[:r]}
    summed = x * sizes[:, None]
    total, where = sizes.clone(), [list(rows) for rows in members]
    for a, b in into.items():
        summed[b] += summed[a]
        total[b] += sizes[a]
        where[b] += members[a]
    stay = [n for n in range(len(x)) if n not in into]
    x = summed[stay] / total[stay, None]
    return x + block.mlp(block.layer_norm2(x)), total[stay], [where[n] for n in stay]


def test_siglip_pools_by_size(networks: dict[str, torch.nn.Module], pixels: torch.Tensor) -> None:
    """A token of size z counts in the pooling head as z copies of it do."""
    network = networks["siglip"]
    settings = _settings(tokens=0.5, restore=False)
    with torch.no_grad():
        found = with_merging(network, settings)(pixels)
        for image in range(3):
            copies = found.tokens[image].repeat_interleave(found.sizes[image].long(), dim=0)
            torch.testing.assert_close(network.vision_model.head(copies[None])[0], found.pooled[image])
        flat = with_merging(network, settings.model_copy(update={"proportional": False}))(pixels)
    torch.testing.assert_close(flat.pooled, network.vision_model.head(flat.tokens))


def test_likeness_to_a_text_is_that_of_projected_tokens(networks: dict[str, torch.nn.Module]) -> None:
    network, texts = networks["clip"], torch.randn(2, 24)
    tower = with_merging(network, _settings(tokens=0.5, guide="text"), texts=texts)
    x = torch.randn(3, 17, 32)
    with torch.no_grad():
        normed = network.vision_model.post_layernorm(x)
        in_shared_space = (network.visual_projection(normed) @ texts.T) / normed.norm(dim=-1, keepdim=True)
        expected = (in_shared_space / (texts @ network.visual_projection.weight).norm(dim=1)).amax(dim=-1)
    torch.testing.assert_close(tower._likeness(x), expected)


def test_state_lies_in_the_call(networks: dict[str, torch.nn.Module], pixels: torch.Tensor) -> None:
    """Threads that merge the same network at different rates, and one that does not, do not disturb each other."""
    network = networks["clip"]
    before = set(dir(network.vision_model.encoder.layers[0]))
    towers = [with_merging(network, _settings(tokens=share, guide="both")) for share in (1.0, 0.8, 0.5)]
    with torch.no_grad():
        expected = [tower(pixels).pooled for tower in towers] + [_own("clip", network, pixels)[1]]
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                found = towers[number](pixels).pooled if number < 3 else _own("clip", network, pixels)[1]
                if not torch.equal(found, expected[number]):
                    wrong.append(number)

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert set(dir(network.vision_model.encoder.layers[0])) == before


@pytest.mark.parametrize(("kind", "guide"), [("clip", "both"), ("siglip", "text")])
def test_compiles_into_one_graph(
    kind: str, guide: str, networks: dict[str, torch.nn.Module], pixels: torch.Tensor
) -> None:
    torch._dynamo.reset()
    tower = with_merging(networks[kind], _settings(tokens=0.5, guide=guide), texts=_texts(kind, guide))
    compiled = torch.compile(tower, fullgraph=True, backend="eager")
    with torch.no_grad():
        for batch in (pixels, pixels[:1]):
            torch.testing.assert_close(compiled(batch).tokens, tower(batch).tokens)


def test_one_image_is_as_in_a_batch(networks: dict[str, torch.nn.Module], pixels: torch.Tensor) -> None:
    for kind in KINDS:
        tower = with_merging(networks[kind], _settings(flops=0.8, guide="both"))
        with torch.no_grad():
            torch.testing.assert_close(tower(pixels[1:2]).tokens[0], tower(pixels).tokens[1])


def test_half_precision(pixels: torch.Tensor, tmp_path: Path) -> None:
    for kind in KINDS:
        network = getattr(tiny_models, kind)(tmp_path / kind)
        tower = with_merging(network, _settings(tokens=0.5, guide="both"))
        with torch.no_grad():
            exact = tower(pixels).pooled
            with torch.autocast("cpu", torch.bfloat16):
                mixed = tower(pixels)
            network.bfloat16()
            half = tower(pixels.bfloat16())
        assert half.pooled.dtype == torch.bfloat16
        assert half.sizes.dtype == torch.float32
        for found in (half, mixed):
            assert torch.equal(found.sizes.sum(dim=1), torch.full((3,), float(found.source.shape[1])))
            assert functional.cosine_similarity(found.pooled.float(), exact).min() > 0.8


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_with_and_without_checkpointing(kind: str, pixels: torch.Tensor, tmp_path: Path) -> None:
    network = getattr(tiny_models, kind)(tmp_path).train()
    tower = with_merging(network, _settings(tokens=0.5, guide="both"))
    gradients, calls = [], []
    keys = network.vision_model.encoder.layers[0].self_attn.k_proj
    counted = keys.register_forward_hook(lambda *_: calls.append(1))
    for asked in (False, True):
        if asked:
            network.gradient_checkpointing_enable()
        network.zero_grad()
        calls.clear()
        tower(pixels).pooled.square().sum().backward()
        gradients.append([p.grad.clone() for p in network.vision_model.parameters() if p.grad is not None])
        # one run, and with checkpointing one more in the backward pass: matching does not compute the keys anew
        assert len(calls) == (2 if asked else 1)
    counted.remove()
    assert len(gradients[0]) == len(gradients[1]) > 20
    for one, two in zip(*gradients, strict=True):
        assert bool(one.isfinite().all())
        torch.testing.assert_close(one, two)


class _Nested(torch.nn.Module):
    """The layout of transformers before version 5: the tower lies below ``vision_model``."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.vision_model, self.config = tower, tower.config


def test_flat_and_nested_layouts(networks: dict[str, torch.nn.Module], pixels: torch.Tensor) -> None:
    for kind in KINDS:
        tower = networks[kind].vision_model
        assert find_tower(networks[kind]) is find_tower(tower) is find_tower(_Nested(tower)) is tower
        with torch.no_grad():
            flat, nested = (with_merging(n, _settings(tokens=0.5))(pixels) for n in (tower, _Nested(tower)))
        assert torch.equal(flat.pooled, nested.pooled)


def test_towers_that_cannot_be_patched_are_named(networks: dict[str, torch.nn.Module], tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    headless = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**sizes, image_size=32, patch_size=8, vision_use_head=False)
    )
    for network in (tiny_models.bert(tmp_path), networks["clip"].text_model, torch.nn.Linear(2, 2), headless):
        with pytest.raises(
            InputError, match=rf"cannot be merged in a {type(network).__name__}; they can in CLIP.*Siglip"
        ):
            with_merging(network, _settings(tokens=0.5))
    with pytest.raises(InputError, match=r"tower of kind 'vit'; they can in CLIP"):
        tower_shape(SimpleNamespace(model_type="vit"))


def test_wrong_settings_for_a_tower(networks: dict[str, torch.nn.Module]) -> None:
    with pytest.raises(InputError, match=r"tokens = 0\.01 is out of reach: .* 0\.\d+"):
        with_merging(networks["clip"], _settings(tokens=0.01))
    with pytest.raises(InputError, match=r"flops = 0\.05 is out of reach"):
        with_merging(networks["siglip"], _settings(flops=0.05))
    with pytest.raises(InputError, match="needs a text"):
        with_merging(networks["clip"], _settings(tokens=0.5, guide="text"))
    with pytest.raises(InputError, match="text embeddings are 7 wide, the tower's own 24"):
        with_merging(networks["clip"], _settings(tokens=0.5, guide="text"), texts=torch.ones(1, 7))
    alone = networks["clip"].vision_model  # without a projection its tokens are what texts are compared with
    with pytest.raises(InputError, match="text embeddings are 24 wide, the tower's own 32"):
        with_merging(alone, _settings(tokens=0.5, guide="text"), texts=torch.ones(1, 24))


def test_attention_dropout_is_not_left_out_in_silence(pixels: torch.Tensor, tmp_path: Path) -> None:
    network = tiny_models.clip(tmp_path)
    network.vision_model.config.attention_dropout = 0.1
    tower = with_merging(network, _settings(tokens=0.5))
    assert tower(pixels).pooled.shape == (3, 24)
    network.train()
    with pytest.raises(InputError, match=r"attention_dropout = 0\.1 of a CLIPModel in training"):
        tower(pixels)


def test_operations_of_known_towers() -> None:
    """Against the figures in common tables, GFLOPs of the image tower."""
    b_16 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    l_14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    shapes = {
        35.1: transformers.CLIPVisionConfig(**b_16, image_size=224, patch_size=16),
        162.0: transformers.CLIPVisionConfig(**l_14, image_size=224, patch_size=14),
    }
    for expected, config in shapes.items():
        shape = tower_shape(config)
        cost = flops(shape.tokens, [0] * shape.layers, width=shape.width, mlp_width=shape.mlp_width, fixed=shape.fixed)
        assert cost / 1e9 == pytest.approx(expected, rel=0.005)


def test_sizes_reach_attention(
    networks: dict[str, torch.nn.Module], pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes are left out until something was merged, and are those of the tokens then present."""
    from phosphene.encoders.merging import hosts

    seen: list[torch.Tensor | None] = []

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sizes: torch.Tensor | None) -> torch.Tensor:
        seen.append(sizes)
        return attention(q, k, v, sizes)

    monkeypatch.setattr(hosts, "attention", spy)
    with torch.no_grad():
        output = with_merging(networks["clip"], _settings(r=3, schedule="constant", restore=False))(pixels)
    assert seen[0] is None
    assert [sizes.shape[1] for sizes in seen[1:] if sizes is not None] == [14, 11]
    assert output.sizes.shape[1] == 8
