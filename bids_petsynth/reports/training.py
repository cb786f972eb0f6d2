"""What ``train`` learned from: a picture of every prepared pair, and a page of them with their figures of quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bids_petsynth.pet.tracers import Tracer
from bids_petsynth.reports.canvas import bare, colour_bar, jpeg, new_canvas
from bids_petsynth.reports.figures import display_of
from bids_petsynth.reports.pages import render


def pair_picture(t1w: np.ndarray, suvr: np.ndarray, brain: np.ndarray, tracer: Tracer) -> bytes:
    """T1w above PET in three planes with the outline of the brain, as JPEG.

    ``t1w`` (white matter 1), ``suvr`` and ``brain (X, Y, Z)`` lie on the model grid, which stands in template pose.
    """
    return _picture(t1w, suvr, brain, tracer.display, display_of(tracer).overlay, f"{tracer.name} SUVR")


def other_picture(t1w: np.ndarray, image: np.ndarray, brain: np.ndarray, modality: str) -> bytes:
    """The same of a T2w, FLAIR or CT image, the median of white matter being 1."""
    high = float(np.percentile(image[brain], 99))
    return _picture(t1w, image, brain, (0.0, high), "gray", f"{modality} (white matter 1)")


def alone_picture(uptake: np.ndarray, brain: np.ndarray, voxel_size: float, tracer: Tracer) -> bytes:
    """The same of PET without T1w, below the mean T1w of the template, which it was registered to."""
    from bids_petsynth.anatomy.alignment import mean_t1w, template_grid
    from bids_petsynth.anatomy.volume import Volume, resample

    template = resample(Volume(*mean_t1w()), template_grid(uptake.shape, voxel_size), order=1)
    return _picture(
        template, uptake, brain, (0.0, 2.0), display_of(tracer).overlay, f"{tracer.name} (mean of the brain 1)"
    )


def _picture(
    t1w: np.ndarray, image: np.ndarray, brain: np.ndarray, window: tuple[float, float], colours: str, unit: str
) -> bytes:
    centre = [round(float(np.mean(places))) for places in np.nonzero(brain)]
    low, high = window
    canvas = new_canvas(9, 6)
    canvas.set_facecolor("black")
    x, y, z = brain.shape
    *grid, bar = canvas.subplots(1, 4, gridspec_kw={"width_ratios": (x, x, y, 24), "wspace": 0.02})
    canvas.subplots_adjust(0.005, 0.01, 0.94, 0.99)
    bar.set_axis_off()
    for axes, axis in zip(grid, (2, 1, 0), strict=True):
        bare(axes, "black")
        both = [np.take(v, centre[axis], axis).T[::-1] for v in (t1w / 1.2, (image - low) / (high - low))]
        # one above the other, in units of each window
        axes.imshow(np.concatenate([both[0], np.full_like(both[1], np.nan)]), cmap="gray", vmin=0, vmax=1)
        shown = np.concatenate([np.full_like(both[0], np.nan), both[1] * (high - low) + low])
        picture = axes.imshow(shown, cmap=colours, vmin=low, vmax=high)
        outline = np.take(brain, centre[axis], axis).T[::-1].astype(float)
        axes.contour(np.concatenate([outline, outline]), levels=[0.5], colors="white", linewidths=0.6)
    grid[0].text(0.01, 0.01, "L", color="white", transform=grid[0].transAxes)
    colour_bar(canvas, bar, picture, unit, "white")
    return jpeg(canvas, 80)


def pairs_page(name: str, rows: Sequence[Mapping[str, object]]) -> str:
    """A page of all scans of the table of pairs, beside which it is to lie."""
    scans, named = [], ("participant_id", "session_id", "tracer", "reason", "picture")
    for row in rows:
        parts = [row["participant_id"], row["session_id"], row["tracer"]]
        figures = [(k, v) for k, v in row.items() if k not in named]
        scans.append(
            {
                "name": ", ".join(str(part) for part in parts if part != "n/a"),
                "tracer": row["tracer"],
                "reason": row["reason"],
                "picture": row.get("picture"),
                "figures": [(k, v) for k, v in figures if v not in ("", None)],
            }
        )
    # what was left out comes first
    scans.sort(key=lambda scan: not scan["reason"])
    return render("pairs.html", title=f"{name}: pairs", scans=scans, used=sum(not scan["reason"] for scan in scans))
