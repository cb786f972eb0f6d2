"""The one door to ANTs' registration: images in and out, seeded, leaving no files behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

# With several threads ANTs' sums come out in another order each time; the registrations here are short. ITK reads this
# when ants is first used.
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"


def to_ants(data: np.ndarray, affine: np.ndarray):
    """An ANTs image from an array and its RAS+ affine (ANTs counts in LPS+)."""
    import ants

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return ants.from_numpy(
        np.ascontiguousarray(data, dtype=np.float32),
        origin=lps[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=lps[:3, :3] / spacing,
    )


def affine_of(transform) -> np.ndarray:
    """The RAS+ 4 × 4 matrix (fixed → moving points) of an ANTs affine transform."""
    values = np.asarray(transform.parameters, float)
    centre = np.asarray(transform.fixed_parameters, float)[:3]
    matrix = np.eye(4)
    matrix[:3, :3] = values[:9].reshape(3, 3)
    matrix[:3, 3] = values[9:12] + centre - matrix[:3, :3] @ centre
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return flip @ matrix @ flip


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """ANTs reads its seed from the environment only; 0 would mean none."""
    before = os.environ.get("ANTS_RANDOM_SEED")
    os.environ["ANTS_RANDOM_SEED"] = str(seed + 1)
    try:
        yield
    finally:
        if before is None:
            del os.environ["ANTS_RANDOM_SEED"]
        else:
            os.environ["ANTS_RANDOM_SEED"] = before


def register_affine(fixed, moving, kind: str, seed: int, **options: Any) -> np.ndarray:
    """Rigid or affine registration (ANTs); the RAS+ 4 × 4 matrix that takes fixed points to moving points.

    Parameters
    ----------
    fixed, moving
        ANTs images (see :func:`to_ants`).
    kind
        ``Rigid`` or ``Affine``.
    seed
        Same seed, images and thread count: same result.
    """
    import ants

    with _seeded(seed):
        found = ants.registration(fixed, moving, type_of_transform=kind, **options)
    matrix = affine_of(ants.read_transform(found["fwdtransforms"][0]))
    for path in {*found["fwdtransforms"], *found["invtransforms"]}:
        Path(path).unlink(missing_ok=True)
    return matrix


def register_nonlinear(fixed, moving, prefix: Path, seed: int, **options: Any) -> tuple[str, ...]:
    """Affine and SyN registration (ANTs); its transform files, named after ``prefix``, in the order ANTs applies."""
    import ants

    with _seeded(seed):
        found = ants.registration(fixed, moving, type_of_transform="SyN", outprefix=str(prefix), **options)
    for path in set(found["invtransforms"]) - set(found["fwdtransforms"]):
        Path(path).unlink(missing_ok=True)
    return tuple(found["fwdtransforms"])
