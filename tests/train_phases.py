"""Trains toy models, killed within every phase and resumed, and in two processes: ``python train_phases.py FOLDER``.

One process imports what is needed and is forked for every run, which saves their start. A checkpoint is written after
every second step, and the kill comes when one more step has been logged. A recipe has a run ``FOLDER/RECIPE/whole``,
those of :data:`RUNS`, and ``FOLDER/RECIPE/together`` of two processes.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from ground_small import SmallGround
from models_small import small_recipe, with_autoencoder

from bids_petsynth.models.recipe import Recipe
from bids_petsynth.training import generator, loop, regional

#: Recipe → runs by name, with the phase and step at which each is killed.
RUNS = {
    "latent": {
        "nothing-kept": ("autoencoder", 1),
        "autoencoder": ("autoencoder", 3),
        "pretraining": ("pre-training", 3),
        "pairs-begun": ("paired training", 1),
        "pairs": ("paired training", 3),
    },
    "painted": {"regional": ("regional flow", 2), "pairs": ("paired training", 5)},
}


def recipe_of(name: str) -> Recipe:
    """The recipe of runs of a name."""
    training = {"steps": 6, "warmup": 1, "ema": 0.5, "tensorboard": False, "seed": 3}
    shared = {"tracers": ["AV45", "FDG"], "training": training}
    if name == "painted":
        return small_recipe(**shared, regional={"training_steps": 5})
    losses = {"l1": 1.0, "regions": "learned", "adversarial": 0.1}
    images = {"images": ["t1w"]}
    more = {"regional": None, "pretraining": {"steps": 4, "style": "none"}, "losses": losses, "conditioning": images}
    return with_autoencoder(**shared, **more)


def kill_at(phase: str, step: int) -> None:
    """Have this process killed within a step of a phase."""
    if phase == "regional flow":
        made, flow_loss = [], regional.flow_loss

        def counted(*args: torch.Tensor) -> torch.Tensor:
            made.append(1)
            if len(made) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return flow_loss(*args)

        regional.flow_loss = counted
        return
    whole_batch = loop.Loop._whole_batch

    def until(self: loop.Loop, *args: object) -> float:
        if (self.phase, self.state.step) == (phase, step):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole_batch(self, *args)

    loop.Loop._whole_batch = until


def train(name: str, folder: Path, killed: tuple[str, int] | None = None) -> None:
    """Train in this process, with checkpoints after every second step."""
    torch.set_num_threads(1)
    run, save = loop.Loop.run, loop.Loop.save
    loop.Loop.run = lambda self, **kwargs: run(self, **kwargs | {"every": 1, "pause_minutes": 0.0})
    loop.Loop.save = lambda self: save(self) if self.state.step % 2 == 0 or self.fraction >= 1 else None
    if killed is not None:
        kill_at(*killed)
    recipe = recipe_of(name)
    how = generator.Run(folder, validate=0, report=lambda line: None)
    generator.train(SmallGround(recipe, 3), recipe, how)


def together(name: str, folder: Path) -> None:
    """Train in two children, which find each other as those that torchrun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"TORCHELASTIC_RUN_ID": "two", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2}

    def one(rank: int) -> None:
        own = {**shared, "LOCAL_WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
        os.environ.update({key: str(value) for key, value in own.items()})
        train(name, folder)

    children = [started(partial(one, rank)) for rank in range(2)]
    assert [ended(child) for child in children] == [0, 0]


def started(work: Callable[[], None]) -> int:
    """A child that does the work."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def ended(child: int) -> int:
    """What a child ends with: 0, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forked(work: Callable[[], None]) -> int:
    """What a child that does the work ends with."""
    return ended(started(work))


def main(folder: Path) -> None:
    import monai.networks.nets  # noqa: F401  (once, not in every child)

    for name, runs in RUNS.items():
        assert forked(partial(train, name, folder / name / "whole")) == 0
        together(name, folder / name / "together")
        for run, killed in runs.items():
            assert forked(partial(train, name, folder / name / run, killed)) == -signal.SIGKILL
            assert forked(partial(train, name, folder / name / run)) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
