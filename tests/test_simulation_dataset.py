"""The simulated dataset: valid BIDS, seeded, and saying simulated everywhere."""

from __future__ import annotations

import json
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_petsynth.anatomy.regions import region_index
from bids_petsynth.errors import InputError
from bids_petsynth.simulation.dataset import frames, write_dataset
from bids_petsynth.types import Anatomy, Case, Grid

SHAPE = (40, 48, 40)


def phantom_codes() -> np.ndarray:
    index = region_index()
    codes = np.zeros(SHAPE, np.uint8)
    codes[4:36, 4:44, 4:36] = index["extra_axial_csf"]
    for x0, x1, side in ((6, 20, 100), (20, 34, 200)):
        codes[x0:x1, 6:42, 18:34] = side + index["superior_frontal"]
        codes[x0:x1, 6:20, 18:34] = side + index["precuneus"]
        codes[x0 + 4 : x1 - 4, 10:34, 21:30] = side + index["frontal_white"]
        codes[x0:x1, 8:24, 6:16] = side + index["cerebellar_grey"]
        codes[x0:x1, 8:24, 6:9] = side + index["cerebellar_grey_inferior"]
    codes[17:23, 26:32, 5:17] = index["brainstem"]
    codes[17:23, 26:32, 8:15] = index["pons"]
    codes[18:22, 22:26, 10:13] = index["fourth_ventricle"]
    return codes


@pytest.fixture
def heads(tmp_path):
    """Two T1w files on a grid other than the model's, and what labels them."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-40, -48, -40)
    codes = phantom_codes()
    t1w = np.where(codes > 0, 0.6, 0.0).astype(np.float32)
    t1w[np.isin(codes % 100, region_index()["frontal_white"])] = 1.0
    cases = []
    for name in ("A1", "B2"):
        path = tmp_path / f"sub-{name}_T1w.nii.gz"
        nib.save(nib.as_closest_canonical(nib.Nifti1Image(t1w * 300, affine)), path)
        cases.append(Case(participant=name, session=None, t1w=path))

    def label(case: Case) -> Anatomy:
        if case.participant == "B2":
            raise InputError("sub-B2: the T1w holds no brain; check the file.")
        return Anatomy(t1w, codes, np.zeros((1, *SHAPE), np.float16), Grid(SHAPE, affine))

    return cases, label


def test_dataset_is_valid_seeded_and_says_simulated(heads, tmp_path):
    cases, label = heads
    done = write_dataset(
        cases, tmp_path / "one", label, 2, seed=3, tracers=["AV45", "FDG"], traits=lambda case: (66.0, 0.0)
    )
    assert done.participants == ("sub-A1sim01", "sub-A1sim02")
    assert "holds no brain" in done.failed["sub-B2"]
    table = pd.read_csv(tmp_path / "one" / "participants.tsv", sep="\t")
    assert (table["age"] == 66).all() and (table["sex"] == "F").all() and (table["head"] == "A1").all()
    columns = json.loads((tmp_path / "one" / "participants.json").read_text())
    assert set(table.columns) - {"participant_id"} == set(columns)
    assert all("simulated" in column["Description"].lower() for column in columns.values())
    pets = sorted((tmp_path / "one").rglob("*_pet.nii.gz"))
    assert len(pets) == 4 and all("_rec-sim_" in path.name for path in pets)
    for path in (tmp_path / "one").rglob("sub-*.json"):
        content = json.loads(path.read_text())
        assert content["Simulated"] is True and "SIMULATED" in content["Description"]
    activity = nib.load(pets[0]).get_fdata()
    # 370 MBq in some 75 kg is about 5 kBq/mL at a standardised uptake value of 1
    assert 2e3 < activity[phantom_codes() > 100].mean() < 2e4

    write_dataset(
        cases[:1], tmp_path / "two", label, 1, seed=3, tracers=["AV45", "FDG"], traits=lambda case: (66.0, 0.0)
    )
    # another run into the same folder adds its people and forgets nobody
    write_dataset(cases[:1], tmp_path / "two", label, 2, seed=4, tracers=["AV45"], traits=lambda case: (70.0, 1.0))
    table = pd.read_csv(tmp_path / "two" / "participants.tsv", sep="\t").set_index("participant_id")
    assert table["age"].to_dict() == {"sub-A1sim01": 70, "sub-A1sim02": 70}
    write_dataset(cases[:1], tmp_path / "two", label, 1, seed=3, tracers=["AV45", "FDG"], traits=lambda case: (66, 0))
    table = pd.read_csv(tmp_path / "two" / "participants.tsv", sep="\t").set_index("participant_id")
    assert table["age"].to_dict() == {"sub-A1sim01": 66, "sub-A1sim02": 70}
    again = nib.load(tmp_path / "two" / pets[0].relative_to(tmp_path / "one")).get_fdata()
    np.testing.assert_array_equal(activity, again)
    if validator := shutil.which("bids-validator-deno"):
        for name in ("one", "two"):
            found = subprocess.run(
                [validator, str(tmp_path / name), "--json"], capture_output=True, text=True, check=False
            )
            issues = json.loads(found.stdout)["issues"]["issues"]
            assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_dynamic_series_reaches_from_injection_to_the_window(heads, tmp_path):
    cases, label = heads
    starts, durations = frames("AV45", dynamic=True)
    assert starts[0] == 0 and starts[-1] + durations[-1] == pytest.approx(70 * 60, abs=300)
    np.testing.assert_allclose(np.diff(starts), durations[:-1])
    write_dataset(cases[:1], tmp_path / "out", label, 1, tracers=["AV45"], dynamic=True)
    path = next((tmp_path / "out").rglob("*_pet.nii.gz"))
    series = nib.load(path).get_fdata()
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert series.shape[3] == len(sidecar["FrameTimesStart"]) == len(starts)
    grey, white = (np.isin(phantom_codes() % 100, region_index()[n]) for n in ("superior_frontal", "frontal_white"))
    ratio = series[white].mean(0) / series[grey].mean(0)
    # blood flow first (grey brighter than white), binding later
    assert ratio[5] < ratio[-1]
