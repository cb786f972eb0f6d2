"""Laying a PET scan on the T1w, or on the mean T1w template, and figures that tell how well it lies there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bids_petsynth.anatomy.alignment import GRID_CENTRE, mean_t1w, rotation_degrees, template_grid
from bids_petsynth.anatomy.volume import Volume, resample
from bids_petsynth.pet.motion import register_from
from bids_petsynth.pet.scan import numbers
from bids_petsynth.types import Grid

#: From each start a coarse registration; from the best of them a fine one. Three times as many samples took twice the
#: time and came no nearer (own measurement: .73 to .80 mm on simulated scans with either).
_COARSE = {
    "aff_random_sampling_rate": 0.15,
    "aff_iterations": (60, 30),
    "aff_shrink_factors": (6, 4),
    "aff_smoothing_sigmas": (3, 2),
}
_FINE = {
    "aff_random_sampling_rate": 0.1,
    "aff_iterations": (60, 30),
    "aff_shrink_factors": (4, 2),
    "aff_smoothing_sigmas": (2, 0),
}


def normalised_mutual_information(x: np.ndarray, y: np.ndarray) -> float:
    """``(H(x) + H(y)) / H(x, y)``: 1 for independent images, 2 for images that determine each other.

    From a joint histogram of 64 × 64 bins between the 0.5th and 99.5th percentiles of each; ``x`` and ``y`` have the
    same shape. It grows as the bins get emptier, so only regions of similar size can be compared.
    Source of the formula: Studholme et al., Pattern Recognit 1999;32:71.
    """
    bins = int(numbers()["nmi_bins"])

    def binned(v: np.ndarray) -> np.ndarray:
        low, high = np.percentile(v, (0.5, 99.5))
        scaled = (v.ravel() - low) * (bins / max(high - low, 1e-12))
        return np.clip(scaled, 0, bins - 1).astype(np.int64)

    def entropy(p: np.ndarray) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    joint = np.bincount(binned(x) * bins + binned(y), minlength=bins * bins).reshape(bins, bins) / x.size
    both = entropy(joint)
    return (entropy(joint.sum(0)) + entropy(joint.sum(1))) / both if both > 0 else 1.0


def _best(pet: Volume, fixed: Volume, inside: np.ndarray, starts: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Rigid registration from several starts; the one with the most mutual information ``inside`` is refined."""

    def score(found: np.ndarray) -> float:
        return normalised_mutual_information(fixed.data[inside], on_grid(pet, fixed.grid, found)[inside])

    coarse = [register_from(fixed, pet, start, seed, **_COARSE) for start in starts]
    return register_from(fixed, pet, max(coarse, key=score), seed, **_FINE)


def on_grid(pet: Volume, grid: Grid, transform: np.ndarray) -> np.ndarray:
    """The PET on a grid ``(X, Y, Z)``; ``transform`` takes points of the grid's space to the PET's, in mm."""
    return resample(pet, Grid(grid.shape, transform @ grid.affine))


def centre_of(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centroid in mm of what is true (or of weights)."""
    return (affine @ [*ndimage.center_of_mass(mask), 1])[:3]


def _activity_centre(pet: Volume) -> np.ndarray:
    bright = pet.data > numbers()["head_threshold"] * np.percentile(pet.data, 99)
    return centre_of(bright, pet.affine)


def _shift(vector: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = vector
    return matrix


def to_t1w(pet: Volume, t1w: np.ndarray, labels: np.ndarray, grid: Grid, seed: int) -> np.ndarray:
    """Rigid registration (ANTs, mutual information) of a PET scan to the T1w of a head.

    It starts from where the scanners' coordinates put the two, and from where their centres coincide.

    Parameters
    ----------
    pet
        Static scan, see :func:`bids_petsynth.pet.motion.realign`.
    t1w, labels
        ``(X, Y, Z)``; the whole head and its ``dseg`` codes.
    grid
        Where these lie.
    seed
        Same seed and images: same result.

    Returns
    -------
    numpy.ndarray
        4 × 4, T1w points → PET points, mm.
    """
    brain = labels > 0
    near = ndimage.binary_dilation(brain, iterations=3)
    starts = [np.eye(4), _shift(_activity_centre(pet) - centre_of(brain, grid.affine))]
    return _best(pet, Volume(t1w, grid.affine), near, starts, seed)


def grid_from_pet(pet: Volume, shape: tuple[int, int, int], spacing: float, seed: int) -> tuple[Grid, np.ndarray]:
    """The model grid of a head of which there is PET alone: rigid registration to the built-in mean T1w.

    Parameters
    ----------
    pet
        Static scan, see :func:`bids_petsynth.pet.motion.realign`.
    shape, spacing
        The model grid.

    Returns
    -------
    grid
        In the PET's scanner space, standing as the template does.
    brain
        ``(X, Y, Z)`` bool: the template's brain on it.
    """
    mean, affine = mean_t1w()
    template = Volume(mean, affine)
    inside = mean > 0.1
    near = ndimage.binary_dilation(inside, iterations=3)
    centre = _shift(_activity_centre(pet) - np.array(GRID_CENTRE))
    found = _best(pet, template, near, [centre @ _pitched(angle) for angle in (-15, 15)], seed)
    upright = template_grid(shape, spacing)
    brain = resample(Volume(inside.astype(np.float32), affine), upright, order=1) > 0.5
    return Grid(shape, found @ upright.affine), brain


def _pitched(degrees: float) -> np.ndarray:
    """A nod about the middle of the template's brain."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    turn[1:3, 1:3] = (c, -s), (s, c)
    return _shift(np.array(GRID_CENTRE)) @ turn @ _shift(-np.array(GRID_CENTRE))


def stretch(pet: Volume, t1w: np.ndarray, grid: Grid, seed: int) -> float:
    """By how many percent, at most, the PET would have to be stretched along some direction to fit the T1w better.

    ``pet`` lies on the T1w. An affine registration goes on from there; the figure is its singular value furthest from
    1. The brains of two people differ in length, width or height; that of one person in two scanners does not.
    Two heads of the same size cannot be told apart so (``data/pet_preparation.tsv`` says how often on simulated scans).
    """
    free = register_from(Volume(t1w, grid.affine), pet, np.eye(4), seed, "Affine", **_FINE)
    values = np.linalg.svd(free[:3, :3], compute_uv=False)
    return float(100 * np.expm1(np.abs(np.log(values)).max()))


def pose(found: np.ndarray, labels: np.ndarray, grid: Grid) -> tuple[float, float]:
    """How far (mm, of the brain's centre) and by how many degrees a registration moves the PET."""
    centre = centre_of(labels > 0, grid.affine)
    return float(np.linalg.norm(found[:3, :3] @ centre + found[:3, 3] - centre)), rotation_degrees(found)


def fit_figures(suvr: np.ndarray, covered: np.ndarray, labels: np.ndarray, spacing: float) -> dict[str, float]:
    """Figures of how a PET lies on the T1w's labels.

    ``outline_dice`` (of the brain's outline in the PET, where it exceeds half of its median, with the T1w's) and
    ``contrast`` (mean within the brain over that 6 to 12 mm outside). Neither has a limit, nor has the mutual
    information: they differ more between tracers than between one's own T1w and another person's.
    """
    limit = numbers()
    brain = (labels > 0) & covered
    bright = ndimage.binary_opening(suvr > limit["outline_low"] * np.median(suvr[brain]), iterations=3)
    parts, count = ndimage.label(bright)
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count else bright
    outline = ndimage.binary_dilation(largest, iterations=1)
    within, beyond = (
        ndimage.binary_dilation(labels > 0, iterations=max(1, round(limit[key] / spacing)))
        for key in ("shell_from", "shell_to")
    )
    shell = beyond & ~within & covered
    around = float(suvr[shell].mean()) if shell.any() else 0.0
    figures = {"outline_dice": float(2 * (outline & brain).sum() / (outline.sum() + brain.sum()))}
    return figures | ({"contrast": float(suvr[brain].mean()) / around} if around > 0 else {})
