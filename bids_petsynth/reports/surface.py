"""Pictures of surface projections: shaded views of the brain with values or z-scores on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_petsynth.errors import ModelError
from bids_petsynth.evaluation.normative import Normative, model_normative, z_scores
from bids_petsynth.evaluation.surface import Surface, project_person, template_surface
from bids_petsynth.evaluation.template import setting
from bids_petsynth.reports.canvas import Figure, bare, colour_bar, jpeg, new_canvas
from bids_petsynth.reports.content import Pet, Scan
from bids_petsynth.reports.figures import sample


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


#: In the order in which they are drawn.
VIEWS = (
    View("right lateral", 0, 1, 1, (1, 1), (2, 1), ("P", "A")),
    View("left lateral", 0, -1, 0, (1, -1), (2, 1), ("A", "P")),
    View("right medial", 0, -1, 1, (1, -1), (2, 1), ("A", "P")),
    View("left medial", 0, 1, 0, (1, 1), (2, 1), ("P", "A")),
    View("superior", 2, 1, None, (0, 1), (1, 1), ("L", "R")),
    View("inferior", 2, -1, None, (0, -1), (1, 1), ("R", "L")),
    View("anterior", 1, 1, None, (0, -1), (2, 1), ("R", "L")),
    View("posterior", 1, -1, None, (0, 1), (2, 1), ("L", "R")),
)
#: Pixel of a view in mm, points that a pixel takes its value from, and the reach of their weights in mm.
PIXEL, _NEIGHBOURS, _REACH = 1.5, 6, 3.0
_GREY, _UNKNOWN = 0.82, 0.6
#: Room beside a view as a share of the tallest one's height, and of the picture's width that the views have.
_MARGIN, _ACROSS = 0.13, 0.88
#: A voxel back and forth along each axis, for central differences.
_STEPS = np.array([sign * np.eye(3, dtype=int)[axis] for axis in range(3) for sign in (-1, 1)])[..., None]


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


def _finer(surface: Surface) -> dict[int | None, tuple[np.ndarray, np.ndarray]]:
    """Fields of the left half, the right half and the whole in voxels of a pixel, and them smoothed, for normals."""
    zoom = np.diag(surface.grid.affine)[:3] / PIXEL
    halves = [ndimage.zoom(half, zoom, order=1, grid_mode=True, mode="grid-constant") for half in surface.halves]
    fields = {0: halves[0], 1: halves[1], None: halves[0] + halves[1]}
    return {half: (field, ndimage.gaussian_filter(field, 1.0)) for half, field in fields.items()}


def look(surface: Surface, view: View, fields: Mapping[int | None, tuple[np.ndarray, np.ndarray]]) -> Picture:
    """Follow parallel rays from the eye to the surface, through the fields of :func:`_finer`."""
    from scipy.spatial import cKDTree

    grid = surface.grid
    spacing = np.diag(grid.affine)[:3]
    field, smooth = fields[view.half]
    # the eye at the end of the first axis
    order = (view.axis, view.up[0], view.right[0])
    turned = (slice(None, None, -view.towards), slice(None, None, -view.up[1]), slice(None, None, view.right[1]))
    inside = field.transpose(order)[turned] >= 0.5
    first = inside.argmax(0)
    seen = inside.any(0)
    row, column = np.nonzero(seen)
    hit = np.stack([first[seen], row, column])
    rays = smooth.transpose(order)[turned]
    near_edge = [np.clip(hit + step, 0, np.array(rays.shape)[:, None] - 1) for step in _STEPS]
    normal = np.stack([rays[tuple(b)] - rays[tuple(a)] for a, b in zip(near_edge[::2], near_edge[1::2], strict=True)])
    facing = normal[0] / np.maximum(np.linalg.norm(normal, axis=0), 1e-9)
    shade = np.zeros(seen.shape)
    shade[seen] = np.clip(facing, 0, 1)
    index = np.empty_like(hit)
    for axis, place, ascending in zip(order, hit, (view.towards < 0, view.up[1] < 0, view.right[1] > 0), strict=True):
        index[axis] = place if ascending else field.shape[axis] - 1 - place
    # the centre of the first pixel lies half a pixel inside the first voxel's edge
    where = grid.affine[:3, 3] - spacing / 2 + (index.T + 0.5) * spacing * grid.shape / field.shape
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
    return looks(template_surface())


def looks(surface: Surface | None = None) -> tuple[Picture, ...]:
    """A surface in every view; that of the template if None, which is looked at once."""
    if surface is None:
        return _template_looks()
    fields = _finer(surface)
    return tuple(look(surface, view, fields) for view in VIEWS)


def _greyed(palette, low: float, high: float, shown: float):
    """The colour map with grey in place of values smaller than ``shown`` in size, so that the bar says so too."""
    from matplotlib.colors import ListedColormap

    steps = np.linspace(low, high, 1024)
    colours = palette(np.linspace(0, 1, 1024))
    colours[np.abs(steps) < shown] = (_GREY, _GREY, _GREY, 1)
    return ListedColormap(colours)


def _painted(picture: Picture, values: np.ndarray, palette, low: float, high: float) -> np.ndarray:
    """RGBA ``(H, W, 4)``: colours where there is a value, dark grey elsewhere on the brain, shaded."""
    image = picture.values(values)
    told = np.isfinite(image)
    out = np.full((*image.shape, 4), _UNKNOWN)
    out[told] = palette(np.clip((image[told] - low) / (high - low), 0, 1))
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

    chosen = [(view, picture) for view, picture in zip(VIEWS, looks(surface), strict=True) if view.name in views]
    # one set of values may take two rows, so that each view is larger
    columns = len(chosen) if len(rows) > 1 else (len(chosen) + 1) // 2
    tallest = max(picture.seen.any(1).sum() for _, picture in chosen)
    widths = [picture.seen.any(0).sum() + 2 * _MARGIN * tallest for _, picture in chosen]
    widths = [max(widths[place::columns]) for place in range(columns)]
    starts = range(0, len(chosen), columns)
    lines = [("" if at else name, values, chosen[at : at + columns]) for name, values in rows.items() for at in starts]
    width, bottom = 13.0, 0.12
    # a line has room for its tallest view and the names above it
    each = width * _ACROSS * tallest / sum(widths) + 0.28
    height = each * len(lines) + bottom
    canvas = new_canvas(width, height)
    canvas.set_facecolor("white")
    grid = canvas.subplots(len(lines), columns, squeeze=False, gridspec_kw={"wspace": 0, "width_ratios": widths})
    canvas.subplots_adjust(0.04, bottom / height, 0.04 + _ACROSS, 1 - 0.28 / height, hspace=0.28 / (each - 0.28))
    palette = _greyed(matplotlib.colormaps[colours], *window, shown)
    for axes_row, (name, values, part) in zip(grid, lines, strict=True):
        for axes, extent, seen in zip_longest(axes_row, widths, part):
            bare(axes, "white")
            if seen is not None:
                _draw(axes, *seen, _painted(seen[1], values, palette, *window), extent, tallest)
        if name:
            where = {"transform": axes_row[0].transAxes, "rotation": 90, "ha": "right", "va": "center"}
            axes_row[0].text(-0.02, 0.5, name, fontsize=10, **where)
    bar = canvas.add_axes((0.92, 0.1, 0.08, 0.8))
    picture = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(*window), palette)
    colour_bar(canvas, bar, picture, label, "#222222")
    return Figure(about.desc, jpeg(canvas, 110), about.alt, about.caption)


def _draw(axes, view: View, picture: Picture, image: np.ndarray, extent: float, tallest: int) -> None:
    """One view, centred, all at the same scale, with its name and what lies at its edges."""
    rows, columns = (np.flatnonzero(picture.seen.any(axis)) for axis in (1, 0))
    image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    axes.imshow(image, interpolation="bilinear")
    middle, centre = len(rows) / 2 - 0.5, len(columns) / 2 - 0.5
    axes.set(xlim=(centre - extent / 2, centre + extent / 2), ylim=(middle + tallest / 2, middle - tallest / 2))
    axes.set_title(view.name, fontsize=10, pad=3)
    for side, mark in zip((-1, 1), view.marks, strict=True):
        place = centre + side * (len(columns) / 2 + _MARGIN * tallest / 2)
        axes.text(place, middle, mark, ha="center", va="center", fontsize=9, color="#444444")


def participant_figure(scan: Scan, pet: Pet, model: Path) -> Figure | None:
    """Z-scores of a participant's synthetic scan against the normative set of the model that made it.

    None if the model's folder has no set for the tracer, holds another model, or its set was made on another surface
    (as another version of the template's maps has), or if the labels hold too few regions.
    """
    import nibabel as nib

    try:
        normative = model_normative(model, pet.about["Model"]["WeightsSHA256"]).get(pet.tracer.name)
    except ModelError:
        return None
    if normative is None:
        return None
    image = nib.load(pet.mean)
    codes = sample(scan.dseg, image.affine, image.shape, 0).astype(np.uint8)
    try:
        projection = project_person(image.get_fdata(dtype=np.float32), codes, image.affine, pet.tracer.name)
        return z_figure({"SYNTHETIC": z_scores(projection, normative)}, normative)
    except ValueError:
        return None


def z_figure(rows: Mapping[str, np.ndarray], normative: Normative, people: int = 1) -> Figure:
    """Z-scores of one person or of a group's mean, in every view.

    Parameters
    ----------
    rows
        What stands left of a row (``synthetic``, ``real`` …) → ``(P,)`` z-scores.
    normative
        The set that they are against.
    people
        Over how many a row is the mean.
    """
    from scipy.stats import norm

    size, shown = float(setting("z_window")), float(setting("z_shown"))
    parts = []
    for name, z in rows.items():
        known = z[np.isfinite(z)]
        high, low = ((known > shown).mean(), (known < -shown).mean()) if len(known) else (0.0, 0.0)
        parts.append(f"{name or 'scan'}: {high:.0%} of the surface above {shown:g} and {low:.0%} below -{shown:g}")
    caption = (
        f"{normative.tracer} uptake on the brain's surface as z-scores against {normative.described} (3D-SSP's method; "
        f"{'mean' if normative.statistic == 'mean' else 'largest value'} of the cortex along {normative.depth:g} mm "
        f"inwards; positive: more uptake than they have; light grey: between -{shown:g} and {shown:g}; dark grey: no "
        "cortex)."
    )
    if people == 1:
        caption += f" By chance {2 * norm.sf(shown):.0%} of a normal person's surface is coloured."
    else:
        caption += (
            f" Means over {people} people differ less than people do: by chance far less is coloured than of one."
        )
    alt = (
        f"Eight views of the brain's surface in colour: orange has more and purple less {normative.tracer} uptake than "
        f"the normative set. {'; '.join(parts)}."
    )
    about = Figure("surface", b"", alt, caption)
    return surface_figure(rows, (-size, size), "z (normative SD)", about, "PuOr_r", shown)
