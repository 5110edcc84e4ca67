"""Building blocks of the networks: spectral layers, voxel patches, residual blocks, readouts, and what they cost.

Those that go onto any decoder by the names of its layers are here: LoRA, Skip-LoRA, experts and their router.
"""

from __future__ import annotations

from phosphene.nn.adapter_file import load_adapter, read_adapter, save_adapter
from phosphene.nn.attach import attach, batch_axes, detach, matching
from phosphene.nn.experts import ExpertLinear, Gates
from phosphene.nn.freezing import train_only, trainable
from phosphene.nn.lora import LoRALinear, SkipLoRA, decorrelation
from phosphene.nn.router import Router, balance, collapsed

__all__ = [
    "ExpertLinear",
    "Gates",
    "LoRALinear",
    "Router",
    "SkipLoRA",
    "attach",
    "balance",
    "batch_axes",
    "collapsed",
    "decorrelation",
    "detach",
    "load_adapter",
    "matching",
    "read_adapter",
    "save_adapter",
    "train_only",
    "trainable",
]
