"""Reading a dataset's tables, tidy or made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bids_petsynth.bids import tables
from bids_petsynth.bids.tables import dataset_rows, read_tsv
from bids_petsynth.types import TableRow


def put(root: Path, name: str, content: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_rows_of_all_tables(tmp_path: Path) -> None:
    put(tmp_path, "participants.tsv", "participant_id\tage\tsex\nsub-01\t70\tF\nsub-02\t71\tM\n")
    put(tmp_path, "participants.json", json.dumps({"age": {"Units": "year"}, "other": {}, "sex": "text"}))
    put(tmp_path, "sub-01/sub-01_sessions.tsv", "session_id\tacq_time\nses-1\t2020-01-01\nses-2\t2021-01-01\n")
    put(tmp_path, "sessions.json", json.dumps({"acq_time": {"Description": "root"}}))
    put(tmp_path, "phenotype/blood.tsv", "participant_id\tsession_id\tptau217\nsub-01\tses-1\t0.3\nsub-01\tn/a\t0.4\n")
    put(tmp_path, "phenotype/blood.json", json.dumps({"ptau217": {"Units": "pg/mL"}}))
    rows, warnings = dataset_rows(tmp_path, "sub-01")
    assert not warnings
    assert rows == [
        TableRow("participants.tsv", {"participant_id": "sub-01", "age": "70", "sex": "F"}, {"age": {"Units": "year"}}),
        *(
            TableRow(
                "sub-01/sub-01_sessions.tsv",
                {"session_id": f"ses-{i}", "acq_time": f"202{i - 1}-01-01"},
                {"acq_time": {"Description": "root"}},
                f"{i}",
            )
            for i in (1, 2)
        ),
        *(
            TableRow(
                "phenotype/blood.tsv",
                {"participant_id": "sub-01", "session_id": session, "ptau217": value},
                {"ptau217": {"Units": "pg/mL"}},
                label,
            )
            for session, value, label in (("ses-1", "0.3", "1"), ("n/a", "0.4", None))
        ),
    ]
    rows, warnings = dataset_rows(tmp_path, "01", "ses-2")
    assert [(row.file, row.session) for row in rows] == [
        ("participants.tsv", None),
        ("sub-01/sub-01_sessions.tsv", "2"),
        ("phenotype/blood.tsv", None),
    ]


def test_rows_of_another_session_are_not_used_silently(tmp_path: Path) -> None:
    put(tmp_path, "participants.tsv", "participant_id\n01\n")
    put(tmp_path, "phenotype/blood.tsv", "participant_id\tsession_id\nsub-01\tses-1\n")
    rows, warnings = dataset_rows(tmp_path, "01", "2")
    assert [row.file for row in rows] == ["participants.tsv"]
    assert warnings == ["phenotype/blood.tsv has rows for sub-01, but none for session 2: they are not used."]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfparticipant_id\tage\r\nsub-01\t70\r\n",
        b"participant_id\tage\t\t\nsub-01\t 70 \t\t\n\n\t\t\n",
        b"participant_id\tage\rsub-01\t70\r",
        "participant_id\tage\nsub-01\t70\n".encode("utf-16"),
    ],
)
def test_tables_made_by_hand(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "participants.tsv", content)
    rows, warnings = dataset_rows(tmp_path, "01")
    assert [dict(row.columns) for row in rows] == [{"participant_id": "sub-01", "age": "70"}]
    assert not warnings


def test_latin1_is_read_with_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "participants.tsv", "participant_id\tsite\nsub-01\tKöln\n".encode("latin-1"))
    rows, warnings = dataset_rows(tmp_path, "01")
    assert rows[0].columns["site"] == "Köln"
    assert warnings == ["participants.tsv is not UTF-8 and was read as Latin-1: save it as UTF-8."]


def test_a_table_is_parsed_once_and_again_when_it_has_changed(tmp_path: Path, monkeypatch) -> None:
    parsed = []
    true = tables._parsed
    monkeypatch.setattr(tables, "_parsed", lambda data, file: parsed.append(file) or true(data, file))
    labels = [f"{i:02d}" for i in range(50)]
    put(tmp_path, "participants.tsv", "participant_id\tage\n" + "".join(f"sub-{i}\t{i}\n" for i in labels))
    put(tmp_path, "phenotype/blood.tsv", "participant_id\tsite\nsub-07\tKöln\n".encode("latin-1"))
    found = [dataset_rows(tmp_path, label) for label in labels]
    assert parsed == ["participants.tsv", "blood.tsv"]
    assert [rows[0].columns["age"] for rows, _ in found] == labels
    assert [len(rows) for rows, _ in found] == [1] * 7 + [2] + [1] * 42
    assert {len(warnings) for _, warnings in found} == {1}, "what is odd about a table is told for everybody"
    put(tmp_path, "participants.tsv", "participant_id\tage\nsub-07\t171\n")
    assert dataset_rows(tmp_path, "07")[0][0].columns["age"] == "171"


def test_duplicates_are_all_reported(tmp_path: Path) -> None:
    put(tmp_path, "participants.tsv", "participant_id\tage\nsub-01\t70\n01\t71\n")
    assert [row.columns["age"] for row in dataset_rows(tmp_path, "01")[0]] == ["70", "71"]


def test_label_is_not_matched_by_its_beginning(tmp_path: Path) -> None:
    put(tmp_path, "participants.tsv", "participant_id\nsub-011\n")
    assert dataset_rows(tmp_path, "01") == ([], ["participants.tsv has no row for sub-01."])


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "no participants.tsv"),
        ("", "is empty"),
        ("participant_id,age\nsub-01,70\n", "not separated by tabs"),
        ("subject\tage\nsub-01\t70\n", "no column participant_id"),
        ("participant_id\tage\tage\nsub-01\t70\t71\n", "more than one column age"),
        ("participant_id\tage\nsub-01\t70\t71\n", "more cells than columns"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        put(tmp_path, "participants.tsv", content)
    assert any(words in warning for warning in dataset_rows(tmp_path, "01")[1])


def test_short_rows_and_broken_dictionary(tmp_path: Path) -> None:
    put(tmp_path, "participants.tsv", "participant_id\tage\tsex\nsub-01\t70\n")
    put(tmp_path, "participants.json", "{")
    rows, warnings = dataset_rows(tmp_path, "01")
    assert rows[0].columns["sex"] == "n/a" and rows[0].dictionary == {}
    assert "participants.json is ignored" in warnings[0]


def test_unreadable_table(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").mkdir()
    rows, warnings = read_tsv(tmp_path / "t.tsv")
    assert rows == [] and "cannot be read" in warnings[0]
