"""One process, or several that train together: what torchrun or Slurm started, found in the environment."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: How long processes wait for each other: one may prepare scans or train alone for hours.
PATIENCE = timedelta(hours=24)


def processes() -> tuple[int, int]:
    """Nodes, and processes per node, that torchrun or ``srun`` started together; 1, 1 for one alone."""
    env = os.environ
    if "WORLD_SIZE" in env and "LOCAL_WORLD_SIZE" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        return int(env["WORLD_SIZE"]) // local, local
    # in a batch script itself SLURM_NTASKS counts what may be started, so only a started step's task is believed
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in env:
        nodes = int(env.get("SLURM_STEP_NUM_NODES", "1"))
        return nodes, int(env["SLURM_STEP_NUM_TASKS"]) // nodes
    return 1, 1


def launch(device: str) -> Fabric:
    """The processes that train together, connected; on ``cpu`` or ``cuda`` (each process then has a GPU of its own).

    Arithmetic stays that of the caller (``devices.fast_autocast``): this is about devices and messages alone.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    # it guesses at how one may want to start it
    warnings.filterwarnings("ignore", message=".*srun.* command is available.*")
    nodes, local = processes()
    kind, _, index = device.partition(":")
    one = [int(index)] if index else 1
    fabric = Fabric(
        accelerator="gpu" if kind == "cuda" else "cpu",
        devices=one if local == 1 else local,
        num_nodes=nodes,
        strategy=DDPStrategy(timeout=PATIENCE) if nodes * local > 1 else "auto",
    )
    fabric.launch()
    return fabric
