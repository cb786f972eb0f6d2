"""A tiny recipe and model for the tests of models and training."""

from __future__ import annotations

import torch

from bids_petsynth.models.autoencoder import build_space
from bids_petsynth.models.conditioning import Standardisation
from bids_petsynth.models.denoiser import build_denoiser
from bids_petsynth.models.folder import Model, build_regional
from bids_petsynth.models.recipe import Recipe, load_recipe

SHAPE = (16, 24, 16)
CLASSES = 5


def small_recipe(**changes) -> Recipe:
    """The built-in recipe on a tiny grid with a tiny network; ``changes`` replace fields of its parts."""
    data = load_recipe("petsynth").model_dump(mode="json")
    data["grid"]["shape"] = list(SHAPE)
    data["network"] |= {"channels": [16, 24], "groups": 4, "embedding": 32}
    data["process"]["steps"] = 3
    data["regional"] |= {"width": 16, "blocks": 1, "steps": 4, "people": 4, "training_steps": 4, "batch": 4}
    data["training"] |= {"steps": 6, "batch": 2, "warmup": 2, "pool": 3, "refresh": 2}
    for part, values in changes.items():
        data[part] = (data[part] or {}) | values if isinstance(values, dict) else values
    return Recipe.model_validate(data)


def with_autoencoder(**changes) -> Recipe:
    """:func:`small_recipe` with a tiny autoencoder, judged by a critic, in the codec's place."""
    data = small_recipe(**changes).model_dump(mode="json")
    data["space"] = {
        "kind": "autoencoder",
        "channels": [2, 4],
        "groups": 2,
        "latent_channels": 2,
        "training_steps": 6,
        "adversarial": 0.02,
    }
    return Recipe.model_validate(data)


def small_model(recipe: Recipe | None = None, trained: bool = True, classes: int = CLASSES) -> Model:
    """A model with random weights; ``trained`` gives the output layers weights too, so that all inputs matter."""
    recipe = recipe or small_recipe()
    torch.manual_seed(0)
    net, regional = build_denoiser(recipe, classes), build_regional(recipe, classes)
    if trained:
        for part in filter(None, (net, regional)):
            for parameter in part.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.05)
    n = len(recipe.conditioning.variables)
    return Model(
        recipe=recipe,
        denoiser=net.eval(),
        regional=regional.eval() if regional else None,
        space=build_space(recipe),
        latent_mean=(0.5,) * recipe.latent_channels,
        latent_sd=(0.6,) * recipe.latent_channels,
        variables=Standardisation((1.0,) * n, (2.0,) * n),
        classes=classes,
        version="2026-01-01",
        heads=("phantom",),
        demonstration=True,
        card="# Card of a test model\n",
        scaling=dict.fromkeys(
            recipe.conditioning.sources, ((0.5,) * recipe.latent_channels, (0.6,) * recipe.latent_channels)
        ),
    )
