"""The training loop: AdamW, warm-up and cosine decay, moving average, clipping, checkpoints that resume exactly."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

if TYPE_CHECKING:  # the labelling networks train where torch is, without the recipes' libraries
    from bids_petsynth.models.recipe import TrainingSpec

#: Loss of one step: ``(step, generator)`` → scalar. All randomness comes from the step and the generator.
Loss = Callable[[int, Generator], Tensor]


@dataclass
class State:
    """What a checkpoint holds besides tensors."""

    step: int = 0
    elapsed: float = 0.0


def learning_rate(spec: TrainingSpec, step: int, fraction: float) -> float:
    """Linear warm-up over ``spec.warmup`` steps times a cosine from 1 at the start to 0 at ``fraction`` 1."""
    warm = min(1.0, (step + 1) / (spec.warmup + 1))
    return spec.rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


def step_generator(seed: int, step: int) -> Generator:
    """A generator of its own for every step, so that a resumed run draws the same numbers."""
    return Generator().manual_seed(seed * 1_000_003 + step)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file beside ``path``, flush it to disk, and put it in place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    write(beside)
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
    beside.replace(path)


class Loop:
    """Trains ``net`` on ``loss`` and keeps the moving average of its weights in ``ema``.

    Parameters
    ----------
    net
        In training mode, on its device.
    loss
        Called once a step.
    spec
        Rate, steps, clipping and so on.
    folder
        Where ``checkpoint.safetensors`` (whose metadata hold the state) and ``log.csv`` go.
    minutes
        If given, the schedule follows the share of this time that has passed instead of the steps.
    """

    def __init__(self, net: nn.Module, loss: Loss, spec: TrainingSpec, folder: Path, minutes: float | None = None):
        self.net, self.loss, self.spec, self.folder, self.minutes = net, loss, spec, folder, minutes
        self.ema = copy.deepcopy(net).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=spec.rate, weight_decay=spec.weight_decay)
        self.state = State()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def fraction(self) -> float:
        """Share of the training that is done."""
        if self.minutes is not None:
            return self.state.elapsed / (60 * self.minutes)
        return self.state.step / self.spec.steps

    def run(self, every: int = 50, pause: Callable[[State], None] | None = None, pause_minutes: float = 10.0) -> None:
        """Train to the end; log every ``every`` steps, call ``pause`` (not counted as time) every ``pause_minutes``."""
        losses: list[float] = []
        next_pause = self.state.elapsed + 60 * pause_minutes
        clock = time.monotonic()
        while self.fraction < 1:
            losses.append(self._step())
            now = time.monotonic()
            self.state.elapsed += now - clock
            clock = now
            if self.state.step % every == 0 or self.fraction >= 1:
                self._log(losses)
                losses.clear()
            if self.state.elapsed >= next_pause or self.fraction >= 1:
                self.save()
                if pause is not None:
                    pause(self.state)
                next_pause = self.state.elapsed + 60 * pause_minutes
                clock = time.monotonic()

    def _step(self) -> float:
        rate = learning_rate(self.spec, self.state.step, self.fraction)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self.loss(self.state.step, step_generator(self.spec.seed, self.state.step))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.spec.clip)
        self.optimiser.step()
        self.state.step += 1
        keep = min(self.spec.ema, self.state.step / (self.state.step + 10))
        with torch.no_grad():
            for average, value in zip(self.ema.state_dict().values(), self.net.state_dict().values(), strict=True):
                if average.is_floating_point():
                    average.lerp_(value, 1 - keep)
        return loss.item()

    def _log(self, losses: list[float]) -> None:
        path = self.folder / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            out = csv.writer(file)
            if new:
                out.writerow(["step", "minutes", "loss", "rate"])
            rate = self.optimiser.param_groups[0]["lr"]
            mean = sum(losses) / len(losses)
            out.writerow([self.state.step, f"{self.state.elapsed / 60:.2f}", f"{mean:.5f}", f"{rate:.2e}"])

    def save(self) -> None:
        """Write the checkpoint."""
        store_checkpoint(self.folder, self.net, self.ema, self.optimiser, vars(self.state))

    def resume(self) -> bool:
        """Take up the checkpoint if there is one."""
        state = load_checkpoint(self.folder, self.net, self.ema, self.optimiser)
        if state is not None:
            self.state = State(**state)
        return state is not None


def store_checkpoint(
    folder: Path, net: nn.Module, ema: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, float]
) -> None:
    """Write ``folder/checkpoint.safetensors``: one file, so that tensors and state cannot disagree after a crash."""
    from safetensors.torch import save_file

    tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.state_dict().items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": v for k, v in moments.items()}
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    about = {"state": json.dumps(state)}
    write_atomically(folder / "checkpoint.safetensors", lambda path: save_file(tensors, path, metadata=about))


def load_checkpoint(
    folder: Path, net: nn.Module, ema: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, float] | None:
    """Take up what :func:`store_checkpoint` wrote, and return its state; None if there is no checkpoint."""
    from safetensors import safe_open

    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        state = json.loads(file.metadata()["state"])
    for prefix, module in (("net.", net), ("ema.", ema)):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return state
