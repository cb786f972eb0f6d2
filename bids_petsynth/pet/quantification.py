"""From draws of a PET volume to regional SUVR, Centiloid and the probability of positivity, with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.errors import InputError
from bids_petsynth.pet.intervals import Estimate, predictive, probability_above
from bids_petsynth.pet.tracers import CentiloidEquation, Tracer, centiloid_equation, cutoffs, default_cutoff, targets
from bids_petsynth.types import Foreseen, Grid

RegionMeans = tuple[np.ndarray, np.ndarray, np.ndarray]

MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class RegionRow:
    """SUVR and volume of one ``dseg`` region or one composite; ``suvr`` is None where the label image lacks it.

    ``index`` is the ``dseg`` code (None for a composite), ``hemisphere`` ``L``, ``R`` or ``B`` (midline or both sides).
    """

    name: str
    index: int | None
    hemisphere: str
    suvr: Estimate | None
    volume_mm3: float


@dataclass(frozen=True)
class Positivity:
    """Probability that the Centiloid lies above a cut-off."""

    cutoff: str
    centiloid: float
    probability: float | None


@dataclass(frozen=True)
class Quantification:
    """Everything read off the draws of one tracer.

    Attributes
    ----------
    tracer, n_draws
        Canonical tracer name; number of draws M.
    regions
        One row per ``dseg`` code of the label scheme, in its order, whether present or not.
    composites
        One row per composite of ``data/targets.tsv``, both sides together, volume-weighted.
    target
        Row of the tracer's default composite.
    centiloid
        Approximate Centiloid (whole regions in place of the GAAIN ones), None for a tracer without equation.
    equation
        The equation used.
    positivity
        One entry per cut-off of ``data/cutoffs.tsv``; empty without Centiloid, its probabilities None with one draw.
    reference_mean
        Mean of the reference region over voxels and draws: 1 in a volume in SUVR.
    notes
        Sentences for report and log.
    """

    tracer: str
    n_draws: int
    regions: tuple[RegionRow, ...]
    composites: tuple[RegionRow, ...]
    target: RegionRow
    centiloid: Estimate | None
    equation: CentiloidEquation | None
    positivity: tuple[Positivity, ...]
    reference_mean: float
    notes: tuple[str, ...]

    @property
    def probability_positive(self) -> float | None:
        """Probability of positivity at the default cut-off."""
        name = default_cutoff().name
        return next((entry.probability for entry in self.positivity if entry.cutoff == name), None)


def region_means(volumes: np.ndarray, labels: np.ndarray, grid: Grid) -> RegionMeans:
    """Mean of each labelled region in each volume.

    Parameters
    ----------
    volumes
        ``(M, X, Y, Z)``.
    labels
        ``(X, Y, Z)`` ``dseg`` codes; 0 is left out.
    grid
        Gives the volume of a voxel.

    Returns
    -------
    codes
        ``(R,)`` the codes present, ascending.
    means
        ``(M, R)`` float64.
    volumes_mm3
        ``(R,)``.

    Raises
    ------
    InputError
        If shapes differ, nothing is labelled, or a labelled voxel is not a finite number.
    """
    volumes, labels = np.asarray(volumes), np.asarray(labels)
    if volumes.ndim != 4 or volumes.shape[1:] != labels.shape:
        raise InputError(
            f"The PET volumes have shape {volumes.shape} and the labels {labels.shape}; resample them to one grid."
        )
    inside = np.flatnonzero(labels)
    if not inside.size:
        raise InputError("The label image holds no region; check the segmentation of the T1w.")
    flat = labels.ravel()[inside]
    counts = np.bincount(flat)
    codes = np.flatnonzero(counts)
    sums = [np.bincount(flat, weights=volume.ravel()[inside], minlength=counts.size)[codes] for volume in volumes]
    means = np.stack(sums) / counts[codes]
    if not np.isfinite(means).all():
        raise InputError("The PET volume holds values inside the brain that are not finite numbers; remake it.")
    return codes, means, counts[codes] * grid.voxel_volume


def _composite(codes: Sequence[int], region: RegionMeans) -> tuple[np.ndarray | None, float]:
    """Volume-weighted mean ``(M,)`` over several codes, and their volume in mm³; (None, 0) if none is present."""
    present, means, volumes = region
    chosen = np.isin(present, codes)
    if not chosen.any():
        return None, 0.0
    return means[:, chosen] @ volumes[chosen] / volumes[chosen].sum(), float(volumes[chosen].sum())


def _reference(tracer: Tracer, region: RegionMeans) -> np.ndarray:
    """Mean ``(M,)`` of the reference region, which must be there and large enough."""
    means, volume = _composite(tracer.reference_codes, region)
    if means is None or volume < tracer.reference_min_ml * MM3_PER_ML:
        raise InputError(
            f"The reference region of {tracer.name} ({tracer.reference_name}) has {volume / MM3_PER_ML:.1f} ml in the "
            f"label image and at least {tracer.reference_min_ml:g} ml are needed; check that the scan covers it and "
            "that the segmentation found it."
        )
    return means


def normalise(draws: np.ndarray, labels: np.ndarray, grid: Grid, tracer: Tracer) -> np.ndarray:
    """Divide each draw by its mean in the tracer's reference region, which makes it SUVR.

    Parameters
    ----------
    draws
        ``(M, X, Y, Z)`` in any unit that is proportional to activity.
    labels
        ``(X, Y, Z)`` ``dseg`` codes.
    grid
        Gives the volume of a voxel.
    tracer
        Names the reference region.

    Returns
    -------
    ``(M, X, Y, Z)`` in the draws' floating type, in SUVR.

    Raises
    ------
    InputError
        If the reference region is absent, smaller than the table of tracers asks for, or holds no activity.
    """
    reference = _reference(tracer, region_means(draws, labels, grid))
    if (reference <= 0).any():
        raise InputError(
            f"The reference region of {tracer.name} ({tracer.reference_name}) holds no activity, so no SUVR can be "
            "computed; check the PET volume and its alignment with the T1w."
        )
    kind = draws.dtype if np.issubdtype(draws.dtype, np.floating) else np.float32
    return draws / reference.astype(kind)[:, None, None, None]


def possible(region: RegionMeans, foreseen: Foreseen, tracer: Tracer) -> RegionMeans:
    """Regional SUVR of many scans that could have been, from a few drawn ones and what the regional part foresaw.

    Each of the many has the mean of the draws, the deviation that was foreseen for it, and what one of the draws
    deviates from what was foreseen for that one. The draws are centred on their expectation (``process.centred``), so
    this has the right spread. A single draw stays alone: nothing tells how it deviates.
    """
    codes, means, volumes = region
    count = len(means)
    if count < 2:
        return region
    few, many = (part / _reference(tracer, (codes, part, volumes))[:, None] for part in (foreseen.few, foreseen.many))
    centre = means.mean(0)
    rest = means - centre - (few - few.mean(0))
    return codes, centre + many - many.mean(0) + rest[np.arange(len(many)) % count], volumes


def quantify(
    draws: np.ndarray,
    labels: np.ndarray,
    grid: Grid,
    tracer: Tracer,
    foreseen: Foreseen | None = None,
) -> Quantification:
    """Read regional SUVR, Centiloid and the probability of positivity off the draws of one scan.

    Parameters
    ----------
    draws
        ``(M, X, Y, Z)`` in SUVR (see `normalise`; here the reference mean is only checked).
    labels
        ``(X, Y, Z)`` ``dseg`` codes on the same grid.
    grid
        Gives the volume of a voxel.
    tracer
        Its reference region, target and Centiloid equation are used.
    foreseen
        What the model's regional part says of the labels that are present, in ascending order: with it, intervals and
        probabilities rest on many scans that could have been rather than on the few draws (see :func:`possible`).

    Raises
    ------
    InputError
        If shapes differ, a labelled voxel is not finite, or the reference region is absent or too small.
    """
    equation = centiloid_equation(tracer.name)
    region = codes, means, volumes = region_means(draws, labels, grid)
    column = {int(code): number for number, code in enumerate(codes)}
    if foreseen is not None:
        region = codes, means, volumes = possible(region, foreseen, tracer)
    regions = tuple(
        RegionRow(name, code, side, predictive(means[:, column[code]]), float(volumes[column[code]]))
        if code in column
        else RegionRow(name, code, side, None, 0.0)
        for code, name, side, _ in lookup()
    )
    composites = {}
    for target in targets().values():
        samples, volume = _composite(target.codes, region)
        estimate = None if samples is None else predictive(samples)
        composites[target.name] = RegionRow(target.name, None, "B", estimate, volume)

    reference_mean = float(_reference(tracer, region).mean())
    goal = targets()[tracer.default_target]
    notes = _notes(tracer, goal.codes, column, len(draws), reference_mean)
    samples, _ = _composite(goal.codes, region)
    centiloid: Estimate | None = None
    positivity: tuple[Positivity, ...] = ()
    if equation is not None and samples is not None:
        values = equation(samples)
        centiloid = predictive(values)
        positivity = tuple(
            Positivity(cutoff.name, cutoff.centiloid, probability_above(values, cutoff.centiloid))
            for cutoff in cutoffs()
        )
        notes.append(
            "The Centiloid is approximate: the published equation is applied to whole anatomical regions in place "
            "of the GAAIN volumes of interest."
        )
    return Quantification(
        tracer=tracer.name,
        n_draws=len(draws),
        regions=regions,
        composites=tuple(composites.values()),
        target=composites[goal.name],
        centiloid=centiloid,
        equation=equation,
        positivity=positivity,
        reference_mean=reference_mean,
        notes=tuple(notes),
    )


def _notes(
    tracer: Tracer, wanted: Sequence[int], present: Mapping[int, int], n_draws: int, reference_mean: float
) -> list[str]:
    """Sentences on a single draw, a reference region that is not near 1, and gaps in the target."""
    notes = []
    if n_draws < 2:
        notes.append("A single draw has no spread: intervals and probabilities are n/a; ask for two draws or more.")
    if abs(reference_mean - 1) > tracer.reference_tolerance:
        notes.append(
            f"The mean of the reference region ({tracer.reference_name}) is {reference_mean:.2f} where SUVR has 1: "
            "the volume is not scaled to it."
        )
    absent = [name for code, name, _, _ in lookup() if code in wanted and code not in present]
    if absent:
        notes.append(f"The target {tracer.default_target} lacks these regions in the label image: {', '.join(absent)}.")
    return notes


def suvr_rows(quantification: Quantification) -> list[dict[str, Any]]:
    """Long table of SUVR, regions then composites; None stands for n/a."""
    rows = []
    for row in (*quantification.regions, *quantification.composites):
        estimate = row.suvr
        low80, high80 = (estimate and estimate.interval80) or (None, None)
        low95, high95 = (estimate and estimate.interval95) or (None, None)
        rows.append(
            {
                "name": row.name,
                "index": row.index,
                "hemisphere": row.hemisphere,
                "suvr": estimate and estimate.mean,
                "sd": estimate and estimate.sd,
                "low80": low80,
                "high80": high80,
                "low95": low95,
                "high95": high95,
            }
        )
    return rows


def tacs_rows(quantification: Quantification, tracer: Tracer) -> list[dict[str, Any]]:
    """Regional means in the shape of PETPrep's ``_tacs.tsv``.

    One frame, the tracer's usual window in seconds after injection; one column per ``dseg`` region; None is n/a.
    """
    start, end = (60 * minutes for minutes in tracer.window_min)
    means = {row.name: row.suvr and row.suvr.mean for row in quantification.regions}
    return [{"frame_start": start, "frame_end": end, **means}]
