"""From a head into template space (MNI152) by its labelled regions: fast enough for every participant of a cohort.

Centroids of the labelled regions are landmarks; the map through them bends as little as it can (a thin plate in three
dimensions). Linear scaling followed by a warp through landmarks is also how 3D-SSP standardises (Minoshima 1994, J Nucl
Med 35:1528). It takes a tenth of a second; a registration of the images (:mod:`bids_petsynth.anatomy.registration`) is
finer and a hundred times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from bids_petsynth.anatomy.alignment import template_centroids
from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.tables import read_table
from bids_petsynth.types import Grid

#: Voxels below which a region's centroid is no landmark, and landmarks below which there is no warp.
LEAST_VOXELS, LEAST_LANDMARKS = 10, 20
#: Fluid around the brain moves with atrophy rather than with anatomy.
_NO_LANDMARK = "extra_axial_csf"


@dataclass(frozen=True)
class Warp:
    """A smooth map from template mm to head mm: ``(N, 3)`` to ``(N, 3)``, both RAS+.

    Attributes
    ----------
    residual
        Root mean square distance of the head's landmarks from where the map puts them, in mm.
    """

    map: Callable[[np.ndarray], np.ndarray]
    landmarks: int
    residual: float

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return self.map(np.asarray(points, float))


@cache
def setting(name: str) -> str:
    """A value of ``data/surface.tsv`` as text.

    Raises
    ------
    KeyError
        If there is none of that name.
    """
    return {row["name"]: row["value"] for row in read_table("surface.tsv")}[name]


def landmarks(codes: np.ndarray, affine: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """(region, side) → centroid in mm, of ``dseg`` codes ``(X, Y, Z)``; regions cut from another count as that one."""
    where = np.nonzero(codes)
    found = codes[where].astype(np.intp)
    sums = np.stack([np.bincount(found, axis, 256) for axis in where], 1)
    counts = np.bincount(found, minlength=256)
    total: dict[tuple[str, str], np.ndarray] = {}
    for code, _, side, region in lookup():
        key = (region.cut_from or region.name, side)
        total[key] = total.get(key, np.zeros(4)) + np.append(sums[code], counts[code])
    kept = {k: v[:3] / v[3] for k, v in total.items() if v[3] >= LEAST_VOXELS and k[0] != _NO_LANDMARK}
    return {key: affine[:3, :3] @ centre + affine[:3, 3] for key, centre in kept.items()}


def landmark_warp(codes: np.ndarray, affine: np.ndarray) -> Warp:
    """The map from template space into a head, from its labels.

    Parameters
    ----------
    codes
        ``(X, Y, Z)`` ``dseg`` codes with sides, on any grid.
    affine
        Of that grid, RAS+; the warp leads to its mm.

    Raises
    ------
    ValueError
        If the labels hold too few regions.
    """
    from scipy.interpolate import RBFInterpolator

    template, head = template_centroids(), landmarks(codes, affine)
    keys = [key for key in head if key in template]
    if len(keys) < LEAST_LANDMARKS:
        raise ValueError(f"only {len(keys)} of the template's regions are labelled, {LEAST_LANDMARKS} are needed")
    source, target = (np.array([points[key] for key in keys]) for points in (template, head))
    # r is the kernel of the thin plate in three dimensions (Wahba 1990, Spline Models for Observational Data, 2.4)
    spline = RBFInterpolator(source, target, kernel="linear", degree=1, smoothing=float(setting("landmark_smoothing")))
    off = np.square(spline(source) - target).sum(1)
    return Warp(spline, len(keys), float(np.sqrt(off.mean())))


def sample_at(volume: np.ndarray, affine: np.ndarray, points: np.ndarray, order: int = 1) -> np.ndarray:
    """``volume (X, Y, Z)`` at ``points (..., 3)`` in mm, float32; NaN outside the field of view.

    ``order`` is 1 for linear and 0 for the nearest voxel.
    """
    inverse = np.linalg.inv(affine)
    voxels = np.moveaxis(points @ inverse[:3, :3].T + inverse[:3, 3], -1, 0)
    out = ndimage.map_coordinates(volume, voxels, order=order, mode="nearest", output=np.float32)
    size = np.array(volume.shape).reshape(3, *[1] * (voxels.ndim - 1))
    return np.where(((voxels >= -0.5) & (voxels <= size - 0.5)).all(0), out, np.nan)


def places(warp: Warp, grid: Grid, mask: np.ndarray | None = None) -> np.ndarray:
    """Where each voxel of a grid in template space lies in the head: ``(*grid.shape, 3)`` mm.

    Parameters
    ----------
    grid
        Axis-aligned, such as ``anatomy.alignment.template_grid``.
    mask
        ``grid.shape`` bool: only these V voxels are wanted, and come as ``(V, 3)``.
    """
    # the map is smooth: every fourth voxel tells it to a few hundredths of a mm
    coarse = [np.append(np.arange(0, n - 1, 4), n - 1) for n in grid.shape]
    nodes = np.stack(np.meshgrid(*coarse, indexing="ij"), -1)
    at_nodes = warp(nodes.reshape(-1, 3) @ grid.affine[:3, :3].T + grid.affine[:3, 3]).reshape(nodes.shape)
    for axis, (along, n) in enumerate(zip(coarse, grid.shape, strict=True)):
        at_nodes = _lines(at_nodes, along, n, axis)
    return at_nodes if mask is None else at_nodes[mask]


def into_template(volume: np.ndarray, affine: np.ndarray, warp: Warp, grid: Grid, order: int = 1) -> np.ndarray:
    """A head's image on a grid in template space, ``grid.shape``, float32, NaN outside its field of view.

    Parameters
    ----------
    volume, affine
        The image ``(X, Y, Z)`` and its RAS+ affine, in the mm that ``warp`` leads to.
    grid
        As :func:`places` takes it.
    """
    return sample_at(volume, affine, places(warp, grid), order)


def _lines(values: np.ndarray, places: np.ndarray, n: int, axis: int) -> np.ndarray:
    """Cubic interpolation along one axis from ``places`` to every index below ``n``."""
    from scipy.interpolate import make_interp_spline

    degree = min(3, len(places) - 1)
    return np.moveaxis(make_interp_spline(places, np.moveaxis(values, axis, 0), k=degree)(np.arange(n)), 0, axis)
