"""Digital phantom heads: whole-head T1w scans of nobody, for trying the software without data.

The brain is the MNI ICBM 152 template that nilearn bundles. That template is skull-stripped, so everything around
it is invented here from distances to the brain: cerebrospinal fluid, a dark skull with marrow, bright scalp, a
face and a neck of muscle and fat, air-filled sinuses, eyes. A smooth random deformation, another bias field and
other noise make each seed another person. Such a head exercises every step of the software, and it says nothing
about people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

VOXEL = 2
MARGIN = ((9, 9), (9, 11), (29, 1))
"""Voxels added around the template's box: room for scalp at the sides, the face in front, the neck below."""
CROP = 10
"""Voxels at the bottom that a deformation may draw from and that are cut off after it."""


@dataclass(frozen=True)
class Tissue:
    """T1w intensity (white matter is 1) of invented tissue, and the thickness of its layer in mm where it is one."""

    fluid: float = 0.22
    bone: float = 0.10
    marrow: float = 0.55
    scalp: float = 1.15
    muscle: float = 0.55
    air: float = 0.02
    fluid_mm: float = 3.0
    skull_mm: float = 6.5
    scalp_mm: float = 6.0


@dataclass(frozen=True)
class Variation:
    """How much heads and scans differ: standard deviations, lengths in mm, turns in degrees.

    ``size`` is an average head's relative to the template: MNI152 is larger than life (Lancaster et al., Hum Brain Mapp
    2007;28:1194, find its brain longer and higher than individual ones).
    """

    size: float = 0.94
    warp_mm: float = 3.0
    warp_length_mm: float = 32.0
    scale: float = 0.03
    turn_degrees: float = 4.0
    shift_mm: float = 3.0
    bias: float = 0.08
    bias_length_mm: float = 45.0
    noise: float = 0.02


def phantom_head(
    seed: int | Sequence[int], variation: Variation | None = None, tissue: Tissue | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One phantom's T1w.

    Parameters
    ----------
    seed
        Another seed (a number or several) gives another head; the same seed the same voxels.
    variation, tissue
        What to change.

    Returns
    -------
    t1w
        ``(117, 137, 115)`` int16, RAS+ order, white matter near 1000.
    affine
        4 × 4, voxel → mm; 2 mm voxels.
    """
    variation, tissue = variation or Variation(), tissue or Tissue()
    random = np.random.default_rng(seed)
    head, affine = _template_head(tissue)
    t1w = ndimage.map_coordinates(head, _deformation(head.shape, variation, random), order=1, mode="nearest")
    t1w *= np.exp(_smooth_field(head.shape, variation.bias_length_mm, variation.bias, random))
    # The magnitude of a complex signal: noise is Rician, as in real scans, and the air is never negative.
    noise = random.normal(0, variation.noise, (2, *head.shape))
    t1w = np.hypot(t1w + noise[0], noise[1])[..., CROP:]
    origin = affine @ (0, 0, CROP, 1)
    return np.round(t1w * 1000).astype(np.int16), np.column_stack([affine[:, :3], origin])


@lru_cache(maxsize=1)
def _template_head(tissue: Tissue) -> tuple[np.ndarray, np.ndarray]:
    """The undeformed head, float64, and its affine."""
    from nilearn.datasets import (
        load_mni152_brain_mask,
        load_mni152_gm_template,
        load_mni152_template,
        load_mni152_wm_template,
    )

    image = load_mni152_template(resolution=VOXEL)
    affine = image.affine.copy()
    affine[:3, 3] -= VOXEL * np.array([before for before, _ in MARGIN])

    def padded(volume) -> np.ndarray:
        return np.pad(volume.get_fdata(), MARGIN)

    template = padded(image)
    grey, white = (padded(load(resolution=VOXEL)) for load in (load_mni152_gm_template, load_mni152_wm_template))
    brain = padded(load_mni152_brain_mask(resolution=VOXEL)) > 0
    # The template is a mean of many heads; its tissue maps sharpen it to the contrast of a single one.
    inside = 0.5 * template / np.median(template[white > 0.9]) + 0.5 * (
        white + 0.68 * grey + tissue.fluid * np.clip(1 - white - grey, 0, 1)
    )

    # Distance to a smooth hull of the brain: sulci and the gap above the cerebellum must not dent the skull.
    hull = ndimage.gaussian_filter(ndimage.binary_closing(brain, iterations=8).astype(float), 2.5) > 0.5
    hull |= brain
    outside = ndimage.distance_transform_edt(~hull, sampling=VOXEL)
    skull_end = tissue.fluid_mm + tissue.skull_mm
    world = _world(template.shape, affine)
    body = ndimage.binary_fill_holes((outside < skull_end + tissue.scalp_mm) | _soft_tissue(world))
    # The neck goes on below the field, so the bottom is no surface of the body.
    depth = ndimage.distance_transform_edt(np.pad(body, ((0, 0), (0, 0), (5, 0)), mode="edge"), sampling=VOXEL)[..., 5:]
    head = np.select([~body, depth <= tissue.scalp_mm], [tissue.air, tissue.scalp], tissue.muscle)
    _cavities(head, world, tissue)
    head[outside <= skull_end] = tissue.bone
    middle = tissue.fluid_mm + tissue.skull_mm / 2
    head[(np.abs(outside - middle) < 1.2) & (world[2] > 0)] = tissue.marrow
    head[outside <= tissue.fluid_mm] = tissue.fluid
    head = ndimage.gaussian_filter(head, 0.5)
    return np.where(brain, inside, head), affine


def _world(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Template coordinates ``(3, X, Y, Z)`` in mm of an axis-aligned grid."""
    axes = [affine[axis, axis] * np.arange(count) + affine[axis, 3] for axis, count in enumerate(shape)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _ellipsoid(world: np.ndarray, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """True inside an axis-aligned ellipsoid (mm)."""
    parts = ((world[axis] - centre[axis]) / radii[axis] for axis in range(3))
    return sum(part**2 for part in parts) <= 1


def _soft_tissue(world: np.ndarray) -> np.ndarray:
    """Face, nose and neck: ellipsoids and a cylinder placed by eye against the template brain."""
    face = _ellipsoid(world, (0, 52, -52), (62, 48, 68))
    nose = _ellipsoid(world, (0, 98, -48), (15, 16, 22))
    neck = ((world[0] / 58) ** 2 + ((world[1] + 15) / 62) ** 2 <= 1) & (world[2] < -45)
    return face | nose | neck


def _cavities(head: np.ndarray, world: np.ndarray, tissue: Tissue) -> None:
    """Eyes, nasal cavity, sinuses, airway and the bones of face and neck, in place."""
    for side in (-1, 1):
        head[_ellipsoid(world, (side * 33, 66, -38), (17, 20, 16))] = tissue.scalp  # orbital fat
        head[_ellipsoid(world, (side * 33, 70, -38), (12, 12, 12))] = tissue.fluid
        head[_ellipsoid(world, (side * 29, 62, -68), (13, 17, 15))] = tissue.air  # maxillary sinus
        head[_ellipsoid(world, (side * 9, 72, -58), (5, 24, 16))] = tissue.air  # nasal cavity
        head[_ellipsoid(world, (side * 46, -20, -46), (9, 14, 10))] = tissue.bone  # petrous bone
    head[_ellipsoid(world, (0, 12, -95), (9, 9, 40))] = tissue.air
    head[_ellipsoid(world, (0, 66, -92), (30, 20, 5))] = tissue.bone  # hard palate and teeth
    vertebrae = (world[0] / 19) ** 2 + ((world[1] + 22) / 15) ** 2 <= 1
    head[vertebrae & (world[2] < -78)] = tissue.marrow
    canal = (world[0] / 9) ** 2 + ((world[1] + 44) / 9) ** 2 <= 1
    head[canal & (world[2] < -70)] = tissue.fluid
    cord = (world[0] / 6) ** 2 + ((world[1] + 44) / 5) ** 2 <= 1
    head[cord & (world[2] < -70)] = 0.9


def _smooth_field(shape: tuple[int, ...], length_mm: float, size: float, random: np.random.Generator) -> np.ndarray:
    """Gaussian noise of a given correlation length, standard deviation ``size`` over the field."""
    # Drawn on a coarse grid, where smoothing is cheap, and interpolated.
    step = length_mm / VOXEL / 2
    coarse = [int(np.ceil(count / step)) + 4 for count in shape]
    noise = ndimage.gaussian_filter(random.standard_normal(coarse), 2.0, mode="wrap")
    noise = (noise - noise.mean()) / noise.std() * size
    axes = [np.arange(count) / step + 1.5 for count in shape]
    return ndimage.map_coordinates(noise, np.meshgrid(*axes, indexing="ij"), order=3, mode="nearest")


def _deformation(shape: tuple[int, ...], variation: Variation, random: np.random.Generator) -> np.ndarray:
    """Where each voxel of the new head looks in the template head, ``(3, X, Y, Z)`` in voxels."""
    turn = np.radians(random.normal(0, variation.turn_degrees, 3))
    matrix = np.diag(np.exp(random.normal(0, variation.scale, 3)) / variation.size)
    for axis, angle in enumerate(turn):
        first, second = (index for index in range(3) if index != axis)
        rotation = np.eye(3)
        rotation[[first, first, second, second], [first, second, first, second]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        matrix = rotation @ matrix
    shift = random.normal(0, variation.shift_mm / VOXEL, 3)
    centre = (np.array(shape) - 1) / 2
    index = np.indices(shape, dtype=float) - centre[:, None, None, None]
    where = np.einsum("ij,jxyz->ixyz", matrix, index) + (centre + shift)[:, None, None, None]
    for axis in range(3):
        where[axis] += _smooth_field(shape, variation.warp_length_mm, variation.warp_mm / VOXEL, random)
    return where
