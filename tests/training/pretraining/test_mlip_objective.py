"""The four parts of MLIP's objective: values, weights of zero, temperatures, and two processes against one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from phosphene.encoders.mlip import ImageFeatures, TextFeatures
from phosphene.encoders.mlip.similarity import pool_grid
from phosphene.errors import InputError
from phosphene.nn.late_interaction import late_interaction
from phosphene.training.contrast import contrast, instance
from phosphene.training.pretraining.objective import MLIPObjective, ObjectiveSettings

PARTS = ["spatial", "frequency", "spatial_token", "frequency_token"]


def features(n_images=4, each=1, grid=4, t=5, e=6, et=3, seed=0):
    """Features of images and their captions that require gradients, and the positives."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, requires_grad=True)

    image = ImageFeatures(
        random(n_images, e), random(n_images, e), random(n_images, grid**2, et), random(n_images, grid**2, et)
    )
    mask = torch.arange(t) < torch.randint(1, t + 1, (n_images * each, 1), generator=generator)
    mask[0] = True
    text = TextFeatures(random(n_images * each, e), random(n_images * each, t, et), mask)
    images = torch.arange(n_images)
    return image, text, images[:, None] == images.repeat_interleave(each)


def settings(**values):
    return ObjectiveSettings.build({**{f"{name}_weight": 0.0 for name in PARTS}, **values})


def gradient_of(tensors, loss):
    return torch.autograd.grad(loss, [t for t in tensors if t is not None and t.requires_grad], allow_unused=True)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_the_sum_of_its_parts(form):
    image, text, positive = features(each=2)
    weights = {
        "spatial_weight": 1.0,
        "frequency_weight": 0.5,
        "spatial_token_weight": 2.0,
        "frequency_token_weight": 3.0,
    }
    objective = MLIPObjective(settings(**weights, form=form, temperature=0.2, token_temperature=0.5, bias=-2.0))
    total, parts = objective(image, text, positive)
    common = (form, -2.0)
    expected = {
        "spatial": instance(image.spatial, text.pooled, positive, 0.2, *common),
        "frequency": instance(image.frequency, text.pooled, positive, 0.2, *common),
    }
    for name, tokens in (("spatial_token", image.spatial_tokens), ("frequency_token", image.frequency_tokens)):
        to_text, to_image = late_interaction(tokens, text.tokens, text.mask)
        expected[name] = contrast(to_text / 0.5, to_image / 0.5, positive, *common)
    assert list(parts) == PARTS
    for name in PARTS:
        torch.testing.assert_close(parts[name], expected[name].detach())
        assert not parts[name].requires_grad
    torch.testing.assert_close(total, sum(weights[f"{name}_weight"] * expected[name] for name in PARTS))


@pytest.mark.parametrize("name", PARTS)
def test_a_part_looks_at_its_own_features_only(name):
    image, text, positive = features()
    objective = MLIPObjective(settings(**{f"{name}_weight": 1.0}))
    total, parts = objective(image, text, positive)
    assert list(parts) == [name]
    of_image = gradient_of(image, total)
    assert [gradient is not None for gradient in of_image] == [each == name for each in PARTS]
    of_text = gradient_of(text, objective(image, text, positive)[0])
    assert [gradient is not None for gradient in of_text] == [not name.endswith("token"), name.endswith("token")]
    # what has weight 0 need not even be there
    fields = dict(zip(["spatial", "frequency", "spatial_tokens", "frequency_tokens"], image, strict=False))
    kept = {key: value for key, value in fields.items() if key.removesuffix("s") == name or key == "spatial"}
    bare = text if name.endswith("token") else text._replace(tokens=None)
    torch.testing.assert_close(objective(ImageFeatures(**kept), bare, positive)[0], total)
    # every parameter has a gradient: none waits for DDP
    total, _ = objective(image, text, positive)
    assert all(gradient is not None for gradient in gradient_of(objective.parameters(), total))


def test_a_head_that_is_missing_is_named():
    image, text, positive = features()
    with pytest.raises(InputError, match=r"frequency_weight is above 0.*model.frequency_head"):
        MLIPObjective(settings(frequency_weight=1))(image._replace(frequency=None), text, positive)
    with pytest.raises(InputError, match=r"frequency_token_weight.*model.token_heads and model.frequency_head"):
        MLIPObjective(settings(frequency_token_weight=1))(image._replace(frequency_tokens=None), text, positive)
    with pytest.raises(InputError, match=r"token_weight is above 0.*model.token_heads"):
        MLIPObjective(settings(spatial_token_weight=1))(image, text._replace(tokens=None), positive)


def test_wrong_settings_are_named():
    with pytest.raises(InputError, match="one of spatial_weight, frequency_weight"):
        settings()
    with pytest.raises(InputError, match="pool_tokens must be a square such as 16, found 12"):
        settings(spatial_weight=1, pool_tokens=12)
    with pytest.raises(InputError, match="temperature"):
        settings(spatial_weight=1, temperature=2.0)


def test_positives_of_the_wrong_size_are_refused():
    image, text, positive = features()
    with pytest.raises(ValueError, match=r"4 images and 4 captions are needed, found \(4, 3\)"):
        MLIPObjective(settings(spatial_weight=1))(image, text, positive[:, :3])


def test_pooled_tokens_meet_the_words():
    image, text, positive = features()
    objective = MLIPObjective(settings(frequency_token_weight=1, pool_tokens=4, token_temperature=0.5))
    grid = image.frequency_tokens.view(4, 2, 2, 2, 2, 3).mean(dim=(2, 4)).flatten(1, 2)
    to_text, to_image = late_interaction(grid, text.tokens, text.mask)
    expected = contrast(to_text / 0.5, to_image / 0.5, positive)
    torch.testing.assert_close(objective(image, text, positive)[0], expected)
    assert pool_grid(image.spatial_tokens, 16) is image.spatial_tokens
    with pytest.raises(InputError, match="found 15 tokens"):
        pool_grid(image.spatial_tokens[:, 1:], 4)


def test_merged_tokens_weigh_what_they_stand_for_and_are_not_pooled():
    image, text, positive = features()
    sizes = torch.randint(1, 4, (4, 7)).float()
    merged = image._replace(spatial_tokens=image.spatial_tokens[:, :7], sizes=sizes)
    objective = MLIPObjective(settings(spatial_token_weight=1, pool_tokens=4, top_tokens=5, token_temperature=0.5))
    to_text, to_image = late_interaction(merged.spatial_tokens, text.tokens, text.mask, sizes=sizes, top=5)
    expected = contrast(to_text / 0.5, to_image / 0.5, positive)
    torch.testing.assert_close(objective(merged, text, positive)[0], expected)


def test_temperatures_are_learned_within_their_range():
    image, text, positive = features()
    objective = MLIPObjective(settings(spatial_weight=1, spatial_token_weight=1, temperature=0.5))
    assert objective.temperatures() == pytest.approx({"temperature": 0.5, "token_temperature": 0.07})
    matched = text._replace(pooled=image.spatial.detach())
    optimizer = torch.optim.SGD(objective.parameters(), lr=10.0)
    for _ in range(20):  # perfect pairs ask for ever lower temperatures
        optimizer.zero_grad()
        objective(image, matched, positive)[0].backward()
        optimizer.step()
    objective(image, matched, positive)
    assert objective.temperatures()["temperature"] == pytest.approx(0.01, rel=1e-4)
    opposite = text._replace(pooled=-image.spatial.detach())
    optimizer.zero_grad()
    objective(image, opposite, positive)[0].backward()
    assert objective.pooled_scale.log_scale.grad > 0  # and wrong ones lead back from the edge
    fixed = MLIPObjective(settings(spatial_weight=1, learn_temperature=False))
    assert not any(parameter.requires_grad for parameter in fixed.parameters())


def test_training_on_it_matches_images_and_captions():
    image, text, positive = features(seed=3)
    objective = MLIPObjective(ObjectiveSettings())
    leaves = [*image[:4], *text[:2]]
    optimizer = torch.optim.Adam([*leaves, *objective.parameters()], lr=0.05)
    first = float(objective(image, text, positive)[0].detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss, _ = objective(image, text, positive)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 * first
    similar = functional.normalize(image.spatial, dim=1) @ functional.normalize(text.pooled, dim=1).T
    assert (similar.argmax(dim=1) == torch.arange(4)).all()


SCRIPT = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from torch import distributed
here, folder, rank = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, here)
from test_mlip_objective import share_of_gradient
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
save_file(share_of_gradient(rank), folder / f"{rank}.safetensors")
distributed.destroy_process_group()
"""
SHARES = (3, 2)


def share_of_gradient(rank=None):
    """Loss, gradient of the features of one process (of all, without a rank) and of the temperatures."""
    image, text, positive = features(5, each=2)
    parts = {}
    if rank is not None:
        rows = slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))
        twice = slice(2 * rows.start, 2 * rows.stop)
        image = ImageFeatures(*(None if t is None else t[rows].detach().requires_grad_() for t in image))
        own = (text.pooled, text.tokens)
        text = TextFeatures(*(t[twice].detach().requires_grad_() for t in own), text.mask[twice])
        parts = {"images": SHARES, "captions": tuple(2 * share for share in SHARES)}
    objective = MLIPObjective(ObjectiveSettings(form="sigmoid", bias=-1.0))
    loss, _ = objective(image, text, positive, **parts)
    loss.backward()
    leaves = [*image[:4], *text[:2]]
    tensors = [loss.detach(), *(leaf.grad for leaf in leaves), *(p.grad for p in objective.parameters())]
    return {str(number): tensor for number, tensor in enumerate(tensors)}


def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)]
    pair = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    for process in pair:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, whole in share_of_gradient().items():
        one, other = first[name], second[name]
        if name in map(str, range(1, 7)):
            # DDP averages over processes: the gradient of each row is there twice
            torch.testing.assert_close(torch.cat([one, other]) / 2, whole)
        else:
            torch.testing.assert_close(one, whole)
            torch.testing.assert_close(other, whole)


def test_temperatures_and_biases_can_be_given_to_the_next_objective():
    settings = ObjectiveSettings.build({"form": "sigmoid", "token_bias": -2.0})
    objective = MLIPObjective(settings)
    assert objective.biases() == {"bias": -10.0, "token_bias": -2.0}
    assert MLIPObjective(ObjectiveSettings.build()).biases() == {}
    for past in (5.0, -5.0):  # a step leads out of the range, and nothing holds it there after the last one
        with torch.no_grad():
            objective.pooled_scale.log_scale.fill_(past)
        next_ = ObjectiveSettings.build({**objective.temperatures(), **objective.biases()})
        assert next_.temperature == (0.01 if past > 0 else 1.0)
