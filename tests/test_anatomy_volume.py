"""Reading T1w images of every kind, and resampling, against nibabel and nilearn."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_petsynth.anatomy.volume import Volume, canonical, own_grid, read_t1w, resample, smoothed_for
from bids_petsynth.errors import InputError
from bids_petsynth.types import Grid


def noise(shape=(40, 40, 40)) -> np.ndarray:
    return np.random.default_rng(0).gamma(2.0, 50.0, shape).astype(np.float32)


def save(path: Path, data: np.ndarray, affine=None) -> Path:
    nib.save(nib.Nifti1Image(data, np.diag([4.0, 4, 4, 1]) if affine is None else affine), path)
    return path


def without_orientation(path: Path) -> Path:
    image = nib.Nifti1Image(noise(), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    image.header.set_zooms((4, 4, 4))
    nib.save(image, path)
    return path


def truncated(path: Path) -> Path:
    save(path, noise())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def text_file(path: Path) -> Path:
    path.write_text("this is no image")
    return path


BAD = {
    "not NIfTI": (text_file, "not a readable NIfTI image"),
    "truncated": (truncated, "truncated or damaged"),
    "all zeros": (lambda p: save(p, np.zeros((40, 40, 40), np.float32)), "one value only"),
    "2D": (lambda p: save(p, noise((40, 40))), "has 2 dimensions"),
    "one slice": (lambda p: save(p, noise((40, 40, 1))), "slices along one axis"),
    "4D": (lambda p: save(p, noise((40, 40, 40, 3))), "has 4 dimensions"),
    "without orientation": (without_orientation, "has no orientation"),
    "only NaN": (lambda p: save(p, np.full((40, 40, 40), np.nan, np.float32)), "NaN"),
    "no head": (lambda p: save(p, noise(), np.diag([0.1, 0.1, 0.1, 1])), "no head scan"),
    "missing": (lambda p: p, "does not exist or is a dangling link"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_get_one_sentence(tmp_path, kind):
    make, expected = BAD[kind]
    path = make(tmp_path / "sub-01_T1w.nii")
    with pytest.raises(InputError) as error:
        read_t1w(path, "sub-01")
    text = str(error.value)
    assert text.startswith("sub-01: sub-01_T1w.nii ") and expected in text
    assert text.endswith(".") and "\n" not in text


def test_some_nan_and_a_trailing_axis_are_mended(tmp_path):
    data = noise((40, 41, 42))[..., None]
    data[3, 4, 5] = np.nan
    volume = read_t1w(save(tmp_path / "a.nii.gz", data), "sub-01")
    assert volume.data.shape == (40, 41, 42) and np.isfinite(volume.data).all() and volume.data[3, 4, 5] == 0


@pytest.mark.parametrize("axes", ["RAS", "LPI", "PSR", "ASL", "IRP"])
def test_canonical_agrees_with_nibabel_and_keeps_places(axes):
    start = nib.Nifti1Image(
        noise((20, 22, 24)), np.array([[2.0, 0, 0, -20], [0, 2, 0.2, -15], [0, -0.2, 2, 3], [0, 0, 0, 1]])
    )
    turn = nib.orientations.ornt_transform(nib.io_orientation(start.affine), nib.orientations.axcodes2ornt(axes))
    image = start.as_reoriented(turn)
    ours = canonical(Volume(image.get_fdata(dtype=np.float32), image.affine))
    theirs = nib.as_closest_canonical(image)
    assert np.array_equal(ours.data, theirs.get_fdata(dtype=np.float32))
    assert np.allclose(ours.affine, theirs.affine)


def test_resample_agrees_with_nilearn():
    from nilearn.image import resample_img

    volume = Volume(noise((30, 32, 34)), np.diag([2.0, 2, 2, 1]))
    turn = np.eye(4)
    turn[:3, :3] = [[0.98, -0.199, 0], [0.199, 0.98, 0], [0, 0, 1]]
    grid = Grid((20, 21, 22), turn @ np.array([[2.5, 0, 0, 8], [0, 2.5, 0, 3], [0, 0, 2.5, 5], [0, 0, 0, 1]]))
    theirs = resample_img(
        nib.Nifti1Image(volume.data, volume.affine),
        target_affine=grid.affine,
        target_shape=grid.shape,
        interpolation="linear",
    ).get_fdata()
    ours = resample(volume, grid, order=1)
    inside = (ours > 0) & (theirs > 0)
    assert inside.mean() > 0.5 and np.allclose(ours[inside], theirs[inside], atol=1e-2)


def test_own_grid_covers_the_same_field_of_view():
    volume = Volume(np.zeros((50, 60, 70), np.float32), np.diag([0.7, 1.0, 3.0, 1]) @ np.eye(4))
    grid = own_grid(volume, 2.0)
    assert np.allclose(np.linalg.norm(grid.affine[:3, :3], axis=0), 2.0)
    centre = [v.affine @ [*((np.array(s) - 1) / 2), 1] for v, s in ((volume, volume.data.shape), (grid, grid.shape))]
    assert np.allclose(*centre)
    assert np.all(np.array(grid.shape) * 2 >= np.array([50 * 0.7, 60, 70 * 3]))


def test_smoothing_prevents_aliasing():
    fine = Volume(np.indices((80, 40, 40))[0].astype(np.float32) % 2, np.diag([0.5, 1, 1, 1]))
    coarse = resample(smoothed_for(fine, 2.0), own_grid(fine, 2.0), order=1)[4:-4, 4:-4, 4:-4]
    assert np.abs(coarse - 0.5).max() < 0.05
    assert smoothed_for(Volume(noise(), np.diag([2.0, 2, 2, 1])), 2.0).data is not None
