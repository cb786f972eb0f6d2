"""Every recipe from a BIDS folder to a model and a PET, at toy size."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_petsynth.cli.main import main
from bids_petsynth.models.folder import load_model
from bids_petsynth.models.recipe import Recipe, load_recipe, recipe_text
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.training.real import Stored, load_case

RECIPES = (
    "petsynth",
    "language",
    "pasta",
    "mri2pet",
    "acadiff",
    "cldm",
    "regression",
    "attention-unet",
    "gan",
    "ddpm3d",
)


def shrunk(name: str) -> Recipe:
    """A built-in recipe with tiny networks on coarse voxels; all its choices but sizes and steps stay."""
    data = load_recipe(name).model_dump(mode="json")
    data["network"] |= {"channels": [8, 16], "groups": 4, "embedding": 16, "blocks": 1, "slices": 12, "stride": 6}
    if data["space"]["kind"] == "codec" and data["space"]["fold"] == 1:
        data["space"]["cutoff"] = 0.0625
    if data["space"]["kind"] == "autoencoder":
        data["space"] |= {"channels": [2, 4, 4], "groups": 2, "latent_channels": 2, "training_steps": 1}
    data["process"]["steps"] = min(3, data["process"]["steps"])
    if data["conditioning"]["text"]:
        # no packaged encoder is needed for this one
        data["conditioning"]["text"] |= {"encoder": "hashed", "width": 32, "tokens": 8}
    if data["regional"]:
        data["regional"] |= {"width": 16, "blocks": 1, "steps": 4, "training_steps": 40, "batch": 8}
    if data["pretraining"]:
        data["pretraining"]["steps"] = 2
    batch = 1 if data["space"]["kind"] == "autoencoder" else 2  # it works on full volumes
    data["training"] |= {"steps": 4, "batch": batch, "warmup": 0, "ema": 0.5, "rate": 3e-3, "tensorboard": False}
    return Recipe.model_validate(data)


@pytest.fixture(scope="module")
def trained(request, site, prepared_site, tmp_path_factory) -> Path:
    """The folder that ``train`` wrote for one recipe."""
    recipe = shrunk(request.param)
    out = tmp_path_factory.mktemp("out")
    for part in ("heads", "scans"):
        shutil.copytree(prepared_site / part, out / "models" / f"{recipe.name}-training" / part)
    path = out / "recipe.toml"
    path.write_text(recipe_text(recipe))
    command = [str(site), str(out), "train", "--recipe", str(path), "--held-out", ".34", "--name", recipe.name]
    assert main(command) == 0
    return out / "models" / recipe.name


@pytest.mark.parametrize("trained", RECIPES, indirect=True)
def test_a_dataset_becomes_a_model_that_draws_pet(trained, prepared_site):
    model = load_model(trained)
    assert model.recipe.name == trained.name and "AV45" in model.recipe.tracers
    with (trained.parent / f"{trained.name}-training" / "log.csv").open() as file:
        assert all(np.isfinite(float(row["loss"])) for row in csv.DictReader(file))
    engine = Synthesizer.load(trained)
    case = load_case(Stored("", next((prepared_site / "heads").glob("*.npz")), {}, {}))
    people = {"age": 60, "apoe4": 0, "ptau217_lumipulse": 0.08}, {"age": 85, "apoe4": 2, "ptau217_lumipulse": 0.9}
    one, two = (engine.sample(case.t1w[None], case.labels[None], who, "AV45", 2, seed=1) for who in people)
    assert one.shape == (2, 96, 112, 96) and np.isfinite(one).all()
    again = engine.sample(case.t1w[None], case.labels[None], people[0], "AV45", 2, seed=1)
    np.testing.assert_array_equal(one, again)
    # the record reaches the image of a recipe that was shown it, and only the recipes without noise draw the same twice
    assert np.abs(one - two).max() > 1e-4
    alike = model.recipe.process.kind == "direct" and not model.recipe.process.noise
    assert np.allclose(one[0], one[1]) == alike


def test_every_recipe_cites_its_source_and_is_tried_here():
    from bids_petsynth.tables import data_path

    names = {path.stem for path in data_path("recipes").glob("*.toml")}
    assert names == set(RECIPES)
    for name in names:
        recipe = load_recipe(name)
        assert recipe.name == name and any(word in recipe.source for word in ("arXiv", "et al."))
        assert torch.isfinite(torch.tensor(recipe.training.rate))
