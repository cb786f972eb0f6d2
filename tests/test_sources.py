"""Scans as sources: which of them a network is given, and that it makes a difference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from ground_small import SmallGround
from models_small import CLASSES, SHAPE, small_model, small_recipe
from pets_small import add, dataset
from scanner_small import head, noise, rigid, scanned, scanner
from scipy.ndimage import gaussian_filter

from bids_petsynth.anatomy.regions import codes_of
from bids_petsynth.bids.index import find_cases
from bids_petsynth.bids.pets import find_pets, with_pets
from bids_petsynth.models.conditioning import taken_sources
from bids_petsynth.models.folder import SOURCE_PET, load_model, save_model
from bids_petsynth.models.recipe import ConditioningSpec, Recipe
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.pet.tracers import canonical
from bids_petsynth.settings import Settings
from bids_petsynth.training.generator import Run, train
from bids_petsynth.types import Anatomy, ClinicalRecord, Grid, PetScan
from bids_petsynth.workflows import steps

SOURCES = ["T1w", "T2w", "FDG", "AV45"]


def recipe_with(fusion: str, sources: Sequence[str] = SOURCES, **changes) -> Recipe:
    conditioning = {"images": [], "sources": sources, "fusion": fusion}
    return small_recipe(regional=None, conditioning=conditioning, tracers=["AV45", "FDG"], **changes)


def anatomy() -> Anatomy:
    rng = np.random.default_rng(0)
    probabilities = rng.random((CLASSES, *SHAPE)).astype(np.float16)
    return Anatomy(rng.random(SHAPE, np.float32), probabilities.argmax(0), probabilities, Grid(SHAPE, np.eye(4)))


@pytest.mark.parametrize(
    ("fusion", "there", "target", "taken"),
    [
        ("attention", {"T1w", "FDG", "AV45"}, "AV45", ("T1w", "FDG")),
        ("attention", {"T1w", "CT"}, "AV45", ("T1w",)),
        ("concatenation", {"T1w", "FDG"}, "AV45", ("FDG",)),
        ("concatenation", {"T1w", "T2w"}, "AV45", ("T1w",)),
        ("concatenation", {"T1w", "AV45"}, "AV45", ("T1w",)),
        ("concatenation", {"AV45"}, "AV45", ()),
    ],
)
def test_what_is_taken_of_what_is_there(fusion, there, target, taken):
    assert taken_sources(ConditioningSpec(sources=SOURCES, fusion=fusion), there, target) == taken


@pytest.mark.parametrize(("fusion", "taken"), [("attention", ("T1w", "AV45")), ("concatenation", ("AV45",))])
def test_what_training_did_not_see_is_not_taken(fusion, taken):
    model = small_model(recipe_with(fusion))
    seen = {name: model.scaling[name] for name in ("T1w", "AV45")}
    assert replace(model, scaling=seen).taken({"T1w", "FDG", "T2w", "AV45"}, "FDG") == taken
    assert replace(model, scaling=seen).taken({"T1w", "FDG", "T2w", "AV45"}, "AV45") == ("T1w",)


@pytest.mark.parametrize("fusion", ["attention", "concatenation"])
def test_a_real_pet_changes_what_is_drawn_and_the_target_itself_does_not(fusion):
    engine, person = Synthesizer(small_model(recipe_with(fusion))), anatomy()
    scan = np.random.default_rng(1).random(SHAPE, np.float32)

    def drawn(**given: np.ndarray) -> np.ndarray:
        return engine.draw(person, ClinicalRecord({}), "AV45", n_draws=1, given=given)

    alone, with_fdg = drawn(), drawn(FDG=scan)
    assert np.abs(with_fdg - alone).max() > 1e-3
    np.testing.assert_array_equal(drawn(AV45=scan), alone)
    # a T2w beside the T1w is one more source to attention; what takes one source goes on with the first of its list
    assert (np.abs(drawn(T2w=scan) - alone).max() > 1e-3) == (fusion == "attention")


def test_raw_pet_of_another_tracer_is_given_to_the_model_on_the_t1w_in_suvr(tmp_path, monkeypatch):
    fine, uptake = head()
    coarse = (slice(None, None, 2),) * 3  # registers in half the time
    t1w, labels, uptake = fine.t1w[coarse], fine.labels[coarse], uptake[coarse]
    person = Anatomy(t1w, labels, np.zeros(0), Grid(t1w.shape, fine.grid.affine @ np.diag([2.0, 2, 2, 1])))
    bids, grid = dataset(tmp_path / "bids"), scanner(centre=(6, -3, -1), shape=(64, 72, 44), size=(3.6, 3.6, 4.0))
    raw = uptake + noise(uptake.shape, np.random.default_rng(0))
    raw = scanned(raw, person.grid, rigid((7, -5, 6), (6, 14, -9)), grid)
    # the first frame is in the window of the target, the second in that of the source
    times = {"Units": "Bq/mL", "FrameTimesStart": [3000, 5400], "FrameDuration": [1200, 1200]}
    path = add(bids, "sub-00_trc-FBB_pet", times)
    nib.save(nib.Nifti1Image(4000 * np.stack([raw**2, raw], axis=-1), grid.affine), path)
    (case,) = with_pets(find_cases(bids), find_pets(bids, canonical=canonical), ["FBB"], 365)
    save_model(small_model(recipe_with("attention", ["T1w", "FBB"])), tmp_path / "model")
    settings, given = Settings(bids, tmp_path / "out", ("AV45",), tmp_path / "model", "cpu"), {}
    monkeypatch.setattr(steps, "model_of", lambda *_: SimpleNamespace(draw=lambda *words: given.update(words[-1])))
    steps.draws(case, person, ClinicalRecord({}), "AV45", settings)
    assert set(given) == {"FBB"} and given["FBB"].shape == labels.shape
    reference = np.isin(labels, codes_of("cerebellar_grey", "cerebellar_white"))
    assert given["FBB"][reference].mean() == pytest.approx(1, abs=1e-3)
    # where the scanner had put it, it would be 0.4 off
    assert np.abs(given["FBB"] - uptake / uptake[reference].mean())[labels > 0].mean() < 0.06


@pytest.mark.parametrize(("window", "fwhm"), [(None, None), ((50.0, 70.0), None), (None, 8.0)])
def test_participant_prepares_a_source_as_the_model_was_trained_with_it(tmp_path, window, fwhm):
    """Training keeps window and smoothing in the model folder; ``participant`` needs no word of them."""
    recipe = recipe_with("attention", ["T1w", "FBB"], training={"steps": 1, "tensorboard": False})
    run = Run(tmp_path, validate=0, report=lambda line: None, pet_window=window, pet_fwhm=fwhm)
    train(SmallGround(recipe, 3), recipe, run)
    labels = np.zeros((48, 48, 48), int)
    labels[4:-4, 4:-4, 4:-4] = codes_of("middle_frontal")[0]
    labels[4:-4, 4:-4, 4:14] = codes_of("cerebellar_grey")[0]
    head = Anatomy(np.ones(labels.shape, np.float32), labels, np.zeros(0), Grid(labels.shape, np.diag([3.0, 3, 3, 1])))
    frames = np.random.default_rng(0).uniform(1, 2, (*labels.shape, 2)).astype(np.float32)
    path = tmp_path / "pet.nii.gz"
    nib.save(nib.Nifti1Image(frames, head.grid.affine), path)
    # the second frame is in the tracer's usual window, the first in the other
    times = {"Units": "Bq/mL", "FrameTimesStart": [3000, 5400], "FrameDuration": [1200, 1200]}
    scan = PetScan("00", None, "FBB", path, times, prepared=True)
    settings = Settings(tmp_path, tmp_path / "out", ("AV45",), tmp_path / "model", "cpu")
    expected = frames[..., 1 if window is None else 0]
    if fwhm:
        expected = gaussian_filter(expected, fwhm / np.sqrt(8 * np.log(2)) / 3)
    reference = np.isin(labels, codes_of("cerebellar_grey"))
    inner = (slice(6, -6),) * 3  # smoothing knows the rim in its own way
    found = steps.scan_on(head, scan, settings)
    assert found[reference].mean() == pytest.approx(1, abs=1e-4)
    ratio = found[inner] / expected[inner]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=2e-3)


def test_a_model_without_source_pet_keeps_no_word_of_how_pet_was_prepared(tmp_path):
    save_model(small_model(), tmp_path)
    assert not set(SOURCE_PET) & set(json.loads((tmp_path / "model.json").read_text()))
    model = load_model(tmp_path)
    assert model.source_window is None and model.source_fwhm is None
