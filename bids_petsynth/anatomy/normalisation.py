"""Into template space: a nonlinear registration (ANTs) of the brain to a TemplateFlow template, and its application."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bids_petsynth.anatomy.registration import register_nonlinear, to_ants
from bids_petsynth.errors import UsageError
from bids_petsynth.types import Anatomy

#: TemplateFlow's resolution index that heads are registered at: 2 mm in the MNI templates, as fine as the model grid.
REGISTERED_AT = 2


def find_template(name: str, resolution: int) -> tuple[Path, Path]:
    """T1w and brain mask of a TemplateFlow template.

    Parameters
    ----------
    resolution
        TemplateFlow's index (``res-02``), which is the voxel size in mm in the MNI templates.

    Raises
    ------
    UsageError
        If TemplateFlow does not know it, or it is not stored here and cannot be fetched.
    """
    # no look-ups over the network at import; a missing template is fetched below, because it was asked for by name
    os.environ.setdefault("TEMPLATEFLOW_AUTOUPDATE", "0")
    remedy = (
        f"fetch it where there is a network (`python -c \"from templateflow.api import get; get('{name}', "
        f'resolution={resolution})"`) and set TEMPLATEFLOW_HOME to that folder'
    )
    found = []
    try:
        from templateflow import api

        for query in ({"desc": None, "suffix": "T1w"}, {"desc": "brain", "suffix": "mask"}):
            answer = api.get(name, resolution=resolution, extension=".nii.gz", raise_empty=True, **query)
            found.append(Path(answer[0] if isinstance(answer, list) else answer))
    except Exception as error:  # TemplateFlow raises whatever its network library raises
        raise UsageError(
            f"The template {name} at resolution {resolution} is not in TEMPLATEFLOW_HOME and cannot be fetched "
            f"({type(error).__name__}); {remedy}, or leave it out of --output-spaces."
        ) from None
    if not all(path.is_file() and path.stat().st_size > 1000 for path in found):
        raise UsageError(f"The template {name} at resolution {resolution} is stored incompletely; {remedy}.")
    return found[0], found[1]


def register(anatomy: Anatomy, name: str, folder: Path, seed: int) -> tuple[str, ...]:
    """Register the brain on the model grid to the template's brain (ANTs, affine then SyN); its transform files."""
    import nibabel as nib

    t1w, mask = find_template(name, REGISTERED_AT)
    reference = nib.load(t1w)
    brain = reference.get_fdata(dtype=np.float32) * (nib.load(mask).get_fdata(dtype=np.float32) > 0.5)
    return register_nonlinear(
        to_ants(brain, reference.affine),
        to_ants(np.where(anatomy.labels > 0, anatomy.t1w, 0), anatomy.grid.affine),
        folder / f"{name}_",
        seed,
        reg_iterations=(40, 20, 5),
    )


def into_template(
    data: np.ndarray, affine: np.ndarray, name: str, resolution: int, transforms: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Resample ``(X, Y, Z)`` data of a head onto a template's grid, linearly; returns data and affine."""
    import ants
    import nibabel as nib

    reference = nib.load(find_template(name, resolution)[0])
    fixed = to_ants(np.zeros(reference.shape[:3], np.float32), reference.affine)
    moved = ants.apply_transforms(fixed, to_ants(data, affine), list(transforms), interpolator="linear")
    return moved.numpy(), reference.affine
