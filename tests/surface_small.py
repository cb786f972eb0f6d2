"""Ellipsoids, spheres, labels and people with known values, for tests of the brain's surface."""

from __future__ import annotations

import numpy as np

from bids_petsynth.anatomy.alignment import template_centroids, template_grid
from bids_petsynth.anatomy.regions import LEFT, RIGHT, region_index
from bids_petsynth.evaluation.surface import Projection
from bids_petsynth.types import Grid

AXES = np.array([60.0, 75.0, 50.0])
GRID = template_grid((72, 88, 64), 2.0)
#: Ellipsoid in the middle of x = 0.
MIDDLE = np.array([0.0, -17.0, 8.0])


def coordinates(grid: Grid = GRID) -> np.ndarray:
    """``(3, X, Y, Z)`` mm of each voxel."""
    every = np.indices(grid.shape).reshape(3, -1)
    return (grid.affine[:3, :3] @ every + grid.affine[:3, 3:]).reshape(3, *grid.shape)


def ellipsoid(grid: Grid = GRID, axes: np.ndarray = AXES) -> np.ndarray:
    """Squared radius, 1 on the ellipsoid."""
    return np.square((coordinates(grid) - MIDDLE[:, None, None, None]) / axes[:, None, None, None]).sum(0)


def sphere(radius: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """Depth below a sphere in mm, and its mask."""
    depth = radius - np.linalg.norm(coordinates() - MIDDLE[:, None, None, None], axis=0)
    return depth, depth > 0


def labelled(matrix: np.ndarray, spacing: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Little balls at the template's centroids, moved by an affine map, as codes on a grid."""
    shape = tuple(int(extent / spacing) for extent in (220, 260, 220))
    affine = template_grid(shape, spacing).affine
    codes = np.zeros(shape, np.uint8)
    index = region_index()
    for (name, side), centre in template_centroids().items():
        if name == "extra_axial_csf":
            continue
        where = np.linalg.inv(affine) @ matrix @ np.append(centre, 1)
        low = np.round(where[:3]).astype(int)
        place = tuple(slice(v - 1, v + 2) for v in low)
        codes[place] = index[name] + {"L": LEFT, "R": RIGHT, "B": 0}[side]
    return codes, affine


def noise_people(n: int, points: int, seed: int, shift: np.ndarray | float = 0.0) -> list[Projection]:
    values = 1.5 + 0.1 * np.random.default_rng(seed).standard_normal((n, points))
    return [Projection(row + shift, "max", 13.5, "key") for row in values]
