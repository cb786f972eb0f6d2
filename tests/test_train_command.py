"""``train`` as its users call it: from a BIDS dataset with T1w and PET to a model that ``participant`` takes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models_small import small_recipe

from bids_petsynth.cli.main import main
from bids_petsynth.models.folder import load_model, training_ranges
from bids_petsynth.models.recipe import recipe_text
from bids_petsynth.models.synthesizer import Synthesizer


@pytest.fixture(scope="module")
def site(example, tmp_path_factory) -> Path:
    """Six simulated people on the two phantom heads, with one amyloid scan each."""
    out = tmp_path_factory.mktemp("site") / "bids"
    command = [str(example), str(out), "simulate", "--people-per-head", "3", "--tracer", "AV45", "--random-seed", "3"]
    assert main(command) == 0
    return out


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The default recipe with tiny networks, on the grid that heads are labelled on."""
    small = small_recipe(
        grid={"shape": [96, 112, 96]},
        network={"channels": [16, 24]},
        regional={"width": 32, "training_steps": 400, "batch": 32, "rate": 3e-3},
        training={"steps": 3},
    )
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(recipe_text(small))
    return path


@pytest.fixture(scope="module")
def trained(site, recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    assert main([str(site), str(out), "train", "--recipe", str(recipe), "--name", "ours", "--held-out", ".34"]) == 0
    return out


def table(out: Path) -> list[dict[str, str]]:
    with (out / "models" / "ours-training" / "pairs.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def people(site: Path) -> dict[str, dict[str, str]]:
    with (site / "participants.tsv").open() as file:
        return {row["participant_id"]: row for row in csv.DictReader(file, delimiter="\t")}


def test_a_dataset_becomes_a_model_folder(site, trained):
    model = load_model(trained / "models" / "ours")
    assert model.recipe.name == "ours" and model.recipe.tracers == ("AV45",) and not model.demonstration
    rows = table(trained)
    assert {row["participant_id"] for row in rows} == set(people(site)) and {r["status"] for r in rows} == {"used"}
    assert "Trained on 4 people; 4 AV45 scans" in model.card and "Held out, by participant: 2 people" in model.card
    assert "demonstration" not in model.card and "Licence of the data: not stated" in model.card
    # a participant's label or value has no place in what may be shared
    for participant, row in people(site).items():
        assert participant.removeprefix("sub-") not in model.card and row["ptau217_lumipulse"] not in model.card
    ranges = training_ranges(trained / "models" / "ours", model.weights_sha256)
    assert set(ranges) == {"AV45"} and len(ranges["AV45"]) > 60


def test_what_is_learned_is_the_dataset(site, trained):
    """Regional draws for each person trained on lie nearer to their own scan's than to the others'."""
    engine = Synthesizer.load(trained / "models" / "ours")
    scans = sorted((trained / "models" / "ours-training" / "scans").glob("*.npz"))
    assert len(scans) == 6
    known = people(site)
    drawn, load = [], []
    for path in scans:
        row = known[path.name.split("_")[0]]
        names = [spec.name for spec in engine.model.recipe.conditioning.variables]
        record = {n: float(row[n]) for n in names if n in row and n not in ("sex", "apoe4")}
        volumes = torch.ones(1, engine.model.classes)
        drawn.append(engine.regional_draws(record, "AV45", volumes, seed=0, n=64)[:, 1:].mean().item())
        load.append(float(row["simulated_centiloid"]))
    assert np.corrcoef(drawn, load)[0, 1] > 0.5


def test_the_same_command_goes_on_where_it_stopped(site, recipe, trained, capsys):
    weights = load_model(trained / "models" / "ours").weights_sha256
    shutil.rmtree(trained / "models" / "ours")
    command = [str(site), str(trained), "train", "--recipe", str(recipe), "--name", "ours", "--held-out", ".34"]
    assert main(command) == 0
    assert load_model(trained / "models" / "ours").weights_sha256 == weights
    assert "anew" not in capsys.readouterr().err


def test_scans_that_cannot_be_used_are_told_and_the_others_go_on(site, recipe, trained, tmp_path, capsys):
    copy = tmp_path / "bids"
    shutil.copytree(site, copy, symlinks=True)
    first, second = sorted(copy.glob("sub-*/pet/*_pet.nii.gz"))[:2]
    first.write_bytes(b"")
    shutil.rmtree(second.parents[1] / "anat")
    out = tmp_path / "out"
    (out / "models").mkdir(parents=True)
    # what was prepared is found again by its content, wherever the dataset lies
    shutil.copytree(trained / "models" / "ours-training", out / "models" / "ours-training")
    assert main([str(copy), str(out), "train", "--recipe", str(recipe), "--name", "ours", "--held-out", ".34"]) == 0
    told = {row["participant_id"]: row for row in table(out)}
    assert (
        told[first.name.split("_")[0]]["status"] == "left out" and "empty" in told[first.name.split("_")[0]]["reason"]
    )
    assert "no T1w" in told[second.name.split("_")[0]]["reason"]
    assert sum(row["status"] == "used" for row in told.values()) == 4
    assert "anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pet-window", "70", "50"], "the first before the second"),
        (["--tracer", "AV1451"], "no PET of AV1451; it has AV45"),
        (["--tracer", "nonsense"], "nonsense"),
        (["--name", "a/b"], "no folder name"),
        (["--recipe", "nothing"], "There is no recipe nothing"),
    ],
)
def test_wrong_options_get_a_sentence(site, tmp_path, capsys, options, said):
    assert main([str(site), str(tmp_path / "out"), "train", *options]) in (1, 2)
    assert said in capsys.readouterr().err


def test_too_few_people_get_a_sentence(site, tmp_path, capsys):
    copy = tmp_path / "bids"
    shutil.copytree(site, copy)
    folders = sorted(copy.glob("sub-*"))[:3]
    for folder in folders[:2]:
        shutil.rmtree(folder / "pet")
    some = [folder.name for folder in folders]
    assert main([str(copy), str(tmp_path / "out"), "train", "--participant-label", *some]) == 2
    assert "Only 1 participants" in capsys.readouterr().err
