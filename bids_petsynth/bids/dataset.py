"""The files of the whole output dataset: description, explanations, state of every participant, cohort table.

Several processes, such as the tasks of a cluster's array job, may share an output folder. Files whose content does not
depend on who writes them are written if they differ. Tables over all participants are kept as ``bids.collected`` tells.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_petsynth.bids.collected import bring_up_to_date
from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.sink import cell, json_text, tsv_text, write_bytes
from bids_petsynth.bids.tables import read_json, read_tsv
from bids_petsynth.errors import UsageError
from bids_petsynth.types import Case

BIDS_VERSION = "1.10.0"
DONE, FAILED = "done", "failed"
STATUS_COLUMNS = ("participant_id", "session_id", "tracer", "status", "reason")
_RECORDS = Path("logs", "status")
_OF_TRACER = re.compile(r"sub-([A-Za-z0-9+]+)(?:_ses-([^_]+))?_trc-([A-Za-z0-9+]+)")
_BEGUN = (
    "begun and not ended. If no run is at work on it, the run was killed, most often because memory or time ran out; "
    "grant more and run again."
)

# What BIDS has no rule for, and leftovers of a killed run. The validator misses a folder written with a slash.
_IGNORED = (
    "*.html",
    "logs",
    "models",
    "figures",
    "*_tacs.*",
    "*_morph.*",
    "*_measures.*",
    "*_suvr.*",
    "*_sensitivity.*",
    "*_classes.*",
    "*_xfm.*",
    "group",
    "group_*",
    "status.tsv",
    ".*.tmp",
)

_DESCRIPTIONS = {
    "preproc": "T1w with its bias field corrected, on its own grid, head and skull kept",
    "brain": "brain mask of the T1w",
    "synthMean": "SYNTHETIC, not measured: mean over the draws of a generative model, PET in SUVR",
    "synthStd": "SYNTHETIC, not measured: standard deviation over the draws, PET in SUVR",
    "synth01": "SYNTHETIC, not measured: one draw of the model, PET in SUVR; synth02 and so on are further draws",
}


def made_here(about: Mapping[str, Any]) -> bool:
    """Whether a ``dataset_description.json`` says that this software made the dataset."""
    makers = about.get("GeneratedBy")
    makers = makers if isinstance(makers, list) else []
    names = [str(maker.get("Name", "")) for maker in makers if isinstance(maker, dict)]
    return any(name.replace("_", "-").startswith("bids-petsynth") for name in names)


def check_ours(out_dir: Path, kind: str) -> None:
    """Refuse a folder that holds somebody else's dataset, whose files would be written over.

    Parameters
    ----------
    kind
        ``DatasetType`` of the dataset that is to be written.

    Raises
    ------
    UsageError
        If ``dataset_description.json`` is there and of another type, or not of this software; or if it is not there,
        but a file of somebody else's that has the name of one of ours, such as the README of a project.
    """
    path = Path(out_dir) / "dataset_description.json"
    if path.is_file():
        try:
            about = read_json(path)
        except ValueError:
            about = {}
        ours = made_here(about) and about.get("DatasetType", "raw") == kind
    else:
        # another task, which writes the description first, may have written these since
        ours = not any(_is_other(path.with_name(name), content) for name, content in _explanations().items())
    if not ours:
        raise UsageError(
            f"{out_dir} holds another dataset, whose files would be written over; choose a new or an empty folder."
        )


def _is_other(path: Path, content: bytes) -> bool:
    """Whether a file is there and holds something else, or cannot be read."""
    try:
        return path.read_bytes() != content
    except FileNotFoundError:
        return False
    except OSError:
        return True


def write_dataset_files(
    out_dir: Path, bids_dir: Path, version: str, derivatives: Mapping[str, Path] | None = None, code_url: str = ""
) -> None:
    """Write dataset_description.json, descriptions.tsv, README and .bidsignore of the output dataset where they differ.

    Parameters
    ----------
    out_dir, bids_dir
        Output folder and raw dataset; the names ``raw`` and those of ``derivatives`` can be used in BIDS URIs of
        ``Sources``.
    version, code_url
        Of this software.
    derivatives
        Name → folder of preprocessed datasets that are used.

    Raises
    ------
    UsageError
        If ``out_dir`` is the raw dataset itself or holds another one, which would be overwritten, or cannot be written
        to.
    """
    out_dir, bids_dir = Path(out_dir), Path(bids_dir)
    if out_dir.resolve() == bids_dir.resolve():
        raise UsageError(
            f"The output folder {out_dir} is the BIDS dataset itself: choose another, such as its derivatives/petsynth."
        )
    try:
        raw = read_json(bids_dir / "dataset_description.json")
    except ValueError as error:
        raise UsageError(
            f"{bids_dir / 'dataset_description.json'} {error}: correct it, a BIDS dataset needs one."
        ) from None
    check_ours(out_dir, "derivative")
    links = {
        "raw": _link(out_dir, bids_dir),
        **{name: _link(out_dir, Path(path)) for name, path in (derivatives or {}).items()},
    }
    write_bytes(out_dir / "dataset_description.json", json_text(_description(raw, version, code_url, links)).encode())
    for name, content in _explanations().items():
        write_bytes(out_dir / name, content)


def _explanations() -> dict[str, bytes]:
    """Name → content of the files that are the same in every output dataset."""
    rows = [{"desc_id": f"desc-{label}", "description": text} for label, text in _DESCRIPTIONS.items()]
    texts = {"descriptions.tsv": tsv_text(rows), ".bidsignore": "\n".join(_IGNORED) + "\n", "README": _README}
    return {name: text.encode() for name, text in texts.items()}


def _description(raw: Mapping[str, Any], version: str, code_url: str, links: Mapping[str, str]) -> dict[str, Any]:
    """Content of dataset_description.json."""
    software = {"Name": "bids_petsynth", "Version": version, "CodeURL": code_url}
    source = {"URL": links["raw"], "Version": raw.get("DatasetVersion", "")}
    if doi := raw.get("DatasetDOI"):
        source |= {"URL": _doi_url(str(doi)), "DOI": str(doi)}
    description = {
        "Name": "bids_petsynth - synthetic PET from T1w and clinical values",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": raw.get("License", ""),
        "Authors": raw.get("Authors", []),
        "HowToAcknowledge": "State that the PET images are synthetic, name bids_petsynth, its version and the model, "
        "and cite the source dataset.",
        "GeneratedBy": [{key: value for key, value in software.items() if value}],
        "SourceDatasets": [{key: value for key, value in source.items() if value}],
        "DatasetLinks": dict(links),
    }
    return {key: value for key, value in description.items() if value}


def _doi_url(doi: str) -> str:
    """Address of a DOI, however it is written."""
    return "https://doi.org/" + doi.removeprefix("https://doi.org/").removeprefix("doi:")


def _link(out_dir: Path, dataset: Path) -> str:
    """A dataset as a URI: relative if the outputs lie inside (both then move together), else its full path."""
    out, root = out_dir.resolve(), dataset.resolve()
    return Path(os.path.relpath(root, out)).as_posix() if out.is_relative_to(root) else root.as_uri()


def record_status(
    out_dir: Path,
    case: Case,
    tracer: str | None,
    status: str,
    reason: str = "",
    run: Mapping[str, Any] | None = None,
) -> None:
    """Note how a case (for one tracer, or as a whole if None) ended; ``write_status`` collects the notes.

    ``status`` is ``DONE`` or ``FAILED``; ``reason`` is the sentence that the user was told, of what is done the
    warnings of values and labels. ``run`` is what ``sidecars.run_metadata`` tells of a failure, which leaves no sidecar
    that would.
    """
    if status not in (DONE, FAILED):
        raise ValueError(f"{status!r} is no status.")
    session = f"ses-{case.session}" if case.session else None
    row = dict(zip(STATUS_COLUMNS, (f"sub-{case.participant}", session, tracer, status, reason), strict=True))
    write_bytes(_note_path(out_dir, case, tracer), json_text({**row, **(run or {})}).encode())
    if tracer:  # an earlier failure of the whole case is over
        _note_path(out_dir, case, None).unlink(missing_ok=True)


def _note_path(out_dir: Path, case: Case, tracer: str | None) -> Path:
    return Path(out_dir) / _RECORDS / (case.label + (f"_trc-{tracer}" if tracer else "") + ".json")


def forget_sessionless(out_dir: Path, bids_dir: Path, cases: Sequence[Case]) -> set[str]:
    """Remove the note that a participant failed as a whole where its T1w have since come in sessions; give its label.

    The note says that there was no T1w, or is about one that lay in no session. So it stays where no case has a T1w,
    and where one that lies in no session is there, though only some sessions were asked for.
    """
    by_participant: dict[str, list[Case]] = {}
    for case in cases:
        by_participant.setdefault(case.participant, []).append(case)
    over = set()
    for participant, own in by_participant.items():
        whole = Case(participant, None, None)
        note = status_note(out_dir, whole, None)
        came = all(case.session for case in own) and any(case.t1w for case in own)
        sessionless = (Path(bids_dir) / f"sub-{participant}" / "anat").glob("*_T1w.nii*")
        if note and note[0] == FAILED and came and not any(sessionless):
            _note_path(out_dir, whole, None).unlink(missing_ok=True)
            over.add(participant)
    return over


def record_begun(out_dir: Path, case: Case, tracer: str | None, run: Mapping[str, Any] | None = None) -> None:
    """Note that work on a case begins. The note stands for its failure if the run is killed and cannot tell."""
    record_status(out_dir, case, tracer, FAILED, f"{case.label}: {_BEGUN}", run)


def status_note(out_dir: Path, case: Case, tracer: str | None) -> tuple[str, str] | None:
    """Status and reason as ``record_status`` noted them, None if it did not."""
    try:
        row = read_json(_note_path(out_dir, case, tracer))
    except ValueError:
        return None
    return row["status"], row["reason"]


def ended_note(out_dir: Path, case: Case, tracer: str | None) -> tuple[str, str] | None:
    """The same, None as long as the work has only begun."""
    note = status_note(out_dir, case, tracer)
    return None if note is None or note[1].endswith(_BEGUN) else note


def write_status(out_dir: Path, anew: bool = True) -> Path:
    """Bring status.tsv up to date with the notes of all runs so far; ``anew`` reads every note."""
    out_dir = Path(out_dir)

    def read(name: str) -> dict[str, str] | None:
        try:
            row = read_json(out_dir / _RECORDS / f"{name}.json")
        except ValueError:  # replaced or removed this moment by another process, which rebuilds the table in its turn
            return None
        return {column: cell(row.get(column)) for column in STATUS_COLUMNS}

    return bring_up_to_date(
        out_dir / output_path("status"),
        sources=lambda: note_times(out_dir),
        read=read,
        load=lambda path: {_name_of(row): row for row in read_tsv(path)[0]},
        text_of=lambda rows: tsv_text(rows.values(), STATUS_COLUMNS),
        anew=anew,
    )


def _name_of(row: Mapping[str, str]) -> str:
    """Name of the note that a row of status.tsv or of the cohort table stands for, without extension."""
    parts = (row["participant_id"], row["session_id"], "n/a" if row["tracer"] == "n/a" else f"trc-{row['tracer']}")
    return "_".join(part for part in parts if part != "n/a")


def note_times(out_dir: Path) -> dict[str, float]:
    """Names of all notes without extension, sorted → when they were last written (seconds since the epoch)."""
    found = {}
    try:
        with os.scandir(Path(out_dir) / _RECORDS) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    with contextlib.suppress(FileNotFoundError):
                        found[entry.name] = entry.stat().st_mtime
    except FileNotFoundError:
        pass
    return {name.removesuffix(".json"): found[name] for name in sorted(found)}


def _note_paths(out_dir: Path, participant: str | None) -> list[Path]:
    """Files of the notes of one participant or of all."""
    patterns = ("*.json",) if participant is None else (f"sub-{participant}.json", f"sub-{participant}_*.json")
    return sorted(p for pattern in patterns for p in (Path(out_dir) / _RECORDS).glob(pattern))


def noted_participant(name: str) -> str:
    """The participant's label in the name of a note, which may be no label of BIDS."""
    return re.split("_(?:ses|trc)-", name.removeprefix("sub-"))[0]


def newest_note(out_dir: Path, participant: str) -> float:
    """When the last note on a participant was written (seconds since the epoch, 0 if there is none)."""
    return max((path.stat().st_mtime for path in _note_paths(out_dir, participant)), default=0.0)


def status_notes(out_dir: Path, participant: str | None = None) -> list[dict[str, Any]]:
    """The notes of ``record_status``, of one participant or of all, by the columns of status.tsv."""
    rows = []
    for path in _note_paths(out_dir, participant):
        try:
            row = read_json(path)
        except ValueError:  # replaced or removed this moment by another process, which rebuilds the table in its turn
            continue
        # a folder sub-01_old, which is no name of BIDS, has a note that begins as those of sub-01 do
        if participant is None or row["participant_id"] == f"sub-{participant}":
            rows.append(row)
    return rows


def write_cohort(out_dir: Path, anew: bool = True) -> Path:
    """Bring the cohort table up to date: per participant, session and tracer a row with its measures and regional SUVR.

    ``anew`` looks for tables in every folder and reads them all; otherwise the notes of ``record_status`` tell which
    there are and which have changed.
    """
    out_dir = Path(out_dir)
    return bring_up_to_date(
        out_dir / output_path("group_regions"),
        sources=(lambda: _regional_tables(out_dir)) if anew else (lambda: _tracer_times(out_dir)),
        read=lambda name: _cohort_row(out_dir, name),
        load=lambda path: {_name_of(row): row for row in read_tsv(path)[0]},
        text_of=lambda rows: tsv_text(rows.values(), None if rows else ("participant_id", "session_id", "tracer")),
        anew=anew,
    )


def _regional_tables(out_dir: Path) -> dict[str, float]:
    """Names of the notes that belong to the regional tables on disk, sorted as notes are; all count as just written."""
    suffix = output_path("regions", Case("x", None, None), tracer="x").name.split("_trc-x")[1]
    found = (p for pattern in ("sub-*/pet", "sub-*/ses-*/pet") for p in out_dir.glob(f"{pattern}/*{suffix}"))
    names = sorted((path.name.removesuffix(suffix) for path in found), key=lambda name: f"{name}.json")
    return dict.fromkeys(names, math.inf)


def _tracer_times(out_dir: Path) -> dict[str, float]:
    """Names of the notes on a tracer → when that note was written, or the one on its whole case if that is newer."""
    times = note_times(out_dir)
    return {name: max(time, times.get(name.split("_trc-")[0], time)) for name, time in times.items() if "_trc-" in name}


def _cohort_row(out_dir: Path, name: str) -> dict[str, str] | None:
    """A row of the cohort table from the regional table and the measures beside it.

    None if there is no such table, or if it is of an earlier run and the last one failed.
    """
    if not (found := _OF_TRACER.fullmatch(name)):
        return None
    participant, session, tracer = found.groups()
    case = Case(participant, session, None)
    row = {
        "participant_id": f"sub-{participant}",
        "session_id": f"ses-{session}" if session else "n/a",
        "tracer": tracer,
    }
    measures, regions = (out_dir / output_path(kind, case, tracer=tracer) for kind in ("measures", "regions"))
    notes = (status_note(out_dir, case, part) for part in (tracer, None))
    if not regions.exists() or any(note and note[0] == FAILED for note in notes):
        return None
    for table in (measures, regions):
        for values in (read_tsv(table)[0] if table.exists() else [])[:1]:
            row |= {name: text for name, text in values.items() if name not in ("frame_start", "frame_end")}
    return row


_README = """\
Synthetic PET made by bids_petsynth
===================================

The PET images in this dataset were NOT measured. A generative model made them from each participant's T1w image and,
where the source dataset has them, clinical and blood values. Every PET file says so in its name (desc-synthMean,
desc-synthStd, desc-synth01 ...) and in its sidecar ("Synthetic": true). They are for research, not for diagnosis.

anat/   on the T1w's grid: bias-corrected T1w, brain mask, regions (dseg; names in the TSV beside it), tissue
        probabilities; where it was asked for a SYNTHETIC T1w (desc-synthMean_T1w) drawn from PET
pet/    mean and standard deviation over the model's draws in SUVR; space-T1w_res-2 lies on the T1w in scanner space
        *_tacs.tsv      regional SUVR, one column per region
        *_suvr.tsv      regions and composites with standard deviation and predictive intervals
        *_measures.tsv  target SUVR, Centiloid (approximate), probability of positivity
        *.json          sources, model, settings, and which clinical variables were used

sub-*.html                         report of each participant: start here
group_desc-synthMean_regions.tsv   regional SUVR of all participants
status.tsv                         who is done, who failed and why
descriptions.tsv                   what each desc label means
logs/CITATION.md, .bib             methods text for a paper, and the works that it cites
"""
