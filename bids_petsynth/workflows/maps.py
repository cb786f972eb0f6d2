"""Maps over people: voxelwise differences in template space, and the cortex on the brain's surface."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from bids_petsynth.errors import ModelError
from bids_petsynth.evaluation.cohort import PET
from bids_petsynth.evaluation.comparison import maps_grid, maps_volume
from bids_petsynth.evaluation.findings import Section, Table
from bids_petsynth.evaluation.groups import numbers
from bids_petsynth.evaluation.normative import Normative, model_normative, z_scores
from bids_petsynth.evaluation.surface import (
    Projection,
    correlation,
    residual_correlations,
    setting,
    statistic_of,
    template_surface,
)
from bids_petsynth.evaluation.voxelwise import VoxelwiseMaps
from bids_petsynth.reports.canvas import Figure
from bids_petsynth.reports.figures import display_of
from bids_petsynth.reports.surface import surface_figure, z_figure
from bids_petsynth.reports.voxelwise import voxelwise_figure
from bids_petsynth.workflows.comparisons import Outcome, kept_maps


def maps_section(
    outcomes: Sequence[Outcome], first: Mapping[str, Collection[tuple[str, str]]], clusters: pd.Series, model: Path
) -> Section:
    """Figures and a table of each tracer.

    Parameters
    ----------
    outcomes
        Of all comparisons; their maps are read one after the other.
    first
        Tracer → the scans that count, one per participant.
    clusters
        By scan, the independent unit: the maps of people of one unit are averaged first.
    model
        Folder of the model that was used, for its normative set.
    """
    figures, sentences, rows = [], [], []
    for name, scans in first.items():
        mine = [one for one in outcomes if one.found and one.job.key[2] == name and one.job.key[:2] in scans]
        made, told, said = _tracer(name, mine, clusters, model)
        figures += made
        rows += told
        sentences += said
    table = Table("surface", "Surface of the cortex, synthetic against real", pd.DataFrame(rows), _NOTE)
    return Section("maps", "Maps", sentences, [table] if rows else [], figures)


_NOTE = (
    "r over points of the surface; of raw values it is high for any two brains, the telling one is that of z-scores, "
    "or, where the model has no normative set, that after the other people's mean real scan is taken off"
)


def _tracer(name: str, outcomes: Sequence[Outcome], clusters: pd.Series, model: Path) -> tuple[list, list, list[str]]:
    """Figures, rows and sentences of one tracer."""
    from bids_petsynth.pet.tracers import tracer

    normative = _normative(model, outcomes, name)
    voxels, sums, rows = VoxelwiseMaps(), {"synthetic": _Mean(), "real": _Mean()}, []
    z_sums = {"synthetic": _Mean(), "real": _Mean()}
    unit = {one.job.key: str(clusters.get(one.job.key[:2], one.job.key[0])) for one in outcomes}
    people, surfaces = 0, {"synthetic": [], "real": []}
    for cluster in sorted(set(unit.values())):
        own = _Mean()
        for one in (one for one in outcomes if unit[one.job.key] == cluster):
            maps = kept_maps(one.job)
            if not maps:
                continue
            people += 1
            own.add(maps["difference"])
            row = dict(zip(PET, one.job.key, strict=True)) | {"r": correlation(maps["synthetic"], maps["real"])}
            for side, mean in sums.items():
                mean.add(maps[side])
            if normative is not None:
                z = {side: z_scores(_projection(maps[side], name), normative) for side in sums}
                row["r_z"] = correlation(z["synthetic"], z["real"])
                for side, mean in z_sums.items():
                    mean.add(z[side])
            else:
                for side, kept in surfaces.items():
                    kept.append(maps[side])
            rows.append(row)
        if own.people:
            voxels.add(own.value())
    if not people:
        return [], [], []
    if normative is None:
        residual = residual_correlations(*(np.array(kept) for kept in surfaces.values()))
        rows = [row | {"r_residual": float(r)} for row, r in zip(rows, residual, strict=True)]
    figures: list[Figure] = []
    units = voxels.people
    if units >= numbers()["least_clusters"]:
        figure = voxelwise_figure(
            {key: maps_volume(values) for key, values in voxels.maps().items()}, maps_grid(), name, people, units
        )
        figures.append(replace(figure, desc=f"voxelwise{name}wide"))
    said = [] if figures else [f"{name}: maps of differences need {numbers()['least_clusters']:g} independent units."]
    means = {side: mean.value() for side, mean in sums.items()}
    r = np.nanmean([row["r"] for row in rows]) if np.isfinite([row["r"] for row in rows]).any() else np.nan
    about = Figure(
        f"surface{name}wide",
        b"",
        f"Mean {name} uptake of {people} people on the cortex in eight views, synthetic above real; mean "
        f"correlation within people {r:.2f}.",
        f"{name}: mean of {people} people on the brain's surface (3D-SSP's method), synthetic and real.",
    )
    figures.append(surface_figure(means, tracer(name).display, "SUVR", about, colours=display_of(tracer(name)).overlay))
    if normative is not None:
        z = {f"mean {side}": mean.value() for side, mean in z_sums.items()}
        figures.append(replace(z_figure(z, normative, people), desc=f"surfacez{name}wide"))
    return figures, rows, said


class _Mean:
    """A running mean of arrays that may lack values."""

    def __init__(self):
        self.people, self._sum, self._count = 0, 0.0, 0

    def add(self, values: np.ndarray) -> None:
        known = np.isfinite(values)
        self.people += 1
        self._sum = self._sum + np.where(known, values, 0)
        self._count = self._count + known

    def value(self) -> np.ndarray:
        return np.where(self._count > 0, self._sum / np.maximum(self._count, 1), np.nan)


def _projection(values: np.ndarray, name: str) -> Projection:
    return Projection(values, statistic_of(name), float(setting("depth")), template_surface().key)


def _normative(model: Path, outcomes: Sequence[Outcome], name: str) -> Normative | None:
    """The set of the model that made these scans, if they are of one model and its folder has it."""
    sums = {one.job.pet.about.get("Model", {}).get("WeightsSHA256", "") for one in outcomes}
    if len(sums) != 1:
        return None
    try:
        found = model_normative(model, sums.pop()).get(name)
    except ModelError:
        return None
    return found if found is not None and found.surface == template_surface().key else None
