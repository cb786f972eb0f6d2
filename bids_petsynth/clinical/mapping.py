"""The mapping file: a TSV in which a site says what its columns mean, written with the guesses filled in."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from bids_petsynth.clinical.columns import (
    FORMS,
    IGNORE,
    Column,
    ColumnMapping,
    Override,
    parse_levels,
    resolve_columns,
)
from bids_petsynth.clinical.units import find_unit
from bids_petsynth.clinical.variables import analytes, assays, assays_of, variables
from bids_petsynth.errors import UsageError
from bids_petsynth.types import TableRow

HEADER = ("file", "column", "variable", "unit", "assay", "levels", "notes")


def write_mapping(path: Path | str, rows: Sequence[TableRow], presets: Sequence[str] | None = None) -> Path:
    """Write a mapping file to fill in: one line for each column of the rows, with what it is taken for.

    Raises
    ------
    UsageError
        If the file exists already (it may hold somebody's work) or cannot be written.
    """
    path = Path(path)
    try:
        with path.open("x", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows(_line(column) for column in resolve_columns(rows, presets=presets))
    except FileExistsError:
        raise UsageError(f"The mapping file {path} exists already; choose another name or delete it.") from None
    except OSError as error:
        reason = error.strerror
        raise UsageError(f"The mapping file {path} cannot be written ({reason}); choose another place.") from None
    return path


def _line(column: Column) -> list[str]:
    variable = variables().get(column.target)
    levels = ";".join(f"{code}={meaning}" for code, meaning in column.levels.items())
    safe = not any(mark in levels.replace(";", "", max(len(column.levels) - 1, 0)) for mark in ";\t\n\r")
    notes = column.problem or ("" if column.target else "not recognised: name a variable, or leave n/a")
    if variable is not None and not notes:
        notes = variable.description + ("" if variable.name == "sex" else f", in {variable.unit.name}")
    cells = [
        column.file,
        column.name,
        IGNORE if column.other_fluid else column.target,
        column.unit.name if column.unit else "",
        column.assay or (variable.assay if variable else ""),
        levels if safe and column.target in ("sex", "apoe4", "apoe4_carrier", "apoe_genotype") else "",
        notes,
    ]
    return [" ".join(cell.split()) or "n/a" for cell in cells]


def read_mapping(path: Path | str) -> ColumnMapping:
    """Read a filled-in mapping file.

    ``variable`` is a canonical name, an analyte (then ``assay`` names its assay), another form of the APOE genotype, a
    date, or ``ignore``; ``n/a`` means ignore, too. ``unit``, ``assay`` and ``levels`` (``1=male;2=female``) may be n/a:
    then they come from the dataset's JSON files. ``file`` n/a stands for every table; ``notes`` is not read.

    Raises
    ------
    UsageError
        Naming the line and what to write instead.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t")
            missing = [name for name in ("column", "variable") if name not in (reader.fieldnames or ())]
            if missing:
                raise UsageError(
                    f"The mapping file {path} has no column {missing[0]!r} in its header; it must be a tab-separated "
                    f"table with the columns {', '.join(HEADER)}."
                )
            lines = [(reader.line_num, {k: _cell(v) for k, v in row.items() if k}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise UsageError(f"The mapping file {path} cannot be read; give a tab-separated table in UTF-8.") from None
    overrides: dict[tuple[str, str], Override] = {}
    for number, line in lines:
        if not any(line.values()):
            continue
        where = f"The mapping file {path}, line {number}:"
        override = _override(where, line)
        if (override.file, override.column) in overrides:
            raise UsageError(f"{where} the column {override.column!r} is there twice; keep one of the lines.")
        overrides[override.file, override.column] = override
    return ColumnMapping(tuple(overrides.values()))


def _cell(value: str | list[str] | None) -> str:
    text = value.strip() if isinstance(value, str) else ""
    return "" if text.lower() == "n/a" else text


def _override(where: str, line: dict[str, str]) -> Override:
    """Check one line of a mapping file."""
    target, assay, unit = (line.get(key, "") for key in ("variable", "assay", "unit"))
    if not line.get("column"):
        raise UsageError(f"{where} the column's name is missing; fill it in or delete the line.")
    if target and target not in (*variables(), *analytes(), *FORMS, IGNORE):
        raise UsageError(
            f"{where} there is no variable {target!r}; choose from {', '.join((*variables(), *FORMS))}, or {IGNORE}."
        )
    if assay and assay not in assays():
        raise UsageError(f"{where} there is no assay {assay!r}; choose from {', '.join(assays())}.")
    variable = variables().get(target)
    if variable is not None and assay and variable.assay != assay:
        choices = ", ".join(assays_of(variable.analyte)) or "n/a"
        raise UsageError(f"{where} {target} is not a variable of the assay {assay}; write {variable.assay or choices}.")
    expected = variable or next((v for v in variables().values() if v.analyte == target), None)
    found = find_unit(unit) if unit else None
    if unit and expected is not None and (found is None or found.dimension != expected.unit.dimension):
        raise UsageError(f"{where} the unit {unit!r} cannot be converted to {expected.unit.name}; correct it.")
    try:
        levels = parse_levels(line.get("levels", ""))
    except ValueError as error:
        raise UsageError(f"{where} {error}.") from None
    return Override(line.get("file", ""), line["column"], target, unit, assay, levels)
