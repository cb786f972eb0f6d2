"""What participants.tsv, sessions.tsv, phenotype/*.tsv and their JSON say about one participant, as text.

Nothing is converted here. Tables made by hand come with a byte-order mark, Windows line ends, trailing tabs or Latin-1
umlauts; all of these are read, and what may be wrong is said in a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from bids_petsynth.types import TableRow


def read_tsv(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Rows of a tab-separated table, as text, and sentences on what is odd about it.

    Cells are stripped; a row shorter than the header is filled with ``n/a``; columns without a name and empty rows are
    dropped. A table that cannot be read gives no rows and a sentence.
    """
    try:
        return _parsed(path.read_bytes(), path.name)
    except OSError as error:
        return [], [_unreadable(path, error)]


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path.name} cannot be read ({error.strerror})."


def _parsed(data: bytes, file: str) -> tuple[list[dict[str, str]], list[str]]:
    """Rows and sentences of :func:`read_tsv` from the bytes of a table."""
    warnings: list[str] = []
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
        warnings.append(f"{file} is not UTF-8 and was read as Latin-1: save it as UTF-8.")
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    if not lines:
        return [], [*warnings, f"{file} is empty."]
    header = [name.strip() for name in lines[0].split("\t")]
    if len(header) == 1 and ("," in header[0] or ";" in header[0]):
        warnings.append(f"{file} is not separated by tabs: save it as tab-separated text.")
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        warnings.append(f"{file} has more than one column {', '.join(twice)}: the first one is used.")
    rows, long_rows = [], False
    for line in lines[1:]:
        cells = [cell.strip() for cell in line.split("\t")]
        long_rows |= any(cells[len(header) :])
        cells += ["n/a"] * (len(header) - len(cells))
        row: dict[str, str] = {}
        for name, cell in zip(header, cells, strict=False):
            if name:
                row.setdefault(name, cell)
        rows.append(row)
    if long_rows:
        warnings.append(f"{file} has rows with more cells than columns: the surplus cells are ignored.")
    return rows, warnings


def dataset_rows(bids_dir: Path, participant: str, session: str | None = None) -> tuple[list[TableRow], list[str]]:
    """All rows about a participant: participants.tsv, then sessions.tsv, then phenotype tables by name.

    Parameters
    ----------
    bids_dir
        The dataset.
    participant, session
        Labels with or without ``sub-``/``ses-``. With a session, rows of other sessions are left out (and a sentence
        says so where that leaves nothing of a table); without one, the rows of all sessions are given, each with its
        ``session``.

    Returns
    -------
    rows
        Every matching row, so a duplicate appears twice.
    warnings
        Sentences on tables that are absent, odd or silent about the participant.
    """
    bids_dir = Path(bids_dir)
    label = participant.removeprefix("sub-")
    wanted = session.removeprefix("ses-") if session else None
    rows: list[TableRow] = []
    warnings: list[str] = []

    main = bids_dir / "participants.tsv"
    if main.exists():
        found, said = _matching(bids_dir, main, label, None)
        rows += found
        warnings += said
        if not found and not said:
            warnings.append(f"participants.tsv has no row for sub-{label}.")
    else:
        warnings.append("The dataset has no participants.tsv.")

    by_session = bids_dir / f"sub-{label}" / f"sub-{label}_sessions.tsv"
    phenotype = sorted((bids_dir / "phenotype").glob("*.tsv"))
    for table in [by_session] * by_session.exists() + phenotype:
        found, said = _matching(bids_dir, table, label, wanted, of_one=table == by_session)
        rows += found
        warnings += said
    return rows, warnings


def _matching(
    bids_dir: Path, table: Path, label: str, session: str | None, of_one: bool = False
) -> tuple[list[TableRow], list[str]]:
    """Rows of one table about one participant; in a table ``of_one`` participant, all rows are about that one."""
    name = table.relative_to(bids_dir).as_posix()
    if of_one:
        mine, warnings = read_tsv(table)
    else:
        try:
            about = table.stat()
            by_label, said = _by_participant(table, about.st_mtime_ns, about.st_size)
        except OSError as error:
            return [], [_unreadable(table, error)]
        if by_label is None:
            return [], [*said, f"{name} has no column participant_id and is ignored."]
        mine, warnings = by_label.get(label, []), list(said)
    kept = [row for row in mine if session is None or _session(row) in (None, session)]
    if mine and not kept:
        warnings.append(f"{name} has rows for sub-{label}, but none for session {session}: they are not used.")
    if not kept:
        return [], warnings
    dictionary, said = _dictionary(bids_dir, table)
    # MeasurementToolMetadata describes the whole table and is where phenotype files name their assay
    wanted = {*kept[0], "MeasurementToolMetadata"}
    columns = {column: text for column, text in dictionary.items() if column in wanted and isinstance(text, Mapping)}
    return [TableRow(name, row, columns, _session(row)) for row in kept], warnings + said


@lru_cache(maxsize=512)
def _by_participant(
    table: Path, modified_ns: int, size: int
) -> tuple[Mapping[str, list[dict[str, str]]] | None, tuple[str, ...]]:
    """Rows of a table by the label of whom they are about, and sentences; None if it has no participant_id.

    A table is parsed once, not for each participant, as long as its time and ``size`` stay; ``OSError`` if it cannot be
    read.
    """
    content, warnings = _parsed(table.read_bytes(), table.name)
    if content and "participant_id" not in content[0]:
        return None, tuple(warnings)
    rows: dict[str, list[dict[str, str]]] = {}
    for row in content:
        rows.setdefault(row["participant_id"].removeprefix("sub-"), []).append(row)
    return rows, tuple(warnings)


def _session(row: Mapping[str, str]) -> str | None:
    """Session label of a row, without ``ses-``; None where it has none."""
    text = row.get("session_id", "n/a")
    return None if text in ("", "n/a") else text.removeprefix("ses-")


def _dictionary(bids_dir: Path, table: Path) -> tuple[dict[str, Any], list[str]]:
    """JSON of a table; a sessions.json at the dataset's root holds for all, the one beside the table wins."""
    paths = [table.with_suffix(".json")]
    if table.name.endswith("_sessions.tsv"):
        paths.insert(0, bids_dir / "sessions.json")
    merged: dict[str, Any] = {}
    warnings = []
    for path in paths:
        if path.exists():
            try:
                merged |= read_json(path)
            except ValueError as error:
                warnings.append(f"{path.relative_to(bids_dir).as_posix()} is ignored: {error}.")
    return merged, warnings


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ``ValueError`` with the reason if it cannot be read or is something else."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError("is not a JSON object")
    return content
