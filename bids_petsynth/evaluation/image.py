"""How well a synthetic volume agrees with the scan, voxel by voxel and in its texture.

Windows are fixed per tracer (``Tracer.display``), so that PSNR and SSIM of two scans can be compared. The papers' habit
of scaling each volume to its own minimum and maximum hides errors of level; it is kept as a column that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

#: SSIM as Wang 2004 (IEEE Trans. Image Process. 13:600): Gaussian of 1.5 voxels, cut off at 5, and its two constants.
SSIM_SIGMA, SSIM_RADIUS, SSIM_K = 1.5, 5, (0.01, 0.03)
#: Weights of the scales of MS-SSIM, the finest first (Wang 2003).
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def errors(
    predicted: np.ndarray, truth: np.ndarray, window: tuple[float, float], mask: np.ndarray | None = None
) -> dict[str, float]:
    """Mean absolute and mean squared error, and PSNR in dB.

    Parameters
    ----------
    predicted, truth
        Same shape and unit (SUVR).
    window
        Its width is the peak of the PSNR; values are not clipped to it.
    mask
        Voxels that count, all if None.

    Returns
    -------
    dict
        ``mae`` (SUVR), ``mse`` (SUVR²), ``psnr`` (dB, infinite where there is no error).
    """
    difference = np.asarray(predicted, float) - np.asarray(truth, float)
    difference = difference if mask is None else difference[mask]
    mse = float(np.mean(difference**2))
    psnr = 10 * np.log10((window[1] - window[0]) ** 2 / mse) if mse > 0 else np.inf
    return {"mae": float(np.mean(np.abs(difference))), "mse": mse, "psnr": float(psnr)}


@dataclass(frozen=True)
class Moments:
    """Local means, variances and covariance of two volumes of one shape (Gaussian of :data:`SSIM_SIGMA`)."""

    mean_a: np.ndarray
    mean_b: np.ndarray
    variance_a: np.ndarray
    variance_b: np.ndarray
    covariance: np.ndarray

    def scaled(self, a: tuple[float, float], b: tuple[float, float]) -> Moments:
        """Of ``(volume - offset) * factor`` for each volume's ``(offset, factor)``: no filter has to run again."""
        (offset_a, by_a), (offset_b, by_b) = a, b
        return Moments(
            (self.mean_a - offset_a) * by_a,
            (self.mean_b - offset_b) * by_b,
            self.variance_a * by_a**2,
            self.variance_b * by_b**2,
            self.covariance * (by_a * by_b),
        )

    def maps(self, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Structural similarity (Wang 2004, eq. 13) and its contrast and structure part; ``width`` of the window."""
        c1, c2 = ((k * width) ** 2 for k in SSIM_K)
        level = (2 * self.mean_a * self.mean_b + c1) / (self.mean_a**2 + self.mean_b**2 + c1)
        structure = (2 * self.covariance + c2) / (self.variance_a + self.variance_b + c2)
        return level * structure, structure


def moments(a: np.ndarray, b: np.ndarray) -> Moments:
    """Local moments of two volumes ``(X, Y, Z)``."""

    def blur(volume: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(volume, SSIM_SIGMA, radius=SSIM_RADIUS)

    # single precision has seven digits, of which the smallest constant of the formula needs four
    a, b = (np.asarray(volume, np.float32) for volume in (a, b))
    mean_a, mean_b = blur(a), blur(b)
    return Moments(mean_a, mean_b, blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b)


def ssim_map(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Local structural similarity of two volumes, same shape; ``width`` is that of the window (Wang 2004, eq. 13)."""
    return moments(a, b).maps(width)[0]


def _inner(shape: Sequence[int]) -> np.ndarray:
    """Where the kernel lies within the field of view."""
    out = np.zeros(shape, bool)
    out[tuple(slice(SSIM_RADIUS, n - SSIM_RADIUS) for n in shape)] = True
    return out


def _mean(volume: np.ndarray, mask: np.ndarray) -> float:
    return float(volume[mask].mean(dtype=float)) if mask.any() else float("nan")


def ssim(a: np.ndarray, b: np.ndarray, width: float, mask: np.ndarray | None = None) -> float:
    """Mean of :func:`ssim_map` in a mask, or where the kernel lies within the field of view if None."""
    found = ssim_map(a, b, width)
    return _mean(found, _inner(found.shape) if mask is None else mask)


def ms_ssim(
    a: np.ndarray,
    b: np.ndarray,
    width: float,
    masks: Sequence[np.ndarray | None] = (None,),
    first: Moments | None = None,
) -> list[float]:
    """Multi-scale structural similarity (Wang 2003, Proc. 37th Asilomar Conf. 1398), one figure for each mask.

    Parameters
    ----------
    a, b
        ``(X, Y, Z)``. Every scale has half the voxels of the one before along each axis (means of 8 voxels); there are
        as many as the kernel fits into, at most five, their weights (eq. 7, table of section 3.2) summing to 1.
    width
        Of the window.
    masks
        Voxels that count (a voxel of a coarser scale counts if half of it does); None for all where the kernel lies
        within the field of view.
    first
        Moments of the finest scale, if they are known.
    """
    scales = 1
    while scales < len(MS_WEIGHTS) and min(a.shape) >> scales > 2 * SSIM_RADIUS:
        scales += 1
    weights = np.array(MS_WEIGHTS[:scales]) / sum(MS_WEIGHTS[:scales])
    shares = [None if mask is None else np.asarray(mask, np.float32) for mask in masks]
    out = np.ones(len(shares))
    for scale, weight in enumerate(weights):
        found = (first if scale == 0 and first is not None else moments(a, b)).maps(width)[scale < scales - 1]
        inner = _inner(found.shape)
        for place, share in enumerate(shares):
            out[place] *= max(_mean(found, inner if share is None else (share >= 0.5) & inner), 0.0) ** weight
        a, b = _halved(a), _halved(b)
        shares = [None if share is None else _halved(share) for share in shares]
    return out.tolist()


def _halved(volume: np.ndarray) -> np.ndarray:
    x, y, z = (n // 2 for n in volume.shape)
    return volume[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2).mean((1, 3, 5))


def image_figures(
    predicted: np.ndarray,
    truth: np.ndarray,
    brain: np.ndarray,
    window: tuple[float, float],
    field: np.ndarray | None = None,
) -> dict[str, float]:
    """All image figures of one volume ``(X, Y, Z)``.

    Parameters
    ----------
    predicted, truth
        In SUVR.
    brain
        Mask.
    window
        The tracer's fixed one.
    field
        Where the truth has data; all voxels if None. Only there the brain counts.

    Returns
    -------
    dict
        ``mae``, ``mse``, ``psnr``, ``ssim``, ``ms_ssim``, each with ``_brain`` and ``_fov`` (whole field of view), and
        ``psnr_minmax``, ``ssim_minmax``: over the field of view after each volume is scaled to its own minimum and
        maximum, as many papers do.
    """
    width = window[1] - window[0]
    whole = _inner(truth.shape) if field is None else _inner(truth.shape) & field
    inside = brain if field is None else brain & field
    local = moments(predicted, truth)
    found = local.maps(width)[0]
    coarse = ms_ssim(predicted, truth, width, (inside, field), local)
    out = {}
    for name, mask, seen, many in (("brain", inside, inside, coarse[0]), ("fov", field, whole, coarse[1])):
        out |= {f"{key}_{name}": value for key, value in errors(predicted, truth, window, mask).items()}
        out |= {f"ssim_{name}": _mean(found, seen), f"ms_ssim_{name}": many}
    own = [(float(v.min()), 1 / max(float(np.ptp(v)), 1e-12)) for v in (predicted, truth)]
    scaled = [(v - low) * by for v, (low, by) in zip((predicted, truth), own, strict=True)]
    out["psnr_minmax"] = errors(*scaled, (0.0, 1.0), field)["psnr"]
    out["ssim_minmax"] = _mean(local.scaled(*own).maps(1.0)[0], whole)
    return out


def taper(mask: np.ndarray, voxel_size: float, width: float = 8.0) -> np.ndarray:
    """A mask with soft edges for spectra: blurred by ``width`` mm (standard deviation) and zero outside the mask."""
    return np.clip(2 * ndimage.gaussian_filter(mask.astype(float), width / voxel_size) - 1, 0, 1)


def power_spectrum(volume: np.ndarray, window: np.ndarray, voxel_size: float, edges: Sequence[float]) -> np.ndarray:
    """Radial power spectrum in a mask.

    Parameters
    ----------
    volume
        ``(X, Y, Z)``.
    window
        ``(X, Y, Z)`` weights, see :func:`taper`; the weighted mean is taken off first.
    voxel_size
        In mm, isotropic.
    edges
        ``(B + 1,)`` ascending band edges in cycles/mm.

    Returns
    -------
    ndarray
        ``(B,)`` mean power of the modes of each band, NaN where a band has none. White noise of variance s² has s² in
        every band, whatever the window.
    """
    weight = np.asarray(window, float)
    volume = (volume - (volume * weight).sum() / weight.sum()) * weight
    power = np.abs(np.fft.rfftn(volume)) ** 2 / (weight**2).sum()
    axes = [np.fft.fftfreq(n, voxel_size) for n in volume.shape[:2]] + [np.fft.rfftfreq(volume.shape[2], voxel_size)]
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij", sparse=True)))
    # the half that rfftn leaves out mirrors the columns between the first and the Nyquist one
    double = np.full(power.shape, 2.0)
    double[..., 0] = 1
    if volume.shape[2] % 2 == 0:
        double[..., -1] = 1
    band = np.digitize(radius, edges).ravel()
    total, modes = (np.bincount(band, w, len(edges) + 1)[1:-1] for w in ((power * double).ravel(), double.ravel()))
    return np.where(modes > 0, total / np.maximum(modes, 1), np.nan)


def spectrum_ratio(spectra: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Ratio per band ``(B,)`` of the mean spectra of two groups of volumes, each ``(N, B)``: 1 for equal texture."""
    return np.mean(spectra, 0) / np.mean(reference, 0)
