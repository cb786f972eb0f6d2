"""Pictures of maps over people in template space."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from bids_petsynth.evaluation.surface import template_brain
from bids_petsynth.reports.canvas import Figure, bare, colour_bar, jpeg, new_canvas
from bids_petsynth.types import Grid

#: Level of the false discovery rate below which t is drawn in full colour.
LEVEL = 0.05
_HEIGHTS = (-36, -20, -4, 12, 28, 44, 60)


@cache
def _background(shape: tuple[int, ...], corner: tuple[float, ...], spacing: float) -> np.ndarray:
    """The MNI152 T1w (nilearn) on a grid in template space, 0 to 1."""
    from nilearn.datasets import load_mni152_template

    from bids_petsynth.anatomy.volume import Volume, resample

    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = corner
    image = load_mni152_template(resolution=1)
    data = resample(Volume(image.get_fdata(dtype=np.float32), image.affine), Grid(shape, affine), 1)
    return np.clip(data / data.max(), 0, 1)


def voxelwise_figure(maps: Mapping[str, np.ndarray], grid: Grid, tracer: str, people: int, units: int) -> Figure:
    """Axial slices of mean difference, SD and t of synthetic minus real over independent units of people.

    Parameters
    ----------
    maps
        As ``VoxelwiseMaps.maps`` returns them, ``(X, Y, Z)``.
    grid
        In template space, axis-aligned.
    tracer, people, units
        For the text.
    """
    whom = f"{people} people" if units == people else f"{people} people of {units} independent units"
    brain = template_brain(grid) & np.isfinite(maps["mean"])
    spacing = grid.affine[2, 2]
    back = _background(tuple(grid.shape), tuple(grid.affine[:3, 3]), spacing)
    inside = {name: np.where(brain, maps[name], np.nan) for name in ("mean", "sd", "t")}
    sure = np.nan_to_num(maps["q"], nan=1.0) < LEVEL
    reach = {name: _round_up(values) for name, values in inside.items()}
    rows = (
        ("mean difference", "mean", "PuOr_r", (-reach["mean"], reach["mean"]), "SUVR", 0.9 * np.ones(grid.shape)),
        ("SD", "sd", "cividis", (0.0, reach["sd"]), "SUVR", 0.9 * np.ones(grid.shape)),
        ("paired t", "t", "PuOr_r", (-reach["t"], reach["t"]), "t", np.where(sure, 0.9, 0.25)),
    )
    # cut to the brain
    crop = tuple(slice(max(v.min() - 3, 0), v.max() + 4) for v in np.nonzero(template_brain(grid))[:2])
    slices = [round((z - grid.affine[2, 3]) / spacing) for z in _HEIGHTS]
    slices = [index for index in slices if 0 <= index < grid.shape[2]]
    canvas = new_canvas(13, 6.6)
    canvas.set_facecolor("white")
    ratios = [*[1.0] * len(slices), 0.55]
    axes_grid = canvas.subplots(len(rows), len(slices) + 1, gridspec_kw={"wspace": 0.02, "width_ratios": ratios})
    canvas.subplots_adjust(0.03, 0.01, 0.99, 0.96, hspace=0.03)
    for number, (axes_row, (title, name, colours, (low, high), unit, solid)) in enumerate(
        zip(axes_grid, rows, strict=True)
    ):
        for axes, index in zip(axes_row, slices, strict=False):
            bare(axes, "white")
            axes.imshow(back[..., index][crop].T[::-1], cmap="gray_r", vmin=0, vmax=1.6, interpolation="bilinear")
            over = inside[name][..., index][crop].T[::-1]
            opacity = np.where(np.isfinite(over), solid[..., index][crop].T[::-1], 0)
            picture = axes.imshow(
                np.nan_to_num(over), cmap=colours, vmin=low, vmax=high, alpha=opacity, interpolation="nearest"
            )
            for x, mark, align in ((0.02, "L", "left"), (0.98, "R", "right")):
                axes.text(x, 0.02, mark, transform=axes.transAxes, ha=align, va="bottom", fontsize=8)
            if number == 0:
                axes.set_title(f"z = {grid.affine[2, 3] + spacing * index:.0f} mm", fontsize=9, pad=3)
        axes_row[0].text(-0.03, 0.5, title, transform=axes_row[0].transAxes, rotation=90, ha="right", va="center")
        colour_bar(canvas, axes_row[-1], picture, unit, "#222222")
    share = (sure & brain).sum() / max(brain.sum(), 1)
    means = inside["mean"][brain]
    told = f"{means.mean():+.3f} SUVR on average, {np.abs(means).max():.2f} at most" if len(means) else "no voxel known"
    alt = (
        f"Axial slices in template space of the voxelwise difference between synthetic and real {tracer} PET over "
        f"{whom}: mean difference ({told}), standard deviation, and paired t; {share:.0%} of the brain "
        f"differs at a false discovery rate of {LEVEL:g}."
    )
    caption = (
        f"{tracer}: synthetic minus real over {whom} in MNI152 space, voxel by voxel. Orange: synthetic is "
        f"higher; purple: lower. t is faint where the false discovery rate (Benjamini–Hochberg) is {LEVEL:g} or more."
    )
    return Figure("voxelwise", jpeg(canvas, 110), alt, caption)


def _round_up(values: np.ndarray) -> float:
    """The 99.5th percentile of the sizes, rounded up to one digit: an end for a colour bar."""
    known = np.abs(values[np.isfinite(values)])
    top = float(np.percentile(known, 99.5)) if len(known) else 0.0
    if top <= 0:
        return 1.0
    digit = 10.0 ** np.floor(np.log10(top))
    return float(np.ceil(top / digit) * digit)
