"""The group report: tables as TSV with a JSON data dictionary each, figures, and one HTML file that holds them all."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from bids_petsynth.bids.naming import output_path, sidecar_path
from bids_petsynth.bids.sink import json_text, tsv_text, write_bytes
from bids_petsynth.evaluation.findings import Section, Table
from bids_petsynth.reports.pages import render
from bids_petsynth.tables import data_path, read_table
from bids_petsynth.workflows.outputs import columns_of

#: Rows of one table that the page shows; the file beside it has them all.
SHOWN = 4000
#: How words of column names are spelt in headings.
_SPELLING = {
    **{word.lower(): word for word in ("AUC", "Centiloid", "CRPS", "ECE", "F1", "FID", "ICC", "MAE", "MS", "MSE")},
    **{word.lower(): word for word in ("PSNR", "SD", "SSIM", "SUVR", "T1w")},
    "fov": "field of view",
    "minmax": "min–max",
}
_TYPES = {"jpg": "image/jpeg", "svg": "image/svg+xml"}


@cache
def dictionary() -> Mapping[tuple[str, str], Mapping[str, str]]:
    """Table (``*``: any) and column → ``Description`` and ``Units``, from ``data/group_columns.tsv``."""
    return {
        (row["table"], row["column"]): {
            key: text for key, text in (("Description", row["description"]), ("Units", row["units"])) if text
        }
        for row in read_table("group_columns.tsv")
    }


def about_column(table: str, column: str) -> Mapping[str, str]:
    """What a column of a table means; empty if the dictionary lacks it."""
    known = dictionary()
    found = known.get((table, column)) or known.get(("*", column)) or columns_of("measures").get(column)
    for end, text in (("_low", "Lower"), ("_high", "Upper")):
        if not found and column.endswith(end) and (of := about_column(table, column.removesuffix(end))):
            return {**of, "Description": f"{text} end of the 95 % interval of: {of['Description']}"}
    return found or {}


def write_group(
    out_dir: Path,
    sections: Sequence[Section],
    facts: Sequence[tuple[str, str]],
    reports: Mapping[str, Path],
    demonstration: bool,
    simulated: bool,
    about: Mapping[str, Any],
) -> Path:
    """Write all tables and figures under ``group/`` and the report ``group.html``.

    Parameters
    ----------
    out_dir
        The output folder.
    sections
        In the order of the page; those without content are left out.
    facts
        Name and text of what stands at the top.
    reports
        ``participant_id`` → path of the participant's report, relative to ``out_dir``.
    demonstration, simulated
        Whether a model was trained on simulated PET; whether the dataset itself is simulated.
    about
        Goes into the JSON of every table, beside the description of its columns.

    Returns
    -------
    Path of the report.
    """
    kept = [section for section in sections if section.sentences or section.tables or section.figures]
    written: set[Path] = set()
    for table in (table for section in kept for table in section.tables):
        written |= set(_write_table(out_dir, table, about))
    for figure in (figure for section in kept for figure in section.figures):
        path = out_dir / figure_path(figure)
        write_bytes(path, figure.content)
        written.add(path)
    _forget_others(out_dir, written)
    style = _asset("style.css") + _asset("group.css")
    script = _asset("group.js")
    page = render(
        "group.html",
        title="Synthetic PET of the group",
        sections=[_shown(section, reports) for section in kept],
        facts=facts,
        demonstration=demonstration,
        simulated=simulated,
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return write_bytes(out_dir / output_path("group_report"), page.encode())


def table_path(table: Table) -> Path:
    """Where a table lies in the output folder."""
    return output_path("group_table", table=table.name)


def figure_path(figure: Any) -> Path:
    """Where a figure lies in the output folder."""
    return output_path("group_figure", desc=figure.desc, extension=figure.extension)


def _asset(name: str) -> str:
    return data_path("reports", name).read_text(encoding="utf-8")


def _write_table(out_dir: Path, table: Table, about: Mapping[str, Any]) -> tuple[Path, Path]:
    """The TSV, then its data dictionary."""
    path = out_dir / table_path(table)
    columns = [str(column) for column in table.frame.columns]
    write_bytes(path, tsv_text(table.frame.to_dict("records"), columns).encode())
    text = f"{table.title}. {table.note}".strip()
    told = {"Description": text, **about, **{column: about_column(table.name, column) for column in columns}}
    write_bytes(sidecar_path(path), json_text(told).encode())
    return path, sidecar_path(path)


def _forget_others(out_dir: Path, written: set[Path]) -> None:
    """Remove tables and figures of an earlier run that this one did not make: they would be out of date."""
    folder = out_dir / output_path("group_table", table="x").parent
    for path in (*folder.glob("*.tsv"), *folder.glob("*.json"), *(folder / "figures").glob("*")):
        if path not in written and not path.name.startswith("."):
            path.unlink(missing_ok=True)


def _shown(section: Section, reports: Mapping[str, Path]) -> dict[str, Any]:
    """A section as the page takes it."""
    return {
        "name": section.name,
        "title": section.title,
        "sentences": section.sentences,
        "tables": [_shown_table(table, reports) for table in section.tables],
        "figures": [_shown_figure(figure) for figure in section.figures],
    }


def _shown_figure(figure: Any) -> dict[str, Any]:
    data = base64.b64encode(figure.content).decode()
    return {
        "source": f"data:{_TYPES[figure.extension]};base64,{data}",
        "alt": figure.alt,
        "caption": figure.caption,
        "file": figure_path(figure).as_posix(),
        "wide": figure.desc.endswith("wide"),
    }


def _shown_table(table: Table, reports: Mapping[str, Path]) -> dict[str, Any]:
    frame = table.frame if table.shown is None else table.shown
    cut = frame.head(SHOWN)
    names = [str(column) for column in cut.columns]
    ends = {name: (f"{name}_low", f"{name}_high") for name in names if {f"{name}_low", f"{name}_high"} <= set(names)}
    hidden = {end for pair in ends.values() for end in pair}
    # what nobody has a value in, such as sessions where there are none, is in the file
    empty = {name for name in names if len(cut) and (cut[name].isna() | (cut[name].astype(str) == "")).all()}
    columns = [name for name in names if name not in hidden and name not in empty]
    rows = []
    for row in cut.itertuples(index=False, name=None):
        values = dict(zip(names, row, strict=True))
        cells = [_shown_cell(name, values[name], reports) for name in columns]
        for place, name in enumerate(columns):
            if name in ends and cells[place]["number"] is not None:
                low, high = (_shown_cell(end, values[end], reports)["text"] for end in ends[name])
                cells[place]["text"] += f" [{low}, {high}]" if "n/a" not in (low, high) else ""
        rows.append(cells)
    more = ""
    if len(cut) < len(table.frame):
        more = f"{len(cut)} of {len(table.frame)} rows are shown; all are in {table_path(table).as_posix()}."
    return {
        "name": table.name,
        "title": table.title,
        "note": table.note,
        "file": table_path(table).as_posix(),
        "columns": [_heading(table.name, column, column in ends) for column in columns],
        "rows": rows,
        "more": more,
        "filters": [
            {"label": name.replace("_", " "), "index": columns.index(name), "options": _options(name, cut[name])}
            for name in table.filters
            if name in columns
        ],
    }


def _options(column: str, values: pd.Series) -> list[str]:
    return sorted({_shown_cell(column, value, {})["text"] for value in values})


def _words(name: str) -> str:
    """A column's or figure's name as words: ``ms_ssim_fov`` is "MS SSIM field of view"."""
    return " ".join(_SPELLING.get(word, word) for word in name.split("_"))


def _heading(table: str, column: str, interval: bool) -> dict[str, str]:
    about = about_column(table, column)
    units = f" ({about['Units']})" if about.get("Units") and about["Units"] != "unitless" else ""
    label = _words(column) + (" [95 %]" if interval else "")
    return {"label": label, "description": about.get("Description", "") + units}


def _shown_cell(column: str, value: Any, reports: Mapping[str, Path]) -> dict[str, Any]:
    number = None
    if isinstance(value, bool) or hasattr(value, "dtype") and value.dtype == bool:
        text = "yes" if value else "no"
    elif isinstance(value, int | float) or hasattr(value, "dtype"):
        number = float(value) if math.isfinite(float(value)) else None
        text = "n/a" if number is None else _number(number)
    else:
        text = "n/a" if value is None or value is pd.NaT or value == "" else str(value)
    text = _words(text) if column == "figure" else text
    link = quote(reports[value].as_posix()) if column == "participant_id" and value in reports else ""
    return {"text": text, "number": number, "link": link}


def _number(value: float) -> str:
    """Three or four digits; a difference that is rounding alone is 0."""
    if abs(value) < 1e-9:
        return "0"
    return f"{value:.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"


def state_of(paths: Sequence[Path], settings: Any) -> str:
    """Hash of the names, sizes and times of files and of the settings: the same state needs no new report."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in sorted(paths):
        try:
            found = path.stat()
        except OSError:
            continue
        digest.update(f"{path}\t{found.st_size}\t{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
