"""Reading PET images, bad ones by their sentence, and the figures that registration rests on."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scanner_small import rigid, written

from bids_petsynth.anatomy.volume import Volume, resample
from bids_petsynth.errors import InputError
from bids_petsynth.pet import coregistration
from bids_petsynth.pet.motion import head_grid, sphere_displacement, trusted
from bids_petsynth.pet.preparation import read_pet


def test_a_scan_is_read_with_its_negative_noise(tmp_path):
    data = np.random.default_rng(0).normal(1, 1, (40, 42, 44, 3)).astype(np.float32)
    data[0, 0, 0, 0] = np.nan
    scan = written(tmp_path, data, np.diag([3.0, 3, 3, 1]))
    voxels, affine = read_pet(scan.path, "sub-01")
    assert voxels.shape == data.shape and voxels.dtype == np.float32 and voxels[0, 0, 0, 0] == 0 and voxels.min() < 0
    assert np.array_equal(voxels[1:], data[1:]) and np.allclose(affine, np.diag([3.0, 3, 3, 1]))
    static = written(tmp_path, data[..., 1], np.diag([3.0, 3, 3, 1]))
    assert np.array_equal(read_pet(static.path, "sub-01")[0], data[..., 1:2])


def image(data=None, affine=None, codes=(1, 1)) -> nib.Nifti1Image:
    made = nib.Nifti1Image(np.ones((30, 30, 30), np.float32) if data is None else data, affine)
    made.header["pixdim"][1:4] = 5
    if affine is not None:
        made.set_qform(affine, codes[0])
        made.set_sform(affine, codes[1])
    return made


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: image(np.random.rand(30, 30, 30).astype("f4"), np.diag([5.0, 5, 5, 1]), (0, 0)), "has no orientation"),
        (lambda: image(np.zeros((30, 30, 30, 2), np.float32), np.diag([5.0, 5, 5, 1])), "holds no activity"),
        (lambda: image(np.full((30, 30, 30), np.nan, np.float32), np.diag([5.0, 5, 5, 1])), "mostly NaN"),
        (lambda: image(np.ones((30, 30, 30, 2, 2), np.float32), np.diag([5.0, 5, 5, 1])), "5 dimensions"),
        (lambda: image(np.ones((30, 30), np.float32), np.diag([5.0, 5, 5, 1])), "2 dimensions"),
        (lambda: image(np.ones((30, 30, 6), np.float32), np.diag([5.0, 5, 5, 1])), "only 6 slices"),
        (lambda: image(np.ones((30, 30, 30), np.float32), np.diag([0.5, 0.5, 0.5, 1])), "15 × 15 × 15 mm .* no brain"),
    ],
)
def test_images_that_are_no_pet_are_told(tmp_path, make, words):
    path = tmp_path / "sub-01_pet.nii.gz"
    nib.save(make(), path)
    with pytest.raises(InputError, match=f"sub-01: sub-01_pet.nii.gz .*{words}"):
        read_pet(path, "sub-01")


def test_broken_files_are_told(tmp_path):
    path = tmp_path / "sub-01_pet.nii"
    with pytest.raises(InputError, match="does not exist or is a dangling link"):
        read_pet(path, "sub-01")
    path.write_bytes(b"no image")
    with pytest.raises(InputError, match="not a readable NIfTI"):
        read_pet(path, "sub-01")
    nib.save(image(affine=np.diag([5.0, 5, 5, 1])), path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(InputError, match="truncated"):
        read_pet(path, "sub-01")
    flat = image(affine=np.diag([5.0, 5, 5, 1]))
    flat.header["srow_x"] = 0
    path.write_bytes(flat.header.binaryblock + bytes(4) + np.ones((30, 30, 30), np.float32).tobytes())
    with pytest.raises(InputError, match="not invertible"):
        read_pet(path, "sub-01")


def test_displacement_of_a_shift_and_a_turn():
    assert sphere_displacement(rigid((0, 0, 0), (3, 4, 0)), np.zeros(3)) == pytest.approx(5)
    # a turn by θ moves a point by 2 sin(θ/2) r, r its distance from the axis: π/4 of the radius on average
    found = sphere_displacement(rigid((0, 0, 4), (0, 0, 0), (7, 8, 9)), np.array([7.0, 8, 9]))
    assert found == pytest.approx(2 * np.sin(np.radians(2)) * 60 * np.pi / 4, rel=1e-3)


def test_mutual_information_against_closed_forms():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 64, (2, 400_000)).astype(float)
    assert coregistration.normalised_mutual_information(x, x) == pytest.approx(2)
    assert coregistration.normalised_mutual_information(x, (3 - x) * 7) == pytest.approx(2)
    assert coregistration.normalised_mutual_information(x, y) == pytest.approx(1, abs=2e-3)
    # four equal values that a fair coin either keeps or draws anew: H(y|x) is that of (5/8, 1/8, 1/8, 1/8)
    x = rng.integers(0, 4, 400_000)
    y = np.where(rng.random(x.size) < 0.5, x, rng.integers(0, 4, x.size))
    given = -(5 / 8 * np.log(5 / 8) + 3 / 8 * np.log(1 / 8))
    assert coregistration.normalised_mutual_information(x, y) == pytest.approx(
        2 * np.log(4) / (np.log(4) + given), abs=1e-3
    )


def test_frames_without_counts_are_not_registered_by_themselves():
    assert trusted(np.array([0.0, 0.05, 0.2, 1.0])).tolist() == [False, False, True, True]


def test_the_grid_around_the_head_holds_it_and_little_else():
    data = np.zeros((200, 200, 60), np.float32)
    data[80:120, 70:130, 10:50] = 1
    affine = np.diag([-4.0, -4.0, 4.0, 1.0])
    grid = head_grid(Volume(data, affine), 3.0)
    found = resample(Volume(data, affine), grid, order=1)
    assert found.sum() * 27 == pytest.approx(data.sum() * 64, rel=0.02)
    assert np.prod(grid.shape) * 27 < 0.35 * data.size * 64
