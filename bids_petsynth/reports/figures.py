"""Pictures of one scan: JPEG for images, SVG for charts. The same files give the same bytes.

All slices are upright: they are taken on the model grid's axes, through the rigid map that was written. Colours are
those of Okabe and Ito (https://jfly.uni-koeln.de/color/) and maps whose lightness rises evenly.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_petsynth.anatomy.alignment import template_grid
from bids_petsynth.anatomy.regions import all_regions, lookup
from bids_petsynth.anatomy.volume import Volume, resample
from bids_petsynth.pet.tracers import Tracer, cutoffs, default_cutoff
from bids_petsynth.pet.tracers import targets as all_targets
from bids_petsynth.reports.content import Pet, Row, Scan, number
from bids_petsynth.tables import read_table
from bids_petsynth.types import Grid

BLUE, ORANGE, GREEN, VERMILION, SKY, YELLOW = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#F0E442"
#: Groups of regions whose outlines are drawn, with their colours.
OUTLINES = {
    "cortex": (VERMILION, ("gm",)),
    "white matter": (SKY, ("wm",)),
    "deep grey": (YELLOW, ("deep",)),
    "ventricles and CSF": (GREEN, ("csf",)),
}
#: Field of view in mm and voxel size of pictures.
BOX, FINE = (192, 224, 192), 1.0
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.hashsalt": "petsynth",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "text.color": "#222222",
}


@dataclass(frozen=True)
class Figure:
    """A picture: what it shows (``desc`` label), its bytes, its text for those who cannot see it, and its caption."""

    desc: str
    content: bytes
    alt: str
    caption: str

    @property
    def extension(self) -> str:
        """``jpg`` or ``svg``."""
        return "jpg" if self.content.startswith(b"\xff\xd8") else "svg"


@dataclass(frozen=True)
class Display:
    """One row of ``data/tracer_display.tsv``: colour maps of planes, overlay and viewer, and the window of the SD."""

    planes: str
    overlay: str
    viewer: str
    sd_high: float


def display_of(tracer: Tracer) -> Display:
    """How a tracer is shown; a tracer without a row is shown as the first of the table."""
    rows = read_table("tracer_display.tsv")
    row = next((row for row in rows if row["tracer"] == tracer.name), rows[0])
    return Display(row["planes"], row["overlay"], row["viewer"], float(row["sd_high"]))


@dataclass(frozen=True)
class Upright:
    """Images of a scan on upright axes: T1w (0 to 1) and label codes, ``(X, Y, Z)``, and the affine of that grid."""

    t1w: np.ndarray
    labels: np.ndarray
    affine: np.ndarray

    @property
    def centre(self) -> tuple[int, int, int]:
        """Middle of the brain, in voxels."""
        return tuple(int(np.mean(np.flatnonzero((self.labels > 0).any(other)))) for other in ((1, 2), (0, 2), (0, 1)))

    def slices(self, axis: int, count: int) -> list[int]:
        """Evenly spaced slices through the brain."""
        other = tuple(i for i in range(3) if i != axis)
        inside = np.flatnonzero((self.labels > 0).any(other))
        edge = 0.1 * (inside[-1] - inside[0])
        return [round(x) for x in np.linspace(inside[0] + edge, inside[-1] - edge, count)]


def upright(scan: Scan, spacing: float = FINE) -> Upright:
    """T1w and labels of a scan on the axes of the model grid, from the written files."""
    to_template = np.loadtxt(scan.alignment)
    shape = tuple(round(extent / spacing) for extent in BOX)
    affine = np.linalg.inv(to_template) @ template_grid(shape, spacing).affine
    t1w = sample(scan.t1w, affine, shape, 1)
    labels = sample(scan.dseg, affine, shape, 0).astype(np.uint8)
    inside = t1w[labels > 0]
    top = 1.15 * np.percentile(inside, 99) if inside.size else 1.0
    return Upright(np.clip(t1w / max(top, 1e-6), 0, 1), labels, affine)


def sample(path: Path, affine: np.ndarray, shape: Sequence[int], order: int) -> np.ndarray:
    """An image interpolated onto a grid (order 0 nearest, 1 linear), float32; 0 outside of it."""
    image = nib.load(path)
    data = np.asanyarray(image.dataobj).astype(np.float32)
    return resample(Volume(data, image.affine), Grid(tuple(shape), affine), order)


def _cut(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """One slice as an image: up is superior (anterior in axial ones), left of the person on the left."""
    return np.take(volume, index, axis).T[::-1]


def _groups(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Mask of every outlined group."""
    codes = {code: region.tissue for code, _, _, region in lookup()}
    return {
        name: np.isin(labels, [code for code, tissue in codes.items() if tissue in tissues])
        for name, (_, tissues) in OUTLINES.items()
    }


def new_canvas(width: float, height: float):
    """A matplotlib figure of that size in inches, in the style of all reports."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure as Canvas

    matplotlib.rcParams.update(_STYLE)
    return Canvas(figsize=(width, height))


def jpeg(canvas, dpi: int) -> bytes:
    """A picture of an image: a fifth of a PNG's size, colours at full resolution."""
    out = io.BytesIO()
    options = {"quality": 88, "subsampling": 0, "optimize": True}
    canvas.savefig(out, format="jpeg", dpi=dpi, facecolor=canvas.get_facecolor(), pil_kwargs=options)
    return out.getvalue()


def svg(canvas) -> bytes:
    """The figure as SVG whose text is text; the same figure gives the same bytes."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        canvas.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", pad_inches=0.05
        )
    # the text stays text: where the font is missing, another without serifs takes its place
    return out.getvalue().replace(b"'DejaVu Sans'", b"'DejaVu Sans', Verdana, Arial, sans-serif")


def bare(axes, background: str) -> None:
    """Take ticks and frame off."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor(background)
    for side in axes.spines.values():
        side.set_visible(False)


def _sides(axes, colour: str) -> None:
    """Which side of the picture is the person's left."""
    for x, text in ((0.02, "L"), (0.98, "R")):
        axes.text(x, 0.02, text, color=colour, transform=axes.transAxes, ha="left" if x < 0.5 else "right", va="bottom")


def contours(scene: Upright) -> Figure:
    """T1w with the outlines of the labels: axial, coronal and sagittal slices."""
    canvas = new_canvas(12, 6.6)
    canvas.set_facecolor("black")
    masks = _groups(scene.labels)
    count = 6
    grid = canvas.subplots(3, count, gridspec_kw={"wspace": 0.01, "hspace": 0.01})
    canvas.subplots_adjust(0.005, 0.05, 0.995, 0.995)
    for row, axis in zip(grid, (2, 1, 0), strict=True):
        for axes, index in zip(row, scene.slices(axis, count), strict=True):
            bare(axes, "black")
            axes.imshow(_cut(scene.t1w, axis, index), cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
            for name, (colour, _) in OUTLINES.items():
                mask = _cut(masks[name], axis, index)
                if mask.any():
                    axes.contour(mask, [0.5], colors=colour, linewidths=0.8)
            if axis != 0:
                _sides(axes, "white")
    for number_, (name, (colour, _)) in enumerate(OUTLINES.items()):
        canvas.text(0.02 + 0.2 * number_, 0.015, "— " + name, color=colour, fontsize=11, weight="bold")
    alt = (
        "Slices of the T1w image in three planes, six each, with the outlines of "
        f"{', '.join(OUTLINES)} drawn over it, to check that labels follow the anatomy."
    )
    return Figure("contours", jpeg(canvas, 110), alt, "T1w with the outlines of the labels (L is the person's left).")


def drawn_t1w(scene: Upright, path: Path) -> Figure:
    """The measured T1w above the synthetic one in three planes."""
    made = sample(path, scene.affine, scene.t1w.shape, 1)
    top = 1.15 * max(float(np.percentile(made[scene.labels > 0], 99)), 1e-6)
    canvas = new_canvas(9, 6)
    canvas.set_facecolor("black")
    grid = canvas.subplots(2, 3, gridspec_kw={"wspace": 0.01, "hspace": 0.02})
    canvas.subplots_adjust(0.005, 0.005, 0.995, 0.995)
    for row, (name, image) in zip(grid, (("measured", scene.t1w), ("synthetic", made / top)), strict=True):
        for axes, axis in zip(row, (2, 1, 0), strict=True):
            bare(axes, "black")
            axes.imshow(_cut(image, axis, scene.centre[axis]), cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
            if axis != 0:
                _sides(axes, "white")
        row[0].text(0.02, 0.92, name, color="white", transform=row[0].transAxes)
    alt = "The measured T1w above the synthetic one in an axial, a coronal and a sagittal plane."
    return Figure("drawn", jpeg(canvas, 110), alt, "Measured T1w (above) and SYNTHETIC T1w (below) in three planes.")


def planes(scene: Upright, pet: Pet) -> Figure:
    """Synthetic PET alone in three planes, in the tracer's reading colours and fixed window."""
    mean = sample(pet.mean, scene.affine, scene.t1w.shape, 1)
    low, high = pet.tracer.display
    name = pet.tracer.name
    return _three(
        scene,
        mean,
        (low, high, display_of(pet.tracer).planes),
        f"{name} SUVR (synthetic)",
        Figure(
            "planes",
            b"",
            f"Synthetic {name} PET in an axial, a coronal and a sagittal plane through the middle of the brain, from "
            f"{low:g} (white) to {high:g} SUVR (black). {_in_words(pet)}",
            f"Synthetic {name} PET in three planes; fixed window {low:g} to {high:g} SUVR.",
        ),
    )


def uncertainty(scene: Upright, pet: Pet) -> Figure:
    """Standard deviation over the draws in the same three planes, fixed window."""
    sd = sample(pet.std, scene.affine, scene.t1w.shape, 1)
    high = display_of(pet.tracer).sd_high
    inside = sd[scene.labels > 0]
    sd[scene.labels == 0] = np.nan
    return _three(
        scene,
        sd,
        (0, high, "cividis"),
        "standard deviation, SUVR",
        Figure(
            "uncertainty",
            b"",
            f"Map of the uncertainty: standard deviation over the draws of synthetic {pet.tracer.name} PET in the same "
            f"three planes; its median inside the brain is {np.median(inside):.2f} SUVR.",
            f"Uncertainty: standard deviation over the draws inside the brain; fixed window 0 to {high:g} SUVR.",
        ),
    )


def _three(scene: Upright, volume: np.ndarray, window: tuple[float, float, str], label: str, about: Figure) -> Figure:
    low, high, colours = window
    dark = colours != "gray_r"
    canvas = new_canvas(10, 3.2)
    canvas.set_facecolor("black" if dark else "white")
    ink = "white" if dark else "#222222"
    extents = (BOX[0], BOX[0], BOX[1], 26)
    *grid, bar = canvas.subplots(1, 4, gridspec_kw={"width_ratios": extents, "wspace": 0.02})
    canvas.subplots_adjust(0.005, 0.02, 0.94, 0.98)
    for axes, axis in zip(grid, (2, 1, 0), strict=True):
        bare(axes, "black" if dark else "white")
        picture = axes.imshow(
            _cut(volume, axis, scene.centre[axis]), cmap=colours, vmin=low, vmax=high, interpolation="bilinear"
        )
        if axis != 0:
            _sides(axes, ink)
    colour_bar(canvas, bar, picture, label, ink)
    return Figure(about.desc, jpeg(canvas, 110), about.alt, about.caption)


def colour_bar(canvas, axes, picture, label: str, ink: str) -> None:
    """A colour bar with its unit."""
    axes.set_axis_off()
    bar = canvas.colorbar(picture, cax=axes.inset_axes([0.1, 0.08, 0.3, 0.84]))
    bar.set_label(label, color=ink)
    bar.ax.tick_params(colors=ink)
    bar.outline.set_edgecolor(ink)
    bar.solids.set_alpha(1)


def mosaic(scene: Upright, pet: Pet) -> Figure:
    """Axial slices of the synthetic PET over the T1w, in the tracer's colours and fixed window."""
    rows, columns = 2, 7
    mean = sample(pet.mean, scene.affine, scene.t1w.shape, 1)
    low, high = pet.tracer.display
    canvas = new_canvas(13, 4.2)
    canvas.set_facecolor("black")
    ratios = [*[1.0] * columns, 0.42]
    grid = canvas.subplots(rows, columns + 1, gridspec_kw={"wspace": 0.01, "hspace": 0.01, "width_ratios": ratios})
    canvas.subplots_adjust(0.003, 0.005, 0.965, 0.995)
    shown = grid[:, :columns].ravel()
    for axes, index in zip(shown, scene.slices(2, rows * columns), strict=True):
        bare(axes, "black")
        axes.imshow(_cut(scene.t1w, 2, index), cmap="gray", vmin=0, vmax=1.2, interpolation="bilinear")
        over = np.where(_cut(scene.labels, 2, index) > 0, _cut(mean, 2, index), np.nan)
        colours = display_of(pet.tracer).overlay
        picture = axes.imshow(over, cmap=colours, vmin=low, vmax=high, alpha=0.8, interpolation="bilinear")
    _sides(shown[0], "white")
    for axes in grid[1:, columns]:
        axes.set_axis_off()
    colour_bar(canvas, grid[0, columns], picture, "", "white")
    grid[0, columns].set_position([0.935, 0.1, 0.05, 0.8])
    grid[0, columns].text(0.1, 0.97, "SUVR", color="white", transform=grid[0, columns].transAxes)
    alt = (
        f"Fourteen axial slices of the synthetic {pet.tracer.name} PET in colour over the T1w in grey, from {low:g} "
        f"(dark) to {high:g} SUVR (bright). {_in_words(pet)}"
    )
    caption = f"Synthetic {pet.tracer.name} PET over the T1w; fixed window {low:g} to {high:g} SUVR."
    return Figure("mosaic", jpeg(canvas, 100), alt, caption)


def _in_words(pet: Pet) -> str:
    """The target SUVR as a sentence."""
    value = number(pet.measures.get("target_suvr"))
    return "" if value is None else f"The mean SUVR of the {target_label(pet)} is {value:.2f}."


def target_label(pet: Pet) -> str:
    """Name for people of the composite that sums the scan up."""
    name = pet.measures.get("target", "")
    return all_targets()[name].label if name in all_targets() else name


def regional(pet: Pet, ranges: Mapping[str, Row]) -> Figure:
    """Bars of regional SUVR of both sides with their 95 % intervals, over the range of the training people."""
    names = [region.name for region in all_regions() if region.tissue in ("gm", "deep")]
    rows = {row["name"]: row for row in pet.regions}
    half = (len(names) + 1) // 2
    canvas = new_canvas(11, 0.235 * half + 0.9)
    top = _ceiling(pet, ranges)
    for axes, part in zip(canvas.subplots(1, 2), (names[:half], names[half:]), strict=True):
        for place, name in enumerate(part):
            both = (f"left_{name}", BLUE, -0.2), (f"right_{name}", ORANGE, 0.2)
            for full, colour, shift in both if f"left_{name}" in rows else ((name, GREEN, 0.0),):
                _region_bar(axes, rows.get(full), ranges.get(full), place + shift, colour)
        axes.set_yticks(range(len(part)), [name.replace("_", " ") for name in part])
        axes.set_ylim(len(part) - 0.4, -0.6)
        axes.set_xlim(0, top)
        axes.axvline(1, color="#999999", linewidth=0.8, linestyle=":")
        axes.set_xlabel("SUVR")
        axes.tick_params(length=2)
    keys = [("left", BLUE), ("right", ORANGE), ("midline", GREEN)]
    if ranges:
        keys.append(("training people, 5th to 95th percentile", "#BBBBBB"))
    from matplotlib.patches import Patch

    canvas.legend(
        handles=[Patch(color=colour, label=text) for text, colour in keys],
        loc="upper center",
        ncols=len(keys),
        frameon=False,
    )
    canvas.subplots_adjust(0.14, 0.08, 0.99, 0.94, wspace=0.42)
    drawn = {f"{side}{name}" for name in names for side in ("left_", "right_", "")}
    outside = _outside(rows, {name: row for name, row in ranges.items() if name in drawn})
    said = f"{len(outside)} of them lie outside the range of the training people." if ranges else ""
    alt = (
        f"Bar chart of the regional SUVR of synthetic {pet.tracer.name} PET in {len(names)} grey-matter regions, left "
        f"and right, with 95 % intervals. {said} The numbers are in {pet.tracer.name}'s table _suvr.tsv."
    )
    caption = "Regional SUVR with 95 % predictive intervals (lines); the dotted line is the reference region." + (
        " Grey: where the people lie that the model was trained on." if ranges else ""
    )
    return Figure("regions", svg(canvas), alt, caption)


def _region_bar(axes, row: Row | None, known: Row | None, place: float, colour: str) -> None:
    if known and (low := number(known.get("p05"))) is not None and (high := number(known.get("p95"))) is not None:
        axes.barh(place, high - low, 0.4, left=low, color="#BBBBBB", zorder=1)
    value = number(row["suvr"]) if row else None
    if value is None:
        return
    axes.barh(place, value, 0.26, color=colour, zorder=2)
    low, high = number(row["low95"]), number(row["high95"])
    if low is not None and high is not None:
        axes.plot([max(low, 0), high], [place, place], color="#222222", linewidth=0.7, zorder=3)


def _ceiling(pet: Pet, ranges: Mapping[str, Row]) -> float:
    """End of the SUVR axis: all intervals and ranges fit, unless they are far beyond the tracer's window."""
    high = pet.tracer.display[1]
    ends = [number(row[end]) for row in pet.regions for end in ("suvr", "high95")]
    ends += [number(row.get("p95")) for row in ranges.values()]
    return min(1.6 * high, max(high, *(1.05 * end for end in ends if end is not None)))


def _outside(rows: Mapping[str, Row], ranges: Mapping[str, Row]) -> list[str]:
    found = []
    for name, known in ranges.items():
        low, high = number(known.get("p05")), number(known.get("p95"))
        value = number(rows[name]["suvr"]) if name in rows else None
        if None not in (low, high, value) and not low <= value <= high:
            found.append(name)
    return found


def centiloid(pet: Pet) -> Figure | None:
    """The Centiloid and its 95 % interval on a scale with the cut-offs; None for a tracer without Centiloid."""
    value = number(pet.measures.get("centiloid_approximate"))
    if value is None:
        return None
    low, high = (number(pet.measures.get(f"centiloid_{end}95")) for end in ("low", "high"))
    canvas = new_canvas(6, 0.9)
    axes = canvas.subplots()
    if low is not None and high is not None:
        axes.barh(0, high - low, 0.34, left=low, color=SKY)
    axes.plot([value], [0], "o", color=BLUE, markersize=8)
    for cutoff in cutoffs():
        main = cutoff.default
        axes.axvline(cutoff.centiloid, color=VERMILION if main else "#AAAAAA", linewidth=1.6 if main else 0.8)
    axes.set_xlim(min(-50, low or 0) - 5, max(150, high or 0) + 5)
    axes.set_ylim(-0.5, 0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("Centiloid (approximate)")
    interval = "" if low is None else f" with the 95 % interval {low:.0f} to {high:.0f}"
    alt = (
        f"Scale of the Centiloid from {axes.get_xlim()[0]:.0f} to {axes.get_xlim()[1]:.0f}: this scan is at "
        f"{value:.0f}{interval}; the cut-off of positivity is at {default_cutoff().centiloid:g}."
    )
    caption = (
        "Centiloid (dot) with its 95 % interval (bar); the strong line is the cut-off of positivity, "
        f"{default_cutoff().centiloid:g}, the thin ones are others in use."
    )
    return Figure("centiloid", svg(canvas), alt, caption)


def sensitivity(pet: Pet) -> Figure | None:
    """How much each variable moved the target SUVR; None where that was not computed."""
    moved = [(row["variable"], number(row.get("change"))) for row in pet.sensitivity]
    moved = sorted(((n, c) for n, c in moved if c is not None), key=lambda item: -abs(item[1]))
    if not moved:
        return None
    canvas = new_canvas(6, 0.28 * len(moved) + 0.7)
    axes = canvas.subplots()
    for place, (_, change) in enumerate(moved):
        axes.barh(place, change, 0.6, color=VERMILION if change > 0 else BLUE)
        axes.text(change, place, f" {change:+.3f} ", va="center", ha="left" if change > 0 else "right", fontsize=8)
    axes.set_yticks(range(len(moved)), [name for name, _ in moved])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.axvline(0, color="#555555", linewidth=0.8)
    axes.set_xlabel(f"change of the target SUVR of {pet.tracer.name} by the value")
    words = ", ".join(f"{name} {change:+.3f}" for name, change in moved)
    alt = f"Bar chart of how much each value moved the target SUVR of {pet.tracer.name}: {words}."
    return Figure("sensitivity", svg(canvas), alt, "Target SUVR with the value minus without it.")
