"""T2w, FLAIR and CT: found beside the T1w, laid on it, given to a model."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_petsynth.anatomy.others import prepare_other
from bids_petsynth.anatomy.regions import white_matter
from bids_petsynth.bids.index import find_cases
from bids_petsynth.bids.others import find_others
from bids_petsynth.bids.pets import with_others
from bids_petsynth.errors import InputError
from bids_petsynth.pet import coregistration
from bids_petsynth.types import Anatomy, Grid, OtherScan


def dataset(folder: Path, *files: str) -> Path:
    """A tree of files with something in them."""
    for name in ("dataset_description.json", *files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return folder


def test_other_images_are_found_by_session_and_modality(tmp_path):
    bids = dataset(
        tmp_path,
        "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz",
        "sub-1/ses-a/anat/sub-1_ses-a_run-1_T2w.nii.gz",
        "sub-1/ses-a/anat/sub-1_ses-a_run-2_T2w.nii.gz",
        "sub-1/ses-b/anat/sub-1_ses-b_FLAIR.nii.gz",
        "sub-1/ses-b/ct/sub-1_ses-b_CT.nii.gz",
        "sub-2/anat/sub-2_T1w.nii.gz",
        "sub-2/anat/sub-2_space-T1w_FLAIR.nii.gz",
        "sub-2/anat/sub-2_ct.nii",
        "derivatives/x/sub-2/anat/sub-2_T2w.nii.gz",
    )
    found = find_others(bids, ["T1w", "T2w", "FLAIR", "CT", "AV45"])
    assert {scan.label: scan.path.name for scan in found} == {
        "sub-1_ses-a_T2w": "sub-1_ses-a_run-2_T2w.nii.gz",
        "sub-1_ses-b_FLAIR": "sub-1_ses-b_FLAIR.nii.gz",
        "sub-1_ses-b_CT": "sub-1_ses-b_CT.nii.gz",
        "sub-2_CT": "sub-2_ct.nii",
    }
    assert "highest run" in next(scan for scan in found if scan.modality == "T2w").notes[0]
    assert [s.label for s in find_others(bids, ["T2w", "CT"], ["1"], ["b"])] == ["sub-1_ses-b_CT"]
    assert find_others(bids, ["FLAIR"], filters={"flair": {"run": 7}}) == [] and find_others(bids, ["AV45"]) == []
    one, two = with_others(find_cases(bids), found, 365)
    assert [scan.modality for scan in one.others] == ["CT", "FLAIR", "T2w"]
    assert [scan.modality for scan in two.others] == ["CT"]


def test_of_two_the_one_of_the_t1ws_session_is_taken_and_a_damaged_one_is_none(tmp_path):
    names = [f"sub-1/ses-{s}/anat/sub-1_ses-{s}_{suffix}.nii.gz" for s in "ab" for suffix in ("T1w", "T2w")]
    bids = dataset(tmp_path, *names)
    (bids / names[2]).unlink()
    (case,) = with_others(find_cases(bids), find_others(bids, ["T2w"]), 365)
    assert [scan.path.name for scan in case.others] == ["sub-1_ses-a_T2w.nii.gz"]
    assert "sub-1_ses-b_T2w.nii.gz is not used" in case.notes[0]
    (bids / names[1]).write_bytes(b"")
    (case,) = with_others(find_cases(bids), find_others(bids, ["T2w"]), 365)
    assert [scan.path.name for scan in case.others] == ["sub-1_ses-b_T2w.nii.gz"]


@pytest.fixture(scope="module")
def head(prepared_site) -> Anatomy:
    with np.load(next((prepared_site / "heads").glob("*.npz")), allow_pickle=False) as file:
        codes, t1w = file["codes"], file["t1w"].astype(np.float32)
        return Anatomy(t1w, codes, np.zeros(0), Grid(codes.shape, file["affine"]))


def moved(affine: np.ndarray) -> np.ndarray:
    """The image in another pose: turned by 6° and shifted by 7 mm."""
    c, s = np.cos(np.radians(6)), np.sin(np.radians(6))
    pose = np.array([[c, -s, 0, 4], [s, c, 0, -5], [0, 0, 1, 3], [0, 0, 0, 1.0]])
    return pose @ affine


def test_a_t2w_in_another_pose_is_laid_on_the_t1w(head, tmp_path):
    truth = np.where(head.t1w > 0.1, np.clip(1.8 - head.t1w, 0.05, None), 0)
    shade = np.linspace(0.8, 1.2, truth.shape[1])[None, :, None]
    path = tmp_path / "sub-1_T2w.nii.gz"
    nib.Nifti1Image((700 * truth * shade).astype(np.float32), moved(head.grid.affine)).to_filename(path)
    found = prepare_other(OtherScan("1", None, "T2w", path), head)
    brain, white = head.labels > 0, white_matter(head.labels)
    assert np.median(found[white]) == pytest.approx(1, abs=1e-3)
    assert np.corrcoef(found[brain], truth[brain])[0, 1] > 0.9
    with pytest.raises(InputError, match="sub-1_T2w: sub-1_T2w.nii.gz is not a readable"):
        path.write_bytes(b"no image")
        prepare_other(OtherScan("1", None, "T2w", path), head)


def test_ct_is_told_in_its_soft_tissue_window(head, tmp_path, monkeypatch):
    # that images are laid on each other is shown above
    monkeypatch.setattr(coregistration, "to_t1w", lambda *_: np.eye(4))
    white, brain = white_matter(head.labels), head.labels > 0
    hounsfield = np.where(white, 28.0, np.where(brain, 38.0, np.where(head.t1w > 0.1, 900.0, -1000.0)))
    path = tmp_path / "sub-1_CT.nii.gz"
    nib.Nifti1Image(hounsfield.astype(np.float32), head.grid.affine).to_filename(path)
    found = prepare_other(OtherScan("1", None, "CT", path), head)
    assert np.median(found[white]) == pytest.approx(1, abs=0.02)
    assert np.median(found[brain & ~white]) == pytest.approx(1 + 10 / 30, abs=0.05)
    assert found.max() == pytest.approx(80 / 30) and found.min() == 0
