"""Reused derivatives, template spaces, sessions: `participant` as a command of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from places import SHARED


def command(*words: str | Path, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "bids_petsynth.cli.main", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def two_sessions(example, tmp_path_factory) -> Path:
    """The positive head in two sessions, the second with two runs."""
    bids = tmp_path_factory.mktemp("sessions") / "bids"
    shutil.copytree(example, bids)
    shutil.rmtree(bids / "sub-negative")
    source = next((bids / "sub-positive" / "anat").glob("*_T1w.nii.gz"))
    for name in ("ses-1/anat/sub-positive_ses-1_T1w", "ses-2/anat/sub-positive_ses-2_run-1_T1w"):
        target = bids / "sub-positive" / f"{name}.nii.gz"
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)
    shutil.copy(target, target.with_name("sub-positive_ses-2_run-2_T1w.nii.gz"))
    shutil.rmtree(bids / "sub-positive" / "anat")
    return bids


@pytest.fixture(scope="module")
def first(two_sessions, tmp_path_factory) -> tuple[Path, str]:
    """Output folder of both sessions, and what was said."""
    out = tmp_path_factory.mktemp("first") / "out"
    done = command(two_sessions, out, "participant", "--n-draws", "1", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return out, done.stderr


@pytest.fixture(scope="module")
def again(two_sessions, first, tmp_path_factory) -> Path:
    """A folder with ``out`` of the first session, ``prep`` that it read as fMRIPrep's, and ``templateflow`` if any.

    Where templates are at hand, the PET is also written in template space.
    """
    folder = tmp_path_factory.mktemp("again")
    # the outputs of the first session serve as somebody's fMRIPrep folder, behind a link
    prep = folder / "prep" / "sub-positive" / "ses-1" / "anat"
    prep.mkdir(parents=True)
    (folder / "prep" / "dataset_description.json").write_text('{"Name": "p", "BIDSVersion": "1.8.0"}')
    for part in ("desc-preproc_T1w", "desc-brain_mask"):
        name = f"sub-positive_ses-1_{part}.nii.gz"
        shutil.copy(first[0] / "sub-positive" / "ses-1" / "anat" / name, prep / name)
    (folder / "link").symlink_to(folder / "prep")
    words = ["participant", "--session-label", "1", "-d", "fmriprep=link", "--n-draws", "2", "--device", "cpu"]
    home = folder / "templateflow"
    if (SHARED / "templateflow").is_dir():
        shutil.copytree(SHARED / "templateflow", home)
        words += ["--output-spaces", "T1w", "MNI152NLin2009cAsym:res-2"]
    done = command(two_sessions, "out", *words, folder=folder, TEMPLATEFLOW_HOME=str(home))
    assert done.returncode == 0, done.stderr
    return folder


def test_sessions_stay_apart(first):
    out, said = first
    assert "run-2" in said  # the newest run, and it is said
    made = {p.name for p in out.rglob("*synthMean_pet.nii.gz")}
    assert made == {f"sub-positive_ses-{k}_trc-AV45_space-T1w_res-2_desc-synthMean_pet.nii.gz" for k in (1, 2)}


def test_fmriprep_is_reused(again):
    prep = again / "prep" / "sub-positive" / "ses-1" / "anat"
    folder = again / "out" / "sub-positive" / "ses-1"
    sidecar = next((folder / "pet").glob("*space-T1w*synthMean_pet.json"))
    sources = json.loads(sidecar.read_text())["Sources"]
    assert "bids:fmriprep:sub-positive/ses-1/anat/sub-positive_ses-1_desc-preproc_T1w.nii.gz" in sources
    given = nib.load(prep / "sub-positive_ses-1_desc-brain_mask.nii.gz").get_fdata() > 0
    mask = nib.load(folder / "anat" / "sub-positive_ses-1_desc-brain_mask.nii.gz").get_fdata() > 0
    assert 2 * (given & mask).sum() / (given.sum() + mask.sum()) > 0.97
    # N4 is not run twice: the T1w comes out as it went in
    before, after = (
        nib.load(f / "sub-positive_ses-1_desc-preproc_T1w.nii.gz").get_fdata() for f in (prep, folder / "anat")
    )
    assert np.allclose(before, after, atol=1e-3 * before.max())


@pytest.mark.skipif(not (SHARED / "templateflow").is_dir(), reason="shared/data/templateflow is not here")
def test_template_space(again):
    image = nib.load(next(again.rglob("*space-MNI152NLin2009cAsym_res-2_desc-synthMean_pet.nii.gz")))
    template = again / "templateflow" / "tpl-MNI152NLin2009cAsym"
    mask = nib.load(template / "tpl-MNI152NLin2009cAsym_res-02_desc-brain_mask.nii.gz")
    assert np.allclose(image.affine, mask.affine) and image.shape == mask.shape
    data, inside = image.get_fdata(), mask.get_fdata() > 0
    assert data[inside].mean() > 2 * data[~inside].mean()


def test_a_template_that_is_not_there_is_named(example, tmp_path):
    spaces = ["--output-spaces", "MNI152NLin6Asym:res-1"]
    done = command(example, tmp_path / "out", "participant", *spaces, TEMPLATEFLOW_HOME=str(tmp_path / "empty"))
    assert done.returncode == 2
    assert "MNI152NLin6Asym" in done.stderr and "TEMPLATEFLOW_HOME" in done.stderr and "Traceback" not in done.stderr
