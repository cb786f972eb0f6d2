"""From the text of one cell to the value of a canonical variable; the text itself never enters a note or warning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from bids_petsynth.clinical.columns import Column, sidecar
from bids_petsynth.clinical.text import is_missing, normalise, parse_number, words
from bids_petsynth.clinical.units import Unit, convert, find_unit, units
from bids_petsynth.clinical.variables import Variable, variables
from bids_petsynth.tables import read_table

_GENOTYPE = re.compile(r"(?:apoe)?(?:epsilon|e)?([234])(?:apoe)?(?:epsilon|e)?([234])")
_TOP_CODED = re.compile(
    r"(?:(?P<sign>>=?|≥)\s*)?(?P<age>\d{2,3}(?:[.,]\d+)?)\s*(?P<plus>\+|(?:and|or) (?:over|older|above))?"
)
_NOTHING = frozenset({"", "none", "nil", "-", "."})  # as the meaning of a code these are "zero", not "missing"


@dataclass(frozen=True)
class Cell:
    """What a cell says: values by variable (two for a genotype), how they came about, and a warning if unusable.

    ``unit`` is the one that a value was converted from.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    status: str = "missing"
    note: str = ""
    warning: str = ""
    unit: str = ""


@cache
def _level_words(variable: str) -> Mapping[str, str]:
    """Value (as text, empty if unknown) of the words that may stand for a variable's value."""
    return {
        " ".join(words(row["text"])): row["value"]
        for row in read_table("clinical_levels.tsv")
        if row["variable"] == variable
    }


def read_cell(text: str, column: Column) -> Cell:
    """Read the text of a cell of a recognised column."""
    if is_missing(text):
        return Cell(note="empty or coded as missing")
    if column.problem:
        return Cell(note=_short(column), warning=column.problem)
    meaning = _level(text, column)
    if meaning is not None and is_missing(meaning) and meaning.strip().lower() not in _NOTHING:
        return Cell(note="coded as missing")
    if column.target == "sex":
        return _read_sex(text, meaning, column)
    if column.target in ("apoe_genotype", "apoe4_carrier", "apoe4", "apoe2"):
        return _read_apoe(text, meaning, column)
    if column.target == "education" and meaning and column.unit is None:
        return _unusable(column, "holds codes, not years", "give years, or the unit years in a mapping file")
    return _read_number(text, column, variables()[column.target])


def _short(column: Column) -> str:
    return "the column cannot be used: " + column.problem.split("; ")[0].removeprefix(f"{column.place}: ").rstrip(".")


def _unusable(column: Column, reason: str, remedy: str) -> Cell:
    return Cell(note=reason.rstrip(","), warning=f"{column.place}: the cell {reason} and counts as missing; {remedy}.")


def _level(text: str, column: Column) -> str | None:
    """Meaning of a code; ``1`` and ``1.0`` are the same code."""
    codes = {code.strip(): meaning for code, meaning in column.levels.items()}
    cell = text.strip()
    if cell in codes:
        return codes[cell]
    return next((meaning for code, meaning in codes.items() if _as_float(code) == _as_float(cell) is not None), None)


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read_sex(text: str, meaning: str | None, column: Column) -> Cell:
    known = _level_words("sex")
    for candidate in (meaning, text):
        if candidate is None:
            continue
        phrase = words(candidate)
        values = {known[word] for word in (" ".join(phrase), *phrase) if word in known}
        if len(values) == 1:
            return Cell({"sex": float(values.pop())}, "converted", "word or level → 0 female, 1 male")
    if _as_float(text) is not None:
        return _unusable(
            column,
            "is a number code of sex without explanation",
            f"explain the codes in Levels in {sidecar(column.file)} or in a mapping file",
        )
    return _unusable(column, "names no sex that is known", "write F or M")


def genotype(text: str) -> tuple[int, int] | None:
    """Number of ε4 and ε2 alleles of a genotype such as ``e3/e4``, ``34`` or ``APOE ε3/ε4``; None if it is none."""
    match = _GENOTYPE.fullmatch(normalise(re.sub(r"\.0+$", "", text.strip())))
    return None if match is None else (match.groups().count("4"), match.groups().count("2"))


def _read_apoe(text: str, meaning: str | None, column: Column) -> Cell:
    """APOE as genotype, number of alleles, or carrier status, whichever the column or its levels hold."""
    for candidate in (meaning, text):
        if candidate is None:
            continue
        counts = genotype(candidate)
        if counts is not None:
            return Cell({"apoe4": float(counts[0]), "apoe2": float(counts[1])}, "converted", "from APOE genotype")
        phrase = " ".join(words(candidate))
        if column.target != "apoe2" and phrase in _level_words("apoe4"):
            return Cell({"apoe4": float(_level_words("apoe4")[phrase])}, "converted", "from words")
        is_code = phrase in ("0", "1")
        if (
            column.target != "apoe2"
            and phrase in _level_words("apoe4_carrier")
            and (column.target == "apoe4_carrier" or not is_code)
        ):
            return _carrier(_level_words("apoe4_carrier")[phrase], column)
    if column.target == "apoe_genotype":
        return _unusable(column, "is not an APOE genotype", "write it as e3/e4, or allele counts in a column apoe4")
    if column.target == "apoe4_carrier":
        return _unusable(column, "is not a carrier status", "write 0 or 1, or better allele counts in a column apoe4")
    return _read_number(text, column, variables()[column.target])


def _carrier(value: str, column: Column) -> Cell:
    """A non-carrier has no ε4 allele; a carrier has one or two, which is not guessed."""
    if value:
        return Cell({"apoe4": float(value)}, "converted", "from carrier status")
    reason = "says ε4 carrier, which leaves one or two alleles open,"
    return _unusable(column, reason, "give the genotype or the number of alleles")


def _read_number(text: str, column: Column, variable: Variable) -> Cell:
    notes = []
    if variable.name == "age":
        match = _TOP_CODED.fullmatch(text.strip())
        if match and (match["sign"] or match["plus"]):
            text = match["age"]
            notes.append("top-coded: the bound is taken")
    number = parse_number(text)
    if number.value is None:
        return _unusable(column, number.problem, f"write the plain number, in {variable.unit.name}, or n/a")
    unit = column.unit or variable.unit
    if number.unit:
        in_cell = find_unit(number.unit)
        if in_cell is None or in_cell.dimension != variable.unit.dimension:
            reason = f"holds a number followed by text that is not a unit of {variable.name}"
            return _unusable(column, reason, f"write the plain number, in {variable.unit.name}, or n/a")
        unit = in_cell
        notes.append("unit written in the cell")
    if number.note:
        notes.append(number.note)
    value = convert(number.value, unit, variable.unit)
    other = unit.name if unit.name != variable.unit.name else ""
    if other:
        notes.append(f"{unit.name} → {variable.unit.name}")
    if not variable.is_plausible(value):
        return implausible(column.place, sidecar(column.file), variable, number.value, unit)
    if notes:
        return Cell({variable.name: value}, "converted", "; ".join(notes), unit=other)
    note = "" if column.unit or variable.kind != "plasma" else f"no unit declared, {variable.unit.name} assumed"
    return Cell({variable.name: value}, "found", note)


def implausible(place: str, json_name: str, variable: Variable, value: float, unit: Unit) -> Cell:
    """A missing value with a warning that gives the range, and the units in which the value would be plausible."""
    better = [
        other.name
        for other in units().values()
        if other.hint
        and other.dimension == unit.dimension
        and other.factor != unit.factor
        and variable.is_plausible(convert(value, other, variable.unit))
    ]
    hint = f" (it would be plausible in {' or '.join(better)})" if better else ""
    reason = "outside the plausible range"
    span = f"{variable.low:g} to {variable.high:g} {variable.unit.name}"
    warning = (
        f"{place}: the value lies {reason} of {variable.name}, {span}, and counts as missing{hint}; "
        f"check the value and Units in {json_name}."
    )
    return Cell(note=reason, warning=warning)
