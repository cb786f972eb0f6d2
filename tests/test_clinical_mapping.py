"""The mapping file: written with the guesses, read back, overriding them, and refused with a line number."""

from __future__ import annotations

import csv

import pytest

from bids_petsynth.clinical.mapping import HEADER, read_mapping, write_mapping
from bids_petsynth.clinical.records import read_record
from bids_petsynth.errors import UsageError
from bids_petsynth.types import TableRow

ROW = TableRow(
    "participants.tsv",
    {
        "participant_id": "sub-01",
        "age": "70",
        "PTGENDER": "2",
        "weight": "60",
        "mystery": "0.31",
        "ptau217": "0.22",
        "school": "14",
        "ab42_lumipulse": "30",
        "education": "3",
    },
    {
        "ab42_lumipulse": {"Description": "cerebrospinal fluid"},
        "age": {"Units": "years"},
        "education": {"Levels": {"3": "some college"}},
    },
)


def lines(path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {line["column"]: line for line in csv.DictReader(file, delimiter="\t")}


def write(path, *rows: dict[str, str]):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER, delimiter="\t", restval="n/a")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_one_line_for_each_column_with_the_guess(tmp_path):
    found = lines(write_mapping(tmp_path / "map.tsv", [ROW, ROW]))
    assert list(found) == [name for name in ROW.columns if name != "participant_id"]
    assert (found["age"]["variable"], found["age"]["unit"]) == ("age", "years")
    assert (found["PTGENDER"]["variable"], found["PTGENDER"]["levels"]) == ("sex", "1=male;2=female")
    assert found["mystery"]["variable"] == "n/a"
    assert found["ptau217"]["variable"] == "ptau217"
    assert "the assay is not named" in found["ptau217"]["notes"]
    assert found["ab42_lumipulse"]["variable"] == "ignore"


def test_unchanged_mapping_changes_nothing(tmp_path):
    mapping = read_mapping(write_mapping(tmp_path / "map.tsv", [ROW]))
    before, after = read_record([ROW]), read_record([ROW], mapping)
    assert {n: v.value for n, v in before.values.items()} == {n: v.value for n, v in after.values.items()}
    assert {n: v.status for n, v in before.values.items()} == {n: v.status for n, v in after.values.items()}


def test_mapping_overrides_guesses(tmp_path):
    path = write(
        tmp_path / "map.tsv",
        {"file": "participants.tsv", "column": "mystery", "variable": "gfap_lumipulse", "unit": "ng/mL"},
        {"column": "ptau217", "variable": "ptau217", "assay": "msd"},
        {"column": "PTGENDER", "variable": "sex", "levels": "1=female;2=male"},
        {"column": "school", "variable": "education"},
        {"column": "age", "variable": "ignore"},
        {"column": "ab42_lumipulse", "variable": "ab42_lumipulse"},
        {"file": "phenotype/x.tsv", "column": "weight", "variable": "age"},
        {"column": "education", "variable": "n/a"},
    )
    record = read_record([ROW], read_mapping(path))
    found = {name: v.value for name, v in record.values.items() if v.value is not None}
    assert found == {
        "gfap_lumipulse": 310,
        "ptau217_msd": 0.22,
        "sex": 1,
        "education": 14,
        "ab42_lumipulse": 30,
    }


def test_existing_file_is_not_overwritten(tmp_path):
    (tmp_path / "map.tsv").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        write_mapping(tmp_path / "map.tsv", [ROW])
    assert (tmp_path / "map.tsv").read_text() == "mine"
    with pytest.raises(UsageError, match="cannot be written"):
        write_mapping(tmp_path / "absent" / "map.tsv", [ROW])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"column": "x", "variable": "ptau999"}, "line 2: there is no variable 'ptau999'; choose from age"),
        ({"column": "x", "variable": "ptau217", "assay": "elisa"}, "no assay 'elisa'; choose from lumipulse"),
        ({"column": "x", "variable": "gfap_simoa", "assay": "msd"}, "not a variable of the assay msd"),
        ({"column": "x", "variable": "age", "unit": "pg/mL"}, "cannot be converted to years"),
        ({"column": "x", "variable": "gfap", "unit": "U/mL"}, "cannot be converted to pg/mL"),
        ({"column": "x", "variable": "sex", "levels": "1 male"}, "code=meaning"),
        ({"column": "", "variable": "sex"}, "name is missing"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    with pytest.raises(UsageError, match="map.tsv, line 2:") as error:
        read_mapping(write(tmp_path / "map.tsv", line))
    assert message in str(error.value)


def test_bad_files(tmp_path):
    line = {"column": "x", "variable": "age"}
    with pytest.raises(UsageError, match="line 3: the column 'x' is there twice"):
        read_mapping(write(tmp_path / "twice.tsv", line, line))
    (tmp_path / "comma.tsv").write_text("column,variable\nx,age\n")
    with pytest.raises(UsageError, match="no column 'column' in its header"):
        read_mapping(tmp_path / "comma.tsv")
    (tmp_path / "binary.tsv").write_bytes(b"\xff\xfe\x00")
    for name in ("binary.tsv", "absent.tsv"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_mapping(tmp_path / name)
