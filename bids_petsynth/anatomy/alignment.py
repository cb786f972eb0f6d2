"""Rigid alignment of a head to the template by its regions' centroids, refined on the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_petsynth.anatomy.regions import all_regions
from bids_petsynth.anatomy.registration import register_affine, to_ants
from bids_petsynth.tables import data_path, read_table
from bids_petsynth.types import Grid

#: Centre of the model grid in template (MNI152) coordinates, mm: the middle of the template brain's bounding box.
GRID_CENTRE = (0.0, -17.0, 8.0)


@dataclass(frozen=True)
class Alignment:
    """A rigid map.

    Attributes
    ----------
    to_template
        4 × 4, scanner mm → template mm.
    scale
        Size of the template relative to this head (similarity fit; reported, never applied to the image).
    residual
        Root mean square distance of the regions' centroids after that fit, mm.
    """

    to_template: np.ndarray
    scale: float
    residual: float

    def grid(self, shape: tuple[int, int, int], spacing: float) -> Grid:
        """The model grid of this head in scanner space."""
        return Grid(shape, np.linalg.inv(self.to_template) @ template_grid(shape, spacing).affine)


def template_grid(shape: tuple[int, int, int], spacing: float) -> Grid:
    """The model grid in template space: axis-aligned, centred on :data:`GRID_CENTRE`."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = np.array(GRID_CENTRE) - spacing * (np.array(shape) - 1) / 2
    return Grid(shape, affine)


def fit_rigid(source: np.ndarray, target: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Best rotation and shift of points onto points (weighted Kabsch), with the scale and residual of a similarity.

    Parameters
    ----------
    source, target
        ``(N, 3)`` in mm.
    weights
        ``(N,)``, non-negative.

    Returns
    -------
    tuple
        4 × 4 rigid matrix, scale, and root mean square distance after rotation, scale and shift in mm.
        Source of the formulae: Umeyama, IEEE TPAMI 1991;13:376.
    """
    w = weights / weights.sum()
    a, b = w @ source, w @ target
    x, y = source - a, target - b
    u, s, vt = np.linalg.svd((y * w[:, None]).T @ x)
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    turn = u @ sign @ vt
    scale = float((s * np.diag(sign)).sum() / (w @ (x**2).sum(1)))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, b - turn @ a
    rest = y - scale * x @ turn.T
    return matrix, scale, float(np.sqrt(w @ (rest**2).sum(1)))


def rotation_degrees(matrix: np.ndarray) -> float:
    """Angle in degrees by which a rigid 4 × 4 matrix turns."""
    return float(np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))))


def template_centroids() -> dict[tuple[str, str], np.ndarray]:
    """(region, side) → centroid in template mm, from ``data/template_centroids.tsv``."""
    rows = read_table("template_centroids.tsv")
    return {(r["name"], r["hemisphere"]): np.array([float(r[k]) for k in "xyz"]) for r in rows}


def sided_centroids(
    labels: np.ndarray, affine: np.ndarray, normal: np.ndarray, point: np.ndarray
) -> dict[tuple[str, str], tuple[np.ndarray, int]]:
    """(region, side) → centroid in mm and number of voxels, sides split by the plane through ``point``.

    ``labels`` ``(X, Y, Z)`` are side-less classes; ``normal`` points to the right.
    """
    where = np.nonzero(labels)
    classes = labels[where].astype(int)
    xyz = np.stack(where, 1) @ affine[:3, :3].T + affine[:3, 3]
    right = (xyz - point) @ normal > 0
    out: dict[tuple[str, str], tuple[np.ndarray, int]] = {}
    for region in all_regions():
        if region.cut_from:
            continue
        mine = classes == region.index
        sides = (("L", mine & ~right), ("R", mine & right)) if region.sided else (("B", mine),)
        for side, pick in sides:
            count = int(pick.sum())
            if count:
                out[(region.name, side)] = (xyz[pick].mean(0), count)
    return out


def align_centroids(labels: np.ndarray, affine: np.ndarray) -> Alignment | None:
    """Rigid alignment from side-less labels; the midplane is found on the way. None with fewer than ten regions.

    The plane that parts left from right and the rotation depend on each other, so they are improved in turn.
    """
    template = template_centroids()
    inside = np.argwhere(labels > 0)
    if len(inside) == 0:
        return None
    point = inside.mean(0) @ affine[:3, :3].T + affine[:3, 3]
    normal = np.array([1.0, 0.0, 0.0])
    result = None
    for _ in range(6):
        found = sided_centroids(labels, affine, normal, point)
        keys = [k for k in found if k in template and found[k][1] >= 10 and k[0] != "extra_axial_csf"]
        if len(keys) < 10:
            return None
        source = np.array([found[k][0] for k in keys])
        target = np.array([template[k] for k in keys])
        weights = np.sqrt([found[k][1] for k in keys])
        result = Alignment(*fit_rigid(source, target, weights))
        normal = result.to_template[:3, :3].T @ np.array([1.0, 0.0, 0.0])
        point = np.linalg.inv(result.to_template)[:3, 3]
    return result


def mean_t1w() -> tuple[np.ndarray, np.ndarray]:
    """Mean T1w of the aligned training heads ``(X, Y, Z)``, brain only, white matter 1, and its affine."""
    import nibabel as nib

    image = nib.load(data_path("templates", "mean_T1w.nii.gz"))
    return image.get_fdata(dtype=np.float32), image.affine


def refine(alignment: Alignment, brain_on_grid: np.ndarray, grid: Grid, seed: int) -> Alignment:
    """Correct the alignment by a rigid registration (ANTs, mutual information) to the mean T1w.

    Parameters
    ----------
    brain_on_grid
        ``(X, Y, Z)`` brain-only T1w, sampled at ``alignment.grid(…)``.
    grid
        The same grid in template space.

    Returns
    -------
    Alignment
        The refined one, or the one given where the registration has run away (more than 15 mm or 15°).
    """
    mean, mean_affine = mean_t1w()
    shift = register_affine(
        to_ants(mean, mean_affine),
        to_ants(brain_on_grid, grid.affine),
        "Rigid",
        seed,
        aff_metric="mattes",
        aff_random_sampling_rate=0.3,
        aff_iterations=(40, 20, 0, 0),
        aff_shrink_factors=(4, 2, 2, 1),
        aff_smoothing_sigmas=(2, 1, 1, 0),
    )
    angle = rotation_degrees(shift)
    centre = np.array(GRID_CENTRE)
    if angle > 15 or np.linalg.norm(shift[:3, :3] @ centre + shift[:3, 3] - centre) > 15:
        return alignment
    return Alignment(np.linalg.inv(shift) @ alignment.to_template, alignment.scale, alignment.residual)
