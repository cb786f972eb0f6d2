"""What an output folder and its BIDS dataset say of a cohort, as plain tables.

Nothing is computed here. Every frame but ``status`` has one row per scan, or per scan and tracer, and is indexed by
``participant_id``, ``session_id`` (empty in a dataset without sessions) and, where it depends on it, ``tracer``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bids_petsynth.bids.dataset import DONE, FAILED
from bids_petsynth.bids.naming import natural_order, output_path
from bids_petsynth.bids.tables import dataset_rows, read_tsv
from bids_petsynth.clinical.records import read_record
from bids_petsynth.clinical.text import is_missing
from bids_petsynth.clinical.variables import variables
from bids_petsynth.types import Case

if TYPE_CHECKING:
    from bids_petsynth.clinical.columns import ColumnMapping
    from bids_petsynth.reports.content import Scan

SCAN, PET = ["participant_id", "session_id"], ["participant_id", "session_id", "tracer"]
#: Columns of ``*_suvr.tsv`` that are kept for every region.
FIGURES = ("suvr", "sd", "low80", "high80", "low95", "high95")
WAITING = "not worked on yet"


@dataclass(frozen=True)
class Cohort:
    """All people of a dataset.

    Attributes
    ----------
    synthetic
        By scan and tracer, of what is done: the columns of ``*_measures.tsv`` as numbers, ``warnings`` (how many).
    regional
        Figure (see :data:`FIGURES`) → by scan and tracer one column per region and composite.
    anatomy
        By scan: figures of quality, and ``<region>`` columns with volumes in mm³ (:attr:`volumes`).
    records
        By scan: every canonical variable that somebody has, NaN where missing.
    columns
        By scan: text of all columns of the dataset's tables, empty where missing.
    status
        ``participant_id``, ``session_id``, ``tracer``, ``status`` (``done``, ``failed``, :data:`WAITING`), ``reason``.
    dates
        By scan: date of the T1w scan, NaT if unknown.
    models
        ``Model`` entries of the sidecars, each with ``DemonstrationModel``.
    taken
        Canonical variables that these models take, known or not, as the sidecars tell.
    sentences
        What is odd about the dataset's tables.
    """

    synthetic: pd.DataFrame
    regional: Mapping[str, pd.DataFrame]
    anatomy: pd.DataFrame
    records: pd.DataFrame
    columns: pd.DataFrame
    status: pd.DataFrame
    dates: pd.Series
    models: Sequence[Mapping[str, Any]] = ()
    taken: Sequence[str] = ()
    simulated: bool = False
    sentences: Sequence[str] = ()
    volumes: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def tracers(self) -> list[str]:
        """Tracers of which at least one scan is done, in the order of their first scan."""
        return list(dict.fromkeys(self.synthetic.index.get_level_values("tracer")))

    @property
    def demonstration(self) -> bool:
        """Whether a model in use was trained on simulated PET."""
        return any(model.get("DemonstrationModel") for model in self.models)

    @property
    def model_names(self) -> str:
        """Names and versions of the models in use, for people; empty where nothing is done."""
        return ", ".join(dict.fromkeys(f"{m.get('Name', '?')} {m.get('Version', '')}".strip() for m in self.models))

    @cached_property
    def first(self) -> pd.MultiIndex:
        """The first scan of every participant."""
        return self.once(self.anatomy).index

    def once(self, frame: pd.DataFrame, tracer: str | None = None) -> pd.DataFrame:
        """The rows of the participants' first scans (that have the tracer), indexed by scan, one per participant.

        First by date where all dates of the participant are known, else by session label (M6 before M12).
        """
        if tracer is not None:
            if tracer not in frame.index.get_level_values("tracer"):
                return frame.iloc[:0].droplevel("tracer")
            frame = frame.xs(tracer, level="tracer")
        order = frame.index.to_frame(index=False)
        date = pd.Series(self.dates.reindex(frame.index).to_numpy())
        known = date.notna().groupby(order["participant_id"]).transform("all")
        order = order.assign(date=date.where(known), place=range(len(order)))
        order = in_order(order, ["participant_id", "date", "session_id"])
        return frame.iloc[order.drop_duplicates("participant_id")["place"].to_numpy()]


def in_order(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Rows sorted by columns, labels of sessions so that M6 comes before M12."""

    def key(column: pd.Series) -> pd.Series:
        if column.name != "session_id":
            return column
        rank = {label: place for place, label in enumerate(sorted(set(column), key=natural_order))}
        return column.map(rank)

    return frame.sort_values(list(columns), kind="stable", key=key)


def read_cohort(
    out_dir: Path,
    bids_dir: Path,
    scans: Sequence[Scan],
    cases: Sequence[Case],
    mapping: ColumnMapping | None = None,
    simulated: bool = False,
) -> Cohort:
    """Tables of everybody.

    Parameters
    ----------
    out_dir, bids_dir
        Output folder of ``participant``, and the raw dataset.
    scans
        What ``reports.content`` read from the output folder.
    cases
        The scans of the dataset; whoever is not in ``scans`` is listed as :data:`WAITING`.
    mapping
        What the dataset's columns mean, as given to ``participant``.
    simulated
        Whether the dataset says that it is simulated.
    """
    measured, figures, anatomy, volumes = {}, {name: {} for name in FIGURES}, {}, {}
    status, models, taken = [], {}, {}
    for scan in scans:
        key = _key(scan.case)
        if scan.about:
            anatomy[key] = dict(scan.about.get("Quality", {}))
            volumes[key] = _volumes(out_dir, scan.case)
        for pet in scan.pets:
            where = (*key, pet.tracer.name)
            row = {name: _number(text) for name, text in pet.measures.items() if name != "target"}
            measured[where] = {"target": pet.measures.get("target", ""), **row, "warnings": len(scan.warnings)}
            for name, values in figures.items():
                values[where] = {region["name"]: _number(region.get(name)) for region in _unique(pet.regions)}
            about = {**pet.about.get("Model", {}), "DemonstrationModel": bool(pet.about.get("DemonstrationModel"))}
            models[str(about)] = about
            taken |= dict.fromkeys(pet.conditioning)
            status.append((*where, DONE, " ".join(scan.warnings)))
        status += [(*key, tracer, FAILED, reason) for tracer, reason in scan.failures.items()]
    seen = {_key(scan.case) for scan in scans}
    for case in cases:
        if _key(case) not in seen:
            status.append((*_key(case), "", WAITING, case.problem or ""))
    sentences: dict[str, None] = {}
    keys = sorted(anatomy)
    dates = {_key(case): case.t1w_date for case in cases}
    records, columns = {}, {}
    for participant, session in keys:
        rows, _ = dataset_rows(bids_dir, participant.removeprefix("sub-"), session.removeprefix("ses-") or None)
        date = dates.get((participant, session))
        record = read_record(rows, mapping, scan_date=date, session=session.removeprefix("ses-") or None)
        records[participant, session] = {n: v.value for n, v in record.values.items() if v.value is not None}
        columns[participant, session] = _texts(rows, sentences)
    known = _frame(records, SCAN, keys)
    ordered = [name for name in variables() if name in known.columns]
    stamps = [pd.to_datetime(dates.get(key), errors="coerce") for key in keys]
    return Cohort(
        synthetic=_frame(measured, PET),
        regional={name: _frame(values, PET) for name, values in figures.items()},
        anatomy=_frame(anatomy, SCAN, keys),
        records=known[ordered].astype(float),
        columns=_frame(columns, SCAN, keys).fillna("").astype(str),
        status=pd.DataFrame(status, columns=[*PET, "status", "reason"]),
        dates=pd.Series(pd.DatetimeIndex(stamps), index=_index(keys, SCAN)),
        models=tuple(models.values()),
        taken=tuple(taken),
        simulated=simulated,
        sentences=tuple(sentences),
        volumes=_frame(volumes, SCAN, keys).astype(float),
    )


def _key(case: Case) -> tuple[str, str]:
    return f"sub-{case.participant}", f"ses-{case.session}" if case.session else ""


def _index(keys: Sequence[tuple[str, ...]], names: list[str]) -> pd.MultiIndex:
    return (
        pd.MultiIndex.from_tuples(keys, names=names)
        if keys
        else pd.MultiIndex.from_arrays([[]] * len(names), names=names)
    )


def _frame(rows: Mapping[tuple[str, ...], Mapping], names: list[str], keys: Sequence | None = None) -> pd.DataFrame:
    """A frame of rows by their key, in sorted order; columns in the order in which they appear."""
    keys = sorted(rows) if keys is None else list(keys)
    return pd.DataFrame([rows.get(key, {}) for key in keys], index=_index(keys, names))


def _number(text: str | None) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")


def _unique(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Rows of a regional table, of a composite with the name of a region only the region: the two differ in cuts."""
    found: dict[str, Mapping[str, str]] = {}
    for row in rows:
        found.setdefault(row["name"], row)
    return list(found.values())


def _volumes(out_dir: Path, case: Case) -> dict[str, float]:
    path = out_dir / output_path("morph", case)
    rows = read_tsv(path)[0] if path.is_file() else []
    return {row["name"]: _number(row.get("volume-mm3")) for row in rows}


def _texts(rows: Sequence, sentences: dict[str, None]) -> dict[str, str]:
    """Every column's text; the first table that has a value counts, rows of one table that differ count as missing."""
    found: dict[str, str] = {}
    by_file: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        mine = by_file.setdefault(row.file, {})
        for name, text in row.columns.items():
            if name not in SCAN and not is_missing(text):
                mine.setdefault(name, set()).add(text)
    for file, columns in by_file.items():
        clash = sorted(name for name, texts in columns.items() if len(texts) > 1)
        if clash:
            sentences[f"{file} has rows of one participant that differ in {', '.join(clash)}: missing there."] = None
        for name, texts in columns.items():
            if len(texts) == 1:
                found.setdefault(name, next(iter(texts)))
    return found
