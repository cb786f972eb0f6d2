"""The tables of tracers, target regions, Centiloid equations and cut-offs, as frozen data classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np

from bids_petsynth.anatomy.regions import class_weights, codes_of
from bids_petsynth.errors import UsageError
from bids_petsynth.tables import read_table

Suvr = TypeVar("Suvr", float, np.ndarray)


@dataclass(frozen=True)
class Target:
    """A composite of regions, both sides together: one row of ``data/targets.tsv``.

    Attributes
    ----------
    name, label
        Name in tables, name for people.
    regions
        Names in ``data/regions.tsv``; a region includes what is cut from it (the pons belongs to the brainstem).
    note, source
        How it maps onto this project's regions, and where it comes from.
    """

    name: str
    label: str
    regions: tuple[str, ...]
    note: str
    source: str

    @property
    def codes(self) -> tuple[int, ...]:
        """The ``dseg`` codes of both sides."""
        return codes_of(*self.regions)


@dataclass(frozen=True)
class Tracer:
    """One row of ``data/tracers.tsv``.

    Attributes
    ----------
    name, synonyms
        Canonical name (the ``trc`` label) and what else it is called.
    target_class
        ``amyloid``, ``metabolism`` or ``tau``.
    radionuclide
        Such as ``F18``, as BIDS writes it.
    window_min
        Usual static acquisition, minutes after injection (start, end).
    activity_mbq
        Usual injected activity in MBq.
    reference_name, reference_regions
        The reference region for people, and its regions of ``data/regions.tsv``.
    reference_min_ml
        The reference region must be at least this large.
    reference_tolerance
        A volume in SUVR has a reference mean within 1 ± this.
    default_target
        Name of the composite that sums up a scan.
    display
        Window of figures and of evaluation, in SUVR (low, high).
    source
        Where the figures come from.
    """

    name: str
    synonyms: tuple[str, ...]
    target_class: str
    radionuclide: str
    window_min: tuple[float, float]
    activity_mbq: float
    reference_name: str
    reference_regions: tuple[str, ...]
    reference_min_ml: float
    reference_tolerance: float
    default_target: str
    display: tuple[float, float]
    source: str

    @property
    def reference_codes(self) -> tuple[int, ...]:
        """The ``dseg`` codes of the reference region."""
        return codes_of(*self.reference_regions)


@dataclass(frozen=True)
class CentiloidEquation:
    """``CL = slope · SUVR + intercept``, for SUVR against the whole cerebellum: one row of ``data/centiloid.tsv``."""

    tracer: str
    pipeline: str
    slope: float
    intercept: float
    source: str

    def __call__(self, suvr: Suvr) -> Suvr:
        """Centiloid of an SUVR (number or array)."""
        return self.slope * suvr + self.intercept


@dataclass(frozen=True)
class Cutoff:
    """A Centiloid from which a scan counts as positive: one row of ``data/cutoffs.tsv``."""

    name: str
    centiloid: float
    default: bool
    meaning: str
    source: str


@cache
def tracers() -> tuple[Tracer, ...]:
    """All tracers, in the order of the table."""
    return tuple(
        Tracer(
            name=row["name"],
            synonyms=tuple(row["synonyms"].split(",")),
            target_class=row["target_class"],
            radionuclide=row["radionuclide"],
            window_min=(float(row["window_start_min"]), float(row["window_end_min"])),
            activity_mbq=float(row["activity_mbq"]),
            reference_name=row["reference_name"],
            reference_regions=tuple(row["reference_regions"].split(",")),
            reference_min_ml=float(row["reference_min_ml"]),
            reference_tolerance=float(row["reference_tolerance"]),
            default_target=row["default_target"],
            display=(float(row["display_low"]), float(row["display_high"])),
            source=row["source"],
        )
        for row in read_table("tracers.tsv")
    )


def _key(name: str) -> str:
    """Spelling without case, punctuation and radionuclide: ``[18F]AV-45`` becomes ``av45``."""
    bare = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^(18f|f18|11c|c11)|(18f|f18|11c|c11)$", "", bare)


def target_weights(spec: Tracer, volumes: np.ndarray) -> np.ndarray:
    """Weights ``(classes,)`` of the label classes in a tracer's default target, from their ``volumes (classes,)``."""
    return class_weights(targets()[spec.default_target].regions, volumes)


@cache
def tracer(name: str) -> Tracer:
    """The tracer of that name or synonym; case, punctuation and a leading ``[18F]`` do not matter.

    Raises
    ------
    UsageError
        If the table has no such tracer.
    """
    for candidate in tracers():
        if _key(name) in {_key(spelling) for spelling in (candidate.name, *candidate.synonyms)}:
            return candidate
    known = "; ".join(f"{t.name} ({', '.join(t.synonyms)})" for t in tracers())
    raise UsageError(f"Unknown tracer '{name}'. Known tracers: {known}.")


def canonical(name: str) -> str:
    """A tracer's name in the table of tracers; ``UsageError`` if the table has no such tracer."""
    return tracer(name).name


@cache
def targets() -> dict[str, Target]:
    """All composites by name, in the order of the table."""
    return {
        row["name"]: Target(row["name"], row["label"], tuple(row["regions"].split(",")), row["note"], row["source"])
        for row in read_table("targets.tsv")
    }


@cache
def centiloid_equation(name: str, pipeline: str | None = None) -> CentiloidEquation | None:
    """The equation of a tracer: its default one, or that of a named pipeline; None for a tracer that has none.

    Raises
    ------
    UsageError
        If the tracer, or that pipeline for it, is not in the tables.
    """
    rows = [row for row in read_table("centiloid.tsv") if row["tracer"] == tracer(name).name]
    for row in rows:
        if row["pipeline"] == pipeline if pipeline else row["default"] == "yes":
            return CentiloidEquation(
                row["tracer"], row["pipeline"], float(row["slope"]), float(row["intercept"]), row["source"]
            )
    if pipeline:
        known = ", ".join(row["pipeline"] for row in rows) or "none"
        raise UsageError(f"No Centiloid equation of {name} for pipeline '{pipeline}'; known: {known}.")
    return None


@cache
def cutoffs() -> tuple[Cutoff, ...]:
    """All cut-offs in ascending order."""
    rows = (
        Cutoff(row["name"], float(row["centiloid"]), row["default"] == "yes", row["meaning"], row["source"])
        for row in read_table("cutoffs.tsv")
    )
    return tuple(sorted(rows, key=lambda row: row.centiloid))


def default_cutoff() -> Cutoff:
    """The cut-off of ``data/cutoffs.tsv`` that is marked as default (its ``meaning`` says why)."""
    return next(cutoff for cutoff in cutoffs() if cutoff.default)
