"""Reading a person's record: values, statuses and warnings, of good input and bad."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bids_petsynth.clinical.columns import active_presets
from bids_petsynth.clinical.records import read_record
from bids_petsynth.clinical.values import genotype
from bids_petsynth.clinical.variables import variables
from bids_petsynth.errors import UsageError
from bids_petsynth.types import ClinicalRecord, TableRow


def read(columns: dict[str, str], dictionary: dict | None = None, **options) -> ClinicalRecord:
    return read_record([TableRow("participants.tsv", columns, dictionary or {})], **options)


def test_every_variable_is_in_the_record():
    record = read({"age": "70"})
    assert list(record.values) == list(variables())
    assert {v.status for name, v in record.values.items() if name != "age"} == {"missing"}
    assert record.get("age") == 70
    assert record.warnings == ()


def test_no_row():
    record = read_record([])
    assert all(value.value is None and value.status == "missing" for value in record.values.values())
    assert len(record.warnings) == 1
    assert "No table has a row for this participant" in record.warnings[0]


@pytest.mark.parametrize(
    ("column", "text", "entry", "name", "value", "status"),
    [
        ("age", "72.5", {}, "age", 72.5, "found"),
        ("age", "72,5", {}, "age", 72.5, "converted"),
        ("age", "72", {"Units": "year"}, "age", 72, "found"),
        ("age", "870", {"Units": "months"}, "age", 72.5, "converted"),
        ("age", "89+", {}, "age", 89, "converted"),
        ("age", "≥ 90", {}, "age", 90, "converted"),
        ("age", "90 or older", {}, "age", 90, "converted"),
        ("age", "72 years", {}, "age", 72, "converted"),
        ("sex", "F", {}, "sex", 0, "converted"),
        ("sex", "male", {}, "sex", 1, "converted"),
        ("Gender", "Woman", {}, "sex", 0, "converted"),
        ("sex", "2", {"Levels": {"1": "male", "2": "female"}}, "sex", 0, "converted"),
        ("sex", "1.0", {"Levels": {"1": {"Description": "Male"}, "2": {"Description": "F"}}}, "sex", 1, "converted"),
        ("sex", "M", {"Levels": {"M": "male", "F": "female"}}, "sex", 1, "converted"),
        ("education", "16", {}, "education", 16, "found"),
        ("education", "12", {"Units": "years", "Levels": {"12": "high school"}}, "education", 12, "found"),
        ("apoe4", "1", {}, "apoe4", 1, "found"),
        ("apoe4", "E3/E4", {}, "apoe4", 1, "converted"),
        ("apoe4", "homozygous", {}, "apoe4", 2, "converted"),
        ("apoe4", "1", {"Levels": {"0": "none", "1": "one", "2": "two"}}, "apoe4", 1, "converted"),
        ("apoe4", "0", {"Levels": {"0": "none", "1": "one", "2": "two"}}, "apoe4", 0, "found"),
        ("apoe_genotype", "ε2/ε4", {}, "apoe2", 1, "converted"),
        ("apoe", "44", {}, "apoe4", 2, "converted"),
        ("e4_carrier", "0", {}, "apoe4", 0, "converted"),
        ("e4_carrier", "no", {}, "apoe4", 0, "converted"),
        ("cdr", "0", {"Levels": {"0": "none", "0.5": "very mild"}}, "cdr", 0, "found"),
        ("MMSE", "28", {"Units": "0-30"}, "mmse", 28, "found"),
        ("ptau217_lumipulse", "0.31", {"Units": "pg/mL"}, "ptau217_lumipulse", 0.31, "found"),
        ("ptau217_lumipulse", "0,31", {"Units": "pg/mL"}, "ptau217_lumipulse", 0.31, "converted"),
        ("ptau217_lumipulse", "310", {"Units": "fg/mL"}, "ptau217_lumipulse", 0.31, "converted"),
        ("ptau217_lumipulse", "310 fg/mL", {"Units": "pg/mL"}, "ptau217_lumipulse", 0.31, "converted"),
        ("nfl_simoa", "18", {"Units": "ng/L"}, "nfl_simoa", 18, "converted"),
        ("nfl_ng_l", "18", {"Description": "Simoa"}, "nfl_simoa", 18, "converted"),
        ("gfap_simoa", "0.2", {"Units": "ng/mL"}, "gfap_simoa", 200, "converted"),
        ("gfap_simoa_ng_ml", "0.2", {}, "gfap_simoa", 200, "converted"),
        ("ab42_40_simoa", "8.5", {"Units": "%"}, "ab42_40_simoa", 0.085, "converted"),
        ("ab42_40_simoa", "0.085", {"Units": "unitless"}, "ab42_40_simoa", 0.085, "found"),
        ("pct_ptau217_ipms", "4.2", {"Units": "percent"}, "pct_ptau217_ipms", 4.2, "found"),
        ("pct_ptau217_ipms", "0.042", {"Units": "ratio"}, "pct_ptau217_ipms", 4.2, "converted"),
    ],
)
def test_values(column, text, entry, name, value, status):
    record = read({column: text}, {column: entry})
    assert record.get(name) == pytest.approx(value)
    assert record.values[name].status == status
    assert record.values[name].source == f"participants.tsv, column {column}"
    assert bool(record.values[name].note) == (status == "converted")
    assert record.warnings == ()


@pytest.mark.parametrize(
    ("column", "text", "declared", "unit"),
    [
        ("nfl_simoa", "18", "ng/L", "ng/L"),
        ("nfl_simoa", "18", "pg/mL", ""),
        ("nfl_simoa", "18", "picograms per millilitre", ""),
        ("ptau217_lumipulse", "310 fg/mL", "pg/mL", "fg/mL"),
        ("ptau217_lumipulse", "0,31", "pg/mL", ""),
        ("age", "870", "months", "months"),
        ("age", "89+", "years", ""),
    ],
)
def test_unit_that_a_value_was_converted_from(column, text, declared, unit):
    assert read({column: text}, {column: {"Units": declared}}).values[column].unit == unit


@pytest.mark.parametrize(
    ("column", "text", "entry", "name", "message"),
    [
        ("age", "212", {}, "age", "outside the plausible range of age, 1 to 120 years"),
        ("age", "-3", {}, "age", "outside the plausible range"),
        ("age", "870.3", {}, "age", "plausible in months"),
        ("age", "about 70", {}, "age", "not a number"),
        ("age", "70-75", {}, "age", "followed by text"),
        ("age", "<50.7", {}, "age", "only a bound"),
        ("sex", "2", {}, "sex", "explain the codes in Levels in participants.json"),
        ("sex", "x7", {}, "sex", "write F or M"),
        ("education", "3", {"Levels": {"3": "some college"}}, "education", "codes, not years"),
        ("apoe4", "3", {}, "apoe4", "outside the plausible range"),
        ("apoe", "1", {}, "apoe4", "is not an APOE genotype"),
        ("apoe", "35", {}, "apoe4", "is not an APOE genotype"),
        ("e4_carrier", "1", {}, "apoe4", "one or two alleles open"),
        ("apoe4", "yes", {}, "apoe4", "one or two alleles open"),
        ("apoe4", "1", {"Description": "APOE e4 carrier"}, "apoe4", "one or two alleles open"),
        ("apoe4", "1", {"Description": "Presence of at least one e4 allele"}, "apoe4", "one or two alleles open"),
        ("APOE4", "1", {"Description": "APOE4 positivity"}, "apoe4", "one or two alleles open"),
        ("gfap_simoa", "5.29", {"Description": "Natural logarithm of plasma GFAP"}, "gfap_simoa", "is not used"),
        ("ptau217_lumipulse", "1.23", {"Description": "z-score"}, "ptau217_lumipulse", "is not used"),
        ("mmse", "31", {}, "mmse", "outside the plausible range"),
        ("ptau217_lumipulse", "0.00031", {"Units": "pg/mL"}, "ptau217_lumipulse", "plausible in ng/mL"),
        ("ptau217_lumipulse", "310.7", {}, "ptau217_lumipulse", "plausible in fg/mL"),
        ("ptau217_lumipulse", "<0.057", {}, "ptau217_lumipulse", "only a bound"),
        ("ptau217_lumipulse", "0.317 foo", {}, "ptau217_lumipulse", "not a unit"),
        ("nfl_simoa", "1,857", {}, "nfl_simoa", "decimal comma or a thousands separator"),
        ("nfl_simoa", "18.7", {"Units": "furlongs"}, "nfl_simoa", "unit 'furlongs' is not known"),
        ("ptau217", "0.317", {}, "ptau217_lumipulse", "the assay is not named for ptau217"),
        ("Roche_plasma_ptau181", "1.37", {}, "ptau181_simoa", "not in the table of variables"),
        ("gfap_simoa", "217.3", {"Description": "CSF GFAP"}, "gfap_simoa", "not plasma"),
        ("ab42_40_lumipulse", "8.57", {}, "ab42_40_lumipulse", "plausible in %"),
    ],
)
def test_bad_cells_are_missing_with_one_sentence_that_hides_the_value(column, text, entry, name, message):
    record = read({column: text}, {column: entry})
    value = record.values[name]
    assert value.value is None
    assert value.status == "missing"
    assert value.note
    assert len(record.warnings) == 1
    warning = record.warnings[0]
    assert message in warning
    assert f"participants.tsv, column {column}" in warning
    assert len(text) < 4 or text not in warning + value.note


@pytest.mark.parametrize("text", ["n/a", "", "NaN", "-4", "-9999", "-1"])
@pytest.mark.parametrize("column", ["age", "sex", "apoe4", "ptau217", "gfap_simoa"])
def test_missing_codes_are_silent(column, text):
    record = read({column: text})
    assert all(value.value is None for value in record.values.values())
    assert record.warnings == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e3/e4", (1, 0)),
        ("APOE3/APOE4", (1, 0)),
        ("3/4", (1, 0)),
        ("34", (1, 0)),
        ("34.0", (1, 0)),
        ("ε3ε4", (1, 0)),
        ("APOE ε3/ε4", (1, 0)),
        ("E4/E4", (2, 0)),
        ("e2e2", (0, 2)),
        ("2-4", (1, 1)),
        ("33", (0, 0)),
        ("3", None),
        ("334", None),
        ("e1/e4", None),
    ],
)
def test_genotypes(text, expected):
    assert genotype(text) == expected


def test_adni_row():
    columns = {
        "RID": "4001",
        "VISCODE": "bl",
        "EXAMDATE": "2012-03-01",
        "AGE": "74.3",
        "PTGENDER": "2",
        "PTEDUCAT": "16",
        "APOE4": "1",
        "MMSE": "28",
        "CDRSB": "0.5",
        "ADAS13": "9",
        "MOCA": "24",
        "TAU": "240",
        "ABETA": "900",
        "pT217_F": "0.22",
        "AB42_F": "27",
        "AB40_F": "300",
        "AB42_AB40_F": "0.09",
        "NfL_Q": "19",
        "GFAP_Q": "150",
        "PLASMAPTAU181": "17.7",
        "PLASMA_NFL": "35",
    }
    record = read(columns)
    expected = {
        "age": 74.3,
        "sex": 0,
        "education": 16,
        "apoe4": 1,
        "mmse": 28,
        "cdrsb": 0.5,
        "adas13": 9,
        "moca": 24,
        "ptau217_lumipulse": 0.22,
        "ab42_lumipulse": 27,
        "ab40_lumipulse": 300,
        "ab42_40_lumipulse": 0.09,
        "nfl_simoa": 19,
        "gfap_simoa": 150,
        "ptau181_ugot": 17.7,
        "nfl_ugot": 35,
    }
    assert {name: v.value for name, v in record.values.items() if v.value is not None} == expected
    assert record.warnings == ()
    assert read({"PTGENDER": "Male"}).get("sex") == 1


def test_adni_genotype_in_two_columns():
    record = read({"RID": "1", "APGEN1": "2", "APGEN2": "4.0"})
    assert (record.get("apoe4"), record.get("apoe2")) == (1, 1)
    assert read({"RID": "1", "APGEN1": "3", "APGEN2": "-4"}).get("apoe4") is None


def test_oasis_row():
    columns = {"OASISID": "OAS3", "AgeatEntry": "68.1", "GENDER": "1", "EDUC": "18", "APOE": "34", "CDRTOT": "0.5"}
    record = read({**columns, "CDRSUM": "1.5", "MMSE": "27"})
    got = {name: v.value for name, v in record.values.items() if v.value is not None}
    expected = {"age": 68.1, "sex": 1, "education": 18, "apoe4": 1, "apoe2": 0, "cdr": 0.5, "cdrsb": 1.5, "mmse": 27}
    assert got == expected
    assert record.warnings == ()


def test_a4_row_codes_sex_the_other_way_and_its_ptau_has_no_pg():
    columns = {"BID": "B1", "AGEYR": "71.6", "SEX": "1", "EDCCNTU": "16", "APOEGN": "E3/E4", "APOEGNPRSNFLG": "1"}
    record = read({**columns, "MMSCORE": "29", "PTAU217": "0.217"})
    got = {name: v.value for name, v in record.values.items() if v.value is not None}
    assert got == {"age": 71.6, "sex": 0, "education": 16, "apoe4": 1, "apoe2": 0, "mmse": 29}
    assert len(record.warnings) == 1
    assert "'U/mL' is not known" in record.warnings[0]
    declared = read({**columns, "PTAU217": "0.217"}, {"PTAU217": {"Units": "pg/mL"}})
    assert declared.get("ptau217_msd") == pytest.approx(0.217)


def test_presets_are_found_out_or_named():
    row = TableRow("participants.tsv", {"PTGENDER": "1", "SEX": "1"})
    assert active_presets([row]) == ("adni",)
    assert active_presets([row], ["a4"]) == ("a4",)
    assert active_presets([TableRow("participants.tsv", {"AGE": "1"})]) == ()
    assert read({"SEX": "1"}, presets=["a4"]).get("sex") == 0
    assert read({"SEX": "1"}).get("sex") is None
    with pytest.raises(UsageError, match="no column preset 'adnii'; choose from adni, oasis3, a4"):
        active_presets([row], ["adnii"])


def test_json_levels_go_before_the_preset():
    levels = {"PTGENDER": {"Levels": {"1": "female", "2": "male"}}}
    assert read({"PTGENDER": "1"}, levels).get("sex") == 0


def test_canonical_name_goes_before_synonym_and_disagreement_is_told():
    record = read({"Age_at_scan": "60", "age": "70"})
    assert record.get("age") == 70
    assert "column age and participants.tsv, column Age_at_scan disagree on age" in record.warnings[0]
    same = read({"Age_at_scan": "70", "age": "70"})
    assert same.get("age") == 70
    assert same.warnings == ()
    first = read({"Age_at_scan": "60", "age_MRI": "70"})
    assert first.get("age") == 60
    assert len(first.warnings) == 1


def test_genotype_and_count_that_disagree():
    record = read({"apoe4": "1", "apoe_genotype": "e3/e3"})
    assert (record.get("apoe4"), record.get("apoe2")) == (1, 0)
    assert "disagree on apoe4" in record.warnings[0]


def test_empty_canonical_column_falls_back_to_synonym():
    record = read({"age": "n/a", "Age_at_scan": "60"})
    assert record.get("age") == 60
    assert record.warnings == ()


def test_duplicate_rows():
    row = {"participant_id": "sub-01", "age": "70", "sex": "F", "weight": "60"}
    same = read_record([TableRow("participants.tsv", row)] * 2)
    assert (same.get("age"), same.get("sex"), same.warnings) == (70, 0, ())
    filled = read_record([TableRow("participants.tsv", {**row, "age": "n/a"}), TableRow("participants.tsv", row)])
    assert (filled.get("age"), filled.warnings) == (70, ())
    other = TableRow("participants.tsv", {**row, "age": "71", "weight": "61"})
    differing = read_record([TableRow("participants.tsv", row), other])
    assert (differing.get("age"), differing.get("sex")) == (None, 0)
    assert differing.values["age"].note == "rows of this participant differ"
    assert len(differing.warnings) == 1
    assert "several rows for this participant that differ in age:" in differing.warnings[0]


def test_order_of_tables_and_sessions():
    rows = [
        TableRow("phenotype/other.tsv", {"age": "1.5", "mmse": "20", "education": "9"}),
        TableRow("participants.tsv", {"age": "60", "mmse": "21", "education": "16", "sex": "F"}),
        TableRow("phenotype/clinic.tsv", {"age": "61", "mmse": "22"}, session="2"),
        TableRow("sub-01/sub-01_sessions.tsv", {"age": "62", "mmse": "n/a"}, session="ses-2"),
        TableRow("sub-01/sub-01_sessions.tsv", {"age": "80", "cdr": "3"}, session="9"),
    ]
    record = read_record(rows, session="2")
    assert {n: record.get(n) for n in ("age", "mmse", "education", "sex", "cdr")} == {
        "age": 62,
        "mmse": 22,
        "education": 16,
        "sex": 0,
        "cdr": None,
    }
    assert record.warnings == ()
    without = read_record(rows)
    assert without.get("age") == 60
    assert len(without.warnings) == 1
    assert "phenotype/clinic.tsv, sub-01/sub-01_sessions.tsv" in without.warnings[0]


def test_one_age_for_several_sessions_is_warned_of():
    rows = [TableRow("participants.tsv", {"age": "61.5", "sex": "F"})]
    for options in ({"session": "M48"}, {"several_sessions": True, "session": "M48"}):
        record = read_record(rows, **options)
        assert (record.get("age"), record.values["age"].status) == (61.5, "found")
        assert len(record.warnings) == len(options) - 1
    assert record.warnings[0].startswith("participants.tsv, column age: one age is told for several sessions")
    assert "61" not in record.warnings[0]
    rows.append(TableRow("sub-01/sub-01_sessions.tsv", {"age": "65.5"}, session="ses-M48"))
    own = read_record(rows, session="M48", several_sessions=True)
    assert (own.get("age"), own.warnings) == (65.5, ())


def test_ratio_is_computed_only_from_the_same_assay():
    record = read({"ab42_simoa": "6", "ab40_simoa": "100", "ab40_lumipulse": "300"})
    assert record.get("ab42_40_simoa") == pytest.approx(0.06)
    assert record.values["ab42_40_simoa"].status == "computed"
    assert record.get("ab42_40_lumipulse") is None
    given = read({"ab42_simoa": "6", "ab40_simoa": "100", "ab42_40_simoa": "0.07"})
    assert given.get("ab42_40_simoa") == pytest.approx(0.07)
    mixed_units = read({"ab42_simoa": "6", "ab40_simoa": "0.1"}, {"ab40_simoa": {"Units": "ng/mL"}})
    assert mixed_units.get("ab42_40_simoa") == pytest.approx(0.06)
    absurd = read({"ab42_simoa": "150", "ab40_simoa": "100"})
    assert absurd.values["ab42_40_simoa"].status == "missing"
    assert "outside the plausible range of ab42_40_simoa" in absurd.warnings[0]


def test_ratio_is_of_one_visit():
    def visit(columns, session=None):
        file = "sub-01/sub-01_sessions.tsv" if session else "participants.tsv"
        return TableRow(file, columns, session=session)

    ratio = "ab42_40_lumipulse"
    parts = {"ab42_lumipulse": "20", "ab40_lumipulse": "300"}
    own = read_record([visit({ratio: "0.11"}), visit(parts, "1")], session="1")
    assert own.get(ratio) == pytest.approx(20 / 300) and own.values[ratio].status == "computed"
    own = read_record([visit(parts), visit({ratio: "0.11"}, "1")], session="1")
    assert own.get(ratio) == pytest.approx(0.11) and own.values[ratio].status == "found"
    mixed = [visit({"ab40_lumipulse": "300"}), visit({"ab42_lumipulse": "20"}, "1")]
    assert read_record(mixed, session="1").get(ratio) is None
    assert "is not computed from them" in read_record(mixed, session="1").warnings[0]


@pytest.mark.parametrize(
    ("blood", "scan", "message"),
    [
        ("2020-01-01", "2020-06-29T10:00:00", None),
        ("2020-01-01", "2020-06-30", "more than 180 days"),
        ("2020-12-31", "2020-01-01", "more than 180 days"),
        ("1905-01-01", "1905-02-01", None),
        ("2020-01-01", "1905-01-01", "shifted for anonymity"),
        ("03/04/2020", "2020-03-04", "not written as YYYY-MM-DD"),
        ("n/a", "2020-03-04", None),
        ("2020-01-01", None, None),
    ],
)
@pytest.mark.parametrize("column", ["blood_date", "plasma date", "EXAMDATE"])
def test_interval_between_blood_and_scan(blood, scan, message, column):
    record = read({"gfap_simoa": "150", column: blood}, scan_date=scan)
    assert record.get("gfap_simoa") == 150
    assert len(record.warnings) == (message is not None)
    assert all(message in warning and "  " not in warning for warning in record.warnings)


def test_interval_needs_plasma_and_takes_the_date_of_its_own_row():
    assert read({"age": "70", "blood_date": "2010-01-01"}, scan_date="2020-01-01").warnings == ()
    rows = [
        TableRow("participants.tsv", {"age": "70", "visit_date": "2010-01-01"}),
        TableRow("phenotype/blood.tsv", {"gfap_simoa": "150", "blood_date": "2019-12-01"}),
    ]
    assert read_record(rows, scan_date="2020-01-01").warnings == ()


SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
@pytest.mark.parametrize("name", ["ixi", "bids-examples/pet002"])
def test_real_participants(name):
    """Every row of two real datasets gives the age and sex that stand in it."""
    dictionary = json.loads((SHARED / name / "participants.json").read_text())
    with (SHARED / name / "participants.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert rows
    for row in rows:
        record = read(row, dictionary)
        assert record.get("age") == float(row["age"])
        assert record.get("sex") == {"F": 0, "M": 1}[row.get("sex") or row["gender"]]
        assert record.warnings == ()


def test_odd_json_does_not_break_the_reading():
    odd = {"age": {"Units": ["years"], "Levels": ["a"]}, "sex": "text", "MeasurementToolMetadata": "x"}
    record = read({"age": "70", "sex": "F", "ptau217": "0.3"}, odd)
    assert record.get("sex") == 0
    assert record.get("age") is None
    assert any("column age" in warning for warning in record.warnings)
