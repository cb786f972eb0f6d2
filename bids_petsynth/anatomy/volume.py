"""T1w images as arrays with an affine: reading with checks, resampling, copying values between grids."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from bids_petsynth.errors import InputError
from bids_petsynth.types import Grid


@dataclass(frozen=True)
class Volume:
    """A 3D image: ``data`` ``(X, Y, Z)`` float32 and the affine from voxel to scanner RAS+ mm."""

    data: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm along each axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def grid(self) -> Grid:
        """Shape and affine."""
        return Grid(tuple(self.data.shape), self.affine)


def read_t1w(path: Path, who: str, modality: str = "T1w") -> Volume:
    """Read a T1w scan, or another image of the head, of any axis order and check that it can be one.

    Parameters
    ----------
    path
        NIfTI file.
    who
        Name of the participant for messages (``sub-01``).
    modality
        What it is called there.

    Returns
    -------
    Volume
        On the file's own axes (nothing is reoriented here), intensities from 0.

    Raises
    ------
    InputError
        If the file is not NIfTI, is truncated, is not 3D, has no orientation, or holds no image.
    """
    import nibabel as nib
    from nibabel.spatialimages import SpatialImage

    def fail(problem: str, remedy: str) -> InputError:
        return InputError(f"{who}: {path.name} {problem}; {remedy}.")

    again = "convert the scan again from its DICOM files (for example with dcm2niix)"
    try:
        image = nib.load(path)
        if not isinstance(image, SpatialImage):
            raise TypeError("a format without voxels")
    except FileNotFoundError:
        raise fail("does not exist or is a dangling link", "fetch the file (for example with `datalad get`)") from None
    except Exception:
        raise fail("is not a readable NIfTI image", again) from None
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise fail(f"has {len(shape)} dimensions {shape} where a {modality} has 3", "keep one 3D volume")
    if min(shape) < 16:
        raise fail(f"has only {min(shape)} slices along one axis", f"use a 3D {modality} that covers the whole head")
    header: Any = image.header
    codes = [int(header[code]) for code in ("qform_code", "sform_code") if code in header]
    if codes and not any(codes):
        raise fail("has no orientation (qform and sform codes are 0)", "convert the scan again so that it has one")
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise fail("has an affine that is not invertible", again)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    except Exception:
        raise fail("is truncated or damaged: its voxels cannot be read", "copy or convert it again") from None
    bad = ~np.isfinite(data)
    if bad.mean() > 0.5:
        raise fail("holds mostly NaN or infinite values", again)
    if bad.any():
        data = np.where(bad, 0, data)
    if data.max() <= data.min():
        raise fail("holds one value only (an empty image)", again)
    if data.min() < 0:
        # air is 0 from here on, whatever the scanner called it; single outliers do not count
        data = np.maximum(data - min(0.0, float(np.percentile(data, 0.1))), 0)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    extent = spacing * shape
    if spacing.max() > 6 or extent.min() < 60 or extent.max() > 600:
        sizes = " × ".join(f"{x:.0f}" for x in extent)
        raise fail(f"covers {sizes} mm in voxels of up to {spacing.max():.1f} mm, which is no head scan", again)
    return Volume(data, affine)


def canonical(volume: Volume) -> Volume:
    """The same voxels with their axes permuted and flipped to the closest RAS+ order."""
    import nibabel as nib

    orientation = nib.io_orientation(volume.affine)
    data = nib.apply_orientation(volume.data, orientation)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.data.shape)
    return Volume(data, affine)


def smoothed_for(volume: Volume, spacing: float) -> Volume:
    """Blurred so that sampling at ``spacing`` mm does not alias; unchanged along axes that are already coarse."""
    own = volume.spacing
    sigma = [np.sqrt(max(0.0, (spacing / s) ** 2 - 1)) / 2.3548 for s in own]
    if max(sigma) < 0.2:
        return volume
    return Volume(ndimage.gaussian_filter(volume.data, sigma, truncate=3), volume.affine)


def resample(volume: Volume, grid: Grid, order: int | None = None) -> np.ndarray:
    """Interpolate a volume onto a grid, 0 outside; cubic for coarse scans unless ``order`` is given.

    A scan that is finer than 1.2 mm is taken to be smoothed by :func:`smoothed_for`: linear is then as good as cubic.
    """
    if order is None:
        order = 3 if volume.spacing.max() > 1.2 else 1
    matrix = np.linalg.inv(volume.affine) @ grid.affine
    out = ndimage.affine_transform(
        volume.data, matrix[:3, :3], matrix[:3, 3], output_shape=grid.shape, order=order, output=np.float32
    )
    # cubic interpolation overshoots at edges; intensities here start at 0
    return np.maximum(out, 0, out=out) if order > 1 else out


def own_grid(volume: Volume, spacing: float) -> Grid:
    """An isotropic grid along the volume's own axes that covers its field of view."""
    steps = spacing / volume.spacing
    x, y, z = (int(n) for n in np.maximum(np.ceil(np.array(volume.data.shape) / steps), 1))
    shape = (x, y, z)
    scale = np.diag([*steps, 1.0])
    # centre of the field of view stays the centre
    scale[:3, 3] = (np.array(volume.data.shape) - 1) / 2 - steps * (np.array(shape) - 1) / 2
    return Grid(shape, volume.affine @ scale)
