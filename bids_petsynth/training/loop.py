"""The training loop: AdamW, warm-up and cosine decay, moving average, clipping, checkpoints that resume exactly.

One loop for every recipe and phase, in one process or several. A step's batch is drawn whole in every process and each
computes its :class:`Share` of it; their gradients are added up. So the same steps are taken whatever the number of
processes, and a batch that does not fit into memory is taken in smaller shares, one after the other. A loss that is no
mean over examples is the exception, see ``Loop``'s ``shared``.
"""

from __future__ import annotations

import copy
import csv
import gc
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from bids_petsynth.errors import TrainingError
from bids_petsynth.training.checkpoint import load_checkpoint, store_checkpoint, write_atomically

if TYPE_CHECKING:  # the labelling networks train where torch is, without the recipes' libraries
    from lightning_fabric import Fabric

    from bids_petsynth.models.recipe import TrainingSpec

#: What the minutes of a training are told by, in seconds.
clock: Callable[[], float] = time.monotonic
#: Seconds between two lines of progress.
SAY_EVERY = 30.0
#: Columns of ``log.csv``.
LOG_COLUMNS = ("step", "minutes", "loss", "rate")
#: Steps in a row without a finite loss and gradient after which training ends.
MOST_SKIPPED = 20
#: What errors without a class of their own say where memory ran out.
_NO_MEMORY = ("can't allocate memory", "out of memory", "alloc_failed")


@dataclass(frozen=True)
class Share:
    """The examples ``part``, ``part + parts``, … of a batch."""

    part: int = 0
    parts: int = 1

    def of(self, n: int) -> slice:
        """Which of ``n`` examples."""
        return slice(self.part, n, self.parts)

    def count(self, n: int) -> int:
        """How many of ``n`` examples."""
        return len(range(n)[self.of(n)])


#: Mean loss over a share of the batch of one step: all randomness comes from the step and the generator, which draw the
#: whole batch alike for every share.
Loss = Callable[[int, Generator, Share], Tensor]


@dataclass
class State:
    """What a checkpoint holds besides tensors.

    ``best`` is the lowest score of a validation, ``since`` the number of validations after it, ``parts`` the shares
    that a process takes its part of a batch in, ``skipped`` the steps whose loss or gradient was not finite, ``in_row``
    those of them that came last, ``losses`` those of the steps since the last line of the log.
    """

    step: int = 0
    elapsed: float = 0.0
    best: float | None = None
    since: int = 0
    parts: int = 1
    skipped: int = 0
    in_row: int = 0
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Player:
    """A second network with a loss of its own, such as the critic of an adversarial loss; it moves after the first."""

    net: nn.Module
    loss: Loss
    rate: float


def learning_rate(spec: TrainingSpec, step: int, fraction: float) -> float:
    """Linear warm-up over ``spec.warmup`` steps times a cosine from 1 at the start to 0 at ``fraction`` 1."""
    warm = min(1.0, (step + 1) / (spec.warmup + 1))
    return spec.rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


def step_generator(seed: int, step: int) -> Generator:
    """A generator of its own for every step, so that a resumed run draws the same numbers."""
    return Generator().manual_seed(seed * 1_000_003 + step)


class Loop:
    """Trains ``net`` on ``loss`` and keeps the moving average of its weights in ``ema``.

    Parameters
    ----------
    net
        In training mode, on its device.
    loss
        Called once for each share of a step's batch.
    spec
        Rate, steps, clipping and so on.
    folder
        Where ``checkpoint.safetensors`` (whose metadata hold the state), ``log.csv`` and ``tensorboard/`` go.
    minutes
        If given, the schedule follows the share of this time that has passed instead of the steps.
    fabric
        The processes that train together; this one alone if None.
    critic
        A second network, if the loss has one.
    phase
        What is trained, for messages.
    shared
        What of the loss depends on how a batch is shared, for messages; nothing if empty.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        spec: TrainingSpec,
        folder: Path,
        minutes: float | None = None,
        fabric: Fabric | None = None,
        critic: Player | None = None,
        phase: str = "training",
        shared: str = "",
    ):
        self.net, self.loss, self.spec, self.folder, self.minutes = net, loss, spec, folder, minutes
        self.ema = copy.deepcopy(net).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=spec.rate, weight_decay=spec.weight_decay)
        self.critic, self.phase, self.shared = critic, phase, shared
        if critic is not None:
            self.critic_optimiser = torch.optim.AdamW(critic.net.parameters(), critic.rate, (0.5, 0.99))
        self.state = State()
        self.fabric = fabric if fabric is not None and fabric.world_size > 1 else None
        self.first = self.fabric is None or self.fabric.is_global_zero
        folder.mkdir(parents=True, exist_ok=True)
        self._board = None
        self._said = -math.inf

    @property
    def fraction(self) -> float:
        """Share of the training that is done."""
        if 0 < self.spec.patience <= self.state.since:
            return 1.0
        if self.minutes is not None:
            return self.state.elapsed / (60 * self.minutes)
        return self.state.step / self.spec.steps

    def run(
        self,
        every: int = 50,
        pause: Callable[[State], float | None] | None = None,
        pause_minutes: float = 10.0,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Train to the end.

        Parameters
        ----------
        every
            Steps between two lines of the log.
        pause
            Called in the first process every ``pause_minutes`` and at the end, which is not counted as time. It may
            return a score, the lower the better, by which training stops early (``spec.patience``); the weights of the
            best one are then those that are kept.
        report
            Takes lines of progress.

        Raises
        ------
        TrainingError
            If :data:`MOST_SKIPPED` steps in a row have no finite loss and gradient.
        """
        next_pause = self.state.elapsed + 60 * pause_minutes
        last = clock()
        while self.fraction < 1:
            loss = self._step()
            self.state.losses += [loss] if math.isfinite(loss) else []
            now = clock()
            self.state.elapsed = self._agreed(self.state.elapsed + now - last)
            last = now
            if self.state.step % every == 0 or self.fraction >= 1:
                self._log(report)
                self.state.losses.clear()
            if self.state.elapsed >= next_pause or self.fraction >= 1:
                self._pause(pause)
                next_pause = self.state.elapsed + 60 * pause_minutes
                last = clock()
        if self._board is not None:
            self._board.close()
            self._board = None
        if self.spec.patience and self.state.best is not None:
            from safetensors.torch import load_file

            self.ema.load_state_dict(load_file(self.folder / "best.safetensors"))

    def _pause(self, pause: Callable[[State], float | None] | None) -> None:
        score = pause(self.state) if pause is not None and self.first else None
        if self.fabric is not None:
            score = self.fabric.broadcast(score)
        if score is not None:
            self._scalars({"validation": score})
            better = self.state.best is None or score < self.state.best
            self.state.best = score if better else self.state.best
            self.state.since = 0 if better else self.state.since + 1
            if better and self.first and self.spec.patience:
                from safetensors.torch import save_file

                weights = {k: v.detach().cpu().contiguous() for k, v in self.ema.state_dict().items()}
                write_atomically(self.folder / "best.safetensors", lambda path: save_file(weights, path))
        self.save()
        if self.fabric is not None:
            self.fabric.barrier()

    def _agreed(self, value: float) -> float:
        """The first process's value: all must end together."""
        return value if self.fabric is None else self.fabric.broadcast(value)

    def _step(self) -> float:
        """The mean loss over the step's batch; NaN if the step was skipped. The same in all processes."""
        full = self._whole_batch(self.loss, self.net)
        rate = learning_rate(self.spec, self.state.step, self.fraction)
        moved = self._move(self.net, self.optimiser, rate, full)
        whose = "" if moved else "the loss or its gradient"
        if moved and self.critic is not None:
            its = self._whole_batch(self.critic.loss, self.critic.net)
            critic_rate = rate / self.spec.rate * self.critic.rate
            if not self._move(self.critic.net, self.critic_optimiser, critic_rate, its):
                whose = "the critic's loss or its gradient"
        self.state.step += 1
        if whose:
            self._skip(whose)
        else:
            self.state.in_row = 0
        if not moved:
            return math.nan
        keep = min(self.spec.ema, self.state.step / (self.state.step + 10))
        with torch.no_grad():
            for average, value in zip(self.ema.state_dict().values(), self.net.state_dict().values(), strict=True):
                if average.is_floating_point():
                    average.lerp_(value, 1 - keep)
        return full

    def _skip(self, whose: str) -> None:
        """Count a step that was not taken, of the network or of its critic, and say so."""
        state = self.state
        state.skipped, state.in_row = state.skipped + 1, state.in_row + 1
        if state.in_row >= MOST_SKIPPED:
            raise TrainingError(
                f"{self.phase}: {whose} was not finite in {state.in_row} steps in a row, the last one "
                f"step {state.step}; lower the learning rate (`rate`) of that phase in the recipe or raise `warmup`, "
                "and look through the scans for wrong intensities."
            )
        if self.first:
            print(
                f"{self.phase}: {whose} at step {state.step} was not finite; the step was skipped "
                f"({state.skipped} so far).",
                file=sys.stderr,
                flush=True,
            )

    def _whole_batch(self, loss: Loss, net: nn.Module) -> float:
        """:meth:`_accumulate` in as many parts as the memory of every process asks for; the whole batch's mean loss."""
        while True:
            value, trouble = self._attempt(loss, net)
            if not self._anywhere(trouble is not None):
                return self._summed(value)
            most = math.ceil(self.spec.batch / self._world)
            if self.state.parts >= most:
                raise TrainingError(
                    f"{self.phase}: memory does not hold a single example of a step; make `grid` or `network.channels` "
                    "in the recipe smaller, or train on a GPU with more memory."
                ) from trouble
            self.state.parts = min(2 * self.state.parts, most)
            net.zero_grad(set_to_none=True)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(
                f"Out of memory at a batch of {self.spec.batch}: each step is taken in {self.state.parts} parts from "
                f"here on, which is slower and changes {self.shared or 'nothing else'}.",
                file=sys.stderr,
                flush=True,
            )

    def _attempt(self, loss: Loss, net: nn.Module) -> tuple[float, BaseException | None]:
        """:meth:`_accumulate`, and what went wrong if that was memory."""
        try:
            return self._accumulate(loss, net), None
        except (MemoryError, RuntimeError) as error:
            # the allocator of the CPU, the driver of a GPU and its libraries have no exception of their own
            own = isinstance(error, (torch.OutOfMemoryError, MemoryError))
            if not own and not any(words in str(error).lower() for words in _NO_MEMORY):
                raise
            # its traceback holds the frames, and so all tensors, of the attempt that failed
            error.__context__ = error.__cause__ = None
            return math.nan, error.with_traceback(None)

    @property
    def _world(self) -> int:
        return 1 if self.fabric is None else self.fabric.world_size

    def _accumulate(self, loss: Loss, net: nn.Module) -> float:
        """Gradients of the whole batch's mean loss in this process's shares; the mean loss of these."""
        net.zero_grad(set_to_none=True)
        total, rank = 0.0, 0 if self.fabric is None else self.fabric.global_rank
        parts = self._world * self.state.parts
        for k in range(self.state.parts):
            # a batch of fewer examples than shares is spread over the processes
            share = Share(k * self._world + rank, parts)
            weight = share.count(self.spec.batch) / self.spec.batch
            if weight:
                value = loss(self.state.step, step_generator(self.spec.seed, self.state.step), share)
                (value if parts == 1 else value * weight).backward()
                total += value.item() * weight
        return total

    def _anywhere(self, trouble: bool) -> bool:
        return self._summed(float(trouble)) > 0

    def _summed(self, value: float) -> float:
        """Sum over all processes."""
        if self.fabric is None:
            return value
        return float(self.fabric.all_reduce(torch.tensor(value, dtype=torch.float64), reduce_op="sum"))

    def _move(self, net: nn.Module, optimiser: torch.optim.Optimizer, rate: float, loss: float) -> bool:
        """Take the step, unless the loss or the gradient is not finite; whether it was taken."""
        for group in optimiser.param_groups:
            group["lr"] = rate
        if self.fabric is not None:
            self._add_gradients(net)
        norm = nn.utils.clip_grad_norm_(net.parameters(), self.spec.clip)
        # both are sums over all processes, so that all of them decide alike
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return False
        optimiser.step()
        return True

    def _add_gradients(self, net: nn.Module) -> None:
        """Sum of all processes' gradients, in one message.

        A parameter that one of them did not use counts as 0 there; one that none of them used keeps no gradient, as in
        one process, so that the optimiser leaves it alone.
        """
        parameters = [p for p in net.parameters() if p.requires_grad]
        flat = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
        used = flat[0].new_tensor([p.grad is not None for p in parameters])
        total = self.fabric.all_reduce(torch.cat([*flat, used]), reduce_op="sum")
        *gradients, used = total.split([*(p.numel() for p in parameters), len(parameters)])
        for parameter, gradient, count in zip(parameters, gradients, used.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter).clone() if count else None

    def _log(self, report: Callable[[str], None] | None) -> None:
        if not self.first:
            return
        losses = self.state.losses
        mean = sum(losses) / len(losses) if losses else math.nan
        path, minutes = self.folder / "log.csv", self.state.elapsed / 60
        new = not path.exists()
        rate = self.optimiser.param_groups[0]["lr"]
        with path.open("a", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            if new:
                out.writerow(LOG_COLUMNS)
            out.writerow([self.state.step, f"{minutes:.2f}", f"{mean:.5f}", f"{rate:.2e}"])
        self._scalars({"loss": mean, "rate": rate})
        if report is not None and (time.monotonic() > self._said + SAY_EVERY or self.fraction >= 1):
            self._said = time.monotonic()
            done = min(1.0, self.fraction)
            left = minutes / done - minutes if done else math.inf
            report(f"step {self.state.step}, {done:.0%}, loss {mean:.4f}, {left:.0f} min left")

    def _scalars(self, values: Mapping[str, float]) -> None:
        """Curves for TensorBoard."""
        if not self.first or not self.spec.tensorboard:
            return
        if self._board is None:
            from tensorboardX import SummaryWriter

            # what a run that was killed wrote after its checkpoint is superseded
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.state.step)
        for name, value in values.items():
            self._board.add_scalar(name, value, self.state.step)
        self._board.flush()

    def save(self) -> None:
        """Write the checkpoint, in the first process."""
        if self.first:
            more = {} if self.critic is None else {"critic": (self.critic.net, self.critic_optimiser)}
            store_checkpoint(self.folder, self.net, self.ema, self.optimiser, asdict(self.state), more)

    def resume(self) -> bool:
        """Take up the checkpoint if there is one; lines of the log after it, or after no step, are taken away."""
        more = {} if self.critic is None else {"critic": (self.critic.net, self.critic_optimiser)}
        state = load_checkpoint(self.folder, self.net, self.ema, self.optimiser, more)
        if state is not None:
            self.state = State(**state)
            # it may have been written by fewer processes
            self.state.parts = min(self.state.parts, math.ceil(self.spec.batch / self._world))
        log = self.folder / "log.csv"
        if self.first and log.exists():
            # a kill may have left half a line, and even half a head
            rows = [row.split(",") for row in log.read_text().splitlines(keepends=True)[1:] if row.endswith("\n")]
            kept = [",".join(LOG_COLUMNS) + "\n", *(",".join(row) for row in rows if int(row[0]) <= self.state.step)]
            write_atomically(log, lambda path: path.write_text("".join(kept)))
        return state is not None
