"""Cortical values on the brain's surface, and how far they lie from a normative set (after 3D-SSP).

In template space a line is followed from every point of the brain's surface inwards along the normal; the largest (or
mean) value of the cortex on it is the point's value. Source: Minoshima 1995 (J Nucl Med 36:1238). Points are compared
with the mean and standard deviation of a normative set; a positive z is more uptake than in that set (3D-SSP's own z
has the opposite sign).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from scipy import ndimage

from bids_petsynth.anatomy.regions import all_regions, lookup
from bids_petsynth.evaluation.template import Warp, landmark_warp, sample_at, setting
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.types import Grid

STATISTICS = ("max", "mean")


@dataclass(frozen=True)
class Surface:
    """The surface of a brain, each half closed along the midplane.

    Attributes
    ----------
    points, inward
        ``(P, 3)`` RAS+ mm and unit normals that point into the brain.
    left
        ``(P,)`` True on the left half.
    halves
        ``(2, X, Y, Z)`` smooth fields of the left and the right half, the surface where they are 0.5.
    grid
        Of ``halves``: axis-aligned, RAS+.
    """

    points: np.ndarray
    inward: np.ndarray
    left: np.ndarray
    halves: np.ndarray
    grid: Grid

    @property
    def key(self) -> str:
        """Number, middle and extent of the points: values on surfaces with the same key can be compared.

        A hash of the points would change with the last digits, which another machine's arithmetic may give differently.
        """
        # + 0.0 makes -0.0 a 0.0
        figures = np.round(np.concatenate([self.points.mean(0), self.points.std(0)]), 1) + 0.0
        return f"{len(self.points)}:" + ",".join(f"{value:.1f}" for value in figures)


@dataclass(frozen=True)
class Projection:
    """Values ``(P,)`` on a surface (NaN where no cortex was met), how they were taken, and of which surface.

    ``fwhm`` is that of the smoothing before, in mm.
    """

    values: np.ndarray
    statistic: str
    depth: float
    surface: str
    fwhm: float = field(default_factory=lambda: float(setting("fwhm")))


def surface_of(mask: np.ndarray, affine: np.ndarray, smooth: float | None = None) -> Surface:
    """The surface of a mask.

    Parameters
    ----------
    mask
        ``(X, Y, Z)`` bool. The midplane is x = 0.
    affine
        Diagonal, RAS+ (the axes of template space).
    smooth
        Standard deviation in mm of the blur that rounds the voxels' steps; that of ``data/surface.tsv`` if None.

    Raises
    ------
    ValueError
        If the axes are turned, or the mask is empty or reaches the edge of its grid.
    """
    spacing = np.diag(affine)[:3]
    if (spacing <= 0).any() or not np.allclose(affine[:3, :3], np.diag(spacing)):
        raise ValueError("a surface needs a grid whose axes are right, anterior and superior")
    if not mask.any() or any(np.take(mask, end, axis).any() for axis in range(3) for end in (0, -1)):
        raise ValueError("a surface needs a mask that is not empty and does not reach the edge of its grid")
    sigma = (float(setting("smooth")) if smooth is None else smooth) / spacing
    x = affine[0, 3] + spacing[0] * np.arange(mask.shape[0])
    # a voxel that the midplane cuts belongs to both halves by its shares
    share = np.clip(0.5 - x / spacing[0], 0, 1)[:, None, None]
    halves = [ndimage.gaussian_filter(mask * part, sigma, output=float) for part in (share, 1 - share)]
    found = [_points(half, affine, spacing) for half in halves]
    left = np.repeat([True, False], [len(points) for points, _ in found])
    points, inward = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Surface(points, inward, left, np.stack(halves).astype(np.float32), Grid(mask.shape, affine))


def _points(field: np.ndarray, affine: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels at the 0.5 level of a field, moved onto it, with the unit normals there.

    Normals are the gradient of a field that is smoothed further, or the voxels' steps would turn them by 15 degrees.
    """
    inside = field >= 0.5
    edge = np.argwhere(inside & ~ndimage.binary_erosion(inside))
    gradient = np.stack(np.gradient(field, *spacing))
    points = edge * spacing + affine[:3, 3]
    for _ in range(3):
        voxels = ((points - affine[:3, 3]) / spacing).T
        slope = np.stack([ndimage.map_coordinates(part, voxels, order=1) for part in gradient], 1)
        off = 0.5 - ndimage.map_coordinates(field, voxels, order=3)
        steep = np.maximum(np.square(slope).sum(1), 1e-6)
        points = points + np.clip((off / steep)[:, None] * slope, -spacing, spacing)
    smooth = np.stack(np.gradient(ndimage.gaussian_filter(field, 1.5), *spacing))
    voxels = ((points - affine[:3, 3]) / spacing).T
    normal = np.stack([ndimage.map_coordinates(part, voxels, order=1) for part in smooth], 1)
    return points, normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)


@cache
def template_surface() -> Surface:
    """The surface of the MNI152 template's grey and white matter (nilearn's ICBM 152 maps), sulci bridged."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    from bids_petsynth.anatomy.alignment import template_grid
    from bids_petsynth.anatomy.volume import Volume, resample

    spacing = float(setting("spacing"))
    grid = template_grid(tuple(int(extent // spacing) for extent in (210, 246, 210)), spacing)
    # 1 mm is their own resolution: nothing is resampled
    maps = [load(resolution=1) for load in (load_mni152_gm_template, load_mni152_wm_template)]
    data = sum(image.get_fdata(dtype=np.float32) for image in maps)
    tissue = resample(Volume(data, maps[0].affine), grid, 1) > 0.5
    reach = ndimage.distance_transform_edt(~tissue, spacing) <= float(setting("closing"))
    closed = ndimage.distance_transform_edt(reach, spacing) > float(setting("closing"))
    parts, _ = ndimage.label(ndimage.binary_fill_holes(closed | tissue))
    brain = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return surface_of(brain & (brain[::-1]), grid.affine)


def template_brain(grid: Grid) -> np.ndarray:
    """The inside of :func:`template_surface` on a grid in template space, ``grid.shape``, bool."""
    surface = template_surface()
    places = np.moveaxis(np.indices(grid.shape), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return np.nan_to_num(sample_at(surface.halves.sum(0), surface.grid.affine, places)) >= 0.5


def project(
    volume: np.ndarray,
    affine: np.ndarray,
    surface: Surface | None = None,
    tissue: np.ndarray | None = None,
    warp: Warp | None = None,
    statistic: str = "max",
    depth: float | None = None,
) -> Projection:
    """Values of an image on a surface.

    Parameters
    ----------
    volume
        ``(X, Y, Z)``, such as SUVR; NaN where there is none.
    affine
        Of its grid, RAS+.
    surface
        That of the template if None.
    tissue
        ``(X, Y, Z)`` bool on the same grid: only these voxels count (see :func:`cortex`). The person's cortex may then
        also lie a little outside the surface. All voxels from the surface inwards count if None.
    warp
        From the surface's mm to the image's; None if the image lies in template space.
    statistic
        ``max``, which forgives atrophy and misregistration, or ``mean``, for tracers that light up white matter.
    depth
        How far inwards in mm; that of ``data/surface.tsv`` if None.

    Raises
    ------
    ValueError
        If the statistic is another, or image and tissue differ in shape.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"the statistic of a projection is {' or '.join(STATISTICS)}, not {statistic}")
    if tissue is not None and tissue.shape != volume.shape:
        raise ValueError(f"the tissue has the shape {tissue.shape} and the image {volume.shape}")
    surface = template_surface() if surface is None else surface
    depth = float(setting("depth")) if depth is None else depth
    step = float(setting("step"))
    start = 0.0 if tissue is None else -float(setting("outward"))
    along = np.arange(start, depth + step / 2, step)
    lines = surface.points[:, None] + along[:, None] * surface.inward[:, None]
    if warp is not None:
        lines = _warped(lines, along, warp)
    values = sample_at(volume, affine, lines)
    if tissue is not None:
        inside = sample_at(tissue.astype(np.float32), affine, lines, 0) > 0.5
        values = np.where(inside, values, np.nan)
    known = np.isfinite(values)
    if statistic == "max":
        out = np.where(known, values, -np.inf).max(1)
    else:
        out = np.where(known, values, 0).sum(1) / np.maximum(known.sum(1), 1)
    return Projection(np.where(known.any(1), out, np.nan), statistic, depth, surface.key, 0.0)


def _warped(lines: np.ndarray, along: np.ndarray, warp: Warp) -> np.ndarray:
    """Lines ``(P, S, 3)`` in the head: parabolas through three of their points, 0.01 mm off the map on average."""
    knots = [0, len(along) // 2, len(along) - 1]
    if len(set(knots)) < 3:
        return warp(lines.reshape(-1, 3)).reshape(lines.shape)
    at = warp(lines[:, knots].reshape(-1, 3)).reshape(len(lines), 3, 3)
    basis = np.stack(
        [np.prod([(along - along[j]) / (along[k] - along[j]) for j in knots if j != k], axis=0) for k in knots],
        axis=1,
    )
    return np.einsum("sk,pkc->psc", basis, at)


def cortex(codes: np.ndarray) -> np.ndarray:
    """Grey matter among ``dseg`` codes; the deep nuclei too, which the medial views show where 3D-SSP does."""
    grey = {region.index for region in all_regions() if region.tissue in ("gm", "deep")}
    return np.isin(codes, [code for code, _, _, region in lookup() if region.index in grey])


def smoothed_within(volume: np.ndarray, mask: np.ndarray, affine: np.ndarray, fwhm: float) -> np.ndarray:
    """A Gaussian mean of ``fwhm`` mm over the voxels of a mask alone: ``(X, Y, Z)`` float32, NaN far from the mask.

    It brings scans, single draws and means of draws near to one level of noise; without it the largest value along a
    line would be the higher the noisier the image. What lies outside the mask does not blur in; the mask's values go on
    a little beyond it, for interpolation.
    """
    sigma = fwhm / np.sqrt(8 * np.log(2)) / np.linalg.norm(affine[:3, :3], axis=0)
    known = mask & np.isfinite(volume)
    values = ndimage.gaussian_filter(np.where(known, volume, 0).astype(np.float32), sigma)
    weight = ndimage.gaussian_filter(known.astype(np.float32), sigma)
    return np.where(weight > 1e-4, values / np.maximum(weight, 1e-4), np.nan).astype(np.float32)


def statistic_of(tracer: str) -> str:
    """The statistic that ``data/surface.tsv`` has for a tracer's class."""
    return setting(f"statistic_{tracer_named(tracer).target_class}")


def project_person(
    volume: np.ndarray, codes: np.ndarray, affine: np.ndarray, tracer: str, warp: Warp | None = None
) -> Projection:
    """The cortex of a person's scan on the template's surface, with the tracer's statistic.

    Parameters
    ----------
    volume, codes
        ``(X, Y, Z)`` SUVR, which is smoothed within the cortex first (:func:`smoothed_within`), and ``dseg`` codes on
        one grid.
    affine
        Of that grid, RAS+.
    warp
        That of ``landmark_warp(codes, affine)``, if it is known.

    Raises
    ------
    ValueError
        If the labels hold too few regions.
    """
    grey = cortex(codes)
    fwhm = float(setting("fwhm"))
    even = smoothed_within(volume, grey, affine, fwhm)
    warp = landmark_warp(codes, affine) if warp is None else warp
    found = project(even, affine, None, grey, warp, statistic_of(tracer))
    return replace(found, fwhm=fwhm)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two projections' values (or of their z) over the points that both have; NaN with fewer than three.

    Between raw values of one person it is high for any two brains, because all share the pattern of the cortex; that of
    their z is the telling one.
    """
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3 or not (np.ptp(a[both]) and np.ptp(b[both])):
        return float("nan")
    return float(np.corrcoef(a[both], b[both])[0, 1])


def residual_correlations(synthetic: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Per person, r over the surface of what sets synthetic and real scan apart from the other people's real scans.

    Parameters
    ----------
    synthetic, real
        ``(N, P)`` values of the same people, NaN where unknown.

    Returns
    -------
    ndarray
        ``(N,)``, NaN with fewer than two people. The mean of the others is taken from both, so a synthetic scan that
        shows the population's pattern alone has an r near 0 (of the order of 1 / (N - 1), which they share).
    """
    known = np.isfinite(real)
    total, count = np.where(known, real, 0).sum(0, dtype=float), known.sum(0)
    out = np.full(len(real), np.nan)
    for person, (made, scan) in enumerate(zip(synthetic, real, strict=True)):
        others = count - known[person]
        rest = np.where(others > 0, (total - np.where(known[person], scan, 0)) / np.maximum(others, 1), np.nan)
        out[person] = correlation(made - rest, scan - rest)
    return out
