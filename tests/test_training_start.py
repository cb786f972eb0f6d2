"""Training that begins with another model: which ones it can, what it says of the others, and how time is shared."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ground_small import SmallGround
from models_small import small_model, small_recipe, with_autoencoder

from bids_petsynth.cli.main import main
from bids_petsynth.errors import UsageError
from bids_petsynth.models.folder import load_model, save_model
from bids_petsynth.models.recipe import load_recipe
from bids_petsynth.training.generator import Run, _phase_minutes, check_start, train
from bids_petsynth.training.simulated import SimulatedGround

TEXT = {"style": "template", "encoder": "hashed", "width": 32, "tokens": 8}


def worded(alignment: float = 0.0):
    return small_recipe(regional=None, conditioning={"text": TEXT}, losses={"alignment": alignment})


def test_an_adapted_model_does_not_replace_the_one_it_begins_with(tmp_path, capsys):
    folder = tmp_path / "out" / "models" / "ours"
    model = small_model(small_recipe(name="ours"))
    save_model(model, folder)
    before = load_model(folder).fingerprint
    (tmp_path / "bids").mkdir()
    for more in ([], ["--name", "ours"]):
        assert main([str(tmp_path / "bids"), str(tmp_path / "out"), "train", "--init-from", str(folder), *more]) == 2
        assert "give it another --name." in capsys.readouterr().err
    assert load_model(folder).fingerprint == before


def test_a_folder_to_begin_with_that_is_none_is_a_sentence(tmp_path, capsys):
    (tmp_path / "bids").mkdir()
    (tmp_path / "empty").mkdir()
    for name, told in (("nowhere", "There is no model folder"), ("empty", "is not a complete model folder")):
        folder = tmp_path / name
        assert main([str(tmp_path / "bids"), str(tmp_path / "out"), "train", "--init-from", str(folder)]) in (1, 2)
        said = capsys.readouterr().err
        assert told in said and str(folder) in said and "recipe" not in said


@pytest.mark.parametrize(
    ("recipe", "part"),
    [(with_autoencoder(regional=None), "space"), (worded(0.5), "losses.alignment"), (worded(), None)],
)
def test_a_model_that_is_built_in_another_way_is_a_sentence(tmp_path, recipe, part):
    start = small_model(worded() if part != "space" else small_recipe(regional=None))
    if part is None:
        check_start(recipe, start, tmp_path)
        return
    save_model(start, tmp_path / "start")
    with pytest.raises(UsageError, match=f"another `{part}` than the recipe") as caught:
        check_start(recipe, start, tmp_path / "start")
    assert "--recipe" in str(caught.value)
    if part == "space":
        with pytest.raises(UsageError, match="another `space`"):
            train(SmallGround(recipe), recipe, Run(tmp_path / "out", start=tmp_path / "start"))


def test_another_text_encoder_is_a_sentence(tmp_path):
    start = replace(small_model(worded()), text_encoder="one")
    check_start(worded(), start, tmp_path, "one")
    # prompts that are written in another way, or an encoder of another name, are read by the same network
    spec = worded().conditioning
    text = spec.text.model_copy(update={"style": "numbers", "encoder": "elsewhere"})
    check_start(worded().model_copy(update={"conditioning": spec.model_copy(update={"text": text})}), start, tmp_path)
    wide = spec.model_copy(update={"text": spec.text.model_copy(update={"tokens": 16})})
    with pytest.raises(UsageError, match="another `conditioning`"):
        check_start(worded().model_copy(update={"conditioning": wide}), start, tmp_path)
    with pytest.raises(UsageError, match=r"text encoder one, and this training reads with two.*--text-encoder"):
        check_start(worded(), start, tmp_path, "two")


def test_what_builds_no_network_may_differ(tmp_path):
    start, recipe = small_model(small_recipe()), small_recipe()
    asked = {
        "regional": {"rate": 1e-5, "training_steps": 3},
        "conditioning": {"drop_variable": 0.4},
        "process": {"steps": 9, "guidance": 2.0},
    }
    parts = {name: getattr(recipe, name).model_copy(update=fields) for name, fields in asked.items()}
    check_start(recipe.model_copy(update=parts), start, tmp_path)
    with pytest.raises(UsageError, match="another `regional`"):
        wide = recipe.regional.model_copy(update={"width": 512})
        check_start(recipe.model_copy(update={"regional": wide}), start, tmp_path)


def test_phases_that_are_left_out_get_no_time():
    recipe = with_autoencoder(regional=None, pretraining={"steps": 6}, training={"steps": 12})
    assert _phase_minutes(recipe, 48, adapted=False) == {"autoencoder": 12, "pretraining": 12, "paired": 24}
    assert _phase_minutes(recipe, 48, adapted=True) == {"autoencoder": 0, "pretraining": 0, "paired": 48}
    assert _phase_minutes(recipe, None, adapted=True)["paired"] is None


def test_an_adapted_training_goes_on_from_the_others_weights_and_units(tmp_path):
    recipe = small_recipe(regional=None, training={"steps": 2, "rate": 1e-6, "tensorboard": False})
    ground = SmallGround(recipe, tracers=("AV45",))
    first = train(ground, recipe, Run(tmp_path / "first", validate=0))
    other = SmallGround(recipe, 3, tracers=("AV45",))
    second = train(other, recipe, Run(tmp_path / "second", validate=0, start=tmp_path / "first" / "model"))
    assert second.latent_mean == first.latent_mean and second.variables == first.variables
    old, new = (torch.cat([p.flatten() for p in m.denoiser.parameters()]) for m in (first, second))
    assert 0 < (old - new).abs().max() < 1e-3  # the folder keeps half precision
    origin = load_model(tmp_path / "first" / "model").weights_sha256
    assert origin in second.card and "--init-from" in second.card and "--init-from" not in first.card


def test_the_card_names_a_built_in_recipe_only_where_it_is_that(tmp_path):
    recipe = load_recipe("petsynth")
    assert "--recipe petsynth --minutes 5" in SimulatedGround(tmp_path, recipe).command(5)
    for other in (recipe.model_copy(update={"n_draws": 3}), recipe.model_copy(update={"name": "mine"})):
        assert "--recipe recipe.toml" in SimulatedGround(tmp_path, other).command(5)
