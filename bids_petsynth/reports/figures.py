"""Pictures of one scan's images. The same files give the same bytes.

All slices are upright: they are taken on the model grid's axes, through the rigid map that was written. Colour maps are
those whose lightness rises evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_petsynth.anatomy.alignment import template_grid
from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.anatomy.volume import Volume, resample
from bids_petsynth.pet.tracers import Tracer
from bids_petsynth.reports.canvas import GREEN, SKY, VERMILION, YELLOW, Figure, bare, colour_bar, jpeg, new_canvas
from bids_petsynth.reports.content import Pet, Scan, number, target_label
from bids_petsynth.tables import read_table
from bids_petsynth.types import Grid

#: Groups of regions whose outlines are drawn, with their colours.
OUTLINES = {
    "cortex": (VERMILION, ("gm",)),
    "white matter": (SKY, ("wm",)),
    "deep grey": (YELLOW, ("deep",)),
    "ventricles and CSF": (GREEN, ("csf",)),
}
#: Field of view in mm and voxel size of pictures.
BOX, FINE = (192, 224, 192), 1.0


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
        f"{name} SUVR",
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
    return Figure(about.desc, jpeg(canvas, 110, synthetic=True), about.alt, about.caption)


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
    return Figure("mosaic", jpeg(canvas, 100, synthetic=True), alt, caption)


def _in_words(pet: Pet) -> str:
    """The target SUVR as a sentence."""
    value = number(pet.measures.get("target_suvr"))
    return "" if value is None else f"The mean SUVR of the {target_label(pet)} is {value:.2f}."
