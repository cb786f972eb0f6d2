"""The clinical tables hold together: variables, synonyms, units, assays, levels."""

from __future__ import annotations

import math

import pytest

from bids_petsynth.clinical.columns import (
    FORMS,
    IGNORE,
    known_presets,
    parse_levels,
    resolve_column,
)
from bids_petsynth.clinical.text import is_missing, normalise, parse_number
from bids_petsynth.clinical.units import convert, find_unit, units
from bids_petsynth.clinical.variables import analytes, assays, find_assays, variables
from bids_petsynth.tables import read_table
from bids_petsynth.types import TableRow

SHARED = {
    *("age", "sex", "education", "apoe4", "apoe2", "mmse", "moca", "cdr", "cdrsb", "adas13"),
    *("ptau217_lumipulse", "ptau217_simoa", "ptau217_msd", "ptau217_ipms"),
    *("ptau181_simoa", "ptau181_lumipulse", "ptau181_msd", "gfap_simoa", "gfap_lumipulse", "nfl_simoa"),
    *("nfl_lumipulse", "ttau_simoa", "ttau_lumipulse"),
    *(f"{a}_{b}" for a in ("ab42", "ab40", "ab42_40") for b in ("lumipulse", "simoa", "msd", "ipms")),
}


def resolve(column: str, entry: dict | None = None, file: str = "participants.tsv", presets: tuple[str, ...] = ()):
    row = TableRow(file, {column: "1"}, {column: entry} if entry else {})
    return resolve_column(row, column, presets)


def test_all_names_shared_with_other_rooms_are_there():
    assert set(variables()) >= SHARED


def test_cognition_is_no_default_input_and_everything_has_a_source():
    for variable in variables().values():
        assert variable.default_input == (variable.kind != "cognition")
        assert variable.low < variable.high
        assert variable.transform in ("identity", "log")
        assert variable.transform == "identity" or variable.low > 0
        assert variable.source
        assert variable.kind != "plasma" or (variable.analyte and variable.assay in assays())
    for table in ("synonyms.tsv", "units.tsv", "assays.tsv", "clinical_levels.tsv", "clinical_limits.tsv"):
        assert all(row["source"] for row in read_table(table))


@pytest.mark.parametrize("name", variables())
def test_canonical_name_resolves_to_itself(name):
    for preset in ((), *((p,) for p in known_presets())):
        column = resolve(name, presets=preset)
        assert column.target == name
        assert not column.problem


@pytest.mark.parametrize("row", read_table("synonyms.tsv"), ids=lambda r: f"{r['preset']}:{r['column']}")
def test_every_synonym_points_to_something_that_exists(row):
    assert row["target"] in (*variables(), *analytes(), *FORMS, IGNORE)
    assert not row["assay"] or row["assay"] in assays()
    assert row["preset"] in ("", *known_presets())
    parse_levels(row["levels"])
    presets = (row["preset"],) if row["preset"] else ()
    target = resolve(row["column"], presets=presets).target
    assert target == row["target"] or variables()[target].analyte == row["target"]


def test_synonyms_are_not_claimed_twice():
    seen: dict[tuple[str, str], str] = {}
    for row in read_table("synonyms.tsv"):
        assert seen.setdefault((row["preset"], normalise(row["column"])), row["target"]) == row["target"], row


@pytest.mark.parametrize("unit", units().values(), ids=lambda u: u.name)
def test_every_unit_converts_both_ways(unit):
    for other in units().values():
        if other.dimension == unit.dimension:
            assert convert(convert(3.7, unit, other), other, unit) == pytest.approx(3.7, rel=1e-12)
        else:
            with pytest.raises(ValueError, match="cannot be converted"):
                convert(1.0, unit, other)
    assert all(find_unit(spelling) == unit for spelling in unit.spellings)


@pytest.mark.parametrize(
    ("value", "source", "target", "expected"),
    [
        (12, "ng/L", "pg/mL", 12),
        (0.31, "ng/mL", "pg/mL", 310),
        (310, "fg/mL", "pg/mL", 0.31),
        (2, "µg/L", "pg/mL", 2000),
        (50, "pg/dL", "pg/mL", 0.5),
        (0.02, "ug/mL", "pg/mL", 20000),
        (18, "pg·mL⁻¹", "ng / l", 18),
        (18, "pg ml^-1", "PG/ML", 18),
        (870, "months", "years", 72.5),
        (36525, "days", "years", 100),
        (8.5, "%", "ratio", 0.085),
    ],
)
def test_worked_conversions(value, source, target, expected):
    assert convert(value, find_unit(source), find_unit(target)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("text", ["U/mL", "pmol/L", "furlongs", "a.u."])
def test_unknown_units_are_not_guessed(text):
    assert find_unit(text) is None


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("0.31", 0.31, ""),
        ("0,31", 0.31, ""),
        ("0,310", 0.31, ""),
        (" 1.2e-1 ", 0.12, ""),
        ("12 pg/mL", 12, "pg/mL"),
        ("1.234,5", 1234.5, ""),
        ("1,234.5", 1234.5, ""),
        ("1,234,567", 1234567, ""),
        (".5", 0.5, ""),
        ("−3", -3, ""),
        ("78y", 78, "y"),
    ],
)
def test_numbers_as_typed(text, value, unit):
    number = parse_number(text)
    assert number.value == pytest.approx(value)
    assert number.unit == unit


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<0.05", "bound"),
        ("> 90", "bound"),
        ("≤ 3", "bound"),
        ("below LLOQ", "bound"),
        ("seventy", "not a number"),
        ("1,234", "may be"),
        ("1.2.3", "not a number"),
        ("1e999", "finite"),
    ],
)
def test_text_that_is_no_number(text, problem):
    number = parse_number(text)
    assert number.value is None
    assert problem in number.problem


@pytest.mark.parametrize("text", ["", " ", "n/a", "N/A", "NaN", "NA", "None", "-4", "-4.0", "-9999", "-1", "Unknown"])
def test_codes_of_missing(text):
    assert is_missing(text)


@pytest.mark.parametrize("text", ["0", "1", "4", "0.0", "F", "<0.05"])
def test_values_are_not_taken_for_missing(text):
    assert not is_missing(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Simoa HD-X, Quanterix", ("simoa",)),
        ("Lumipulse G1200 (Fujirebio)", ("lumipulse",)),
        ("IP-MS", ("ipms",)),
        ("Meso Scale Discovery S-PLEX", ("msd",)),
        ("in-house Simoa, University of Gothenburg", ("ugot",)),
        ("Janssen p217+tau on Simoa", ("janssen",)),
        ("Lumipulse, compared with Simoa", ("lumipulse", "simoa")),
        ("an immunoassay", ()),
    ],
)
def test_assays_in_text(text, expected):
    assert find_assays(text) == expected


@pytest.mark.parametrize(
    ("column", "entry", "file", "expected"),
    [
        ("Age_at_scan", None, "participants.tsv", "age"),
        ("AgeAtScan", None, "participants.tsv", "age"),
        ("age_years", None, "participants.tsv", "age"),
        ("Gender", None, "participants.tsv", "sex"),
        ("education_years", None, "participants.tsv", "education"),
        ("Years of education", None, "participants.tsv", "education"),
        ("APOE ε4 count", None, "participants.tsv", "apoe4"),
        ("apoe_e4_count", None, "participants.tsv", "apoe4"),
        ("e4_carrier", None, "participants.tsv", "apoe4_carrier"),
        ("apoe4", {"Description": "Carrier of an e4 allele"}, "participants.tsv", "apoe4_carrier"),
        ("apoe4", {"Description": "Number of e4 alleles (carrier: 1 or 2)"}, "participants.tsv", "apoe4"),
        ("apoe_genotype", None, "participants.tsv", "apoe_genotype"),
        ("ptau217_lumipulse", None, "participants.tsv", "ptau217_lumipulse"),
        ("P-tau217 (ALZpath), pg/mL", None, "participants.tsv", "ptau217_simoa"),
        ("plasma_ptau217", {"Manufacturer": "Fujirebio"}, "participants.tsv", "ptau217_lumipulse"),
        ("p_tau217_pg_ml", {"Description": "measured on Lumipulse"}, "participants.tsv", "ptau217_lumipulse"),
        ("ptau217", {"TermURL": "https://www.quanterix.com/x"}, "participants.tsv", "ptau217_simoa"),
        ("Aβ42/40", None, "phenotype/plasma_simoa.tsv", "ab42_40_simoa"),
        ("abeta42_40_lumipulse", None, "participants.tsv", "ab42_40_lumipulse"),
        ("Fuji_plasma_Ab42_Ab40", None, "participants.tsv", "ab42_40_lumipulse"),
        ("C2N_plasma_ptau217_ratio", None, "participants.tsv", "pct_ptau217_ipms"),
        ("%p-tau217 (C2N)", None, "participants.tsv", "pct_ptau217_ipms"),
        ("QX_plasma_GFAP", None, "participants.tsv", "gfap_simoa"),
        ("Neurofilament light (Simoa)", None, "participants.tsv", "nfl_simoa"),
        ("age_at_onset", None, "participants.tsv", ""),
        ("csf_ptau217", None, "participants.tsv", ""),
        ("tau", None, "participants.tsv", ""),
        ("weight", None, "participants.tsv", ""),
        ("plasma", None, "participants.tsv", ""),
    ],
)
def test_spellings(column, entry, file, expected):
    found = resolve(column, entry, file)
    assert found.target == expected
    assert not found.problem


@pytest.mark.parametrize(
    ("column", "entry", "message"),
    [
        ("ptau217", None, "the assay is not named"),
        ("ptau217", {"Description": "Lumipulse, compared with Simoa"}, "several assays"),
        ("Roche_plasma_ptau181", None, "not in the table"),
        ("Janssen_plasma_ptau217", None, "not in the table"),
        ("ptau181_lumipulse", {"Description": "in cerebrospinal fluid"}, "not plasma"),
        ("gfap_simoa", {"Description": "Serum GFAP"}, "not plasma"),
        ("ptau217_msd", {"Units": "U/mL"}, "'U/mL' is not known"),
        ("nfl_simoa", {"Units": "years"}, "cannot be converted"),
        ("age", {"Units": "pg/mL"}, "cannot be converted"),
    ],
)
def test_unusable_columns_say_why_and_what_to_do(column, entry, message):
    found = resolve(column, entry)
    assert message in found.problem
    assert column in found.problem
    assert "mapping file" in found.problem or "not in the table" in found.problem


def test_factors_of_time_units_are_exact():
    assert math.isclose(units()["days"].factor * 365.25, 1, rel_tol=1e-12)
    assert math.isclose(units()["weeks"].factor * 365.25 / 7, 1, rel_tol=1e-12)
    assert math.isclose(units()["months"].factor * 12, 1, rel_tol=1e-12)
