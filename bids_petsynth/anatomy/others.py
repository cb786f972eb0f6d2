"""A T2w, FLAIR or CT image of a head laid on its T1w, in the unit that recipes take the T1w in."""

from __future__ import annotations

import numpy as np

from bids_petsynth.anatomy.bias import bias_field
from bids_petsynth.anatomy.regions import white_matter
from bids_petsynth.anatomy.volume import read_t1w, smoothed_for
from bids_petsynth.errors import InputError
from bids_petsynth.types import Anatomy, OtherScan


def prepare_other(scan: OtherScan, anatomy: Anatomy, seed: int = 0) -> np.ndarray:
    """Bring another image of the same head onto the model grid, rigidly.

    Parameters
    ----------
    anatomy
        Its ``t1w``, ``labels`` and ``grid`` are used.
    seed
        Same seed and scan: same result.

    Returns
    -------
    numpy.ndarray
        ``(X, Y, Z)`` float32, the median of white matter 1. MRI is corrected for intensity non-uniformity. CT is the
        soft tissue window of ``data/pet_preparation.tsv`` in units of white matter, as bone and air would else hide all
        contrast of the brain.

    Raises
    ------
    InputError
        If the image cannot be used.
    """
    from bids_petsynth.pet.coregistration import on_grid, to_t1w
    from bids_petsynth.pet.scan import numbers

    if scan.problem:
        raise InputError(f"{scan.label}: {scan.problem}")
    volume = read_t1w(scan.path, scan.label, scan.modality)
    grid, brain = anatomy.grid, anatomy.labels > 0
    found = to_t1w(volume, anatomy.t1w, anatomy.labels, grid, seed)
    image = on_grid(smoothed_for(volume, float(np.cbrt(grid.voxel_volume))), grid, found)
    white = white_matter(anatomy.labels)
    unit = float(np.median(image[white])) if white.any() else 0.0
    if unit <= 0:
        raise InputError(
            f"{scan.label}: {scan.path.name} shows nothing where the T1w has white matter; check that both are of one "
            "person and cover the brain."
        )
    if scan.modality == "CT":
        limit = numbers()
        hounsfield = image - unit + limit["ct_white_matter"]
        return np.clip(hounsfield / limit["ct_white_matter"], 0, limit["ct_high"] / limit["ct_white_matter"])
    image = image / bias_field(image, grid.affine, brain)
    return (image / np.median(image[white])).astype(np.float32)
