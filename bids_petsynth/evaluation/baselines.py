"""What a model has to beat: predictions of a scan that need no network.

Population mean, blood-matched mean and voxelwise ridge are all weighted sums of the training people's scans in template
space, carried onto the person nonlinearly; they differ only in the weights. The painted baseline predicts one value per
region and paints it on the person's own labels. The oracle knows tables only, but thousands of people of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

FWHM = 2.3548
#: Probability-weighted voxels below which a region says nothing about its own value.
LEAST_VOXELS = 2.0

Weights = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


# Maps between heads: (3, X, Y, Z) voxel coordinates in another image, for every voxel of this one.


def pulled(volume: np.ndarray, where: np.ndarray) -> np.ndarray:
    """``volume`` read linearly at ``where (3, X, Y, Z)``, in voxels; beyond its field of view its edge goes on."""
    return ndimage.map_coordinates(volume, where, order=1, mode="nearest", output=np.float32)


def composed(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The map that takes a voxel to ``outer(inner(voxel))``; it goes on beyond ``outer``'s field of view."""
    shift = outer - np.indices(outer.shape[1:], np.float32)
    return inner + np.stack([pulled(axis, inner) for axis in shift])


def halved(where: np.ndarray) -> np.ndarray:
    """The shift ``(3, ⌈X/2⌉, …)`` at every second voxel of a smooth map: a tenth of its size to keep."""
    return (where - np.indices(where.shape[1:], np.float32))[:, ::2, ::2, ::2]


def doubled(shift: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The map ``(3, X, Y, Z)`` of which :func:`halved` kept every second shift."""
    every = np.indices(shape, np.float32)
    return every + np.stack([pulled(axis.astype(np.float32), every / 2) for axis in shift])


def inverse(where: np.ndarray, iterations: int = 15) -> np.ndarray:
    """The inverse of a smooth map between images of one shape, by fixed-point iteration on every second voxel."""
    every = np.indices(where.shape[1:], np.float32)
    shift, start, back = where - every, every[:, ::2, ::2, ::2], -halved(where)
    for _ in range(iterations):
        back = -np.stack([pulled(axis, start + back) for axis in shift])
    return doubled(back, where.shape[1:])


def from_normalised(coordinates: np.ndarray) -> np.ndarray:
    """Voxel coordinates from those of ``torch``'s ``grid_sample`` (order z, y, x, ``align_corners=False``)."""
    size = np.array(coordinates.shape[1:], np.float32)[:, None, None, None]
    return ((coordinates[::-1] + 1) * size - 1) / 2


def register(head: np.ndarray, template: np.ndarray, affine: np.ndarray, folder: Path, seed: int = 0) -> np.ndarray:
    """Where each voxel of a head lies in the template: affine, then SyN (ANTs).

    Parameters
    ----------
    head, template
        T1w without skull, ``(X, Y, Z)`` on one grid.
    affine
        Of that grid, RAS+.
    folder
        For ANTs' files.

    Returns
    -------
    ndarray
        ``(3, X, Y, Z)`` voxels of the template.
    """
    import ants

    from bids_petsynth.anatomy.registration import register_nonlinear, to_ants

    fixed = to_ants(head, affine)
    files = register_nonlinear(fixed, to_ants(template, affine), folder / "warp_", seed)
    every, outside = np.indices(head.shape, np.float32), -1000.0
    axes = [
        ants.apply_transforms(fixed, to_ants(axis, affine), list(files), defaultvalue=outside).numpy() for axis in every
    ]
    return np.where(np.stack(axes) < -0.5, every, np.stack(axes)).astype(np.float32)


# Weighted sums of training people: (N,) weights from (N, V) standardised values and those of one person (V,).


def population_weights(values: np.ndarray, person: np.ndarray, _: float = 0) -> np.ndarray:
    """Equal weights."""
    return np.full(len(values), 1 / len(values))


def matched_weights(values: np.ndarray, person: np.ndarray, k: float) -> np.ndarray:
    """Equal weights on the ``k`` people nearest in the variables that the person has (on all if there are none)."""
    known = np.isfinite(person)
    if not known.any():
        return population_weights(values, person)
    near = np.argsort(np.square(values[:, known] - person[known]).sum(1), kind="stable")[: int(k)]
    out = np.zeros(len(values))
    out[near] = 1 / len(near)
    return out


def ridge_weights(values: np.ndarray, person: np.ndarray, alpha: float) -> np.ndarray:
    """Weights whose sum over any figure of the training people is its ridge prediction for the person.

    ``ŷ = ȳ + (x - x̄)ᵀ (XᵀX + α I)⁻¹ Xᵀ (Y - ȳ)`` is linear in Y, so one set of weights serves every voxel. Only
    variables that the person has are used.
    """
    known = np.isfinite(person)
    x = values[:, known]
    centre = x.mean(0)
    x = x - centre
    gain = np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), person[known] - centre)
    # X is centred, so these sum to 0 and ȳ needs no care
    return 1 / len(values) + x @ gain


def choose(weights: Weights, options: Sequence[float], values: np.ndarray, figures: np.ndarray) -> float:
    """The option with the least leave-one-out squared error of ``figures (N, R)`` from ``values (N, V)``."""

    def loss(option: float) -> float:
        total = 0.0
        for i in range(len(values)):
            rest = np.arange(len(values)) != i
            total += np.square(weights(values[rest], values[i], option) @ figures[rest] - figures[i]).sum()
        return total

    return min(options, key=loss)


# One value per region, painted on the person's own labels and blurred.


def channels(labels: np.ndarray, t1w: np.ndarray) -> np.ndarray:
    """What values are painted on: label probabilities, the background only where the head has tissue.

    Parameters
    ----------
    labels
        ``(C, x, y, z)`` probabilities, background first.
    t1w
        ``(X, Y, Z)`` on a grid that is a whole number of times finer; white matter is 1.
    """
    factor = t1w.shape[0] // labels.shape[1]
    out = np.array(labels, np.float32)
    out[0] *= pooled(t1w, factor) > 0.15
    return out


def pooled(volume: np.ndarray, factor: int) -> np.ndarray:
    """Means of ``factor``³ voxels."""
    x, y, z = (n // factor for n in volume.shape)
    return volume.reshape(x, factor, y, factor, z, factor).mean((1, 3, 5))


def blurred(volume: np.ndarray, fwhm: float, voxel_size: float) -> np.ndarray:
    """Gaussian blur of the last three axes by ``fwhm`` mm."""
    sigma = fwhm / FWHM / voxel_size
    return ndimage.gaussian_filter(volume, (*[0] * (volume.ndim - 3), sigma, sigma, sigma), mode="nearest")


def paint(values: np.ndarray, on: np.ndarray, fwhm: float, voxel_size: float, shape: Sequence[int]) -> np.ndarray:
    """A volume of one value per region.

    Parameters
    ----------
    values
        ``(C,)``.
    on
        ``(C, x, y, z)``, see :func:`channels`.
    fwhm
        Blur in mm.
    voxel_size
        Of ``on``, in mm.
    shape
        Of the volume that is returned; it is interpolated by cubic splines.
    """
    coarse = blurred(np.tensordot(values, on, 1), fwhm, voxel_size)
    factor = shape[0] // coarse.shape[0]
    return ndimage.zoom(coarse, factor, order=3, mode="nearest", grid_mode=True).astype(np.float32)


def painted_values(scans: np.ndarray, on: np.ndarray, fwhm: float, voxel_size: float) -> np.ndarray:
    """Values that, painted on a person's channels and blurred, come nearest to their scans.

    Parameters
    ----------
    scans
        ``(S, X, Y, Z)``.
    on, fwhm, voxel_size
        As in :func:`paint`.

    Returns
    -------
    ndarray
        ``(S, C)``, NaN for a region that the person hardly has. Least squares around the brain, a little drawn to each
        region's plain mean, so that regions that the blur mixes up do not run apart.
    """
    near = ndimage.binary_dilation(on[1:].sum(0) > 0.5, iterations=1)
    coarse = np.stack([pooled(scan, scan.shape[0] // on.shape[1])[near] for scan in scans], axis=1).astype(float)
    basis = blurred(on, fwhm, voxel_size)[:, near].T.astype(float)
    size = on[:, near].sum(1, dtype=float)
    plain = on[:, near] @ coarse / np.maximum(size, 1e-6)[:, None]
    stay = np.diag(0.02 * size + 1e-3)
    found = plain + np.linalg.solve(basis.T @ basis + stay, basis.T @ (coarse - basis @ plain))
    return np.where(size[:, None] >= LEAST_VOXELS, found, np.nan).T


def log_volumes(labels: np.ndarray) -> np.ndarray:
    """``(C - 1,)`` log of the volume of each region of ``(C, x, y, z)`` probabilities, in voxels."""
    return np.log(np.maximum(labels[1:].sum((1, 2, 3), dtype=float), 0.5))


def regional_regression(features: np.ndarray, values: np.ndarray):
    """Ridge from ``(N, F)`` features to ``(N, C)`` regional values, NaN replaced by the region's mean (0 if all are).

    Returns
    -------
    A fitted scikit-learn pipeline; its strength is chosen by leave-one-out.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = np.isfinite(values)
    mean = np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1)
    filled = np.where(known, values, mean)
    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 4, 9))).fit(features, filled)


# Tables only.


def boosted(features: np.ndarray, target: np.ndarray, classify: bool = False, seed: int = 0):
    """Gradient boosting of ``(N,)`` targets on ``(N, F)`` features, stopped early on a tenth of the people."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingClassifier if classify else HistGradientBoostingRegressor
    model = kind(learning_rate=0.05, max_iter=500, max_leaf_nodes=15, early_stopping=True, random_state=seed)
    return model.fit(features, target)


def head_log_volumes(classes: np.ndarray) -> np.ndarray:
    """``(C - 1,)`` log of the voxel count of each region of a map of classes; the rest of the head is left out."""
    from bids_petsynth.anatomy.regions import n_classes

    return np.log(np.maximum(np.bincount(classes.ravel(), minlength=n_classes())[1 : n_classes()], 0.5))


def tabular_people(heads: np.ndarray, n: int, seed: int) -> tuple[tuple[dict, ...], np.ndarray, np.ndarray]:
    """Simulated people without images.

    Parameters
    ----------
    heads
        ``(H, C - 1)`` log volumes of the heads that their anatomy starts from (:func:`head_log_volumes`).

    Returns
    -------
    records
        Traits and plasma of each.
    volumes
        ``(n, C - 1)`` log volumes: a head's own, changed as the person's anatomy would be.
    centiloid
        ``(n,)`` true amyloid load.
    """
    from bids_petsynth.simulation.anatomy import log_volume_factors
    from bids_petsynth.training.pairs import draw_records

    rng = np.random.default_rng([seed, n])
    people, records = draw_records(n, rng)
    change = np.nan_to_num(log_volume_factors(people)[:, 1:]) + people.head_size[:, None]
    return records, heads[rng.integers(len(heads), size=n)] + change, people.centiloid
