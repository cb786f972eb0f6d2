"""Pairs for the generator: geometry of the jitter, the pool, and a whole tiny training run on phantom heads."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from heads_small import CLASSES, SHAPE, phantom_heads, recipe_here, save
from models_small import small_recipe

from bids_petsynth.errors import UsageError
from bids_petsynth.models.folder import calibration_text, load_model, put_files, training_ranges
from bids_petsynth.training import calibration, pairs
from bids_petsynth.training.generator import Run, train
from bids_petsynth.training.pairs import (
    Pool,
    TrainingCase,
    identity_coordinates,
    jitter,
    load_heads,
    pull,
    vary_intensity,
)
from bids_petsynth.training.regional import simulate_regions
from bids_petsynth.training.simulated import SimulatedGround


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


def test_people_made_ahead_are_the_same():
    made = []

    def make(number):
        made.append(number)
        return fake_case(number)

    pools = [
        Pool(case, lambda pet: pet[:, None], 4, 6, 2, ("AV45", "FDG"), ahead=ahead)
        for case, ahead in ((make, 3), (fake_case, 0))
    ]
    for step in range(30):
        ahead, plain = (pool.batch(step, 3, torch.Generator().manual_seed(step)) for pool in pools)
        assert torch.equal(ahead.latents, plain.latents) and ahead.records == plain.records
    # at step 29 people up to 17 belong to the pool
    assert max(pools[0]._coming) == 20 and min(pools[0]._coming) >= pools[0].numbers(29).start
    for coming in pools[0]._coming.values():
        coming.result()
    assert max(made) == 20 and len(made) == len(set(made))


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


def test_a_region_that_a_head_lacks_has_no_uptake():
    heads = phantom_heads(2)
    lacks = np.array([False, True])
    for labels in (heads.classes, heads.measured):
        labels[1][labels[1] == 42] = 43
    heads.probabilities[1, 42] = 0
    people = simulate_regions(heads, ["AV45"], 2.0, 12, seed=4)
    without = torch.from_numpy(lacks[[pairs.head_of(2, 4, i) for i in range(12)]])
    uptake = people.heads.uptake(people.means)[:, 0]
    assert torch.equal(people.heads.volumes[:, 42] == 0, without) and without.sum() == 6
    assert uptake[without, 42].abs().max() < 1e-3 < uptake[~without, 42].min()
    assert uptake.abs().max() < 10


def test_a_tiny_run_trains_resumes_and_writes_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("bids_petsynth.training.simulated.FIGURE_PEOPLE", 2)
    monkeypatch.setattr("bids_petsynth.training.simulated.FIRST_PEOPLE", 2)
    monkeypatch.setattr("bids_petsynth.training.simulated.RANGE_PEOPLE", 3)
    monkeypatch.setattr("bids_petsynth.training.simulated.REGIONAL_CALIBRATION_PEOPLE", 40)
    monkeypatch.setattr("bids_petsynth.training.simulated.TEXTURE_PEOPLE", 5)
    monkeypatch.setattr("bids_petsynth.training.validation.LEAST_TARGETS", 5)
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
    assert {name: tuple(gains) for name, gains in figures["texture"].items()} == model.texture
    assert set(model.texture) == {"AV45", "FDG"} and all(len(gains) == 10 for gains in model.texture.values())
    # the same people give the same factors again, and everything else in the folder stays
    folder, card = tmp_path / "out" / "model", model.card
    files = {name: (folder / name).read_bytes() for name in ("regions.tsv", "weights-00001.safetensors")}
    wrong = replace(model, spread={"AV45": 9.0, "FDG": 9.0}, target_spread={}, texture={"AV45": (9.0,)})
    put_files(folder, {"calibration.json": calibration_text(wrong).encode()})
    calibration.main([str(arrays), str(folder)])
    model = load_model(folder)
    assert model.spread == pytest.approx(figures["spread"], rel=0.02)  # the weights are in half precision now
    assert model.target_spread == pytest.approx(figures["target_spread"], rel=0.02)
    for name, gains in figures["texture"].items():
        assert model.texture[name] == pytest.approx(gains, rel=0.05)
    assert files == {name: (folder / name).read_bytes() for name in files}
    parts, before = re.split(r"\n(?=## )", model.card), re.split(r"\n(?=## )", card)
    changed = {a.partition("\n")[0] for a, b in zip(parts, before, strict=True) if a != b}
    assert changed <= {"## Spread factors", "## Figures on held-out simulated people"}  # anew, from half precision
    for now, then in zip(parts, before, strict=True):
        if now.startswith("## Figures"):
            numbers = [[float(n) for n in re.findall(r"-?\d+\.\d+", text)] for text in (now, then)]
            assert numbers[0] == pytest.approx(numbers[1], abs=0.02)
    ranges = training_ranges(tmp_path / "out" / "model", model.weights_sha256)
    assert set(ranges) == {"AV45", "FDG"} and "left_superior_frontal" in ranges["FDG"]
    assert training_ranges(tmp_path / "out" / "model", "another") == {}
    row = {k: float(ranges["AV45"]["left_superior_frontal"][k]) for k in ("p05", "mean", "p95", "sd")}
    assert 0 < row["p05"] < row["mean"] < row["p95"] and row["sd"] > 0
    # a regional flow trained anew is another one, and nothing else is
    calibration.main([str(arrays), str(folder), "--regional", "--keep", "texture"])
    again = load_model(folder)
    assert again.texture == model.texture and again.weights_sha256 != model.weights_sha256
    pairs_of = ((getattr(m, part).state_dict() for m in (model, again)) for part in ("denoiser", "regional"))
    same = [all(torch.equal(one[k], other[k]) for k in one) for one, other in pairs_of]
    assert same == [True, False]
    assert set(again.spread) == set(model.spread) and "## What each variable does" in again.card
    assert again.card.count("Its regional flow was trained from the start") == 1
    assert calibration.with_regional_origin(again) == again.card
    steps = [int(r["step"]) for r in csv.DictReader((tmp_path / "out" / "log.csv").open())]
    longer = recipe.model_copy(update={"training": recipe.training.model_copy(update={"steps": 8})})
    train(SimulatedGround(arrays, longer), longer, Run(tmp_path / "out", validate=0))
    assert [int(r["step"]) for r in csv.DictReader((tmp_path / "out" / "log.csv").open())] == [*steps, 8]


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
