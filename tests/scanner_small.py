"""A phantom head, a scanner that it lies in anyhow, and files of its scans.

The head is nilearn's template inside the project's phantom, its regions cut by coordinates: no network and no shared
data are needed.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_petsynth.anatomy.alignment import template_grid
from bids_petsynth.anatomy.regions import LEFT, RIGHT, region_index
from bids_petsynth.anatomy.volume import Volume, resample
from bids_petsynth.pet.motion import sphere_displacement
from bids_petsynth.types import Anatomy, Grid, PetScan

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
