"""Charts of one scan's numbers: regional SUVR, Centiloid, and what each variable moved."""

from __future__ import annotations

from collections.abc import Mapping

from bids_petsynth.anatomy.regions import all_regions
from bids_petsynth.clinical.variables import ALL_BLOOD
from bids_petsynth.pet.tracers import cutoffs, default_cutoff
from bids_petsynth.reports.canvas import BLUE, GREEN, ORANGE, SKY, VERMILION, Figure, new_canvas, svg
from bids_petsynth.reports.content import Pet, Row, change_text, number, variable_label


def regional(pet: Pet, ranges: Mapping[str, Row]) -> Figure:
    """Bars of regional SUVR of both sides with their 95 % intervals, over the range of the training people."""
    names = [region.name for region in all_regions() if region.tissue in ("gm", "deep")]
    rows = {row["name"]: row for row in pet.regions}
    half = (len(names) + 1) // 2
    canvas = new_canvas(11, 0.235 * half + 0.9)
    top = _ceiling(pet, ranges)
    simulated = "simulated " if pet.about.get("DemonstrationModel") else ""
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
        keys.append((f"{simulated}training people, 5th to 95th percentile", "#BBBBBB"))
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
    said = f"{len(outside)} of them lie outside the range of the {simulated}training people." if ranges else ""
    alt = (
        f"Bar chart of the regional SUVR of synthetic {pet.tracer.name} PET in {len(names)} grey-matter regions, left "
        f"and right, with 95 % intervals. {said} The numbers are in {pet.tracer.name}'s table _suvr.tsv."
    )
    caption = "Regional SUVR with 95 % predictive intervals (lines); the dotted line is the reference region." + (
        f" Grey: where the {simulated}people lie that the model was trained on."
        if ranges
        else " No range of training people: the model folder given is not of the model that made this PET, or has none."
    )
    return Figure("regions", svg(canvas, synthetic=True), alt, caption)


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
    return Figure("centiloid", svg(canvas, synthetic=True), alt, caption)


def sensitivity(pet: Pet) -> Figure | None:
    """How much each variable moved the target SUVR, and all blood values; None where that was not computed."""
    moved = [(variable_label(row["variable"]), number(row.get("change"))) for row in pet.sensitivity]
    moved = sorted(((n, c) for n, c in moved if c is not None), key=lambda item: -abs(item[1]))
    if not moved:
        return None
    canvas = new_canvas(6, 0.28 * len(moved) + 0.7)
    axes = canvas.subplots()
    for place, (_, change) in enumerate(moved):
        axes.barh(place, change, 0.6, color=VERMILION if change > 0 else BLUE)
        side = "right" if change < 0 else "left"
        axes.text(change, place, f" {change_text(change)} ", va="center", ha=side, fontsize=8)
    axes.set_yticks(range(len(moved)), [name for name, _ in moved])
    axes.invert_yaxis()
    end = 1.3 * max(0.02, *(abs(change) for _, change in moved))
    axes.set_xlim(-end, end)
    axes.axvline(0, color="#555555", linewidth=0.8)
    axes.set_xlabel(f"change of the target SUVR of {pet.tracer.name} by the value")
    words = ", ".join(f"{name} {change_text(change)}" for name, change in moved)
    alt = f"Bar chart of how much each value moved the target SUVR of {pet.tracer.name}: {words}."
    caption = "Target SUVR with the value minus without it, with all other values kept, rounded to 0.01."
    if any(row["variable"] == ALL_BLOOD for row in pet.sensitivity):
        caption += (
            " Blood values go along with one another, so that one alone moves little where the others are known; of all"
            " blood values together it is the SUVR with them minus without any of them."
        )
    return Figure("sensitivity", svg(canvas, synthetic=True), alt, caption)
