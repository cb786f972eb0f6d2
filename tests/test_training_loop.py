"""The loop: it learns, follows its schedule, and a resumed run equals an uninterrupted one."""

from __future__ import annotations

import csv

import pytest
import torch
from models_small import small_recipe

from bids_petsynth.training.checkpoint import write_atomically
from bids_petsynth.training.loop import Loop, learning_rate

SPEC = small_recipe(training={"steps": 150, "rate": 0.1, "warmup": 4, "ema": 0.9, "weight_decay": 0.0}).training


def problem():
    """A linear regression with a known answer."""
    torch.manual_seed(1)
    net = torch.nn.Linear(3, 1)
    truth = torch.tensor([[1.0, -2.0, 0.5]])

    def loss(step, rng, share):
        x = torch.randn(SPEC.batch * 32, 3, generator=rng).view(SPEC.batch, 32, 3)[share.of(SPEC.batch)]
        return (net(x) - x @ truth.T - 0.3).square().mean()

    return net, loss, truth


def test_it_learns_and_logs(tmp_path):
    net, loss, truth = problem()
    loop = Loop(net, loss, SPEC, tmp_path)
    loop.run(every=50)
    assert torch.allclose(net.weight, truth, atol=0.02)
    assert torch.allclose(loop.ema.weight, truth, atol=0.05) and not torch.equal(loop.ema.weight, net.weight)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [int(r["step"]) for r in rows] == [50, 100, 150]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) / 10


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    net, loss, _ = problem()
    whole = Loop(net, loss, SPEC, tmp_path / "whole")
    whole.run()
    net, loss, _ = problem()
    first = Loop(net, loss, SPEC, tmp_path / "parts")
    for _ in range(25):
        first._step()
    first.save()
    net, loss, _ = problem()
    second = Loop(net, loss, SPEC, tmp_path / "parts")
    assert second.resume() and second.state.step == 25
    second.run()
    assert torch.equal(second.net.weight, whole.net.weight)
    assert torch.equal(second.ema.weight, whole.ema.weight)


def test_the_log_goes_on_as_if_nothing_had_happened(tmp_path):
    """A checkpoint between two lines of the log keeps what the next one is the mean of."""
    logs = []
    for stop in (None, 37):
        net, loss, _ = problem()
        loop = Loop(net, loss, SPEC, tmp_path / str(stop))

        def pause(state, stop=stop):
            if state.step == stop:
                raise KeyboardInterrupt

        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                loop.run(every=50, pause=pause, pause_minutes=0.0)
            net, loss, _ = problem()
            loop = Loop(net, loss, SPEC, tmp_path / str(stop))
            assert loop.resume() and loop.state.step == stop - 1
        loop.run(every=50)
        with (tmp_path / str(stop) / "log.csv").open() as file:
            logs.append([(row["step"], row["loss"]) for row in csv.DictReader(file)])
    assert logs[0] == logs[1] and len(logs[0]) == 3


def test_nothing_to_resume(tmp_path):
    net, loss, _ = problem()
    assert not Loop(net, loss, SPEC, tmp_path).resume()


@pytest.mark.parametrize("left", ["step,minutes,loss,rate\n50,0.01,3.0,0.1\n100,0.02,2.0,0.1\n15", "step,min", ""])
def test_what_a_run_killed_before_its_first_checkpoint_logged_is_superseded(tmp_path, left):
    (tmp_path / "log.csv").write_text(left)
    net, loss, _ = problem()
    loop = Loop(net, loss, SPEC, tmp_path)
    assert not loop.resume()
    loop.run(every=50)
    with (tmp_path / "log.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [50, 100, 150]


def test_rate_warms_up_and_decays():
    rates = [learning_rate(SPEC, step, step / 150) for step in range(150)]
    assert rates[0] == pytest.approx(0.1 / 5)
    assert max(rates) == rates[4] and rates[-1] < 0.0002
    assert learning_rate(SPEC, 50, 0.5) == pytest.approx(0.05)


def test_the_budget_of_time_ends_it(tmp_path):
    net, loss, _ = problem()
    pauses, lines = [], []
    loop = Loop(net, loss, SPEC, tmp_path, minutes=0.005)
    loop.run(pause=lambda state: pauses.append(state.step), pause_minutes=0.002, report=lines.append)
    assert 0.3 <= loop.state.elapsed < 3 and loop.fraction >= 1
    assert pauses[-1] == loop.state.step and len(pauses) >= 2
    assert "100%" in lines[-1] and lines[-1].endswith(" 0 min left")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fails(beside):
        beside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fails)
    assert path.read_text() == "old"
    write_atomically(path, lambda beside: beside.write_text("new"))
    assert path.read_text() == "new" and len(list(tmp_path.glob("*"))) <= 2
