"""How well a synthetic volume agrees with the scan, voxel by voxel and in its texture.

Windows are fixed per tracer (``Tracer.display``), so that PSNR and SSIM of two scans can be compared. The papers' habit
of scaling each volume to its own minimum and maximum hides errors of level; it is kept as a column that says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

#: SSIM as Wang 2004 (IEEE Trans. Image Process. 13:600): Gaussian of 1.5 voxels, cut off at 5, and its two constants.
SSIM_SIGMA, SSIM_RADIUS, SSIM_K = 1.5, 5, (0.01, 0.03)


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


def ssim_map(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Local structural similarity of two volumes, same shape; ``width`` is that of the window (Wang 2004, eq. 13)."""

    def blur(volume: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(volume, SSIM_SIGMA, radius=SSIM_RADIUS)

    a, b = np.asarray(a, float), np.asarray(b, float)
    c1, c2 = ((k * width) ** 2 for k in SSIM_K)
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    level = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return level * (2 * covariance + c2) / (variance_a + variance_b + c2)


def ssim(a: np.ndarray, b: np.ndarray, width: float, mask: np.ndarray | None = None) -> float:
    """Mean of :func:`ssim_map` in a mask, or where the kernel lies within the field of view if None."""
    found = ssim_map(a, b, width)
    inner = tuple(slice(SSIM_RADIUS, n - SSIM_RADIUS) for n in found.shape)
    return float(found[inner].mean() if mask is None else found[mask].mean())


def image_figures(
    predicted: np.ndarray, truth: np.ndarray, brain: np.ndarray, window: tuple[float, float]
) -> dict[str, float]:
    """All image figures of one volume ``(X, Y, Z)``.

    Returns
    -------
    dict
        ``mae``, ``mse``, ``psnr``, ``ssim``, each with ``_brain`` and ``_fov`` (whole field of view), and
        ``psnr_minmax``, ``ssim_minmax``: over the field of view after each volume is scaled to its own minimum and
        maximum, as many papers do.
    """
    out = {}
    for name, mask in (("brain", brain), ("fov", None)):
        out |= {f"{key}_{name}": value for key, value in errors(predicted, truth, window, mask).items()}
        out[f"ssim_{name}"] = ssim(predicted, truth, window[1] - window[0], mask)
    own = [(v - v.min()) / max(float(np.ptp(v)), 1e-12) for v in (predicted, truth)]
    out["psnr_minmax"] = errors(*own, (0.0, 1.0))["psnr"]
    out["ssim_minmax"] = ssim(*own, 1.0)
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
