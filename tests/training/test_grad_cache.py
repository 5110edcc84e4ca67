"""Gradient caching against the step with the whole batch at once."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from phosphene.nn.late_interaction import late_interaction
from phosphene.training.contrast import contrast, instance
from phosphene.training.gather import gather
from phosphene.training.grad_cache import cached_step


class Image(NamedTuple):
    pooled: torch.Tensor
    absent: None
    tokens: torch.Tensor


class Text(NamedTuple):
    pooled: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor


class Towers(nn.Module):
    """Two small towers; pictures (n, 4, 3), captions (2 n, 5, 3) and their masks."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.image, self.text = (nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.log_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, chunk):
        pictures, captions, mask = chunk
        seen, read = self.dropout(self.image(pictures)), self.dropout(self.text(captions))
        return Image(seen.mean(dim=1), None, seen), Text(read[:, 0], read, mask)

    def loss(self, features, sizes=None):
        image, text = features
        own = len(image.pooled)
        sizes = sizes or (own,)
        twice = tuple(2 * size for size in sizes)
        numbers = torch.arange(sum(sizes))
        positive = numbers[:, None] == numbers.repeat_interleave(2)
        pooled, words = gather(text.pooled, twice), gather(text.tokens, twice)
        mask = gather(text.mask.byte(), twice).bool()
        scale = self.log_scale.exp()
        scores = late_interaction(image.tokens, words, mask)
        to_text, to_image = (gather(score, sizes) * scale for score in scores)
        part = instance(gather(image.pooled, sizes), pooled, positive, 1 / scale)
        return part + contrast(to_text, to_image, positive), {"part": part.detach()}


def made(dropout=0.0, n=6):
    torch.manual_seed(0)
    towers = Towers(dropout)
    mask = torch.rand(2 * n, 5) < 0.6
    mask[:, 0] = True
    return towers, (torch.randn(n, 4, 3), torch.randn(2 * n, 5, 3), mask)


def cut(batch, sizes):
    pictures, captions, mask = batch
    twice = [2 * size for size in sizes]
    return list(zip(pictures.split(sizes), captions.split(twice), mask.split(twice), strict=True))


def gradients(module):
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = None
    return found


def agree(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
        assert tensor.any()


@pytest.mark.parametrize("sizes", [[6], [2, 2, 2], [3, 1, 2]])
def test_the_gradient_is_that_of_the_whole_batch(sizes):
    towers, batch = made()
    loss, figures = towers.loss(towers(batch))
    loss.backward()
    expected = gradients(towers)
    value, found = cached_step(towers, cut(batch, sizes), towers.loss, [towers.log_scale])
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(found, figures)
    assert not value.requires_grad
    agree(gradients(towers), expected)
    # the sum of the losses of the chunks is something else
    for chunk in cut(batch, sizes):
        towers.loss(towers(chunk))[0].backward()
    differs = not torch.allclose(gradients(towers)["image.0.weight"], expected["image.0.weight"], rtol=0.01)
    assert differs == (len(sizes) > 1)


def test_dropout_is_the_same_both_times_and_random_numbers_go_on_as_without():
    towers, batch = made(dropout=0.4)
    chunks = cut(batch, [2, 3, 1])
    torch.manual_seed(5)
    parts = [towers(chunk) for chunk in chunks]
    joined = [
        type(of)(*(None if leaf[0] is None else torch.cat(leaf) for leaf in zip(*all_of, strict=True)))
        for of, all_of in zip(parts[0], zip(*parts, strict=True), strict=True)
    ]
    loss, _ = towers.loss(joined)
    after = torch.rand(3)
    loss.backward()
    expected = gradients(towers)
    torch.manual_seed(5)
    value, _ = cached_step(towers, chunks, towers.loss, [towers.log_scale])
    torch.testing.assert_close(torch.rand(3), after)
    torch.testing.assert_close(value, loss.detach())
    agree(gradients(towers), expected)


def test_one_graph_at_a_time():
    towers, batch = made(n=12)

    class Held:
        alive, most = 0, 0

        def __init__(self, tensor):
            self.tensor, self.size = tensor, tensor.numel()
            Held.alive += self.size
            Held.most = max(Held.most, Held.alive)

        def __del__(self):
            Held.alive -= self.size

    def most(function):
        Held.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            function()
        return Held.most

    def towers_only(features):
        image, text = features
        return image.pooled.sum() + text.tokens.square().sum(), None

    whole = most(lambda: towers_only(towers(batch))[0].backward())
    cached = most(lambda: cached_step(towers, cut(batch, [1] * 12), towers_only))
    assert cached < whole / 4


def test_frozen_towers_and_unused_features_get_nothing():
    towers, batch = made()
    towers.image.requires_grad_(False)
    loss = lambda features: (features[0].pooled.sum() + features[1].pooled.square().sum(), None)  # noqa: E731
    loss(towers(batch))[0].backward()
    expected = gradients(towers)
    cached_step(towers, cut(batch, [3, 3]), loss, [towers.log_scale])
    found = gradients(towers)
    assert {name for name, gradient in found.items() if gradient is None} == {
        *(f"image.{name}" for name, _ in towers.image.named_parameters()),
        "log_scale",
    }
    torch.testing.assert_close(found["text.0.weight"], expected["text.0.weight"])
    with pytest.raises(ValueError, match="at least one chunk"):
        cached_step(towers, [], loss)


def test_autocast_around_everything_leaves_the_graph_whole():
    towers, batch = made()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = towers.loss(towers(batch))
    loss.backward()
    expected = gradients(towers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached_step(towers, cut(batch, [2, 4]), towers.loss, [towers.log_scale])
    found = gradients(towers)
    for name, tensor in expected.items():
        similar = torch.nn.functional.cosine_similarity(found[name].flatten(), tensor.flatten(), dim=0)
        assert similar > 0.99, name


def test_contexts_and_backward_are_the_callers():
    towers, batch = made()
    told, sent = [], []

    def backward(surrogate):
        sent.append(surrogate)
        surrogate.backward()

    def context(last):
        told.append(last)
        return nullcontext()

    cached_step(towers, cut(batch, [2, 2, 2]), towers.loss, [towers.log_scale], backward=backward, context=context)
    assert told == [False, False, True]
    assert len(sent) == 3


SCRIPT = """
import sys
from pathlib import Path
from torch import distributed
here, folder, rank = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, here)
from test_grad_cache import of_process
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
of_process(folder, rank)
distributed.destroy_process_group()
"""


class Step(nn.Module):
    """Towers whose loss parameter belongs to the module that DDP wraps."""

    def __init__(self, towers):
        super().__init__()
        self.towers = towers

    def forward(self, chunk):
        return self.towers(chunk)


def of_process(folder, rank):
    """Gradients, averaged by DDP, of a cached step with half of the batch in two chunks."""
    towers, batch = made(n=8)
    ddp = DistributedDataParallel(Step(towers))
    chunks = cut(batch, [2] * 4)[2 * rank : 2 * rank + 2]
    cached_step(
        ddp,
        chunks,
        lambda features: towers.loss(features, (4, 4)),
        [towers.log_scale],
        context=lambda last: nullcontext() if last else ddp.no_sync(),
    )
    save_file(gradients(towers), folder / f"{rank}.safetensors")


def test_two_processes_under_ddp_have_the_gradient_of_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)]
    pair = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    for process in pair:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
    towers, batch = made(n=8)
    towers.loss(towers(batch))[0].backward()
    expected = gradients(towers)
    for rank in range(2):
        agree(load_file(tmp_path / f"{rank}.safetensors"), expected)
