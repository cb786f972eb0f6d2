"""Units of clinical values: their spellings and their conversion within a dimension (table ``units.tsv``)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from bids_petsynth.clinical.text import words
from bids_petsynth.tables import read_table


@dataclass(frozen=True)
class Unit:
    """A unit: ``value × factor`` is the value in the base unit of its dimension (pg/mL, years, ratio …)."""

    name: str
    dimension: str
    factor: float
    hint: bool
    spellings: tuple[str, ...]


@cache
def units() -> Mapping[str, Unit]:
    """All units by name."""
    return {
        row["unit"]: Unit(
            row["unit"],
            row["dimension"],
            float(row["factor"]),
            row["hint"] == "yes",
            tuple(row["spellings"].split("|")),
        )
        for row in read_table("units.tsv")
    }


def _key(text: str) -> str:
    lowered = unicodedata.normalize("NFKC", text).lower().replace("μ", "u").replace("µ", "u").replace("−", "-")
    return re.sub(r"[\s_.^·*()\[\]]", "", lowered)


@cache
def _by_spelling() -> Mapping[str, Unit]:
    return {_key(spelling): unit for unit in units().values() for spelling in (unit.name, *unit.spellings)}


def find_unit(text: str) -> Unit | None:
    """The unit of a spelling such as ``ng / L``, ``µg/L``, ``pg·mL⁻¹`` or ``yrs``, None if it is unknown."""
    return _by_spelling().get(_key(text))


def convert(value: float, source: Unit, target: Unit) -> float:
    """Express ``value`` in ``target``; ValueError if the dimensions differ."""
    if source.dimension != target.dimension:
        raise ValueError(f"{source.name} cannot be converted to {target.name}")
    return value if source.factor == target.factor else value * source.factor / target.factor


@cache
def _in_names() -> tuple[tuple[str, Unit], ...]:
    """Word sequences that are taken for a unit inside a column name, longest first; short ones are too ambiguous."""
    found: dict[str, Unit] = {}
    for unit in units().values():
        for spelling in unit.spellings:
            phrase = " ".join(words(spelling))
            clear = (
                unit.dimension == "concentration"
                or (unit.dimension == "time" and len(phrase) > 2)
                or (unit.name == "%")
            )
            if clear and phrase:
                found.setdefault(phrase, unit)
    return tuple(sorted(found.items(), key=lambda item: -len(item[0])))


def split_unit(name_words: tuple[str, ...]) -> tuple[tuple[str, ...], Unit | None]:
    """Take a unit out of the words of a column name: ``nfl, pg, ml`` → ``nfl`` and pg/mL."""
    padded = f" {' '.join(name_words)} "
    for phrase, unit in _in_names():
        if f" {phrase} " in padded:
            return tuple(padded.replace(f" {phrase} ", " ", 1).split()), unit
    return name_words, None
