"""Trains a small regression in a process of its own: ``python train_line.py FOLDER STEPS [SECONDS A STEP]``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from bids_petsynth.models.recipe import TrainingSpec
from bids_petsynth.training.launch import launch
from bids_petsynth.training.loop import Loop

#: Step whose loss is not finite in the last process.
SPOILT = 6


def main(folder: Path, steps: int, pause: float) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    net.register_parameter("shift", torch.nn.Parameter(torch.zeros(1)))
    spec = TrainingSpec(steps=steps, batch=6, rate=0.02, warmup=3, ema=0.9, tensorboard=False)

    def loss(step, rng, share):
        x = torch.randn(spec.batch, 3, generator=rng)[share.of(spec.batch)]
        time.sleep(pause)
        # one process alone meets what is not finite, and all must leave that step out
        spoilt = step == SPOILT and share.part == share.parts - 1
        # a parameter that not every step uses: the optimiser must leave it alone in the others
        shift = net.shift if step % 3 == 0 else 0
        return (net(x) + shift - x.prod(1, keepdim=True)).square().mean() * (float("nan") if spoilt else 1)

    fabric = launch("cpu")
    if fabric.world_size > 1 and fabric.is_global_zero:
        group = torch.distributed.distributed_c10d._get_default_group()
        folder.mkdir(parents=True, exist_ok=True)
        seconds = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
        (folder / "patience.txt").write_text(str(seconds))
    loop = Loop(net, loss, spec, folder, fabric=fabric)
    loop.resume()
    loop.run(every=1, pause_minutes=0.0 if pause else 10)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
