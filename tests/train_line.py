"""Trains a small regression in a process of its own: ``python train_line.py FOLDER STEPS [SECONDS A STEP]``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from bids_petsynth.models.recipe import TrainingSpec
from bids_petsynth.training.launch import launch
from bids_petsynth.training.loop import Loop


def main(folder: Path, steps: int, pause: float) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    spec = TrainingSpec(steps=steps, batch=6, rate=0.02, warmup=3, ema=0.9, tensorboard=False)

    def loss(step, rng, share):
        x = torch.randn(spec.batch, 3, generator=rng)[share.of(spec.batch)]
        time.sleep(pause)
        return (net(x) - x.prod(1, keepdim=True)).square().mean()

    loop = Loop(net, loss, spec, folder, fabric=launch("cpu"))
    loop.resume()
    loop.run(every=1, pause_minutes=0.0 if pause else 10)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
