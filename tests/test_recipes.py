"""Every recipe from a BIDS folder to a model and a PET, at toy size."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_recipes import RECIPES, coarse_preparation, shrunk

from bids_petsynth.cli.main import main
from bids_petsynth.models.folder import load_model
from bids_petsynth.models.recipe import load_recipe, recipe_text
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.training.real import Stored, load_case


@pytest.fixture(scope="module")
def site_with_t2w(site, tmp_path_factory) -> Path:
    """The same people, each with a T2w."""
    copy = tmp_path_factory.mktemp("t2w") / "bids"
    shutil.copytree(site, copy, symlinks=True)
    for t1w in copy.glob("sub-*/anat/*_T1w.nii.gz"):
        shutil.copy(t1w, t1w.with_name(f"{t1w.name.split('_')[0]}_T2w.nii.gz"))
    return copy


@pytest.fixture(scope="module")
def trained(request, site_with_t2w, prepared_site, tmp_path_factory) -> Path:
    """The folder that ``train`` wrote for one recipe."""
    recipe, site = shrunk(request.param), site_with_t2w
    out = tmp_path_factory.mktemp("out")
    training = out / "models" / f"{recipe.name}-training"
    coarse_preparation(site, prepared_site, recipe, training)
    made = {path: path.stat().st_mtime_ns for path in training.rglob("*.npz")}
    path = out / "recipe.toml"
    path.write_text(recipe_text(recipe))
    command = [str(site), str(out), "train", "--recipe", str(path), "--held-out", ".34", "--name", recipe.name]
    assert main(command) == 0
    assert made == {path: path.stat().st_mtime_ns for path in training.rglob("*.npz")}, "what was prepared is not taken"
    return out / "models" / recipe.name


def people(site: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Records of the participants with least and most amyloid."""
    with (site / "participants.tsv").open() as file:
        rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: float(row["simulated_centiloid"]))
    numbers = [{k: float(v) for k, v in row.items() if v.replace(".", "", 1).isdigit()} for row in rows]
    return numbers[0], numbers[-1]


@pytest.mark.parametrize("trained", RECIPES, indirect=True)
def test_a_dataset_becomes_a_model_that_draws_pet(trained, site):
    model, training = load_model(trained), trained.parent / f"{trained.name}-training"
    assert model.recipe.name == trained.name and "AV45" in model.recipe.tracers
    with (training / "log.csv").open() as file:
        assert all(np.isfinite(float(row["loss"])) for row in csv.DictReader(file))
    engine = Synthesizer.load(trained)
    case = load_case(Stored("", next((training / "heads").glob("*.npz")), {}, {}))
    who = people(site)
    low, high = (engine.sample(case.t1w[None], case.labels[None], one, "AV45", 2, seed=1) for one in who)
    assert low.shape == (2, *model.recipe.grid.shape) and np.isfinite(low).all()
    again = engine.sample(case.t1w[None], case.labels[None], who[0], "AV45", 2, seed=1)
    np.testing.assert_array_equal(low, again)
    # the record reaches the image of a recipe that was shown it, and only the recipes without noise draw the same twice
    assert np.abs(low - high).max() > 1e-4
    assert np.allclose(low[0], low[1]) == model.recipe.draws_alike
    if model.regional is not None:
        brain = case.measured.numpy() > 0
        assert high[:, brain].mean() > low[:, brain].mean() + 0.02


@pytest.mark.parametrize("trained", ["acadiff"], indirect=True)
def test_a_t2w_is_trained_on_and_taken_by_participant(trained, site_with_t2w, capsys):
    with (trained.parent / "acadiff-training" / "pairs.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["status"] for row in rows if row["tracer"] == "T2w"] == ["used"] * 6
    model = load_model(trained)
    assert "T2w" in model.scaling and "T2w scans" in model.card
    assert "given all other scans of the person" in model.card
    command = [str(site_with_t2w), str(trained.parents[1]), "participant", "--model", str(trained), "--dry-run"]
    assert main(command) == 0
    assert "_T2w.nii.gz" in capsys.readouterr().out


def test_every_recipe_cites_its_source_and_is_tried_here():
    from bids_petsynth.tables import data_path

    names = {path.stem for path in data_path("recipes").glob("*.toml")}
    assert names == set(RECIPES)
    for name in names:
        recipe = load_recipe(name)
        assert recipe.name == name and any(word in recipe.source for word in ("arXiv", "et al."))
        assert torch.isfinite(torch.tensor(recipe.training.rate))
