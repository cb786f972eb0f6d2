"""Pictures of surface projections: shaded views of the brain with values or z-scores on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from bids_petsynth.evaluation.normative import Normative
from bids_petsynth.evaluation.surface import Surface, template_surface
from bids_petsynth.evaluation.template import setting
from bids_petsynth.reports.figures import Figure, bare, colour_bar, jpeg, new_canvas


@dataclass(frozen=True)
class View:
    """Where a view looks from.

    Attributes
    ----------
    axis, towards
        The axis it looks along, and 1 or -1: the side of that axis on which the eye is.
    half
        0 left or 1 right half alone, None for the whole brain.
    right, up
        Axis and sign of the picture's right and upper side.
    marks
        What stands at the left and the right edge: anterior, posterior, L or R of the person.
    """

    name: str
    axis: int
    towards: int
    half: int | None
    right: tuple[int, int]
    up: tuple[int, int]
    marks: tuple[str, str]


#: In the order of 3D-SSP's pictures.
VIEWS = (
    View("right lateral", 0, 1, 1, (1, 1), (2, 1), ("P", "A")),
    View("left lateral", 0, -1, 0, (1, -1), (2, 1), ("A", "P")),
    View("superior", 2, 1, None, (0, 1), (1, 1), ("L", "R")),
    View("inferior", 2, -1, None, (0, -1), (1, 1), ("R", "L")),
    View("anterior", 1, 1, None, (0, -1), (2, 1), ("R", "L")),
    View("posterior", 1, -1, None, (0, 1), (2, 1), ("L", "R")),
    View("right medial", 0, -1, 1, (1, -1), (2, 1), ("A", "P")),
    View("left medial", 0, 1, 0, (1, 1), (2, 1), ("P", "A")),
)
#: Pixel of a view in mm, points that a pixel takes its value from, and the reach of their weights in mm.
PIXEL, _NEIGHBOURS, _REACH = 1.5, 6, 3.0
_GREY = 0.78


@dataclass(frozen=True)
class Picture:
    """A surface as it looks in one view.

    Attributes
    ----------
    seen
        ``(H, W)`` True where there is brain; the first row is the upper edge.
    shade
        ``(H, W)`` 0 to 1, bright where the surface faces the eye.
    points, weights
        ``(N, K)`` surface points of each pixel that is seen, in the order of ``seen``, and their weights.
    """

    seen: np.ndarray
    shade: np.ndarray
    points: np.ndarray
    weights: np.ndarray

    def values(self, values: np.ndarray) -> np.ndarray:
        """Values ``(P,)`` of the points as an image ``(H, W)``, NaN outside the brain and where most are unknown."""
        near = values[self.points]
        weights = np.where(np.isfinite(near), self.weights, 0)
        total = weights.sum(1)
        mean = (np.nan_to_num(near) * weights).sum(1) / np.maximum(total, 1e-9)
        out = np.full(self.seen.shape, np.nan)
        out[self.seen] = np.where(total > 0.5, mean, np.nan)
        return out


def look(surface: Surface, view: View) -> Picture:
    """Follow parallel rays from the eye to the surface."""
    from scipy.spatial import cKDTree

    grid = surface.grid
    spacing = np.diag(grid.affine)[:3]
    field = surface.halves.sum(0) if view.half is None else surface.halves[view.half]
    # on pixels, the eye at the end of the first axis
    zoom = spacing / PIXEL
    field = ndimage.zoom(field, zoom, order=1, grid_mode=True, mode="grid-constant")
    order = (view.axis, view.up[0], view.right[0])
    rays = field.transpose(order)[:: -view.towards, :: -view.up[1], :: view.right[1]]
    inside = rays >= 0.5
    first = inside.argmax(0)
    seen = inside.any(0)
    slope = np.stack(np.gradient(ndimage.gaussian_filter(rays, 1.0)))
    row, column = np.nonzero(seen)
    hit = np.stack([first[seen], row, column])
    normal = slope[:, hit[0], hit[1], hit[2]]
    facing = normal[0] / np.maximum(np.linalg.norm(normal, axis=0), 1e-9)
    shade = np.zeros(seen.shape)
    shade[seen] = np.clip(facing, 0, 1)
    index = np.empty_like(hit)
    for axis, place, ascending in zip(order, hit, (view.towards < 0, view.up[1] < 0, view.right[1] > 0), strict=True):
        index[axis] = place if ascending else field.shape[axis] - 1 - place
    # the centre of the first pixel lies half a pixel inside the first voxel's edge
    where = grid.affine[:3, 3] - spacing / 2 + (index.T + 0.5) * spacing / zoom * (zoom * grid.shape / field.shape)
    eye = np.zeros(3)
    eye[view.axis] = view.towards
    # a thin part must not take its colour from its far side
    visible = -surface.inward @ eye > -0.3
    if view.half is not None:
        visible &= surface.left == (view.half == 0)
    chosen = np.flatnonzero(visible)
    distance, near = cKDTree(surface.points[chosen]).query(where, _NEIGHBOURS)
    weights = np.exp(-np.square((distance - distance[:, :1]) / _REACH))
    return Picture(seen, shade, chosen[near], weights / weights.sum(1, keepdims=True))


@cache
def _template_looks() -> tuple[Picture, ...]:
    return tuple(look(template_surface(), view) for view in VIEWS)


def looks(surface: Surface | None = None) -> tuple[Picture, ...]:
    """A surface in every view; that of the template if None, which is looked at once."""
    return _template_looks() if surface is None else tuple(look(surface, view) for view in VIEWS)


def _painted(picture: Picture, values: np.ndarray, colours, low: float, high: float, shown: float) -> np.ndarray:
    """RGBA ``(H, W, 4)``: colours where there is a value that is shown, grey elsewhere on the brain, shaded."""
    image = picture.values(values)
    told = np.isfinite(image) & (np.abs(np.nan_to_num(image)) >= shown)
    out = np.ones((*image.shape, 4))
    out[..., :3] = _GREY
    out[told] = colours(np.clip((image[told] - low) / (high - low), 0, 1))
    # little enough shade that a colour is still read off the bar
    out[..., :3] *= (0.62 + 0.38 * picture.shade)[..., None]
    out[..., 3] = picture.seen
    return out


def surface_figure(
    rows: Mapping[str, np.ndarray],
    window: tuple[float, float],
    label: str,
    about: Figure,
    colours: str = "inferno",
    shown: float = 0.0,
    surface: Surface | None = None,
    views: Sequence[str] = tuple(view.name for view in VIEWS),
) -> Figure:
    """Values on the surface: one row of views per set of values.

    Parameters
    ----------
    rows
        What stands left of a row → ``(P,)`` values.
    window
        Values at the ends of the colours.
    label
        Of the colour bar, with the unit.
    about
        Its label, text and caption; the picture comes in.
    colours
        A colour map of matplotlib whose order colour-blind readers see.
    shown
        Values smaller than this in size are left grey.
    surface
        That of the values; the template's if None.
    views
        Names of :data:`VIEWS`.
    """
    import matplotlib

    low, high = window
    chosen = [(view, picture) for view, picture in zip(VIEWS, looks(surface), strict=True) if view.name in views]
    sizes = [picture.seen.any(0).sum() for _, picture in chosen]
    tallest = max(picture.seen.any(1).sum() for _, picture in chosen)
    width = 13.0
    across = sum(sizes) + 0.22 * tallest * len(chosen)
    height = 1.04 * tallest * width * 0.86 / across
    canvas = new_canvas(width, height * len(rows) + 0.5)
    canvas.set_facecolor("white")
    ratios = [size + 0.22 * tallest for size in sizes]
    grid = canvas.subplots(
        len(rows), len(chosen), squeeze=False, gridspec_kw={"wspace": 0, "hspace": 0.03, "width_ratios": ratios}
    )
    top = 1 - 0.3 / (height * len(rows) + 0.5)
    canvas.subplots_adjust(0.065, 0.03, 0.93, top)
    palette = matplotlib.colormaps[colours]
    for axes_row, (name, values) in zip(grid, rows.items(), strict=True):
        for axes, (view, picture) in zip(axes_row, chosen, strict=True):
            bare(axes, "white")
            image = _painted(picture, values, palette, low, high, shown)
            up, across_ = np.flatnonzero(picture.seen.any(1)), np.flatnonzero(picture.seen.any(0))
            axes.imshow(image[up[0] : up[-1] + 1, across_[0] : across_[-1] + 1], interpolation="bilinear")
            middle, half = len(up) / 2, tallest / 2
            margin = 0.11 * tallest
            axes.set(xlim=(-margin, len(across_) + margin), ylim=(middle + half, middle - half))
            for x, mark, align in ((0.01, view.marks[0], "left"), (0.99, view.marks[1], "right")):
                axes.text(x, 0.03, mark, transform=axes.transAxes, ha=align, va="bottom", fontsize=8)
            if axes_row is grid[0]:
                axes.set_title(view.name, fontsize=9, pad=3)
        if name:
            axes_row[0].text(
                -0.06, 0.5, name, transform=axes_row[0].transAxes, rotation=90, ha="right", va="center", fontsize=9
            )
    bar = canvas.add_axes((0.93, 0.08, 0.07, 0.8))
    picture = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(low, high), palette)
    colour_bar(canvas, bar, picture, label, "#222222")
    return Figure(about.desc, jpeg(canvas, 110), about.alt, about.caption)


def z_figure(rows: Mapping[str, np.ndarray], normative: Normative, synthetic: str = "") -> Figure:
    """Z-scores of one person or of a group's mean, in every view.

    Parameters
    ----------
    rows
        What stands left of a row (``synthetic``, ``real`` …) → ``(P,)`` z-scores.
    normative
        The set that they are against.
    """
    size, shown = float(setting("z_window")), float(setting("z_shown"))
    parts = []
    for name, z in rows.items():
        known = z[np.isfinite(z)]
        high, low = ((known > shown).mean(), (known < -shown).mean()) if len(known) else (0.0, 0.0)
        parts.append(f"{name or 'scan'}: {high:.0%} of the surface above {shown:g} and {low:.0%} below -{shown:g}")
    caption = (
        f"{normative.tracer} uptake on the brain's surface as z-scores against {normative.described} (3D-SSP's method; "
        f"{'mean' if normative.statistic == 'mean' else 'largest value'} of the cortex along {normative.depth:g} mm "
        f"inwards; positive: more uptake than they have; grey: between -{shown:g} and {shown:g}, or no cortex)."
    )
    alt = (
        f"Eight views of the brain's surface in colour, orange for more and blue for less {normative.tracer} uptake than "
        f"the normative set. {'; '.join(parts)}."
    )
    about = Figure("surface", b"", alt, caption)
    return surface_figure(rows, (-size, size), "z (normative SD)", about, "PuOr_r", shown)
