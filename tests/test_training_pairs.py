"""Pairs for the generator: geometry of the jitter, the pool, and a whole tiny training run on phantom heads."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import torch
from models_small import small_recipe
from scipy import stats
from scipy.ndimage import gaussian_filter

from bids_petsynth.errors import UsageError
from bids_petsynth.models.folder import calibration_text, load_model, put_files, training_ranges
from bids_petsynth.training import calibration, pairs
from bids_petsynth.training.card import SPREAD_TITLE, spread_section
from bids_petsynth.training.generator import Run, train
from bids_petsynth.training.pairs import (
    Heads,
    Pool,
    TrainingCase,
    identity_coordinates,
    jitter,
    load_heads,
    pull,
    vary_intensity,
)
from bids_petsynth.training.simulated import SimulatedGround
from bids_petsynth.training.validation import cortex, evaluate, region_means, spread_factor, target_and_rest

SHAPE = (32, 48, 32)
CLASSES = 48


def recipe_here():
    return small_recipe(grid={"shape": list(SHAPE)}, tracers=["AV45", "FDG"])


def phantom_heads(n: int = 3) -> Heads:
    """Concentric shells of a few regions, around a ventricle, a cerebellum and a brainstem below."""
    x, y, z = np.meshgrid(*(np.arange(s) - (s - 1) / 2 for s in SHAPE), indexing="ij")
    radius = np.sqrt(x**2 + (y / 1.4) ** 2 + (z - 2) ** 2)
    classes = np.zeros(SHAPE, np.uint8)
    classes[radius < 14] = 50
    classes[radius < 12] = 47
    classes[radius < 11] = np.where(y > 0, 1, 18)[radius < 11]
    classes[radius < 8] = 34
    classes[radius < 3] = 40
    low = radius < 11
    classes[low & (z < -5)] = 43
    classes[low & (z < -5) & (abs(x) < 3)] = 46
    classes[low & (abs(z + 5) < 1) & (abs(x) < 2) & (abs(y) < 2)] = 42
    contrast = np.zeros(60, np.float32)
    contrast[[50, 47, 1, 18, 34, 40, 43, 46, 42]] = [0.8, 0.2, 0.6, 0.65, 1.0, 0.2, 0.6, 0.95, 0.2]
    t1w = gaussian_filter(contrast[classes], 0.5).astype(np.float16)
    brain = np.where(classes < CLASSES, classes, 0)
    shares = np.stack([(brain == k).reshape(16, 2, 24, 2, 16, 2).mean((1, 3, 5)) for k in range(CLASSES)])
    names = tuple(["IXI001", "IXI002", "IXI353"][:n])
    stack = [np.stack([a] * n) for a in (t1w, classes, brain.astype(np.uint8), (shares * 255).round().astype(np.uint8))]
    return Heads(*stack, names)


def save(heads: Heads, path):
    np.savez(path, **{name: np.asarray(value) for name, value in vars(heads).items()})
    return path


def test_identity_coordinates_leave_an_image_as_it_is():
    image = torch.rand(2, 8, 6, 4)
    assert torch.allclose(pull(image, identity_coordinates((8, 6, 4))), image, atol=1e-5)


def test_jitter_is_rigid_and_mirrors_half_the_time():
    rng = torch.Generator().manual_seed(0)
    shape, mirrored = (24, 32, 20), 0
    for _ in range(40):
        moved = jitter(identity_coordinates(shape), rng)
        x = (moved.flip(0) + 1) / 2 * torch.tensor(shape).view(3, 1, 1, 1)
        inner = tuple(slice(n // 2 - 2, n // 2 + 2) for n in shape)
        jacobian = torch.stack([x[(slice(None), *inner)].diff(dim=a)[:, :3, :3, :3] for a in (1, 2, 3)], 1)
        matrix = jacobian.flatten(2).mean(2)
        assert torch.allclose(matrix @ matrix.T, torch.eye(3), atol=1e-3)
        mirrored += int(torch.linalg.det(matrix) < 0)
    assert 10 <= mirrored <= 30


def test_intensity_changes_keep_white_matter_near_one():
    rng = torch.Generator().manual_seed(0)
    white = [vary_intensity(torch.ones(12, 12, 12), rng).mean().item() for _ in range(50)]
    assert min(white) > 0.8 and max(white) < 1.2 and np.std(white) > 0.01


def fake_case(number: int) -> TrainingCase:
    value = torch.full((4, 4, 4), float(number))
    return TrainingCase(
        "h", value, value.long(), value.long(), value[None] * 0, {"age": number}, {}, {"AV45": value, "FDG": -value}
    )


def test_the_pool_moves_on_and_is_the_same_after_a_restart():
    made = []

    def make(number):
        made.append(number)
        return fake_case(number)

    pool = Pool(make, lambda pet: pet[:, None], start=4, size=6, refresh=2, targets=("AV45", "FDG"))
    assert pool.numbers(0) == range(4) and pool.numbers(4) == range(6) and pool.numbers(20) == range(8, 14)
    for step in range(21):
        batch = pool.batch(step, 3, torch.Generator().manual_seed(step))
        for record, tracer, latent in zip(batch.records, batch.tracers, batch.latents, strict=True):
            assert latent.mean().item() == record["age"] * (1 if tracer == "AV45" else -1)
    assert len(made) == len(set(made)), "each person is simulated once"
    assert {r["age"] for r in batch.records} <= set(pool.numbers(20))
    again = Pool(fake_case, lambda pet: pet[:, None], start=4, size=6, refresh=2, targets=("AV45", "FDG"))
    assert torch.equal(again.batch(20, 3, torch.Generator().manual_seed(20)).latents, batch.latents)


def test_prepared_arrays_must_fit_the_recipe(tmp_path):
    heads = phantom_heads()
    assert load_heads(save(heads, tmp_path / "a.npz"), recipe_here()).names == heads.names
    with pytest.raises(UsageError, match="prepare the heads for this recipe"):
        load_heads(tmp_path / "a.npz", small_recipe())
    np.savez(tmp_path / "b.npz", t1w=heads.t1w)
    with pytest.raises(UsageError, match="lacks the array"):
        load_heads(tmp_path / "b.npz", recipe_here())


def test_simulated_cases_agree_in_space_and_come_again():
    heads = phantom_heads()
    one, two = (pairs.simulate_case(heads, ["AV45", "FDG"], 2.0, 3, 7) for _ in range(2))
    assert torch.equal(one.pet["FDG"], two.pet["FDG"]) and one.record == two.record
    assert not torch.equal(one.t1w, pairs.simulate_case(heads, [], 2.0, 3, 8).t1w)
    assert torch.allclose(one.labels.sum(0), torch.ones(16, 24, 16), atol=0.02)
    coarse = torch.nn.functional.avg_pool3d((one.classes == 34).float()[None, None], 2)[0, 0]
    inside = (coarse > 0.99) | (one.labels[34] > 0.99)
    assert (one.labels[34] - coarse)[inside].abs().mean() < 0.15
    brain = (one.classes > 0) & (one.classes < CLASSES)
    assert one.pet["AV45"][brain].mean() > 2 * one.pet["AV45"][one.classes == 0].mean()
    assert {"age", "sex", "apoe4", "ptau217_lumipulse"} <= set(one.record)


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
    old, new = (spread_section({"AV45": factor}, {}, False) for factor in (1.5, 0.5))
    card = f"# Card\n\n{old}\n{after}"
    assert calibration.with_section(card, new) == card.replace("1.50", "0.50")
    assert calibration.with_section("# Card\n", new) == f"# Card\n\n{new}\n"


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


def test_a_tiny_run_trains_resumes_and_writes_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("bids_petsynth.training.simulated.CALIBRATION_PEOPLE", 2)
    monkeypatch.setattr("bids_petsynth.training.simulated.FIRST_PEOPLE", 2)
    monkeypatch.setattr("bids_petsynth.training.simulated.RANGE_PEOPLE", 3)
    monkeypatch.setattr("bids_petsynth.training.simulated.REGIONAL_CALIBRATION_PEOPLE", 40)
    monkeypatch.setattr("bids_petsynth.training.simulated.NORMAL_PEOPLE", 0)  # these heads have no cortex to speak of
    arrays = save(phantom_heads(), tmp_path / "heads.npz")
    recipe = recipe_here()
    train(SimulatedGround(arrays, recipe), recipe, Run(tmp_path / "out", resume=False, validate=0))
    model = load_model(tmp_path / "out" / "model")
    assert model.heads == ("IXI001", "IXI002") and model.demonstration and set(model.spread) == {"AV45", "FDG"}
    assert "IXI353" in model.card and "simulated PET only" in model.card
    assert "nan" not in model.card.split("| AV45")[1][:60]
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["spread"] == model.spread and figures["target_spread"] == model.target_spread
    # the same people give the same factors again, and everything else in the folder stays
    folder, card = tmp_path / "out" / "model", model.card
    files = {name: (folder / name).read_bytes() for name in ("regions.tsv", "weights-00001.safetensors")}
    put_files(folder, {"calibration.json": calibration_text({"AV45": 9.0, "FDG": 9.0}, {}).encode()})
    calibration.main([str(arrays), str(folder)])
    model = load_model(folder)
    assert model.spread == pytest.approx(figures["spread"], rel=0.02)  # the weights are in half precision now
    assert model.target_spread == pytest.approx(figures["target_spread"], rel=0.02)
    assert files == {name: (folder / name).read_bytes() for name in files}
    parts, before = re.split(r"\n(?=## )", model.card), re.split(r"\n(?=## )", card)
    assert [a for a, b in zip(parts, before, strict=True) if not a.startswith(SPREAD_TITLE) and a != b] == []
    ranges = training_ranges(tmp_path / "out" / "model", model.weights_sha256)
    assert set(ranges) == {"AV45", "FDG"} and "left_superior_frontal" in ranges["FDG"]
    assert training_ranges(tmp_path / "out" / "model", "another") == {}
    row = {k: float(ranges["AV45"]["left_superior_frontal"][k]) for k in ("p05", "mean", "p95", "sd")}
    assert 0 < row["p05"] < row["mean"] < row["p95"] and row["sd"] > 0
    steps = [int(r["step"]) for r in csv.DictReader((tmp_path / "out" / "log.csv").open())]
    longer = recipe.model_copy(update={"training": recipe.training.model_copy(update={"steps": 8})})
    train(SimulatedGround(arrays, longer), longer, Run(tmp_path / "out", validate=0))
    assert [int(r["step"]) for r in csv.DictReader((tmp_path / "out" / "log.csv").open())] == [*steps, 8]


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
    assert row["mae_of_mean"] == pytest.approx(np.nanmean(np.abs(truth[1] - truth[0])) / 2, abs=1e-6)
    assert row["true_positive"] - row["true_negative"] == pytest.approx(0.9, abs=0.03)
    assert spread["AV45"] == pytest.approx(1 / 3)


def test_a_simulated_person_is_scanned_with_pet_alone_though_a_t1w_is_drawn_too(tmp_path):
    changes = {"images": [], "sources": ["T1w", "T2w", "FDG"]}
    recipe = small_recipe(
        grid={"shape": list(SHAPE)}, tracers=["AV45", "T1w"], regional=None, conditioning=changes, training={"pool": 1}
    )
    ground = SimulatedGround(save(phantom_heads(), tmp_path / "a.npz"), recipe)
    # a source that is no target is scanned as well
    assert set(ground.case(0).pet) == {"AV45", "FDG"}
    assert [set(case.pet) for case in ground.held_cases(1)] == [{"AV45", "FDG"}]
    assert ground._tracers[0] == ("AV45",)
