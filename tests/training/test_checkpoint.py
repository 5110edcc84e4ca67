"""Checkpoints: exact, whole, and never anything but safetensors."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from phosphene.errors import InputError
from phosphene.training.checkpoint import (
    load_checkpoint,
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    save_checkpoint,
)


class Mixed(nn.Module):
    """Real, complex and tied parameters, and buffers of several types."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.spectrum = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))
        self.register_buffer("order", torch.randperm(3))

    def forward(self, x):
        return (self.second(self.first(x)) @ self.spectrum.abs()).square().sum()


def trained(steps=3):
    module = Mixed()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(4, 3)).backward()
        optimizer.step()
    return module, optimizer


def test_a_resumed_optimiser_goes_on_as_if_nothing_had_happened(tmp_path):
    module, optimizer = trained()
    save_checkpoint(tmp_path / "c.safetensors", module_tensors("m", module) | optimizer_tensors(optimizer), {"step": 3})
    tensors, state = load_checkpoint(tmp_path / "c.safetensors")
    assert state == {"step": 3}
    other, second = Mixed(), None
    second = torch.optim.AdamW(other.parameters(), lr=0.1)
    load_module("m", other, tensors)
    load_optimizer(second, tensors)
    data = torch.randn(4, 3)
    for one, its in ((module, optimizer), (other, second)):
        its.zero_grad()
        one(data).backward()
        its.step()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_pickles_are_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    path = tmp_path / "c.safetensors"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="not a readable safetensors"):
        load_checkpoint(path)
    torch.save({"x": Evil()}, path)
    with pytest.raises(InputError, match="not a readable safetensors"):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()


def test_truncated_missing_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(InputError, match="does not exist"):
        load_checkpoint(path)
    module, _ = trained(1)
    save_checkpoint(path, module_tensors("m", module), {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="not a readable safetensors"):
        load_checkpoint(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a checkpoint of a training run"):
        load_checkpoint(path)


def test_weights_of_another_shape_are_named(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, module_tensors("m", nn.Linear(3, 2)), {})
    tensors, _ = load_checkpoint(path)
    with pytest.raises(InputError, match=r"m/weight has shape \(2, 3\) in the checkpoint and \(2, 4\) here"):
        load_module("m", nn.Linear(4, 2), tensors)
    with pytest.raises(InputError, match=r"lacks m/0\.weight"):
        load_module("m", nn.Sequential(nn.Linear(3, 2)), tensors)


def test_an_interrupted_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"x": torch.ones(2)}, {"step": 1})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("phosphene.training.checkpoint.save_file", full)
    with pytest.raises(InputError, match="disk is full"):
        save_checkpoint(path, {"x": torch.zeros(2)}, {"step": 2})
    tensors, state = load_checkpoint(path)
    assert state == {"step": 1}
    assert torch.equal(tensors["x"], torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.safetensors"]
