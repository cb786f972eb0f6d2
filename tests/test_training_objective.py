"""What a training step minimises, where labels and images lie on different voxels, and PASTA's second noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models_small import SHAPE, small_model, small_recipe

from bids_petsynth.anatomy.regions import n_classes
from bids_petsynth.models.denoiser import build_denoiser
from bids_petsynth.models.recipe import Recipe
from bids_petsynth.training.loop import Share
from bids_petsynth.training.objective import Objective, _other_noise
from bids_petsynth.training.pairs import Pool, TrainingCase


def objective_of(recipe: Recipe) -> Objective:
    """An objective on two random people."""
    model = replace(small_model(recipe), classes=n_classes(), denoiser=build_denoiser(recipe, n_classes()))

    def person(number: int) -> TrainingCase:
        rng = torch.Generator().manual_seed(number)
        labels = torch.rand(n_classes(), *(n // recipe.label_pool for n in SHAPE), generator=rng).softmax(0)
        t1w, pet = torch.rand(2, *SHAPE, generator=rng)
        classes = torch.zeros(SHAPE, dtype=torch.long)
        return TrainingCase("head", t1w, classes, classes, labels, {"age": 70.0}, {}, {"AV45": pet})

    pool = Pool(person, model.space.encode, 2, 2, 100, ("AV45",), recipe.conditioning.sources)
    return Objective(model, pool, "cpu")


@pytest.mark.parametrize("cutoff", [0.25, 0.125, 0.0625])
def test_regions_are_weighed_and_learned_on_voxels_finer_and_coarser_than_labels(cutoff):
    """Voxels of 2, 4 and 8 mm beside labels of 4 mm."""
    losses = {"l1": 1.0, "regions": "learned"}
    space = {"cutoff": cutoff, "fold": 1}
    objective = objective_of(small_recipe(regional=None, space=space, losses=losses, network={"channels": [16]}))
    objective.loss(0, torch.Generator().manual_seed(0), Share(0, 1)).backward()
    assert objective.net.regions["AV45"].log_variance.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(8, 6, 7), (7, 6, 15)])
def test_noise_of_the_other_arm_is_nowhere_the_same_and_as_random(shape):
    noise = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    other = _other_noise(noise)
    assert not (other == noise).any()
    torch.testing.assert_close(other.flatten(1).sort().values, noise.flatten(1).sort().values)
