"""The loop over several processes, after a kill, short of memory, with a critic, and stopping early."""

from __future__ import annotations

import contextlib
import csv
import math
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models_small import small_recipe
from safetensors.torch import load_file
from train_line import SPOILT

from bids_petsynth.errors import TrainingError
from bids_petsynth.training.launch import processes
from bids_petsynth.training.loop import Loop, Player, Share

SCRIPT = Path(__file__).with_name("train_line.py")


def spec(**changes):
    fields = {"steps": 20, "batch": 6, "rate": 0.05, "warmup": 0, "ema": 0.5, "tensorboard": False}
    return small_recipe(training=fields | changes).training


def curve(folder: Path) -> np.ndarray:
    with (folder / "log.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def line(net, batch=6):
    def loss(step, rng, share):
        x = torch.randn(batch, 3, generator=rng)[share.of(batch)]
        return (net(x) - x.sum(1, keepdim=True)).square().mean()

    return loss


def test_shares_are_the_whole_batch():
    taken = [k for part in range(4) for k in list(range(10))[Share(part, 4).of(10)]]
    assert sorted(taken) == list(range(10)) and sum(Share(p, 4).count(10) for p in range(4)) == 10


def test_two_processes_give_the_curve_of_one(tmp_path):
    subprocess.run([sys.executable, SCRIPT, tmp_path / "one", "12"], check=True)
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *together, SCRIPT, tmp_path / "two", "12"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    # sums of gradients are rounded in another order
    np.testing.assert_allclose(two, one, rtol=0, atol=2e-5)
    assert len(one) == 12 and one[-1] < one[0] and np.flatnonzero(np.isnan(one)).tolist() == [SPOILT]
    # the first process may prepare scans for hours while the others wait
    assert float((tmp_path / "two" / "patience.txt").read_text()) >= 12 * 3600


def test_a_killed_run_goes_on_to_the_same_end(tmp_path):
    subprocess.run([sys.executable, SCRIPT, tmp_path / "whole", "12", "0.001"], check=True)
    running = subprocess.Popen([sys.executable, SCRIPT, tmp_path / "killed", "12", "0.3"])
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    for _ in range(600):
        if checkpoint.exists() and len(curve(tmp_path / "killed")) >= 4:
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert 4 <= len(curve(tmp_path / "killed")) < 12
    subprocess.run([sys.executable, SCRIPT, tmp_path / "killed", "12", "0.001"], check=True)
    np.testing.assert_array_equal(curve(tmp_path / "killed"), curve(tmp_path / "whole"))
    whole, killed = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=["allocator", "driver", "library", "CPU"],
)
def test_short_of_memory_it_goes_on_in_parts_and_says_so(tmp_path, capsys, error):
    torch.manual_seed(0)
    nets = [torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)]
    nets[1].load_state_dict(nets[0].state_dict())
    plain = Loop(nets[0], line(nets[0]), spec(), tmp_path / "plain")
    plain.run()

    def tight(step, rng, share):
        if share.count(6) > 2:
            raise error
        return line(nets[1])(step, rng, share)

    loop = Loop(nets[1], tight, spec(), tmp_path / "tight")
    loop.run()
    assert loop.state.parts == 4
    torch.testing.assert_close(nets[1].weight, nets[0].weight, rtol=1e-4, atol=1e-5)
    assert capsys.readouterr().err.count("Out of memory") == 2
    # more processes that take it up each have a share
    loop.save()
    loop.fabric = SimpleNamespace(world_size=6)
    assert loop.resume() and loop.state.parts == 1


@pytest.mark.parametrize("whose", ["network", "critic"])
def test_a_step_tried_again_has_the_memory_of_the_failed_one(tmp_path, whose):
    torch.manual_seed(0)
    net, critic = torch.nn.Linear(3, 1), torch.nn.Linear(1, 1)
    held, dead = [], []

    def tight(share, made):
        if share.count(6) > 3:
            held.append(weakref.ref(made))
            try:
                raise torch.OutOfMemoryError("no room for it")
            except torch.OutOfMemoryError:
                raise torch.OutOfMemoryError("nor for handling that") from None
        dead.extend(ref() is None for ref in held)

    def loss(step, rng, share):
        made = net(torch.randn(6, 3, generator=rng)[share.of(6)])
        if whose == "network":
            tight(share, made)
        return made.square().mean()

    def judge(step, rng, share):
        made = critic(net(torch.randn(6, 3, generator=rng)[share.of(6)]).detach())
        if whose == "critic":
            tight(share, made)
        return made.square().mean()

    Loop(net, loss, spec(steps=1), tmp_path, critic=Player(critic, judge, 0.01)).run()
    assert len(held) == 1 and dead == [True, True]


@pytest.mark.parametrize("which", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_left_out_and_said(tmp_path, capsys, which):
    def trained(folder, bad):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 1)

        def loss(step, rng, share):
            value = line(net)(step, rng, share)
            if step != bad:
                return value
            # the square root's slope at 0 is infinite, its value is not
            return value * math.nan if which == "loss" else value + (net.weight.sum() * 0).sqrt()

        loop = Loop(net, loss, spec(steps=8), tmp_path / folder, phase="autoencoder")
        for _ in range(5):
            loop._step()
        return loop

    skipping = trained("skipping", 4)
    assert (skipping.state.step, skipping.state.skipped, skipping.state.in_row) == (5, 1, 1)
    told = capsys.readouterr().err
    assert told.count("skipped") == 1 and "autoencoder" in told and "step 5" in told
    # the weights are those of the four steps before
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1)
    four = Loop(net, line(net), spec(steps=8), tmp_path / "four")
    for _ in range(4):
        four._step()
    assert torch.equal(skipping.net.weight, four.net.weight) and torch.equal(skipping.ema.weight, four.ema.weight)
    skipping.run(every=1)
    assert skipping.state.in_row == 0 and skipping.state.skipped == 1
    assert np.isfinite(curve(tmp_path / "skipping")).all() and torch.isfinite(skipping.net.weight).all()


def test_many_steps_in_a_row_that_are_not_finite_are_an_error(tmp_path):
    net = torch.nn.Linear(3, 1)

    def loss(step, rng, share):
        return line(net)(step, rng, share) * (math.inf if step >= 3 else 1)

    loop = Loop(net, loss, spec(steps=200), tmp_path, phase="pre-training")
    with pytest.raises(TrainingError, match=r"pre-training.*20 steps in a row.*step 23.*learning rate"):
        loop.run()
    assert torch.isfinite(net.weight).all()


def test_no_room_for_a_single_example_is_a_sentence(tmp_path, capsys):
    net = torch.nn.Linear(3, 1)

    def never(step, rng, share):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(TrainingError, match="pre-training: memory does not hold a single example") as caught:
        Loop(net, never, spec(), tmp_path, phase="pre-training").run()
    assert "network.channels" in str(caught.value) and capsys.readouterr().err.count("Out of memory") == 3

    def wrong(step, rng, share):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes"):
        Loop(net, wrong, spec(), tmp_path).run()


def test_it_stops_early_and_keeps_the_best(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1)
    loop = Loop(net, line(net), spec(steps=1000, patience=3), tmp_path)
    seen = []

    def score(state):
        seen.append([p.clone() for p in loop.ema.parameters()])
        return abs(state.step - 5.0)

    loop.run(pause=score, pause_minutes=0.0)
    assert loop.state.step == 8 and loop.state.best == 0.0
    assert all(torch.equal(a, b) for a, b in zip(loop.ema.parameters(), seen[4], strict=True))


def test_a_critic_moves_after_the_network_and_is_resumed(tmp_path):
    def game():
        torch.manual_seed(0)
        net, critic = torch.nn.Linear(3, 1), torch.nn.Linear(1, 1)

        def critical(step, rng, share):
            x = torch.randn(6, 3, generator=rng)[share.of(6)]
            return critic(net(x).detach()).square().mean()

        return Loop(net, line(net), spec(), tmp_path / "a", critic=Player(critic, critical, 0.01))

    whole = game()
    start = whole.critic.net.weight.clone()
    for _ in range(6):
        whole._step()
    assert not torch.equal(whole.critic.net.weight, start)
    first = game()
    for _ in range(3):
        first._step()
    first.save()
    second = game()
    assert second.resume()
    for _ in range(3):
        second._step()
    assert torch.equal(second.critic.net.weight, whole.critic.net.weight)
    assert torch.equal(second.net.weight, whole.net.weight)


def test_curves_for_tensorboard(tmp_path):
    net = torch.nn.Linear(3, 1)
    Loop(net, line(net), spec(steps=4, tensorboard=True), tmp_path).run(every=1)
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert events.stat().st_size > 100 and b"loss" in events.read_bytes()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (1, 1)),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, (2, 2)),
        ({"SLURM_NTASKS": "4"}, (1, 1)),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "0"}, (2, 2)),
    ],
)
def test_what_was_started_together(monkeypatch, environment, expected):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes() == expected


def test_a_critic_without_a_finite_loss_does_not_undo_the_step(tmp_path, capsys):
    net, critic = torch.nn.Linear(3, 1), torch.nn.Linear(1, 1)
    before = critic.weight.detach().clone()
    player = Player(critic, lambda step, rng, share: critic(torch.ones(1, 1)).sum() * torch.nan, 1e-2)
    loop = Loop(net, line(net), spec(steps=3), tmp_path, critic=player)
    started = loop.ema.weight.clone()
    loop.run(every=1)
    assert torch.equal(critic.weight, before) and not torch.equal(loop.ema.weight, started)
    assert capsys.readouterr().err.count("the critic's loss or its gradient at step") == 3 == loop.state.skipped
    rows = (tmp_path / "log.csv").read_text().splitlines()[1:]
    assert len(rows) == 3 and "nan" not in "".join(rows)


def test_what_parts_change_is_said(tmp_path, capsys):
    net = torch.nn.Linear(3, 1)

    def tight(step, rng, share):
        if share.count(6) > 3:
            raise torch.OutOfMemoryError("no room")
        return line(net)(step, rng, share)

    Loop(net, tight, spec(steps=1), tmp_path, shared="the alignment").run()
    assert "changes the alignment" in capsys.readouterr().err


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_used_where_a_gpu_computes_in_it_and_not_where_it_is_emulated(monkeypatch, native):
    from bids_petsynth.devices import fast_autocast

    asked = []

    def supported(including_emulation=True):
        asked.append(including_emulation)
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch, "autocast", lambda device, dtype, enabled: enabled)
    assert fast_autocast("cuda:0") is native and asked == [False]


@pytest.mark.parametrize("shape", [(2, 3, 2), (3, 4, 3), (4, 6, 4), (6, 7, 6)])
def test_gradients_of_small_volumes_are_those_of_full_precision(shape):
    from bids_petsynth.devices import fast_autocast

    rng = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 24, 3, 3, 3, generator=rng) / 30, torch.randn(2, 24, *shape, generator=rng)
    there = torch.randn(2, 24, *shape, generator=rng)
    gradients = []
    for precise in (True, False):
        mine = weight.clone().requires_grad_()
        with fast_autocast("cpu", shape[:1]) if not precise else contextlib.nullcontext():
            out = torch.nn.functional.conv3d(x, mine, padding=1)
        out.float().backward(there)
        gradients.append(mine.grad)
    assert (gradients[1] - gradients[0]).norm() < 0.01 * gradients[0].norm()
