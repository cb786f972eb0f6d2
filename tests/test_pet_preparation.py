"""Preparing real PET: frame times against closed forms, bad input by its sentence, known poses and motions found again.

The head is nilearn's template inside the project's phantom, its regions cut by coordinates: no network and no shared
data are needed, except for the real head at the end.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_petsynth.anatomy.alignment import template_grid
from bids_petsynth.anatomy.regions import LEFT, RIGHT, codes_of, region_index
from bids_petsynth.anatomy.volume import Volume, resample
from bids_petsynth.errors import InputError, UsageError
from bids_petsynth.pet import coregistration, preparation
from bids_petsynth.pet.motion import head_grid, realign, sphere_displacement, trusted
from bids_petsynth.pet.preparation import pet_on_template, prepare_pet, read_pet, window_weights
from bids_petsynth.pet.quantification import normalise, region_means
from bids_petsynth.pet.scan import check_units
from bids_petsynth.pet.timing import frame_times
from bids_petsynth.pet.tracers import tracer
from bids_petsynth.types import Anatomy, Grid, PetScan

SHARED = Path(__file__).parents[2] / "shared" / "data"
AV45 = tracer("AV45")
STATIC = {"Units": "Bq/mL", "FrameTimesStart": [3000], "FrameDuration": [1200]}


def rigid(angles, shift, centre=(0.0, -17.0, 8.0)) -> np.ndarray:
    """A turn (degrees about x, y, z) around the middle of the brain and a shift in mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = np.array(centre) + shift - matrix[:3, :3] @ centre
    return matrix


def noise(shape, rng, level=0.05) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 0.8)
    return (level * field / field.std()).astype(np.float32)


def head(scale=(1.0, 1.0, 1.0)) -> tuple[Anatomy, np.ndarray]:
    """A phantom head and a noise-free amyloid scan of it on the model grid; ``scale`` makes another person of it."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

    from bids_petsynth.simulation.phantom import Variation, phantom_head

    still = Variation(size=1, warp_mm=0, scale=0, turn_degrees=0, shift_mm=0, bias=0, noise=0)
    data, affine = phantom_head(0, still)
    grid = template_grid((96, 112, 96), 2.0)
    stretched = Grid(grid.shape, np.diag([*scale, 1.0]) @ grid.affine)
    t1w = resample(Volume(data.astype(np.float32) / 1000, affine), stretched, order=1)
    brain, grey, white = (
        resample(Volume(image.get_fdata(dtype=np.float32), image.affine), stretched, order=1) > 0.5
        for image in (
            f(resolution=2) for f in (load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template)
        )
    )
    spans = (stretched.affine[a, a] * np.arange(n) + stretched.affine[a, 3] for a, n in enumerate(grid.shape))
    x, y, z = np.meshgrid(*spans, indexing="ij")
    below = (z < -14) & (y < -42)
    # region, its voxels (what is named first keeps them), its uptake
    table = (
        ("cerebellar_white", below & white, 1.5),
        ("cerebellar_grey", below & grey, 0.9),
        ("frontal_white", white, 1.8),
        ("middle_frontal", grey & (y > 0), 1.4),
        ("superior_temporal", grey & (y > -50), 1.1),
        ("medial_occipital", grey, 1.25),
        ("extra_axial_csf", brain, 0.3),
    )
    names = region_index()
    masks = [~brain, *(mask for _, mask, _ in table)]
    labels = np.select(masks, [0, *(names[name] for name, *_ in table)])
    value = np.select(masks, [np.where(t1w > 0.3, 0.5, 0), *(uptake for *_, uptake in table)])
    sided = labels > 0
    sided &= labels != names["extra_axial_csf"]
    codes = (labels + np.where(sided, np.where(x < 0, LEFT, RIGHT), 0)).astype(np.uint8)
    pet = ndimage.gaussian_filter(value.astype(np.float32), 7 / 2.355 / 2)
    return Anatomy(t1w.astype(np.float32), codes, np.zeros(0), grid), pet


@pytest.fixture(scope="module")
def person():
    return head()


def scanner(centre=(0.0, -17.0, 8.0), shape=(110, 120, 70), size=(2.1, 2.1, 2.5)) -> Grid:
    """A scanner's grid, in the axis order of most PET files."""
    affine = np.diag([-size[0], -size[1], size[2], 1.0])
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def scanned(pet: np.ndarray, grid: Grid, move: np.ndarray, target: Grid) -> np.ndarray:
    """The PET of a head that ``move`` (4 × 4, T1w → PET scanner) has put into a scanner."""
    return resample(Volume(pet, grid.affine), Grid(target.shape, np.linalg.inv(move) @ target.affine), order=3)


def written(folder: Path, data: np.ndarray, affine, sidecar=STATIC, **more) -> PetScan:
    path = folder / "sub-01_trc-AV45_pet.nii.gz"
    nib.save(nib.Nifti1Image(data, affine), path)
    return PetScan("01", None, "AV45", path, sidecar, **more)


def off(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Distance in mm on the brain's surface and angle in degrees between two rigid matrices."""
    difference = np.linalg.inv(true) @ found
    angle = Rotation.from_matrix(difference[:3, :3]).magnitude()
    return sphere_displacement(difference, np.array([0.0, -17.0, 8.0])), float(np.degrees(angle))


# frame times and windows


def test_weights_are_the_seconds_within_the_window():
    starts, durations = np.arange(40, 90, 10) * 60.0, np.full(5, 600.0)
    assert window_weights(starts, durations, (50, 70)) == pytest.approx([0, 0.5, 0.5, 0, 0])
    # 5 of the 20 minutes from the first frame, 10 from the second, 5 from the third
    assert window_weights(starts, durations, (55, 75)) == pytest.approx([0, 0.25, 0.5, 0.25, 0])
    assert window_weights([3000], [1200], (50, 70)) == pytest.approx([1])
    # a pause between frames counts for nothing: 10 of 20 minutes are scanned, 5 in each frame
    assert window_weights([3000, 3900], [300, 300], (50, 70)) == pytest.approx([0.5, 0.5])
    # times rounded to seconds do not pull in the frame before
    assert window_weights([2400.5, 3000.5], [600, 1200], (50, 70)) == pytest.approx([0, 1], abs=1e-12)
    # frames of unequal length, 2 and 14 minutes in the window
    assert window_weights([2880, 3120], [240, 1080], (50, 66)) == pytest.approx([0.125, 0.875])


@pytest.mark.parametrize(
    "starts, durations, window, words",
    [
        ([0], [1200], (50, 70), r"runs from 0 to 20 min after injection and covers 0% of the window of 50 to 70 min"),
        ([3000], [500], (50, 70), r"covers 42% .*--pet-window START END"),
        ([0], [5400], (50, 70), r"only 22% of what would be averaged .* frames this long cannot be cut"),
    ],
)
def test_a_window_that_was_not_scanned_is_refused(starts, durations, window, words):
    with pytest.raises(InputError, match=words):
        window_weights(starts, durations, window)


def test_a_window_that_is_none_is_refused():
    with pytest.raises(UsageError, match="70 to 50 min is none"):
        window_weights([3000], [1200], (70, 50))


def test_times_count_from_the_injection():
    (starts, durations), notes = frame_times(
        {"FrameTimesStart": [0, 300], "FrameDuration": [300, 300], "InjectionStart": -3000, "ScanStart": 0}, 2, "sub-01"
    )
    assert starts.tolist() == [3000, 3300] and durations.tolist() == [300, 300] and notes == ()
    # frames cannot begin before the scan does
    (starts, _), notes = frame_times({"FrameTimesStart": 0, "FrameDuration": 1200, "ScanStart": 3000}, 1, "sub-01")
    assert starts.tolist() == [3000] and "count from ScanStart" in notes[0]
    times, notes = frame_times({}, 1, "sub-01")
    assert times is None and "taken to be of the window asked for" in notes[0]
    _, notes = frame_times(
        {"FrameTimesStart": [0, 300], "FrameDuration": [300, 300], "ImageDecayCorrected": False}, 2, "sub-01"
    )
    assert "not corrected for decay" in notes[0]


@pytest.mark.parametrize(
    "sidecar, frames, words",
    [
        ({"FrameTimesStart": [0, 300], "FrameDuration": [300, 300]}, 3, "2 FrameTimesStart .* the image has 3 frames"),
        ({"FrameTimesStart": [0, 300], "FrameDuration": [300]}, 2, "1 FrameDuration where the image has 2 frames"),
        ({"FrameDuration": [300, 300]}, 2, "lacks FrameTimesStart of the 2 frames"),
        ({"FrameTimesStart": [300, 0], "FrameDuration": [300, 300]}, 2, "does not rise"),
        ({"FrameTimesStart": [0, 300], "FrameDuration": [300, 0]}, 2, "FrameDuration is not above 0"),
        ({"FrameTimesStart": [0, 300], "FrameDuration": [400, 300]}, 2, "frame 1 ends 100 s after frame 2 begins"),
        ({"FrameTimesStart": [0, 300], "FrameDuration": [300, 600]}, 2, None),
        ({"FrameTimesStart": [0, 60, 180], "FrameDuration": [60, 180, 300]}, 3, "holds the end of each frame"),
        ({"FrameTimesStart": [3000000], "FrameDuration": [1200000]}, 1, "looks like milliseconds"),
        (
            {"FrameTimesStart": [0], "FrameDuration": [98000]},
            1,
            "milliseconds; BIDS wants seconds: divide them by 1000",
        ),
        ({"FrameTimesStart": [50], "FrameDuration": [20]}, 1, "last 20 s together, which looks like minutes"),
        ({"FrameTimesStart": [43200], "FrameDuration": [20]}, 1, "12 hours"),
        ({"FrameTimesStart": [0], "FrameDuration": [600], "InjectionStart": 900}, 1, "which is before it"),
        ({"FrameTimesStart": ["soon"], "FrameDuration": [600]}, 1, "FrameTimesStart in the sidecar is .*soon"),
        ({"FrameTimesStart": [0], "FrameDuration": [float("nan")]}, 1, "no number of seconds"),
    ],
)
def test_frame_times_that_cannot_be_are_told(sidecar, frames, words):
    if words is None:
        assert frame_times(sidecar, frames, "sub-01")[0] is not None
        return
    with pytest.raises(InputError, match=f"sub-01.*{words}"):
        frame_times(sidecar, frames, "sub-01")


@pytest.mark.parametrize("unit", ["Bq/mL", "Bq/ml", "kBq/mL", "SUV", "g/mL", "unitless", "BQML", "counts/s", "µCi/cc"])
def test_units_of_activity_pass(unit):
    check_units({"Units": unit}, "sub-01")
    check_units({}, "sub-01")


@pytest.mark.parametrize("unit", ["mm", "HU", "ms", "counts per fortnight", "mL/min/g", 3, ["Bq/mL"]])
def test_other_units_are_told(unit):
    with pytest.raises(InputError, match="sub-01: the sidecar gives the unit .* none of activity"):
        check_units({"Units": unit}, "sub-01")


@pytest.mark.parametrize("name, words", [("pet001", "end of each frame"), ("pet006", "milliseconds")])
def test_real_sidecars_with_wrong_times_are_told(name, words):
    import json

    found = sorted((SHARED / "bids-examples" / name).rglob("*_pet.json"))
    if not found:
        pytest.skip("needs ../shared/data/bids-examples")
    sidecar = json.loads(found[0].read_text())
    with pytest.raises(InputError, match=words):
        frame_times(sidecar, len(sidecar["FrameDuration"]), name)


# reading


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


# figures


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


# whole scans


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
    smooth = prepare_pet(scan, anatomy, AV45, fwhm=10, own_fwhm=6).suvr
    # 8 mm in quadrature to 6 mm make 10 mm
    known = ndimage.gaussian_filter(pet, 8 / 2.3548 / 2)
    known = normalise(known[None], anatomy.labels, anatomy.grid, AV45)[0]
    inside = anatomy.labels > 0
    assert np.allclose(smooth[inside], known[inside], atol=0.01)
    # what is not covered does not darken the edge
    covered = np.indices((20, 20, 20))[2] > 7
    assert np.allclose(preparation._smoothed(np.where(covered, 3.0, 0), covered, 2.0), 3 * covered)
    kept = prepare_pet(scan, anatomy, AV45, fwhm=6, own_fwhm=7)
    assert "not smoothed" in kept.notes[0]
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
    uptake, grid = pet_on_template(scan, AV45, anatomy.grid.shape, 2.0)
    # the phantom stands in template pose, so its grid, moved, is to be found; but its brain is larger than the mean one
    millimetres, degrees = off(grid.affine @ np.linalg.inv(anatomy.grid.affine), move)
    assert millimetres < 5 and degrees < 5
    assert uptake[anatomy.labels > 0].mean() == pytest.approx(1, abs=0.1)
    with pytest.raises(InputError, match="add the T1w"):
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
