"""Checkpoints: networks, optimisers and state in one file, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

#: Name of a phase's checkpoint.
CHECKPOINT = "checkpoint.safetensors"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file beside ``path``, flush it to disk, and put it in place; for one process alone."""
    # one name: what a kill leaves is written over by the next
    beside = path.with_name(f".{path.name}.part")
    write(beside)
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
    beside.replace(path)


#: Networks beside the first one, each with its optimiser, by a name that the checkpoint knows them by.
Others = Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]


def store_checkpoint(
    folder: Path,
    net: nn.Module,
    ema: nn.Module,
    optimiser: torch.optim.Optimizer,
    state: Mapping[str, float | None],
    others: Others | None = None,
) -> None:
    """Write ``folder/`` :data:`CHECKPOINT`: one file, so that tensors and state cannot disagree after a crash."""
    from safetensors.torch import save_file

    tensors = {f"ema.{k}": v for k, v in ema.state_dict().items()}
    for prefix, (module, its) in (("", (net, optimiser)), *((f"{n}.", pair) for n, pair in (others or {}).items())):
        tensors |= {f"{prefix}net.{k}": v for k, v in module.state_dict().items()}
        for index, moments in its.state_dict()["state"].items():
            tensors |= {f"{prefix}optimiser.{index}.{k}": v for k, v in moments.items()}
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    about = {"state": json.dumps(state)}
    write_atomically(folder / CHECKPOINT, lambda path: save_file(tensors, path, metadata=about))


def load_checkpoint(
    folder: Path,
    net: nn.Module,
    ema: nn.Module,
    optimiser: torch.optim.Optimizer,
    others: Others | None = None,
) -> dict[str, float] | None:
    """Take up what :func:`store_checkpoint` wrote, and return its state; None if there is no checkpoint."""
    from safetensors import safe_open

    path = folder / CHECKPOINT
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        state = json.loads(file.metadata()["state"])

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    ema.load_state_dict(under("ema."))
    for prefix, (module, its) in (("", (net, optimiser)), *((f"{n}.", pair) for n, pair in (others or {}).items())):
        module.load_state_dict(under(f"{prefix}net."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in under(f"{prefix}optimiser.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
        its.load_state_dict({"state": moments, "param_groups": its.state_dict()["param_groups"]})
    return state
