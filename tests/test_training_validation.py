"""Figures of a generator and the calibration of its draws, against planted errors and closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from heads_small import SHAPE, phantom_heads
from models_small import small_model, small_recipe
from scipy import stats

from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.training import calibration, validation
from bids_petsynth.training.card import conditioning, figures_section, others_section, spread_section
from bids_petsynth.training.pairs import (
    TrainingCase,
)
from bids_petsynth.training.validation import cortex, evaluate, region_means, spread_factor, target_and_rest


def test_region_means_and_cortex():
    classes = phantom_heads(1).classes[0]
    volume = np.where(classes == 1, 2.0, np.where(classes == 18, 1.0, 0.5))[None]
    means = region_means(volume, classes)
    assert means[0, 1] == 2.0 and means[0, 18] == 1 and means[0, 34] == 0.5 and np.isnan(means[0, 2])
    sizes = [(classes == k).sum() for k in (1, 18)]
    assert cortex(means, classes)[0] == pytest.approx(np.average([2, 1], weights=sizes))


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_spread_factor_finds_how_much_too_narrow_the_draws_are(ratio):
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((400, 30))
    truth = centre + ratio * rng.standard_normal((400, 30))
    draws = centre[:, None] + rng.standard_normal((400, 4, 30))
    # the error of the draws' mean has two parts: the truth's spread and their own spread / M
    expected = np.sqrt((ratio**2 + 1 / 4) * 4 / 5)
    assert spread_factor(truth, draws) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("after", ["", "\n## Training\nLong.\n", "\nA word on them.\n"])
def test_a_card_gets_new_spread_factors_and_keeps_the_rest(after):
    old, new = (spread_section(replace(small_model(), spread={"AV45": factor}), False) for factor in (1.5, 0.5))
    card = f"# Card\n\n{old}\n{after}"
    assert calibration.with_section(card, new) == card.replace("1.50", "0.50")
    assert calibration.with_section("# Card\n", new) == f"# Card\n\n{new}\n"


def test_a_card_gets_new_figures_beside_other_tables():
    row = {"mae": 0.1, "mae_of_mean": 0.2, "bias": -0.01, "voxel_r": 0.9, "people": 24}
    old, new = (figures_section({"AV45": row | {"mae": mae}}, True) for mae in (0.123, 0.111))
    spread = spread_section(replace(small_model(), spread={"AV45": 1.5}), True)
    card = f"# Card\n\n{old}\n\nThey verify.\n\n{spread}\n"
    assert calibration.with_section(card, new) == card.replace("0.123", "0.111")
    assert new.endswith("| AV45 | 0.111 | 0.200 | -0.010 | 0.900 | n/a / n/a | n/a / n/a | 24 |")


@pytest.mark.parametrize("n", [20, 60])
def test_a_factor_of_few_scans_covers_as_promised_on_average(n):
    rng = np.random.default_rng(n)
    factors = [spread_factor(rng.standard_normal((n, 1)), rng.standard_normal((n, 256, 1))) for _ in range(400)]
    covered = 2 * stats.norm.cdf(np.multiply.outer(factors, stats.norm.ppf([0.9, 0.975]))) - 1
    # two levels in one factor: neither is exact with so few
    np.testing.assert_allclose(covered.mean(0), [0.8, 0.95], atol=0.02)


def test_the_target_and_the_rest_of_the_regions_are_calibrated_apart():
    """Draws whose common part is planted too wide and whose regions' own parts are planted too narrow."""
    rng = np.random.default_rng(1)
    n, m, k, common, own = 1500, 128, 20, 1.5, 0.7
    slopes, weights = rng.uniform(0.5, 1.5, k), np.tile(np.arange(k) < 8, (n, 1)) / 8

    def scans(common: float, own: float, shape: tuple[int, ...]) -> np.ndarray:
        rest = own * rng.standard_normal((*shape, k))
        rest -= (rest @ weights[0])[..., None]  # the regions' own parts leave the target as it is
        return common * slopes * rng.standard_normal((*shape, 1)) + rest

    truth, draws = scans(1, 1, (n,)), scans(common, own, (n, m))
    of_target, of_rest = target_and_rest(truth, draws, weights)
    # the line of a region on the target takes the planted common part up; the error holds the mean of m draws too
    assert of_target == pytest.approx(1 / common, rel=0.05) and of_rest == pytest.approx(1 / own, rel=0.05)
    assert target_and_rest(truth[:4], draws[:4], weights[:4]) == (1, 1)
    few = target_and_rest(truth[:20], draws[:20], weights[:20])
    assert few[0] == few[1] == spread_factor(truth[:20], draws[:20])
    # regions outside the target that nobody knows are no matter of the target's
    unknown = np.where(np.arange(k) >= 15, np.nan, truth)
    assert target_and_rest(unknown, draws, weights)[0] == pytest.approx(of_target)
    assert target_and_rest(truth, np.zeros_like(draws), weights) == (1, 1)
    # with a target that is right already, both are what one factor for all would be
    assert target_and_rest(truth, scans(1, 1, (n, m)), weights) == pytest.approx((1, 1), rel=0.05)


def test_evaluation_of_a_perfect_model():
    """A synthesizer that returns the truth, at any scale, has no error, and correlates perfectly."""
    from bids_petsynth.simulation.uptake import reference_mask

    classes = torch.from_numpy(phantom_heads(1).classes[0].astype(np.int64))
    reference = reference_mask(classes[None], "AV45", 2.0)[0]
    rng = torch.Generator().manual_seed(0)
    cases = []
    for load in (0.0, 90.0):
        scan = torch.rand(SHAPE, generator=rng) + torch.where(reference, 0, load / 100)
        scan[reference] += 1 - scan[reference].mean()
        cases.append(TrainingCase("h", scan, classes, classes, classes[None], {}, {"centiloid": load}, {"AV45": scan}))

    class Perfect:
        tracers = ("AV45",)

        def sample(self, t1w, labels, record, tracer, n, seed, given):
            assert set(given) == {"T1w", "AV45"}  # of which a recipe takes its sources
            offsets = torch.linspace(-0.015, 0.015, n)[:, None, None, None] * ~reference
            return ((t1w + offsets) * torch.linspace(0.5, 2, n)[:, None, None, None]).numpy()

    figures, spread = evaluate(Perfect(), 4 * cases, 4, 2.0)
    row = figures["AV45"]
    assert row["mae"] < 1e-6 and row["voxel_r"] > 0.9999
    truth = [region_means(case.pet["AV45"][None].numpy(), classes.numpy())[0, 1:] for case in cases]
    everyone = np.stack(4 * truth)
    others = [np.abs(np.delete(everyone, k, 0).mean(0) - everyone[k]) for k in range(len(everyone))]
    assert row["mae_of_mean"] == pytest.approx(np.nanmean(others), abs=1e-6)
    assert row["true_positive"] - row["true_negative"] == pytest.approx(0.9, abs=0.03)
    assert spread["AV45"] == pytest.approx(1 / 3)
    # of one person there are no others, and their value is nobody's to read
    alone = evaluate(Perfect(), cases[:1], 4, 2.0)[0]["AV45"]
    assert not {"mae_of_mean", "true_negative"} & alone.keys()
    assert "| AV45 | 0.000 | n/a | +0.000 |" in figures_section({"AV45": alone | {"bias": 0.0}}, False)


def test_a_drawn_t1w_is_measured_in_the_brain_of_those_who_have_a_source():
    classes = torch.from_numpy(phantom_heads(1).classes[0].astype(np.int64))
    t1w = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    brain = (classes > 0) & (classes < 48)
    conditioning = {"images": [], "sources": ["T1w", "AV45"]}
    recipe = small_recipe(tracers=["AV45", "T1w"], regional=None, conditioning=conditioning)

    def case(**pet):
        return TrainingCase("h", t1w, classes, classes, classes[None], {}, {}, pet)

    class Planted:
        model, tracers = small_model(recipe), ("AV45",)

        def sample(self, t1w, labels, record, tracer, n, seed, given):
            assert tracer == "T1w" and "AV45" in given
            # the mean over draws is off by 0.1 in the brain and by much outside
            offsets = 0.1 + torch.linspace(-0.3, 0.3, n)[:, None, None, None]
            return torch.where(brain, t1w + offsets, 9.0).numpy()

    figures = validation.evaluate_others(Planted(), [case(AV45=t1w), case()], 4)
    assert set(figures) == {"T1w"} and figures["T1w"]["people"] == 1
    assert figures["T1w"]["mae"] == pytest.approx(0.1, abs=1e-6)
    assert figures["T1w"]["psnr"] == pytest.approx(20 * np.log10(2 / 0.1), abs=1e-4)
    assert figures["T1w"]["ssim"] < 1
    told = others_section(figures)
    assert "| T1w | 0.100 | 26.0 |" in told and others_section({}) == ""
    # figures of PET that are measured again leave it where it is
    row = dict.fromkeys(("mae", "mae_of_mean", "bias", "voxel_r"), 0.5) | {"people": 1}
    card = f"# Card\n\n{figures_section({'AV45': row}, False)}{told}\n\n## Training\n"
    assert calibration.with_section(card, figures_section({"AV45": row}, False)) == card


@pytest.mark.parametrize(
    ("changes", "notes", "told"),
    [
        ({}, False, "T1w, label probabilities, tracer, and of the record (any may be missing"),
        (
            {"conditioning": {"images": [], "sources": ["T1w", "FDG", "CT"]}, "tracers": ["AV45", "T1w"]},
            False,
            "any of T1w, FDG, target, and of the record (any",
        ),
        (
            {"conditioning": {"images": [], "sources": ["FDG", "T1w"], "fusion": "concatenation"}},
            False,
            "one of FDG, T1w, tracer, and of the record (any",
        ),
        ({"conditioning": {"images": [], "sources": ["T1w", "CT"]}}, False, "T1w, tracer, and of the record (any"),
        (
            {"conditioning": {"images": ["t1w"], "text": {"style": "numbers", "encoder": "/a/place/ours"}}},
            True,
            "T1w, tracer, and of the record as numbers and in words (prompt style `numbers`, encoder `ours`, with",
        ),
        (
            {"conditioning": {"images": ["t1w"], "variables": [], "text": {}}},
            False,
            "T1w, tracer, and a text (prompt style `template`, encoder `minilm`, without notes).",
        ),
        ({"conditioning": {"images": ["t1w"], "numeric": False}}, False, "T1w, tracer."),
    ],
)
def test_a_card_tells_what_the_network_is_given(changes, notes, told):
    model = small_model(small_recipe(**({"regional": None} | changes)))
    # no CT was seen in training
    model = replace(model, scaling={name: pair for name, pair in model.scaling.items() if name != "CT"})
    assert conditioning(model, notes).startswith(told)


def test_texture_gains_undo_what_was_planted(monkeypatch):
    """Scans are noise; draws are other noise whose cosine waves were weakened as planted, and have other levels."""
    recipe = small_recipe(grid={"shape": list(SHAPE)}, tracers=["AV45", "FDG"])
    model = replace(small_model(recipe), texture={"AV45": (9.0,)})
    planted = tuple(np.exp(np.linspace(0.1, 1, 10) ** 2 - 0.5).tolist())
    classes = torch.from_numpy(phantom_heads(1).classes[0].astype(np.int64))
    rng = torch.Generator().manual_seed(0)

    def noise(n: int) -> torch.Tensor:
        return model.space.decode(torch.randn(n, recipe.latent_channels, *recipe.latent_shape, generator=rng))

    class Engine(Synthesizer):
        def sample(self, t1w, labels, record, tracer, n, seed, given):
            latents = self.space.textured(self.space.encode(noise(n)), planted)
            return self.space.decode(self.space.textured(latents, self.model.texture.get(tracer, (1.0,)))).numpy()

    def cases():
        for number in range(60):
            pet = {"AV45": noise(1)[0]} | ({"FDG": noise(1)[0]} if number < 9 else {})
            yield TrainingCase("h", pet["AV45"], classes, classes, classes[None], {}, {}, pet)

    monkeypatch.setattr(validation, "Synthesizer", Engine)
    monkeypatch.setattr(validation, "in_suvr", lambda volumes, *_: 1 + volumes)
    found = validation.texture_gains(Synthesizer(model), cases)
    # nine people tell nothing of FDG
    assert set(found) == {"AV45"}
    np.testing.assert_allclose(np.multiply(found["AV45"], planted), 1, atol=0.08)
