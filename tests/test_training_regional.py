"""Pre-training on regional values: what is planted must be learned, and missing values must give the mean."""

from __future__ import annotations

import numpy as np
import torch
from models_small import CLASSES, small_model, small_recipe

from bids_petsynth.models.conditioning import fit_standardisation, record_matrix, standardise, tracer_index
from bids_petsynth.models.denoiser import Denoiser
from bids_petsynth.training.regional import RegionalPeople, pretrain


def planted(n: int = 400) -> tuple[RegionalPeople, np.ndarray]:
    """People whose regions rise with the logarithm of p-tau217 in AV45, and with nothing in FDG."""
    rng = np.random.default_rng(0)
    load = rng.standard_normal(n)
    records = tuple({"age": 70.0, "sex": 0.0, "ptau217_lumipulse": float(np.exp(0.5 * x))} for x in load)
    means = torch.full((n, 3, CLASSES), 1.0)
    means[:, 0, 1:] += 0.3 * torch.from_numpy(load).float()[:, None]
    return RegionalPeople(records, means), load


def test_planted_relation_is_learned():
    from dataclasses import replace

    recipe = small_recipe()
    people, load = planted()
    torch.manual_seed(0)
    matrix = record_matrix(people.records, recipe.conditioning.variables)
    model = replace(small_model(recipe), denoiser=Denoiser(recipe, CLASSES), variables=fit_standardisation(matrix))
    final = pretrain(model, people, steps=400, batch=64)
    net, painter = model.denoiser, model.denoiser.painter
    sd, mean = np.mean(model.latent_sd), np.mean(model.latent_mean)
    assert final < 0.5 * 0.3**2 / sd**2 / 3  # a constant would leave the variance of AV45, a third of the examples
    values, mask = standardise(matrix, model.variables)
    width = painter.values.out_features // painter.channels

    def expected(known: torch.Tensor, tracer: str) -> np.ndarray:
        n = len(values)
        noise = torch.zeros(n, width * painter.channels)
        with torch.no_grad():
            codes = torch.full((n,), tracer_index(tracer))
            embedding = painter.mix(net.embedding(values, known, codes, torch.ones(n)) + painter.read(noise))
            return painter.values(embedding).view(n, painter.channels, width).mean(1)[:, 1].numpy() * sd + mean

    slope = np.polyfit(load, expected(mask, "AV45"), 1)[0]
    assert 0.2 < slope < 0.4
    assert abs(np.polyfit(load, expected(mask, "FDG"), 1)[0]) < 0.05
    blind = expected(torch.zeros_like(mask), "AV45")
    assert np.ptp(blind) < 1e-4 and abs(blind.mean() - 1.0) < 0.15
