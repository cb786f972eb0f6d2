"""Reading a real PET scan: its header and voxels with checks, and the unit they are in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bids_petsynth.errors import InputError
from bids_petsynth.tables import read_table


@cache
def numbers() -> Mapping[str, float]:
    """Name → value of ``data/pet_preparation.tsv``."""
    return {row["name"]: float(row["value"]) for row in read_table("pet_preparation.tsv")}


@dataclass(frozen=True)
class PetImage:
    """A PET image that was opened and looked at, its voxels not yet read.

    Attributes
    ----------
    who, name
        Scan and file for messages.
    image
        The nibabel image.
    shape
        ``(X, Y, Z, T)``; one frame where the file has three dimensions.
    affine
        4 × 4, voxel → scanner RAS+ mm.
    """

    who: str
    name: str
    image: Any
    shape: tuple[int, int, int, int]
    affine: np.ndarray

    def fail(self, problem: str, remedy: str) -> InputError:
        """A sentence on this image."""
        return InputError(f"{self.who}: {self.name} {problem}; {remedy}.")

    def read(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Frames ``first`` up to and without ``last``: ``(X, Y, Z, n)`` float32, negative noise kept, NaN made 0.

        Raises
        ------
        InputError
            If they cannot be read or hold no image.
        """
        dimensions = len(self.image.shape)
        index = (slice(None),) * 3 + (slice(first, last), *(0,) * (dimensions - 4)) * (dimensions > 3)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = np.asarray(self.image.dataobj[index], dtype=np.float32)
        except Exception:
            raise self.fail("is truncated or damaged: its voxels cannot be read", "copy or convert it again") from None
        data = data.reshape(*self.shape[:3], -1)
        finite = np.isfinite(data)
        if finite.mean() < 0.5:
            raise self.fail("holds mostly NaN or infinite values", _AGAIN)
        if not finite.all():
            data = np.where(finite, data, np.float32(0))
        if data.max() <= max(0.0, float(data.min())):
            raise self.fail("holds no activity (an empty image)", _AGAIN)
        return data


_AGAIN = "convert the scan again from its DICOM or ECAT files (for example with dcm2niix or pypet2bids)"


def open_pet(path: Path, who: str) -> PetImage:
    """Open a PET image and check what its header says (see :func:`read_pet`)."""
    import nibabel as nib

    def fail(problem: str, remedy: str) -> InputError:
        return InputError(f"{who}: {path.name} {problem}; {remedy}.")

    try:
        image = nib.load(path)
    except FileNotFoundError:
        raise fail("does not exist or is a dangling link", "fetch the file (for example with `datalad get`)") from None
    except Exception:
        raise fail("is not a readable NIfTI image", _AGAIN) from None
    shape = tuple(image.shape)
    if len(shape) < 3 or any(n != 1 for n in shape[4:]):
        raise fail(f"has {len(shape)} dimensions {shape} where a PET scan has 3, or 4 with frames", "keep one series")
    shape = (*shape[:4], 1)[:4]
    limit = numbers()
    if min(shape[:3]) < limit["slices_min"]:
        raise fail(f"has only {min(shape[:3])} slices along one axis", "use a scan that covers the whole brain")
    if not shape[3]:
        raise fail("has no frames", _AGAIN)
    codes = [int(image.header[code]) for code in ("qform_code", "sform_code") if code in image.header]
    if codes and not any(codes):
        raise fail("has no orientation (qform and sform codes are 0)", "convert the scan again so that it has one")
    affine = np.asarray(image.affine, float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise fail("has an affine that is not invertible", _AGAIN)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    extent = spacing * shape[:3]
    low, high = limit["extent_min"], limit["extent_max"]
    if spacing.max() > limit["voxel_max"] or not low <= extent.min() <= extent.max() <= high:
        sizes = " × ".join(f"{x:.0f}" for x in extent)
        raise fail(f"covers {sizes} mm in voxels of up to {spacing.max():.1f} mm, which is no brain PET", _AGAIN)
    return PetImage(who, path.name, image, shape, affine)


def read_pet(path: Path, who: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a PET scan, static or dynamic, and check that it can be one.

    Parameters
    ----------
    path
        NIfTI file.
    who
        Name of the scan for messages (``sub-01_trc-AV45``).

    Returns
    -------
    data
        ``(X, Y, Z, T)`` float32 on the file's own axes and in its own unit; T is 1 for an image without frames.
    affine
        4 × 4, voxel → scanner RAS+ mm.

    Raises
    ------
    InputError
        If the file is not NIfTI, is truncated, has other than 3 or 4 dimensions, has no orientation or no affine that
        can be inverted, covers no head, or holds no activity.
    """
    image = open_pet(path, who)
    return image.read(), image.affine


def check_units(sidecar: Mapping[str, Any], who: str) -> None:
    """Refuse an image that by its ``Units`` holds anything but activity up to a factor, which an SUVR cancels.

    Raises
    ------
    InputError
        If ``Units`` is none of ``data/pet_units.tsv``. A sidecar without it passes.
    """
    unit = sidecar.get("Units")
    if unit is None or (isinstance(unit, str) and _plain(unit) in ("", "n/a", *_units())):
        return
    raise InputError(
        f"{who}: the sidecar gives the unit {unit!r}, which is none of activity; if the image does hold activity, "
        "write Bq/mL (or SUV, or whatever it is) into Units, otherwise use the image that the scanner reconstructed."
    )


@cache
def _units() -> frozenset[str]:
    rows = read_table("pet_units.tsv")
    return frozenset(_plain(text) for row in rows for text in (row["unit"], *row["spellings"].split("|")))


def _plain(unit: str) -> str:
    """Spelling without case, blanks and dots."""
    return re.sub(r"[\s.·]", "", unit.casefold())
