"""What a column of a table means: variable, assay, unit and levels, from its name, preset, JSON and mapping file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

from bids_petsynth.clinical.text import normalise, words
from bids_petsynth.clinical.units import Unit, find_unit, split_unit
from bids_petsynth.clinical.variables import analytes, assays, assays_of, find_assays, split_assay, variables
from bids_petsynth.errors import UsageError
from bids_petsynth.tables import read_table
from bids_petsynth.types import TableRow

#: What a column can hold besides a variable: other forms of the APOE genotype, dates, and free text.
NOTES = "notes"
FORMS = ("apoe_genotype", "apoe4_carrier", "apoe_allele", "blood_date", "visit_date", NOTES)
IGNORE = "ignore"

_FILLERS = frozenset(
    {"plasma", "edta", "blood", "baseline", "bl", "concentration", "conc", "level", "levels", "value", "result"}
    | {"measured", "in", "of", "at", "the", "simulated", "sim"}
)
#: Words of columns that do not hold values as they were measured.
_TRANSFORMED = frozenset(
    {"log", "ln", "log2", "log10", "logarithm", "logarithmic", "z", "zscore", "zscores", "percentile", "percentiles"}
)
_UNDECLARED = frozenset({"", "n/a", "na", "none", "unknown"})
_PLAIN_DIMENSIONS = frozenset({"alleles", "points", "code"})


@dataclass(frozen=True)
class Override:
    """One line of a mapping file: what the user says of a column. Empty parts are left to the software."""

    file: str
    column: str
    variable: str
    unit: str = ""
    assay: str = ""
    levels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ColumnMapping:
    """The lines of a mapping file."""

    overrides: tuple[Override, ...] = ()

    def find(self, file: str, column: str) -> Override | None:
        """The line for a column, one that names the file before one that does not."""
        fitting = [o for o in self.overrides if o.column == column and o.file in (file, "")]
        return max(fitting, key=lambda o: bool(o.file), default=None)


@dataclass(frozen=True)
class Column:
    """A column and what it was taken for.

    Attributes
    ----------
    file, name
        Relative path of the table and name of the column.
    target
        Canonical variable, one of `FORMS` (``notes`` only if a mapping file says so), an analyte whose assay is
        unknown, ``ignore``, or empty if not recognised.
    unit
        Unit that JSON, mapping, preset or column name declare; None if none does (then the canonical one is assumed).
    levels
        Meaning of codes, as text by code.
    problem
        Why its values cannot be used and what to do, as a sentence; empty if they can.
    other_fluid
        Whether the problem is that it is described as cerebrospinal fluid or serum.
    """

    file: str
    name: str
    target: str = ""
    assay: str = ""
    unit: Unit | None = None
    levels: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    other_fluid: bool = False

    @property
    def place(self) -> str:
        """``participants.tsv, column age``."""
        return f"{self.file}, column {self.name}"


@dataclass(frozen=True)
class _Synonym:
    target: str
    assay: str = ""
    unit: str = ""
    levels: Mapping[str, str] = field(default_factory=dict)


def parse_levels(text: str) -> dict[str, str]:
    """``"1=male;2=female"`` → codes and their meanings; ValueError if a part has no ``=``."""
    parts = [part.split("=", 1) for part in text.split(";") if part.strip()]
    if any(len(part) != 2 for part in parts):
        raise ValueError("levels are written as code=meaning;code=meaning")
    return {code.strip(): meaning.strip() for code, meaning in parts}


@cache
def _synonyms() -> Mapping[tuple[str, str], _Synonym]:
    found: dict[tuple[str, str], _Synonym] = {}
    for row in read_table("synonyms.tsv"):
        synonym = _Synonym(row["target"], row["assay"], row["unit"], parse_levels(row["levels"]))
        found.setdefault((row["preset"], normalise(row["column"])), synonym)
    for name in variables():
        found.setdefault(("", normalise(name)), _Synonym(name))
    return found


def known_presets() -> tuple[str, ...]:
    """Names of the studies whose column names are known."""
    return tuple(dict.fromkeys(row["preset"] for row in read_table("synonyms.tsv") if row["preset"]))


def active_presets(rows: Iterable[TableRow], presets: Sequence[str] | None = None) -> tuple[str, ...]:
    """The presets to use: those asked for, else those of which a telling column (``PTGENDER``, ``AGEYR`` …) is there.

    Raises
    ------
    UsageError
        If a preset is asked for that does not exist.
    """
    if presets is not None:
        unknown = sorted(set(presets) - set(known_presets()))
        if unknown:
            raise UsageError(f"There is no column preset {unknown[0]!r}; choose from {', '.join(known_presets())}.")
        return tuple(presets)
    present = {column for row in rows for column in row.columns}
    telling = [row for row in read_table("synonyms.tsv") if row["signature"] == "yes"]
    return tuple(dict.fromkeys(row["preset"] for row in telling if row["column"] in present))


@lru_cache(maxsize=4096)
def _lookup(name: str, presets: tuple[str, ...]) -> tuple[_Synonym | None, Unit | None]:
    """Find a column name in the synonyms, dropping first filler words, then the assay, then the unit."""
    full = words(name)
    bare = tuple(word for word in full if word not in _FILLERS)
    without_assay = split_assay(bare)
    without_unit, unit = split_unit(without_assay)
    for attempt, in_name in ((full, None), (bare, None), (without_assay, None), (without_unit, unit)):
        for preset in (*presets, ""):
            found = _synonyms().get((preset, "".join(attempt)))
            if found is not None and attempt:
                return found, in_name
    return None, None


def _descriptions(entry: Mapping[str, Any]) -> str:
    return " . ".join(str(v) for k, v in entry.items() if isinstance(v, str) and k not in ("Units", "Levels"))


def _json_levels(entry: Mapping[str, Any]) -> dict[str, str]:
    levels = entry.get("Levels")
    if not isinstance(levels, Mapping):
        return {}
    return {str(k): str(v.get("Description", "")) if isinstance(v, Mapping) else str(v) for k, v in levels.items()}


def _entry(row: TableRow, name: str) -> Mapping[str, Any]:
    entry = row.dictionary.get(name)
    return entry if isinstance(entry, Mapping) else {}


def sidecar(file: str) -> str:
    """Name of the JSON file that describes a table."""
    return file.removesuffix(".tsv") + ".json"


def resolve_column(
    row: TableRow, name: str, presets: Sequence[str] = (), mapping: ColumnMapping | None = None
) -> Column:
    """Tell what a column of a table holds; a mapping file goes before the JSON, the JSON before name and preset."""
    entry = _entry(row, name)
    override = mapping.find(row.file, name) if mapping else None
    synonym, name_unit = _lookup(name, tuple(presets))
    if override is not None and (synonym is None or synonym.target != override.variable):
        synonym = _Synonym(override.variable or IGNORE)
    if synonym is None or synonym.target == IGNORE:
        return Column(row.file, name, target=IGNORE if synonym else "")

    description = _descriptions(entry)
    target = synonym.target
    if target == "apoe4" and override is None and _says_carrier(description):
        target = "apoe4_carrier"
    levels = (override.levels if override else None) or _json_levels(entry) or synonym.levels
    column = Column(row.file, name, target, levels=levels)

    if target in analytes():
        tool = row.dictionary.get("MeasurementToolMetadata")
        texts = (name, description, _descriptions(tool) if isinstance(tool, Mapping) else "", row.file)
        known = (override.assay if override else "") or synonym.assay
        named = (known,) if known else next((found for found in map(find_assays, texts) if found), ())
        column = _with_assay(column, named)
    variable = variables().get(column.target)
    is_plasma = column.target in analytes() or (variable is not None and variable.kind == "plasma")
    if is_plasma and override is None and _other_fluid(f"{name} {description} {row.file}"):
        problem = (
            f"{column.place} is described as cerebrospinal fluid or serum, not plasma, and is not used; "
            "name it in a mapping file if it is plasma."
        )
        return replace(column, problem=problem, other_fluid=True)
    if is_plasma and override is None and set(words(f"{name} {description}")) & _TRANSFORMED:
        problem = (
            f"{column.place} is described as a logarithm, z-score or percentile, not as what was measured, and is not "
            "used; give the values as measured, or name the column in a mapping file if it holds them."
        )
        return replace(column, problem=problem)
    if variable is None or column.problem:
        return column

    declared = (override.unit if override else "") or str(entry.get("Units") or "").strip()
    if declared.lower() in _UNDECLARED:
        declared = (name_unit.name if name_unit else "") or synonym.unit
    unit, problem = _usable_unit(declared, column)
    return replace(column, unit=unit, problem=problem)


def _says_carrier(description: str) -> bool:
    """Whether a description speaks of carriers and not of numbers of alleles."""
    said = words(description)
    found = set(said)
    if found & {"presence", "positivity"} or "at least one" in " ".join(said):
        return True
    return "carrier" in found and not found & {"number", "count", "dose", "alleles", "copies"}


def _other_fluid(text: str) -> bool:
    """Whether a text speaks of another fluid and not of plasma."""
    found = set(words(text))
    return "plasma" not in found and bool(found & {"csf", "cerebrospinal", "liquor", "serum"})


def _with_assay(column: Column, named: tuple[str, ...]) -> Column:
    """Turn an analyte into a variable if just one assay is named and is in the table of variables."""
    analyte = column.target
    choices = ", ".join(assays_of(analyte))
    if len(named) == 1:
        for variable in variables().values():
            if (variable.analyte, variable.assay) == (analyte, named[0]):
                return replace(column, target=variable.name, assay=named[0])
        reason = f"the assay {assays()[named[0]].description} of {analyte} is not in the table of variables ({choices})"
        remedy = "the values count as missing, as scales differ between assays"
    else:
        reason = f"{'several assays are named' if named else 'the assay is not named'} for {analyte}"
        remedy = (
            f"the values count as missing; name the assay ({choices}) in the column's Description in "
            f"{sidecar(column.file)} or in a mapping file"
        )
    return replace(column, problem=f"{column.place}: {reason}; {remedy}.")


def _usable_unit(declared: str, column: Column) -> tuple[Unit | None, str]:
    """The declared unit, or a sentence on why the column cannot be read with it."""
    wanted = variables()[column.target].unit
    unit = find_unit(declared) if declared else None
    if not declared or (wanted.dimension in _PLAIN_DIMENSIONS and (unit is None or unit.dimension != "concentration")):
        return None, ""
    remedy = f"the values count as missing; correct Units in {sidecar(column.file)} or name the unit in a mapping file"
    if unit is None:
        return None, f"{column.place}: the unit {declared!r} is not known (expected {wanted.name}); {remedy}."
    if unit.dimension != wanted.dimension:
        return None, f"{column.place}: {unit.name} cannot be converted to {wanted.name}; {remedy}."
    return unit, ""


def resolve_columns(
    rows: Sequence[TableRow], mapping: ColumnMapping | None = None, presets: Sequence[str] | None = None
) -> tuple[Column, ...]:
    """All columns of some rows, each once, in their order, the unrecognised (``target`` empty) included."""
    active = active_presets(rows, presets)
    found: dict[tuple[str, str], Column] = {}
    for row in rows:
        for name in row.columns:
            if (row.file, name) not in found and name not in ("participant_id", "session_id"):
                found[row.file, name] = resolve_column(row, name, active, mapping)
    return tuple(found.values())
