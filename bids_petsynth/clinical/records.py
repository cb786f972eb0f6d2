"""The clinical record of one person from all rows of the dataset's tables about them."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bids_petsynth.clinical.columns import IGNORE, NOTES, Column, ColumnMapping, active_presets, resolve_column, sidecar
from bids_petsynth.clinical.text import is_missing
from bids_petsynth.clinical.values import Cell, implausible, read_cell
from bids_petsynth.clinical.variables import Variable, analytes, variables
from bids_petsynth.tables import read_table
from bids_petsynth.types import ClinicalRecord, TableRow, Value

_ID_COLUMNS = frozenset({"participant_id", "session_id"})
_DATES = ("blood_date", "visit_date")


@dataclass(frozen=True)
class _Reading:
    """What one column says of one variable; readings are tried in the order of ``rank``, ``preference``, position."""

    name: str
    rank: int
    preference: int
    row: int
    place: str
    value: float | None
    status: str
    note: str
    warning: str
    unit: str


def read_record(
    rows: Sequence[TableRow],
    mapping: ColumnMapping | None = None,
    presets: Sequence[str] | None = None,
    scan_date: str | None = None,
    session: str | None = None,
    several_sessions: bool = False,
) -> ClinicalRecord:
    """Read every variable of the table of variables for one person.

    Parameters
    ----------
    rows
        All rows about this person, of any session.
    mapping
        What a mapping file says of columns; it goes before everything else.
    presets
        Studies whose column names are expected (``adni``, ``oasis3``, ``a4``); None finds out from telling columns.
    scan_date
        ISO date of the T1w scan, for the interval to the blood draw.
    session
        Session of the T1w scan: rows of other sessions are not used.
    several_sessions
        Whether the person has others: an age that is told once for all of them is then warned of.

    Returns
    -------
    ClinicalRecord
        A value in canonical units or None for every variable, and warnings that name file and column, never a value.
        Rows of the session in ``sessions.tsv`` go before its rows in ``phenotype/``, before ``participants.tsv``,
        before others; within a table the canonical column name goes before synonyms. Where a better source has no
        usable value, the next is taken.
    """
    active = active_presets(rows, presets)
    warnings: list[str] = []
    if not rows:
        warnings.append(
            "No table has a row for this participant: all variables are missing; add it to participants.tsv."
        )
    used, conflicts = _merge(_of_session(rows, session, warnings))
    readings: list[_Reading] = []
    dates: list[tuple[int, Column, str]] = []
    for index, (rank, row) in enumerate(used):
        columns = {n: resolve_column(row, n, active, mapping) for n in row.columns if n not in _ID_COLUMNS}
        columns = {name: column for name, column in columns.items() if column.target not in ("", IGNORE, NOTES)}
        clash = [name for name in columns if name in conflicts[index]]
        if clash:
            warnings.append(
                f"{row.file} has several rows for this participant that differ in {', '.join(clash)}: these count as "
                "missing there; keep one row."
            )
        for column, text in _cells(row, columns, clash):
            if column.name in clash:
                cell = Cell(note="rows of this participant differ")
            elif column.target in _DATES:
                dates.append((index, column, text))
                continue
            else:
                cell = read_cell(text, column)
            if column.target not in _DATES:
                readings += _readings(cell, column, rank, index)
                if column.target in analytes() and cell.warning:
                    warnings.append(cell.warning)

    chosen = {name: _choose(name, readings, warnings) for name in variables()}
    age = chosen["age"]
    if several_sessions and age is not None and age.value is not None and used[age.row][1].session is None:
        warnings.append(
            f"{age.place}: one age is told for several sessions and used for each; give that of each in sessions.tsv."
        )
    values = {name: _as_value(name, reading) for name, reading in chosen.items()}
    _add_ratios(values, chosen, readings, warnings)
    plasma = [r for r in chosen.values() if r and r.value is not None and variables()[r.name].kind == "plasma"]
    warnings += _interval_warnings(plasma, dates, scan_date)
    return ClinicalRecord(values, tuple(dict.fromkeys(warnings)))


def _label(session: str | None) -> str | None:
    return session.removeprefix("ses-") if session else None


def _of_session(rows: Sequence[TableRow], session: str | None, warnings: list[str]) -> list[tuple[int, TableRow]]:
    """Rows to use with their rank (0 goes first)."""
    wanted, used = _label(session), []
    for row in rows:
        if row.session:
            if _label(row.session) == wanted:
                used.append((0 if row.file.endswith("sessions.tsv") else 1, row))
        else:
            used.append((2 if row.file == "participants.tsv" else 3, row))
    if wanted is None and len(used) < len(rows):
        files = sorted({row.file for row in rows if row.session})
        warnings.append(f"Rows of {', '.join(files)} belong to sessions but the scan does not: they are not used.")
    return sorted(used, key=lambda item: item[0])


def _merge(ranked: Iterable[tuple[int, TableRow]]) -> tuple[list[tuple[int, TableRow]], list[frozenset[str]]]:
    """Join rows of one table and session: filled cells go before empty ones; columns that differ are conflicts."""
    groups: dict[tuple[str, str | None], list[tuple[int, TableRow]]] = {}
    for rank, row in ranked:
        groups.setdefault((row.file, _label(row.session)), []).append((rank, row))
    merged, conflicts = [], []
    for group in groups.values():
        rank, first = group[0]
        texts: dict[str, set[str]] = {}
        for _, row in group:
            for name, text in row.columns.items():
                texts.setdefault(name, set()).update(() if is_missing(text or "") else {text.strip()})
        columns = {name: min(found, default="") for name, found in texts.items()}
        merged.append((rank, TableRow(first.file, columns, first.dictionary, first.session)))
        conflicts.append(frozenset(name for name, found in texts.items() if len(found) > 1))
    return merged, conflicts


def _cells(row: TableRow, columns: dict[str, Column], clash: Sequence[str]) -> list[tuple[Column, str]]:
    """Columns with their text; the two columns of a genotype's alleles become one cell."""
    alleles = [column for column in columns.values() if column.target == "apoe_allele"]
    cells = [(column, row.columns[column.name]) for column in columns.values() if column.target != "apoe_allele"]
    texts = [row.columns[column.name] for column in alleles]
    if len(alleles) == 2 and not any(is_missing(t) for t in texts) and not any(a.name in clash for a in alleles):
        both = " and ".join(column.name for column in alleles)
        text = "/".join(re.sub(r"\.0+$", "", t.strip()) for t in texts)
        cells.append((Column(row.file, both, "apoe_genotype"), text))
    return cells


def _readings(cell: Cell, column: Column, rank: int, row: int) -> list[_Reading]:
    """One reading for each variable that the column may tell, also where it does not."""
    forms = {"apoe_genotype": ("apoe4", "apoe2"), "apoe4_carrier": ("apoe4",)}
    table = variables()
    if column.target in forms:
        names = forms[column.target]
    elif column.target in table:
        names = tuple(dict.fromkeys((column.target, *cell.values)))
    else:  # an analyte of unknown assay: whichever variable it is, it is missing for the same reason
        names = tuple(name for name, variable in table.items() if variable.analyte == column.target)
    preference = 0 if column.name == column.target else 2 if column.target == "apoe4_carrier" else 1
    return [
        _Reading(
            name,
            rank,
            preference if name == column.target or column.target in forms else 3,
            row,
            column.place,
            cell.values.get(name),
            cell.status if name in cell.values else "missing",
            cell.note,
            cell.warning if column.target in table or column.target in forms else "",
            cell.unit,
        )
        for name in names
    ]


def _choose(name: str, readings: Sequence[_Reading], warnings: list[str]) -> _Reading | None:
    """The first usable reading of a variable, else the first; warns of unusable and of contradicting ones."""
    mine = sorted((r for r in readings if r.name == name), key=lambda r: (r.rank, r.preference))
    chosen = next((r for r in mine if r.value is not None), None)
    before = mine[: mine.index(chosen)] if chosen else mine
    warnings += [r.warning for r in before if r.warning]
    if chosen is None:
        return max(mine, key=lambda r: bool(r.warning), default=None)
    for other in mine[mine.index(chosen) + 1 :]:
        same_table = other.row == chosen.row and other.value is not None
        if same_table and not math.isclose(other.value or 0.0, chosen.value or 0.0, rel_tol=1e-3):
            warnings.append(
                f"{chosen.place} and {other.place} disagree on {name}: the first is used; "
                "remove one or set it to ignore in a mapping file."
            )
    return chosen


def _as_value(name: str, reading: _Reading | None) -> Value:
    if reading is None:
        return Value(name, None, "missing", note="not in the tables")
    return Value(name, reading.value, reading.status, reading.place, reading.note, reading.unit)


def _add_ratios(
    values: dict[str, Value], chosen: dict[str, _Reading | None], readings: Sequence[_Reading], warnings: list[str]
) -> None:
    """Compute Aβ42/40 from parts of one assay where no table that goes before theirs gives it.

    Both parts are of one rank, for a value of the session divided by one of another visit is nobody's ratio.
    """
    for ratio in [v for v in variables().values() if v.analyte == "ab42_40"]:
        usable = [_usable(_part(analyte, ratio), readings) for analyte in ("ab42", "ab40")]
        common = sorted(set(usable[0]) & set(usable[1]))
        given = chosen[ratio.name]
        if given is not None and given.value is not None and (not common or given.rank <= common[0]):
            continue
        if not common:
            if all(usable):
                places = " and ".join(part[min(part)].place for part in usable)
                warnings.append(f"{places} are of different visits or tables: {ratio.name} is not computed from them.")
            continue
        parts = [part[common[0]] for part in usable]
        above, below = (part.value or math.nan for part in parts)
        value = above / below
        names = " and ".join(part.name for part in parts)
        source = "; ".join(dict.fromkeys(part.place for part in parts))
        if ratio.is_plausible(value):
            values[ratio.name] = Value(ratio.name, value, "computed", source, f"from {names}")
        elif given is None or given.value is None:
            file = source.split(", ")[0]
            cell = implausible(f"{names} ({source})", sidecar(file), ratio, value, ratio.unit)
            warnings.append(cell.warning)
            values[ratio.name] = Value(ratio.name, None, "missing", source, cell.note)


def _part(analyte: str, ratio: Variable) -> str:
    """Name of the variable of an analyte in the ratio's assay, empty if there is none."""
    return next((n for n, v in variables().items() if (v.analyte, v.assay) == (analyte, ratio.assay)), "")


def _usable(name: str, readings: Sequence[_Reading]) -> dict[int, _Reading]:
    """Rank → the reading of a variable that is used of those with that rank."""
    found: dict[int, _Reading] = {}
    for reading in sorted(readings, key=lambda r: (r.rank, r.preference)):
        if reading.name == name and reading.value is not None:
            found.setdefault(reading.rank, reading)
    return found


def _limit(name: str) -> int:
    return next(int(row["value"]) for row in read_table("clinical_limits.tsv") if row["name"] == name)


def _parse_date(text: str) -> datetime.date | None:
    """ISO date, with or without time, dashes or slashes; other orders are ambiguous and give None."""
    match = re.match(r"(\d{4})[-/]?(\d{2})[-/]?(\d{2})(?!\d)", text.strip())
    try:
        return datetime.date(*map(int, match.groups())) if match else None
    except ValueError:
        return None


def _interval_warnings(
    plasma: Sequence[_Reading], dates: Sequence[tuple[int, Column, str]], scan_date: str | None
) -> list[str]:
    """Warn where blood was drawn long before or after the scan."""
    scan = _parse_date(scan_date or "")
    if scan is None:
        return []
    warnings = []
    for row in sorted({reading.row for reading in plasma}):
        own = [d for d in dates if d[0] == row and not is_missing(d[2])]
        elsewhere = [d for d in dates if d[1].target == "blood_date" and not is_missing(d[2])]
        found = sorted(own, key=lambda d: _DATES.index(d[1].target)) or elsewhere
        if not found:
            continue
        column, drawn = found[0][1], _parse_date(found[0][2])
        shifted = _limit("shifted_date_year")
        if drawn is None:
            warnings.append(f"{column.place}: the date is not written as YYYY-MM-DD and is not compared with the scan.")
        elif (drawn.year < shifted) != (scan.year < shifted):
            warnings.append(f"{column.place}: only one of blood and scan date was shifted for anonymity: not compared.")
        elif abs((drawn - scan).days) > (days := _limit("blood_scan_interval")):
            warnings.append(
                f"{column.place}: blood was drawn more than {days} days before or after the scan; the "
                "plasma values are used but may not describe the person at the scan."
            )
    return warnings
