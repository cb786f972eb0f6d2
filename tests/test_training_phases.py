"""A whole training at toy size: who stops it and who is reported, and that a kill within a phase changes nothing."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ground_small import SmallGround
from models_small import small_recipe, with_autoencoder
from safetensors.torch import load_file
from train_phases import RUNS

from bids_petsynth.models.autoencoder import Autoencoder, build_space
from bids_petsynth.training import generator
from bids_petsynth.training.generator import Run, _forget_after, build_model, pretrain, train
from bids_petsynth.training.launch import launch
from bids_petsynth.training.loop import Share, step_generator
from bids_petsynth.training.objective import Objective
from bids_petsynth.training.pairs import Pool
from bids_petsynth.training.phases import fit_autoencoder
from bids_petsynth.training.validation import share_held_out

FIGURES = {"people": 4} | dict.fromkeys(("mae", "mae_of_mean", "bias", "voxel_r"), 0.5)


def held_out(people: int, scans: int = 1):
    case = SmallGround(small_recipe()).case(0)
    return tuple(replace(case, head=f"{n}") for n in range(people) for _ in range(scans))


@pytest.mark.parametrize("people", [8, 11, 40])
def test_those_who_stop_a_training_are_not_those_who_are_reported(people):
    cases = held_out(people, scans=2)
    shared = share_held_out(cases, patience=3)
    watched, reported = ({case.head for case in part} for part in (shared.watched, shared.reported))
    assert watched | reported == {f"{n}" for n in range(people)} and not watched & reported
    assert len(shared.watched) == 2 * len(watched) and 3 <= len(watched) <= 8 and len(watched) <= len(reported)
    assert f"of {len(reported)} people; {len(watched)} other" in shared.note


def test_where_they_are_few_or_nothing_is_decided_all_are_reported():
    few = share_held_out(held_out(7), patience=1)
    assert len(few.reported) == len(few.watched) == 7 and "too good" in few.note
    shared = share_held_out(held_out(5, scans=5), patience=1)  # as simulated people share heads
    assert len(shared.reported) == 25 and len({case.head for case in shared.watched}) == 5 and len(shared.watched) <= 8
    plain = share_held_out(held_out(20), patience=0)
    assert len(plain.reported) == 20 and len(plain.watched) == 2 and plain.note == ""


@pytest.mark.parametrize("patience", [0, 50])
def test_the_card_is_of_the_people_who_did_not_stop_it(tmp_path, monkeypatch, patience):
    recipe = small_recipe(
        regional=None, tracers=["AV45"], training={"steps": 2, "patience": patience, "tensorboard": False}
    )
    ground = SmallGround(recipe, 3, tracers=("AV45",), held=held_out(8))
    seen = []

    def figures(synthesizer, cases, n, voxel_size):
        seen.append({case.head for case in cases})
        return {"AV45": FIGURES}, {"AV45": 1.0}

    monkeypatch.setattr(generator, "evaluate", figures)
    model = train(ground, recipe, Run(tmp_path, validate=1e-9, report=lambda line: None))
    *watched, reported = seen
    assert len(watched) == 2 and watched[0] == watched[1]
    assert ("4 other held-out people" in model.card) == bool(patience)
    assert len(reported) == (4 if patience else 8) and bool(reported & watched[0]) == (not patience)


@pytest.mark.parametrize("batch", [None, 2])
def test_an_autoencoder_takes_as_many_volumes_a_step_as_it_is_told(tmp_path, monkeypatch, batch):
    recipe = with_autoencoder(regional=None, training={"steps": 1, "batch": 3, "tensorboard": False})
    space = recipe.space.model_copy(update={"batch": batch, "training_steps": 2, "adversarial": 0.0})
    recipe, taken, reconstructed = recipe.model_copy(update={"space": space}), [], Autoencoder.reconstructed

    def counted(self, volumes, noise):
        taken.append(len(volumes))
        return reconstructed(self, volumes, noise)

    monkeypatch.setattr(Autoencoder, "reconstructed", counted)
    ground, fabric = SmallGround(recipe, 3), launch("cpu")
    fit_autoencoder(build_space(recipe), recipe, ground, tmp_path, None, False, False, fabric, lambda line: None)
    assert taken == [batch or 3] * 2


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """Folder of the runs of ``train_phases.py``."""
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("train_phases.py")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("recipe", "run"), [(recipe, run) for recipe, runs in RUNS.items() for run in runs])
def test_a_run_killed_within_a_phase_ends_as_if_it_had_not_been(killed, recipe, run):
    whole, resumed = killed / recipe / "whole", killed / recipe / run
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    parts = {"latent": {"autoencoder", "pretraining"}, "painted": {"regional.safetensors"}}[recipe]
    assert {file.parts[0] for file in files} == {"checkpoint.safetensors", "model", *parts}
    for file in files:
        one, other = load_file(whole / file), load_file(resumed / file)
        assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one), file
    logs = sorted(path.relative_to(whole) for path in whole.rglob("log.csv"))
    assert len(logs) == {"latent": 3, "painted": 1}[recipe]
    for log in logs:
        one, other = curve(whole / log), curve(resumed / log)
        assert one == other and [step for step, _ in one] == [str(k) for k in range(1, len(one) + 1)] and len(one) >= 4


@pytest.mark.parametrize(("recipe", "within"), [("painted", 2e-4), ("latent", 2e-2)])
def test_two_processes_give_the_curves_of_one(killed, recipe, within):
    """A regional flow and a flow over the image; an autoencoder, pre-training and pairs, each with its critic."""
    whole, two = killed / recipe / "whole", killed / recipe / "together"
    logs = sorted(path.relative_to(whole) for path in whole.rglob("log.csv"))
    assert logs == sorted(path.relative_to(two) for path in two.rglob("log.csv"))
    for log in logs:
        one, other = ([float(loss) for _, loss in curve(folder / log)] for folder in (whole, two))
        np.testing.assert_allclose(other, one, rtol=0, atol=within)


def test_phases_that_later_ones_rest_on_stay_as_they_are_when_there_is_more_time(tmp_path):
    recipe = with_autoencoder(
        regional=None,
        tracers=["AV45"],
        pretraining={"steps": 2, "style": "none"},
        training={"steps": 2, "tensorboard": False},
    )
    ground, said = SmallGround(recipe, 3, tracers=("AV45",)), []

    def files(minutes):
        train(ground, recipe, Run(tmp_path, minutes=minutes, validate=0, report=said.append))
        return {path.parent.name: load_file(path) for path in tmp_path.rglob("checkpoint.safetensors")}

    before, after = files(0.02), files(0.06)
    for phase in ("autoencoder", "pretraining"):
        assert all(torch.equal(after[phase][name], tensor) for name, tensor in before[phase].items())
    last = tmp_path.name
    assert any(not torch.equal(after[last][name], tensor) for name, tensor in before[last].items())
    told = [line for line in said if "stays as an earlier run left it" in line]
    assert [line.split(":")[0] for line in told] == ["autoencoder", "pre-training"]


def test_detail_is_asked_for_on_pairs_alone(tmp_path):
    """MRI2PET adds the pyramid to its second phase: whatever its weight, the first one ends with the same network."""
    fabric, ends, values = launch("cpu"), [], []
    for weight in (0.0, 50.0):
        recipe = small_recipe(
            tracers=["AV45"],
            regional=None,
            losses={"laplacian": weight},
            pretraining={"steps": 2, "style": "none"},
            training={"tensorboard": False, "rate": 1e-2},
        )
        ground = SmallGround(recipe)
        space = build_space(recipe)
        pool = Pool(ground.case, space.encode, *ground.pool, recipe.tracers)
        model = build_model(recipe, pool, ground, space)
        pretrain(model, pool, None, Run(tmp_path / f"{weight}", report=lambda line: None), fabric)
        ends.append(torch.cat([p.detach().flatten() for p in model.denoiser.parameters()]))
        values.append(Objective(model, pool, "cpu").loss(0, step_generator(0, 0), Share()).item())
    assert torch.equal(*ends) and values[1] > values[0] + 1e-3


def test_validations_after_the_checkpoint_are_superseded(tmp_path):
    path = tmp_path / "validation.jsonl"
    _forget_after(path, 3)
    assert not path.exists()
    path.write_text('{"step": 2}\n{"step": 4}\n{"st')
    _forget_after(path, 3)
    assert path.read_text() == '{"step": 2}\n'


def curve(log: Path) -> list[tuple[str, str]]:
    with log.open() as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]
