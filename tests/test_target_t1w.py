"""``participant --target T1w``: a synthetic T1w from real PET, named and described as such."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from models_small import CLASSES, SHAPE, small_model, small_recipe

from bids_petsynth.cli.main import main
from bids_petsynth.cli.participant import parser, settings_from
from bids_petsynth.errors import InputError
from bids_petsynth.models.folder import save_model
from bids_petsynth.settings import Settings
from bids_petsynth.types import Anatomy, Case, ClinicalRecord, Grid, PetScan
from bids_petsynth.workflows import steps
from bids_petsynth.workflows.outputs import planned
from bids_petsynth.workflows.participant import plan


@pytest.fixture
def settings(tmp_path) -> Settings:
    conditioning = {"images": [], "sources": ["T1w", "FDG"], "variables": []}
    recipe = small_recipe(regional=None, conditioning=conditioning, tracers=["AV45", "T1w"])
    save_model(small_model(recipe), tmp_path / "model")
    for name in ("T1w", "trc-FDG_pet"):
        path = tmp_path / "bids" / f"sub-01_{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"scan")
    (tmp_path / "bids" / "participants.tsv").write_text("participant_id\nsub-01\n")
    return Settings(tmp_path / "bids", tmp_path / "out", ("T1w",), tmp_path / "model", "cpu", 3)


def case_with(settings: Settings, *tracers: str) -> Case:
    pets = tuple(PetScan("01", None, name, settings.bids_dir / f"sub-01_trc-{name}_pet.nii.gz") for name in tracers)
    return Case("01", None, settings.bids_dir / "sub-01_T1w.nii.gz", pets=pets)


def head() -> Anatomy:
    rng = np.random.default_rng(0)
    probabilities = rng.random((CLASSES, *SHAPE)).astype(np.float16)
    affine = np.diag([2.0, 2, 2, 1])
    return Anatomy(rng.random(SHAPE, np.float32), probabilities.argmax(0), probabilities, Grid(SHAPE, affine))


def test_a_t1w_is_drawn_from_pet_and_not_from_itself(settings, monkeypatch):
    case = case_with(settings, "FDG")
    monkeypatch.setattr(steps, "scan_on", lambda *_: np.random.default_rng(1).random(SHAPE, np.float32))
    record = ClinicalRecord({})
    job = plan(case, settings)
    assert job.tracers == ("T1w",)
    draws = steps.draws(case, head(), record, "T1w", settings)
    assert draws.shape == (3, *SHAPE) and draws.min() >= 0
    other = Anatomy(np.ones(SHAPE, np.float32), head().labels, head().probabilities, head().grid)
    np.testing.assert_array_equal(steps.draws(case, other, record, "T1w", settings), draws)
    steps.outputs(case, head(), draws, record, "T1w", settings, job.pet_hash, {})
    (mean, std) = planned(case, "T1w", settings, 2)
    assert mean == Path("sub-01/anat/sub-01_space-T1w_res-2_desc-synthMean_T1w.nii.gz") and "synthStd" in std.name
    written = nib.load(settings.out_dir / mean)
    np.testing.assert_allclose(written.get_fdata(), draws.mean(0), atol=1e-3)
    np.testing.assert_allclose(nib.load(settings.out_dir / std).get_fdata(), draws.std(0, ddof=1), atol=1e-3)
    about = json.loads((settings.out_dir / mean).with_name(mean.name.replace(".nii.gz", ".json")).read_text())
    assert about["Synthetic"] is True and about["Description"].startswith("SYNTHETIC T1w, not measured")
    assert about["Model"]["Inputs"] == ["FDG PET"]
    assert "bids:raw:sub-01_trc-FDG_pet.nii.gz" in about["Sources"] and "ReferenceRegion" not in about
    assert plan(case, settings).current == ("T1w",)


def test_without_a_scan_to_draw_it_from_there_is_a_sentence(settings):
    with pytest.raises(InputError, match="sub-01: there is no real scan to draw a T1w from; add PET"):
        steps.draws(case_with(settings), head(), ClinicalRecord({}), "T1w", settings)


def test_a_model_that_draws_none_says_so_and_tracers_are_drawn_beside_it_only_if_named(example, tmp_path, capsys):
    words = [str(example), str(tmp_path / "out"), "participant"]
    assert main([*words, "--target", "T1w"]) == 2
    assert "does not draw a T1w: leave --target T1w out" in capsys.readouterr().err

    def asked(*more: str) -> tuple[str, ...]:
        arguments = parser().parse_args([*words, *more])
        arguments.command = ""
        return settings_from(arguments).tracers

    assert asked() == ("AV45",) and asked("--target", "T1w") == ("T1w",)
    assert asked("--tracer", "FDG", "--target", "T1w") == ("FDG", "T1w")
