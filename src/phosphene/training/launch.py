"""Where a run takes place: device, precision, and the processes that torchrun or srun has started."""

from __future__ import annotations

import os

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment

from phosphene.errors import InputError
from phosphene.training.settings import StepSettings

__all__ = ["launch", "started_processes"]


def started_processes() -> tuple[int, int]:
    """Processes a machine and machines of this run, as set by ``torchrun`` or ``srun``; (1, 1) without them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return local, world // local
    # set in steps started by srun only, not in the batch script around them
    tasks, nodes = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)), int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    return max(tasks // nodes, 1), nodes if tasks > 1 else 1


def launch(config: StepSettings, *, unused: bool = False) -> Fabric:
    """Fabric for these settings, its processes connected: DDP where several were started, else one process.

    Parameters
    ----------
    config : StepSettings
    unused : bool
        Some parameters may take no part in the loss.

    Raises
    ------
    InputError
        When a GPU is asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if config.accelerator == "cuda" and not cuda:
        raise InputError("training.accelerator = 'cuda', and torch finds no GPU; allowed here: 'auto', 'cpu'")
    accelerator = "cuda" if cuda and config.accelerator != "cpu" else "cpu"
    precision = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if accelerator == "cuda" and torch.cuda.is_bf16_supported() else "32-true"
    local, machines = started_processes()
    if local * machines == 1:
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision, plugins=LightningEnvironment())
    else:
        strategy = "ddp_find_unused_parameters_true" if unused else "ddp"
        fabric = Fabric(
            accelerator=accelerator, devices=local, num_nodes=machines, precision=precision, strategy=strategy
        )
    fabric.launch()
    return fabric
