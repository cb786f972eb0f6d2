"""Into template space: a nonlinear registration (ANTs) of the brain to a TemplateFlow template, and its application."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_petsynth.anatomy.alignment import to_ants
from bids_petsynth.errors import UsageError
from bids_petsynth.types import Anatomy


@dataclass(frozen=True)
class Normalisation:
    """A registration of one head to a template.

    Attributes
    ----------
    template
        Path of the template's T1w, whose grid results lie on.
    transforms
        ANTs transform files, template ← T1w, in the order that ANTs applies them.
    """

    template: Path
    transforms: tuple[str, ...]

    def apply(self, data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Resample ``(X, Y, Z)`` data of the head into the template; returns data and affine. Linear interpolation."""
        import ants
        import nibabel as nib

        reference = nib.load(self.template)
        fixed = to_ants(np.zeros(reference.shape[:3], np.float32), reference.affine)
        moved = ants.apply_transforms(fixed, to_ants(data, affine), list(self.transforms), interpolator="linear")
        return moved.numpy(), reference.affine


def find_template(name: str, resolution: int) -> tuple[Path, Path]:
    """T1w and brain mask of a TemplateFlow template.

    Raises
    ------
    UsageError
        If TemplateFlow does not know it, or it is not stored here and cannot be fetched.
    """
    import os

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
        if all(path.is_file() and path.stat().st_size > 1000 for path in found):
            return found[0], found[1]
    except Exception as error:  # TemplateFlow raises whatever its network library raises
        raise UsageError(
            f"The template {name} at resolution {resolution} is not in TEMPLATEFLOW_HOME and cannot be fetched "
            f"({type(error).__name__}); {remedy}, or leave it out of --output-spaces."
        ) from None
    raise UsageError(f"The template {name} at resolution {resolution} is stored incompletely; {remedy}.")


def register(anatomy: Anatomy, name: str, resolution: int, folder: Path, seed: int) -> Normalisation:
    """Register the brain on the model grid to the template's brain (ANTs, affine then SyN)."""
    import ants
    import nibabel as nib

    t1w, mask = find_template(name, resolution)
    reference = nib.load(t1w)
    brain = reference.get_fdata(dtype=np.float32) * (nib.load(mask).get_fdata(dtype=np.float32) > 0.5)
    found = ants.registration(
        to_ants(brain, reference.affine),
        to_ants(np.where(anatomy.labels > 0, anatomy.t1w, 0), anatomy.grid.affine),
        type_of_transform="SyN",
        reg_iterations=(40, 20, 5),
        outprefix=str(folder / f"{name}_"),
        random_seed=seed + 1,
    )
    return Normalisation(t1w, tuple(found["fwdtransforms"]))
