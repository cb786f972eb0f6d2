"""Preparing real PET: known poses and motions of a phantom head are found again; a real head at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scanner_small import head, noise, off, rigid, scanned, scanner, written
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_petsynth.anatomy.regions import codes_of, region_index
from bids_petsynth.anatomy.volume import Volume, resample
from bids_petsynth.errors import InputError, UsageError
from bids_petsynth.pet import coregistration, preparation
from bids_petsynth.pet.motion import realign, sphere_displacement
from bids_petsynth.pet.preparation import pet_on_template, prepare_pet
from bids_petsynth.pet.quantification import normalise, region_means
from bids_petsynth.pet.tracers import tracer
from bids_petsynth.types import Anatomy, Grid, PetScan

SHARED = Path(__file__).parents[2] / "shared" / "data"
AV45 = tracer("AV45")


@pytest.fixture(scope="module")
def person():
    return head()


@pytest.fixture(scope="module")
def static(person, tmp_path_factory):
    """A noisy static scan in another pose, prepared, with the pose that was put in and the one that was found."""
    anatomy, pet = person
    move = rigid((7, -5, 6), (6, 14, -9))
    target = scanner(centre=(6, -3, -1))
    raw = scanned(pet + noise(pet.shape, np.random.default_rng(0)), anatomy.grid, move, target)
    scan = written(tmp_path_factory.mktemp("static"), 4000 * raw, target.affine)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "to_t1w", lambda *a: seen.append(coregistration.to_t1w(*a)) or seen[-1])
        made = prepare_pet(scan, anatomy, AV45)
    return made, move, seen[0], scan


def regional(volume: np.ndarray, anatomy: Anatomy) -> np.ndarray:
    suvr = normalise(volume[None], anatomy.labels, anatomy.grid, AV45)
    codes, means, _ = region_means(suvr, anatomy.labels, anatomy.grid)
    return means[0][codes > 100]


def test_a_turned_scan_comes_back(person, static):
    anatomy, pet = person
    made, move, found, _ = static
    millimetres, degrees = off(found, move)
    assert millimetres < 1 and degrees < 1
    assert made.suvr.dtype == np.float32 and made.suvr.shape == anatomy.grid.shape and made.grid is anatomy.grid
    assert regional(made.suvr, anatomy) == pytest.approx(regional(pet, anatomy), rel=0.03)
    reference = np.isin(anatomy.labels, AV45.reference_codes)
    assert made.suvr[reference].mean() == pytest.approx(1, abs=1e-4)
    quality = made.quality
    assert quality["rotation_deg"] == pytest.approx(np.degrees(Rotation.from_matrix(move[:3, :3]).magnitude()), abs=1)
    assert quality["shift_mm"] == pytest.approx(np.linalg.norm((6, 14, -9)), abs=1.5)
    assert quality["frames"] == 1 and quality["displacement_mm"] == 0
    assert quality["brain_coverage"] == quality["reference_coverage"] == 1
    assert quality["outline_dice"] > 0.9 and quality["contrast"] > 2
    assert made.notes == ()


def test_another_persons_t1w_is_doubted(person, static):
    *_, scan = static
    made, other = static[0], head((1.08, 0.95, 1.0))[0]
    strange = prepare_pet(scan, other, AV45)
    assert made.quality["stretch_percent"] < 3 and strange.quality["stretch_percent"] > 5
    assert strange.quality["mutual_information"] < made.quality["mutual_information"]
    assert any("different people" in note and "look at the picture" in note for note in strange.notes)


def test_a_moving_head_is_held_still(person):
    anatomy, pet = person
    rng = np.random.default_rng(1)
    target = scanner()
    moves = [np.eye(4), rigid((2, -1, 3), (2, -3, 1)), rigid((-3, 2, -2), (-3, 1, 4))]
    clean = [g * scanned(pet, anatomy.grid, m, target) for g, m in zip((1.1, 1, 0.9), moves, strict=True)]
    frames = np.stack([frame + noise(frame.shape, rng, 0.1) for frame in clean], axis=-1)
    mean, transforms, displacement = realign(frames, target.affine, np.full(3, 1 / 3), 0)
    centre = np.array([0.0, -17.0, 8.0])
    assert displacement == pytest.approx(max(sphere_displacement(m, centre) for m in moves), abs=0.7)
    for found, true in zip(transforms, moves, strict=True):
        assert off(found, true)[0] < 0.7
    still = resample(Volume(pet, anatomy.grid.affine), anatomy.grid)
    inside = anatomy.labels > 0

    def error(placed) -> float:
        grids = [Grid(still.shape, transform @ anatomy.grid.affine) for transform in placed]
        volumes = [resample(Volume(frame, target.affine), grid) for frame, grid in zip(clean, grids, strict=True)]
        return float(np.sqrt(np.mean((np.mean(volumes, axis=0)[inside] - still[inside]) ** 2)))

    assert error(transforms) < 0.3 * error([np.eye(4)] * 3)
    # the mean that is registered to the T1w is that of the realigned frames
    near = resample(Volume(pet, anatomy.grid.affine), mean.grid)
    unmoved = resample(Volume(frames.mean(-1), target.affine), mean.grid)
    left = [np.corrcoef(v[near > 0.3], near[near > 0.3])[0, 1] for v in (mean.data, unmoved)]
    assert left[0] > left[1]


def test_motion_and_the_way_to_the_t1w_are_one_matrix(person):
    anatomy, pet = person
    to_pet, later = rigid((5, -4, 20), (8, -5, 3)), rigid((-6, 9, 4), (3, 7, -4), (30.0, 0.0, 0.0))
    target = scanner(centre=(8, -10, 6), shape=(110, 120, 90))
    data = np.stack([scanned(pet, anatomy.grid, move, target) for move in (to_pet, later @ to_pet)], axis=-1)
    frames = preparation._Frames(data, target.affine, np.array([0.5, 0.5]), [np.eye(4), later], None, {}, ())
    placed, covered = preparation._place(frames, to_pet, anatomy.grid)
    inside = anatomy.labels > 0
    assert covered[inside].all() and not covered.all()
    assert np.abs(placed - pet)[inside].mean() < 0.01


def test_frames_of_the_window_are_averaged_and_the_others_left_alone(person, tmp_path):
    anatomy, pet = person
    frames = np.stack([0 * pet + 90, pet, 3 * pet, 0 * pet + 50], axis=-1)
    times = {"FrameTimesStart": [2400, 3000, 3600, 4200], "FrameDuration": [600] * 4}
    scan = written(tmp_path, frames, anatomy.grid.affine, times, prepared=True, notes=("chosen",))
    made = prepare_pet(scan, anatomy, AV45)
    # prepared scans lie where they are: the same voxels, over the mean of the reference region
    suvr = normalise(pet[None], anatomy.labels, anatomy.grid, AV45)[0]
    assert np.allclose(made.suvr, np.maximum(suvr, 0), atol=1e-3)
    assert made.quality["frames"] == 2 and "shift_mm" not in made.quality and "displacement_mm" not in made.quality
    assert made.notes == ("chosen",)
    with pytest.raises(InputError, match="sub-01_trc-AV45: the scan runs from 40 to 80 min .* window of 90 to 110 min"):
        prepare_pet(scan, anatomy, AV45, window_min=(90, 110))


def test_smoothing_reaches_the_resolution_asked_for(person, tmp_path, monkeypatch):
    anatomy, pet = person
    monkeypatch.setattr(preparation, "stretch", lambda *a: 0.0)
    scan = written(tmp_path, pet, anatomy.grid.affine, prepared=True)

    def at_resolution(own):
        return replace(scan, sidecar={**scan.sidecar, "SpatialResolution": own})

    smooth = prepare_pet(at_resolution(6), anatomy, AV45, fwhm=10).suvr
    # 8 mm in quadrature to 6 mm make 10 mm
    known = ndimage.gaussian_filter(pet, 8 / 2.3548 / 2)
    known = normalise(known[None], anatomy.labels, anatomy.grid, AV45)[0]
    inside = anatomy.labels > 0
    assert np.allclose(smooth[inside], known[inside], atol=0.01)
    # what is not covered does not darken the edge
    covered = np.indices((20, 20, 20))[2] > 7
    assert np.allclose(preparation._smoothed(np.where(covered, 3.0, 0), covered, 2.0), 3 * covered)
    kept = prepare_pet(at_resolution(7), anatomy, AV45, fwhm=6)
    assert "not smoothed" in kept.notes[0]
    with pytest.raises(InputError, match="SpatialResolution of '5 mm' in the sidecar is no resolution"):
        prepare_pet(at_resolution("5 mm"), anatomy, AV45, fwhm=6)
    for wrong in (0, -4, float("nan")):
        with pytest.raises(UsageError, match="is none"):
            prepare_pet(scan, anatomy, AV45, fwhm=wrong)


def test_a_field_of_view_that_misses_the_cerebellum_is_told(person, tmp_path, monkeypatch):
    anatomy, pet = person
    monkeypatch.setattr(preparation, "stretch", lambda *a: 0.0)
    low = np.argwhere(np.isin(anatomy.labels, codes_of("cerebellar_grey", "cerebellar_white")))[:, 2]
    bottom, top = int(np.quantile(low, 0.5)), np.argwhere(anatomy.labels > 0)[:, 2].max()
    shifted = anatomy.grid.affine.copy()
    shifted[:3, 3] += 2 * bottom * np.array([0, 0, 1])
    scan = written(tmp_path, pet[:, :, bottom:], shifted, prepared=True)
    with pytest.raises(
        InputError, match=r"sub-01_trc-AV45: .* holds [45]\d% of the reference region .*whole cerebellum"
    ):
        prepare_pet(scan, anatomy, AV45)
    # rows of zeros are no data either
    blank = pet.copy()
    blank[:, :, :bottom] = 0
    with pytest.raises(InputError, match="of the reference region"):
        prepare_pet(written(tmp_path, blank, anatomy.grid.affine, prepared=True), anatomy, AV45)
    # of a region that is nearly whole, the part that is seen counts
    rim = int(np.quantile(low, 0.05))
    shifted[:3, 3] = anatomy.grid.affine[:3, 3] + 2 * rim * np.array([0, 0, 1])
    made = prepare_pet(written(tmp_path, pet[:, :, rim:], shifted, prepared=True), anatomy, AV45)
    reference = np.isin(anatomy.labels, AV45.reference_codes)
    assert 0.9 < made.quality["reference_coverage"] < 1 and not made.suvr[~made.covered].any()
    assert made.suvr[reference & made.covered].mean() == pytest.approx(1, abs=1e-4)
    # a missing vertex leaves the SUVR alone and is told
    made = prepare_pet(written(tmp_path, pet[:, :, : top - 8], anatomy.grid.affine, prepared=True), anatomy, AV45)
    assert made.quality["brain_coverage"] < 0.98 and not made.covered[:, :, top].any() and made.covered[:, :, 40].all()
    assert any("% of the brain" in note for note in made.notes)
    whole = prepare_pet(written(tmp_path, pet, anatomy.grid.affine, prepared=True), anatomy, AV45)
    assert np.allclose(made.suvr[made.covered], whole.suvr[made.covered], atol=2e-2)


def test_pet_alone_gets_onto_the_grid(person, static):
    anatomy, _ = person
    _, move, _, scan = static
    with pytest.raises(InputError, match="sub-01_trc-AV45: there is no T1w"):
        prepare_pet(scan, None, AV45)
    placed = pet_on_template(scan, AV45, anatomy.grid.shape, 2.0)
    uptake, brain, grid = placed.uptake, placed.brain, placed.grid
    # the phantom stands in template pose, so its grid, moved, is to be found; but its brain is larger than the mean one
    millimetres, degrees = off(grid.affine @ np.linalg.inv(anatomy.grid.affine), move)
    assert millimetres < 5 and degrees < 5
    assert uptake[brain].mean() == pytest.approx(1, abs=1e-5)
    assert uptake[anatomy.labels > 0].mean() == pytest.approx(1, abs=0.1)
    assert placed.quality["brain_coverage"] > 0.98 and not any("of the brain" in note for note in placed.notes)
    smooth = pet_on_template(scan, AV45, anatomy.grid.shape, 2.0, fwhm=8.0).uptake
    assert np.abs(np.diff(smooth, axis=0)).mean() < 0.8 * np.abs(np.diff(uptake, axis=0)).mean()
    with pytest.raises(InputError, match="add or correct it"):
        pet_on_template(replace(scan, prepared=True), AV45, anatomy.grid.shape, 2.0)


def test_a_scan_with_a_problem_is_not_opened(person):
    scan = PetScan("01", None, "AV45", Path("nowhere.nii.gz"), problem="the file is a dangling link.")
    with pytest.raises(InputError, match="sub-01_trc-AV45: the file is a dangling link"):
        prepare_pet(scan, person[0], AV45)


def test_a_dynamic_scan_of_a_real_head(tmp_path):
    """Simulated frames of a real head that moves, from the raw file to regional SUVR."""
    if not (SHARED / "ixi").is_dir():
        pytest.skip("needs the real heads of ../shared/data/ixi")
    import torch

    from bids_petsynth.anatomy.segmentation import sided_codes
    from bids_petsynth.simulation.person import draw_people
    from bids_petsynth.simulation.scanner import dynamic_series
    from bids_petsynth.simulation.uptake import with_soft_tissue
    from bids_petsynth.training.labelling import merge_dlmuse

    def found(folder: Path, pattern: str):
        return nib.as_closest_canonical(nib.load(next((folder / "sub-IXI257").rglob(pattern))))

    t1w = found(SHARED / "ixi", "*_T1w.nii.gz")
    dlmuse = found(SHARED / "ixi" / "derivatives" / "dlmuse", "*_dseg.nii.gz")
    classes = merge_dlmuse(np.asarray(dlmuse.dataobj).astype(np.uint8))
    grid = Grid(classes.shape, t1w.affine)
    data = t1w.get_fdata(dtype=np.float32)
    data /= np.median(data[classes == region_index()["frontal_white"]])
    x, y, z = (
        sum(grid.affine[a, k] * index for k, index in enumerate(np.indices(classes.shape))) + grid.affine[a, 3]
        for a in range(3)
    )
    centre = np.array([axis[classes > 0].mean() for axis in (x, y, z)])
    codes = sided_codes(classes, x - centre[0], z, 1.0)
    anatomy = Anatomy(data, codes, np.zeros(0), grid)

    starts, durations = [3000.0, 3600.0], [600.0, 600.0]
    labels = with_soft_tissue(torch.from_numpy(classes.astype(np.int64))[None], torch.from_numpy(data)[None])
    people = draw_people(1, np.random.default_rng(0))
    series = dynamic_series(
        labels, people, "AV45", torch.Generator().manual_seed(0), torch.tensor(starts), torch.tensor(durations)
    )[0].numpy()
    first = rigid((6, 4, -5), (10, -6, 8), centre)
    later = rigid((2, -3, 2), (2, 3, -2), centre) @ first
    target = scanner((first @ [*centre, 1])[:3], (128, 128, 74))
    frames = np.stack([scanned(f, grid, m, target) for f, m in zip(series, (first, later), strict=True)], axis=-1)
    scan = written(tmp_path, frames, target.affine, {"FrameTimesStart": starts, "FrameDuration": durations})
    made = prepare_pet(scan, anatomy, AV45)
    motion = sphere_displacement(later @ np.linalg.inv(first), (first @ [*centre, 1])[:3])
    assert made.quality["displacement_mm"] == pytest.approx(motion, abs=0.7)
    assert made.quality["frames"] == 2 and made.quality["stretch_percent"] < 4 and made.notes == ()
    present, _, volumes = region_means(made.suvr[None], codes, grid)
    large = volumes[present > 100] > 3000
    # ANTs with several threads lands a hair elsewhere each time
    ratio = regional(made.suvr, anatomy)[large] / regional(series.mean(0), anatomy)[large]
    assert np.abs(ratio - 1).max() < 0.05 and np.abs(ratio - 1).mean() < 0.02
