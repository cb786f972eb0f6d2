"""Plain data classes that the rooms hand to each other. They hold values and know nothing of files or libraries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """One T1w scan to work on, as found in a BIDS dataset.

    Attributes
    ----------
    participant, session
        Labels without ``sub-``/``ses-``; ``session`` is None in a dataset without sessions.
    t1w
        The T1w image (may dangle or be unreadable: reading it decides).
    sidecar
        What its JSON sidecars say, inheritance applied.
    t1w_date
        Date of the scan (ISO, from ``scans.tsv`` or sessions.tsv) if known.
    derivatives
        Files found in ``-d`` datasets by kind: ``preproc_t1w``, ``brain_mask`` and the like.
    notes
        Sentences for log and sidecar, such as which of several runs was taken.
    problem
        A sentence if the participant cannot be worked on (no T1w, dangling link …), else None.
    pets
        Real PET scans that belong to the T1w, for models that take such as a source.
    others
        Other images of the head that belong to the T1w (T2w, FLAIR, CT), likewise.
    """

    participant: str
    session: str | None
    t1w: Path | None
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    t1w_date: str | None = None
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: str | None = None
    pets: tuple[PetScan, ...] = ()
    others: tuple[OtherScan, ...] = ()

    @property
    def label(self) -> str:
        """``sub-01`` or ``sub-01_ses-1``: the prefix of every output of this case."""
        return f"sub-{self.participant}" + (f"_ses-{self.session}" if self.session else "")


@dataclass(frozen=True)
class Value:
    """One clinical variable of one person.

    ``status`` is ``found``, ``converted`` (units, genotype, level or spelling changed), ``computed`` (from other
    values) or ``missing``; ``source`` names file and column; ``note`` says why it is missing or how it was converted;
    ``unit`` is the one that the table had it in, if that is another than the variable's.
    """

    name: str
    value: float | None
    status: str
    source: str = ""
    note: str = ""
    unit: str = ""


@dataclass(frozen=True)
class ClinicalRecord:
    """All variables of one person in canonical units; a missing one has the value None.

    ``notes`` is free text without identifiers, for recipes with a prompt; ``site`` is where the person was seen.
    """

    values: Mapping[str, Value]
    warnings: tuple[str, ...] = ()
    notes: str = ""
    site: str = ""

    def get(self, name: str) -> float | None:
        """The value in its canonical unit, None if missing or not in the table of variables."""
        found = self.values.get(name)
        return None if found is None else found.value


@dataclass(frozen=True)
class Grid:
    """Shape in voxels and 4 × 4 affine (voxel → scanner RAS+ mm) of an image."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


@dataclass(frozen=True)
class Anatomy:
    """One head on the model grid.

    Attributes
    ----------
    t1w
        ``(X, Y, Z)`` float32, bias-corrected, divided by the median of white matter.
    labels
        ``(X, Y, Z)`` uint8 ``dseg`` codes with sides (see ``anatomy.regions``).
    probabilities
        ``(C, X, Y, Z)`` float16, the labelling network's classes (background first, side-less).
    grid
        Where the model grid lies in scanner space.
    quality
        Figures such as mean label confidence, alignment residual, region volumes.
    warnings
        Sentences on doubtful quality.
    """

    t1w: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    grid: Grid
    quality: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableRow:
    """One row about one person of one of the dataset's tables, as text; nothing is converted.

    Attributes
    ----------
    file
        Path of the table relative to the dataset, such as ``participants.tsv`` or ``phenotype/blood.tsv``.
    columns
        Text of every column by its name.
    dictionary
        What the JSON beside the table says of each column: ``Description``, ``Units``, ``Levels`` and the like.
    session
        Label without ``ses-`` if the row belongs to a session, else None.
    """

    file: str
    columns: Mapping[str, str]
    dictionary: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    session: str | None = None


@dataclass(frozen=True)
class Foreseen:
    """What a model's regional part says of R labels of one head: means in SUVR up to a scale, one row per draw.

    ``few (M, R)`` belongs to the M draws that became images, ``many (N, R)`` to all that were drawn.
    """

    few: np.ndarray
    many: np.ndarray


@dataclass(frozen=True)
class PetScan:
    """One real PET scan as found in a dataset.

    Attributes
    ----------
    participant, session
        Labels without ``sub-``/``ses-``; ``session`` is None in a dataset without sessions.
    tracer
        Canonical name (``data/tracers.tsv``), or as the dataset spells it if the table lacks it.
    path
        The image; may dangle or be unreadable, then there is a ``problem``.
    sidecar
        What its JSON sidecars say, inheritance applied.
    date
        Date of the scan (ISO), if known.
    prepared
        True if it lies on the T1w already and is motion-corrected (a PETPrep derivative).
    notes, problem
        As in :class:`Case`.
    """

    participant: str
    session: str | None
    tracer: str
    path: Path
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    prepared: bool = False
    notes: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def label(self) -> str:
        """``sub-01_ses-1_trc-AV45``: how messages and outputs name it."""
        session = f"_ses-{self.session}" if self.session else ""
        return f"sub-{self.participant}{session}_trc-{self.tracer}"

    @property
    def modality(self) -> str:
        """The tracer, as recipes name it among their sources."""
        return self.tracer


@dataclass(frozen=True)
class OtherScan:
    """One T2w, FLAIR or CT image of the head as found in a dataset; its attributes are those of :class:`PetScan`."""

    participant: str
    session: str | None
    modality: str
    path: Path
    date: str | None = None
    notes: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def label(self) -> str:
        """``sub-01_ses-1_T2w``: how messages and prepared files name it."""
        session = f"_ses-{self.session}" if self.session else ""
        return f"sub-{self.participant}{session}_{self.modality}"
