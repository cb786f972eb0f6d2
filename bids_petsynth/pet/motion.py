"""Motion within a scan: every frame is laid on the first, then on the mean of all, by rigid registration.

The registrations are done on small smooth copies of the frames, cut to the head. A frame itself is interpolated only
where its place is known for good.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from bids_petsynth.anatomy.registration import register_affine, to_ants
from bids_petsynth.anatomy.volume import Volume, resample, smoothed_for
from bids_petsynth.pet.scan import numbers
from bids_petsynth.types import Grid

FWHM = 2 * np.sqrt(2 * np.log(2))

#: Coarse to fine for a frame that may have moved by centimetres; fine alone for one that is nearly in place. A third of
#: the samples cost a phantom nothing, and up to 7 % of regional SUVR in two simulated frames of a real head (own
#: measurement; 5 % is the test's bar).
_FIRST = {
    "aff_random_sampling_rate": 0.15,
    "aff_iterations": (40, 20),
    "aff_shrink_factors": (2, 1),
    "aff_smoothing_sigmas": (1, 0),
}
_AGAIN = _FIRST | {"aff_iterations": (20,), "aff_shrink_factors": (1,), "aff_smoothing_sigmas": (0,)}


def register_from(
    fixed: Volume, moving: Volume, start: np.ndarray, seed: int, kind: str = "Rigid", **options: Any
) -> np.ndarray:
    """Registration by mutual information from a start; both 4 × 4, fixed → moving points in mm.

    ``start`` goes into the moving image's affine, so no file is needed to hand it to ANTs.
    """
    placed = to_ants(moving.data, np.linalg.inv(start) @ moving.affine)
    options = {"aff_metric": "mattes", "initial_transform": "Identity"} | options
    return start @ register_affine(to_ants(fixed.data, fixed.affine), placed, kind, seed, **options)


def head_grid(volume: Volume, spacing: float) -> Grid:
    """An isotropic grid along the volume's own axes that covers the activity in it with a margin.

    A field of view of 80 cm is mostly air.
    """
    limit = numbers()
    coarse = smoothed_for(volume, 8.0)
    step = np.maximum(np.round(8.0 / volume.spacing), 1).astype(int)
    data = coarse.data[:: step[0], :: step[1], :: step[2]]
    parts, count = ndimage.label(data > limit["head_threshold"] * np.percentile(data, 99))
    box = np.zeros((2, 3))
    if count:
        largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
        for axis, part in enumerate(ndimage.find_objects(parts)[largest - 1]):
            box[:, axis] = part.start * step[axis], (part.stop - 1) * step[axis]
    else:
        box[1] = np.array(volume.data.shape) - 1
    margin = limit["head_margin"] / volume.spacing
    low = np.maximum(box[0] - margin, 0)
    high = np.minimum(box[1] + margin, np.array(volume.data.shape) - 1)
    steps = spacing / volume.spacing
    shape = tuple(int(n) for n in np.ceil((high - low) / steps) + 1)
    scale = np.diag([*steps, 1.0])
    scale[:3, 3] = low
    return Grid(shape, volume.affine @ scale)


def sphere_displacement(matrix: np.ndarray, centre: np.ndarray) -> float:
    """Mean distance in mm by which a 4 × 4 matrix moves points on a sphere around ``centre``.

    500 points spread evenly (Fibonacci lattice) stand for the sphere, whose radius is about that of the brain.
    """
    n = 500
    height = 1 - (2 * np.arange(n) + 1) / n
    angle = np.arange(n) * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - height**2)
    points = centre + numbers()["sphere_radius"] * np.stack([ring * np.cos(angle), ring * np.sin(angle), height], 1)
    moved = points @ matrix[:3, :3].T + matrix[:3, 3]
    return float(np.linalg.norm(moved - points, axis=1).mean())


def trusted(strength: np.ndarray) -> np.ndarray:
    """``(T,)`` True for frames with enough counts to be registered by themselves; ``strength`` is activity × time."""
    return strength >= numbers()["frame_strength_min"] * strength.max()


def realign(
    frames: np.ndarray, affine: np.ndarray, weights: np.ndarray, seed: int
) -> tuple[Volume, list[np.ndarray], float]:
    """Find how the head moved between frames.

    Parameters
    ----------
    frames
        ``(X, Y, Z, T)``.
    affine
        4 × 4, voxel → scanner RAS+ mm, of all frames.
    weights
        ``(T,)`` weight of each frame in the mean, sum 1.
    seed
        Same seed and frames: same result.

    Returns
    -------
    mean
        Weighted mean of the realigned frames around the head, where it lay in the first frame; for registration.
    transforms
        One rigid 4 × 4 matrix per frame: a point of the first frame → the same point of the head in that frame, mm.
        A frame with too few counts to be registered takes the one of the nearest in time that has enough.
    displacement
        The largest over the frames of :func:`sphere_displacement` against the first, mm.
    """
    limit = numbers()
    count = frames.shape[-1]
    strength = weights * np.clip(frames, 0, None).mean((0, 1, 2), dtype=np.float64)
    able = np.flatnonzero(trusted(strength))
    volumes = [Volume(frames[..., i], affine) for i in range(count)]
    transforms = {int(i): np.eye(4) for i in able}
    grid = head_grid(volumes[able[0]], limit["mean_spacing"])
    centre = (grid.affine @ [*(np.array(grid.shape) - 1) / 2, 1])[:3]
    if len(able) > 1:
        small_grid = head_grid(volumes[able[0]], limit["realign_spacing"])
        small = {i: _small(volumes[i], small_grid) for i in transforms}
        first = small[able[0]]
        for i in able[1:]:
            transforms[i] = register_from(first, small[i], np.eye(4), seed, **_FIRST)
        share = strength[able] / strength[able].sum()
        mean = sum(
            w * resample(Volume(frames[..., i], affine), _moved(small_grid, transforms[i]), order=1)
            for w, i in zip(share, able, strict=True)
        )
        target = _smooth(Volume(mean, small_grid.affine))
        for i in able:
            transforms[i] = register_from(target, small[i], transforms[i], seed, **_AGAIN)
        back = np.linalg.inv(transforms[able[0]])
        transforms = {i: transforms[i] @ back for i in transforms}
    nearest = [int(able[np.argmin(np.abs(able - i))]) for i in range(count)]
    found = [transforms[i] for i in nearest]
    mean = sum(w * resample(v, _moved(grid, t)) for w, v, t in zip(weights, volumes, found, strict=True) if w > 0)
    displacement = max(sphere_displacement(t, centre) for t in found)
    return Volume(np.asarray(mean, np.float32), grid.affine), found, displacement


def _moved(grid: Grid, transform: np.ndarray) -> Grid:
    """The grid whose voxels lie where the transform takes those of ``grid``."""
    return Grid(grid.shape, transform @ grid.affine)


def _small(volume: Volume, grid: Grid) -> Volume:
    """A frame on the grid that registrations are done on, smoothed against noise."""
    return _smooth(Volume(resample(volume, grid, order=1), grid.affine))


def _smooth(volume: Volume) -> Volume:
    sigma = numbers()["realign_fwhm"] / FWHM / volume.spacing
    return Volume(ndimage.gaussian_filter(volume.data, sigma), volume.affine)
