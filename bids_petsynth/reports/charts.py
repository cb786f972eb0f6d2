"""Charts of the group report. Every one is drawn from the rows of a table that is written beside the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from bids_petsynth.reports.canvas import BLUE, GREEN, ORANGE, SKY, VERMILION, Figure, jpeg, new_canvas, svg

#: Colours and shapes of groups: told apart by shape where colours are not seen.
MARKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (VERMILION, "D"), (SKY, "v"), ("#555555", "P"))
#: Points beyond which a chart is a picture, so that the report stays small.
MANY = 800


def finished(canvas, points: int) -> bytes:
    """SVG, or JPEG of a chart with very many points."""
    return svg(canvas) if points <= MANY else jpeg(canvas, 110)


def spread(values: Mapping[str, Mapping[str, np.ndarray]], unit: str, line: float | None, what: str) -> bytes:
    """Dots and boxes of one figure by group, a panel for every grouping (``values``: grouping → group → values)."""
    panels = list(values.items())
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    canvas = new_canvas(3.5 * columns, 2.7 * rows)
    rng = np.random.default_rng(0)
    points = 0
    for axes, (grouping, parts) in zip(canvas.subplots(rows, columns, squeeze=False).ravel(), panels, strict=False):
        kept = {name: part for name, part in parts.items() if len(part)}
        for place, part in enumerate(kept.values()):
            colour, mark = MARKS[place % len(MARKS)]
            points += len(part)
            axes.scatter(place + rng.uniform(-0.2, 0.2, len(part)), part, s=9, c=colour, marker=mark, alpha=0.6, lw=0)
            if len(part) > 4:
                axes.boxplot([part], positions=[place], widths=0.55, showfliers=False, medianprops={"color": "#222222"})
        axes.set_xticks(
            range(len(kept)), [f"{name[:18]}\n(n = {len(part)})" for name, part in kept.items()], fontsize=7.5
        )
        axes.set_xlim(-0.6, len(kept) - 0.4)
        axes.set_title(grouping, fontsize=9)
        axes.set_ylabel(unit)
        if line is not None:
            axes.axhline(line, color=VERMILION, linewidth=1)
    for axes in canvas.axes[len(panels) :]:
        axes.set_axis_off()
    canvas.tight_layout()
    return finished(canvas, points)


def scatter(
    x: np.ndarray,
    y: np.ndarray,
    labels: tuple[str, str],
    group: Sequence[str] | None = None,
    lines: Sequence[float] = (),
    identity: bool = True,
) -> bytes:
    """Two figures of the same people against each other, with the line of equality."""
    canvas = new_canvas(4.4, 4.2)
    axes = canvas.subplots()
    names = list(dict.fromkeys(group)) if group is not None else [""]
    for place, name in enumerate(names):
        mine = np.ones(len(x), bool) if group is None else np.array([g == name for g in group])
        colour, mark = MARKS[place % len(MARKS)]
        axes.scatter(x[mine], y[mine], s=16, c=colour, marker=mark, alpha=0.7, lw=0, label=name)
    if identity and len(x):
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, color="#777777", linewidth=0.9, linestyle="--")
    for line in lines:
        axes.axvline(line, color="#AAAAAA", linewidth=0.8)
        axes.axhline(line, color="#AAAAAA", linewidth=0.8)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    if group is not None and len(names) > 1:
        axes.legend(frameon=False, fontsize=8)
    return finished(canvas, len(x))


def bland_altman_chart(predicted: np.ndarray, truth: np.ndarray, mean: float, limits: tuple[float, float], unit: str):
    """Differences over means with the mean difference and the 95 % limits of agreement."""
    canvas = new_canvas(5.2, 3.4)
    axes = canvas.subplots()
    axes.scatter((predicted + truth) / 2, predicted - truth, s=16, c=BLUE, alpha=0.7, lw=0)
    for level, style, text in ((mean, "-", "bias"), (limits[0], "--", "lower limit"), (limits[1], "--", "upper limit")):
        axes.axhline(level, color=VERMILION, linewidth=1, linestyle=style)
        axes.text(1.01, level, f"{text}\n{level:+.3g}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.axhline(0, color="#999999", linewidth=0.7, linestyle=":")
    axes.set_xlabel(f"mean of synthetic and real ({unit})")
    axes.set_ylabel("synthetic minus real")
    return finished(canvas, len(predicted))


def bars(names: Sequence[str], values: Sequence[float], low, high, label: str, line: float | None = None) -> bytes:
    """Horizontal points with intervals, one for each name."""
    canvas = new_canvas(7, 0.22 * len(names) + 0.8)
    axes = canvas.subplots()
    place = np.arange(len(names))
    axes.hlines(place, np.asarray(low, float), np.asarray(high, float), color=SKY, linewidth=4)
    axes.plot(np.asarray(values, float), place, "o", color=BLUE, markersize=4)
    if line is not None:
        axes.axvline(line, color="#777777", linewidth=0.9, linestyle="--")
    axes.set_yticks(place, [name.replace("_", " ") for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(label)
    return svg(canvas)


def reliability_chart(table: pd.DataFrame, title: str) -> bytes:
    """Share of positives over the predicted probability; the size of a dot tells how many people are in the bin."""
    canvas = new_canvas(4.2, 3.9)
    axes = canvas.subplots()
    axes.plot([0, 1], [0, 1], color="#777777", linewidth=0.9, linestyle="--")
    size = 20 + 200 * table["n"] / max(table["n"].max(), 1)
    axes.vlines(
        table["probability"].astype(float), *(table[f"share_{e}"].astype(float) for e in ("low", "high")), color=SKY
    )
    axes.scatter(table["probability"], table["share"], s=size, c=BLUE)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("predicted probability of positivity")
    axes.set_ylabel("share of positive real scans")
    axes.set_title(title, fontsize=9)
    return svg(canvas)


def heat(shares: pd.DataFrame) -> bytes:
    """Map of missing values: which share of the people of each group has each variable."""
    canvas = new_canvas(1.5 + 0.9 * len(shares.columns), 0.24 * len(shares) + 1.2)
    axes = canvas.subplots()
    picture = axes.imshow(shares.to_numpy(float), vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for row in range(len(shares)):
        for column in range(len(shares.columns)):
            value = shares.iat[row, column]
            if np.isfinite(value):
                colour = "black" if value > 0.55 else "white"
                axes.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_yticks(range(len(shares)), shares.index, fontsize=8)
    axes.set_xticks(
        range(len(shares.columns)), [str(c)[:22] for c in shares.columns], fontsize=8, rotation=30, ha="right"
    )
    canvas.colorbar(picture, ax=axes, label="share of people with a value", fraction=0.04)
    return svg(canvas)


def courses(frame: pd.DataFrame, column: str, label: str, line: float | None) -> bytes:
    """A line for every person over years since their first scan; ``frame`` has participant_id, years and ``column``."""
    canvas = new_canvas(6, 3.6)
    axes = canvas.subplots()
    points = 0
    for _, own in frame.groupby("participant_id"):
        axes.plot(own["years"], own[column], "-o", color=BLUE, alpha=0.5, markersize=3, linewidth=0.9)
        points += len(own)
    if line is not None:
        axes.axhline(line, color=VERMILION, linewidth=1)
    axes.set_xlabel("years since the first scan")
    axes.set_ylabel(label)
    return finished(canvas, points)


def figure(name: str, content: bytes, alt: str, caption: str) -> Figure:
    """A figure of the group report."""
    return Figure(name, content, alt, caption)
