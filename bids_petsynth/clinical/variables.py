"""The clinical variables (``variables.tsv``) and the assays of plasma markers (``assays.tsv``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from bids_petsynth.clinical.text import words
from bids_petsynth.clinical.units import Unit, units
from bids_petsynth.tables import read_table

#: Stands for all plasma values of a person where they are left out together.
ALL_BLOOD = "all_blood_values"


@dataclass(frozen=True)
class Variable:
    """One canonical variable.

    Attributes
    ----------
    name
        Canonical name; ``<analyte>_<assay>`` for plasma markers, whose scales differ between assays.
    kind
        ``demographic``, ``genetic``, ``cognition`` or ``plasma``.
    analyte, assay
        Empty unless ``kind`` is plasma.
    unit
        Canonical unit.
    low, high
        Plausible range (inclusive) in that unit; a value outside counts as missing.
    transform
        ``identity`` or ``log``: the scale on which a model should standardise it.
    default_input
        Whether synthesis uses it unless told otherwise; cognition is not used, as it leaks the diagnosis.
    """

    name: str
    kind: str
    analyte: str
    assay: str
    unit: Unit
    low: float
    high: float
    transform: str
    default_input: bool
    description: str
    source: str

    def is_plausible(self, value: float) -> bool:
        """Whether a value in the canonical unit lies in the plausible range."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Assay:
    """A measuring system: its short name, the platform it is a special case of, and the phrases that tell it."""

    name: str
    within: str
    description: str
    phrases: tuple[str, ...]


@cache
def variables() -> Mapping[str, Variable]:
    """All variables by canonical name, in the order of the table."""
    return {
        row["name"]: Variable(
            name=row["name"],
            kind=row["kind"],
            analyte=row["analyte"],
            assay=row["assay"],
            unit=units()[row["unit"]],
            low=float(row["plausible_low"]),
            high=float(row["plausible_high"]),
            transform=row["transform"],
            default_input=row["default_input"] == "yes",
            description=row["description"],
            source=row["source"],
        )
        for row in read_table("variables.tsv")
    }


@cache
def assays() -> Mapping[str, Assay]:
    """All assays by short name."""
    return {
        row["assay"]: Assay(
            row["assay"],
            row["within"],
            row["name"],
            tuple(" ".join(words(phrase)) for phrase in row["tokens"].split("|")),
        )
        for row in read_table("assays.tsv")
    }


@cache
def analytes() -> frozenset[str]:
    """Analytes of which at least one assay is in the table of variables."""
    return frozenset(variable.analyte for variable in variables().values() if variable.analyte)


def assays_of(analyte: str) -> tuple[str, ...]:
    """Assays of an analyte that are in the table of variables."""
    return tuple(variable.assay for variable in variables().values() if variable.analyte == analyte)


def find_assays(text: str) -> tuple[str, ...]:
    """Assays that a text names; a special one (an in-house assay on Simoa) hides the platform that it runs on."""
    padded = f" {' '.join(words(text))} "
    found = [assay for assay in assays().values() if any(f" {phrase} " in padded for phrase in assay.phrases)]
    platforms = {assay.within for assay in found}
    return tuple(assay.name for assay in found if assay.name not in platforms)


def split_assay(name_words: tuple[str, ...]) -> tuple[str, ...]:
    """Take the words that name an assay out of the words of a column name."""
    padded = f" {' '.join(name_words)} "
    for phrase in sorted((p for assay in assays().values() for p in assay.phrases), key=len, reverse=True):
        padded = padded.replace(f" {phrase} ", " ")
    return tuple(padded.split())
