"""Finding the T1w scans to work on. The only module that imports pybids; ``bids.pets`` finds PET scans with its help.

pybids is shown only one kind of image of the participants that are asked for, so that one participant of a large
dataset is found at once; sidecars are read along their path. Nothing here opens an image beyond its first bytes: a
link without its target or a file that cannot be read becomes a ``Case`` with a ``problem``, and the others go on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bids_petsynth.bids.derivatives import check_derivatives, reusable_files
from bids_petsynth.bids.naming import entities_of
from bids_petsynth.bids.tables import read_json, read_tsv
from bids_petsynth.errors import UsageError
from bids_petsynth.types import Case

# Sections of a filter file that fMRIPrep and its relatives know; one file may serve several of them.
_SECTIONS = frozenset({"t1w", "t2w", "flair", "bold", "sbref", "fmap", "dwi", "asl", "roi", "pet", "fmap_sbref"})
_POINTERS = (b"/annex/objects/", b"version https://git-lfs")
_LABEL = re.compile("[A-Za-z0-9+]+")


def find_cases(
    bids_dir: Path,
    participants: Iterable[str] | None = None,
    sessions: Iterable[str] | None = None,
    filters: Mapping[str, Any] | None = None,
    derivatives: Mapping[str, Path] | None = None,
) -> list[Case]:
    """One case per participant and session that has a T1w, sorted; participants without one have a case with a problem.

    So have those whose folder is not named as BIDS asks: no name of an output could be made from it.

    Parameters
    ----------
    bids_dir
        The raw dataset.
    participants, sessions
        Labels with or without ``sub-``/``ses-``; None or empty for all.
    filters
        Content of a ``--bids-filter-file``; its section ``t1w`` chooses among T1w files (null: entity absent, ``*``:
        any value).
    derivatives
        Name → folder of preprocessed datasets; their preprocessed T1w and brain mask are listed in
        ``Case.derivatives``.

    Raises
    ------
    UsageError
        If the dataset, a label, a filter or a derivatives folder is unusable; nothing is to be run then.
    """
    bids_dir = Path(bids_dir).resolve()
    labels = participant_labels(bids_dir, participants)
    wanted = session_labels(bids_dir, labels, sessions)
    query = _query(filters or {}, "T1w")
    check_derivatives(derivatives or {})

    listings: dict[Path, list[Path]] = {}
    cases = []
    for label, by_session in _images(bids_dir, labels, query, "anat", "T1w").items():
        if not _LABEL.fullmatch(label):
            cases.append(Case(label, None, None, problem=_misnamed(label)))
            continue
        chosen = {s: by_session[s] for s in sorted(by_session, key=str) if not wanted or s in wanted}
        if not chosen:
            only = wanted[0] if len(wanted) == 1 else None
            cases.append(Case(label, only, None, problem=_absent(label, wanted, by_session, query)))
        for session, candidates in chosen.items():
            cases.append(_case(bids_dir, label, session, candidates, listings, derivatives or {}))
        cases += [
            Case(label, session, None, problem=_absent(label, [session], by_session, query))
            for session in wanted
            if chosen and session not in chosen and (bids_dir / f"sub-{label}" / f"ses-{session}").is_dir()
        ]
    return cases


def read_filter_file(path: Path) -> dict[str, Any]:
    """Content of a ``--bids-filter-file``; ``UsageError`` if it cannot be read or is not JSON."""
    try:
        return read_json(Path(path))
    except ValueError as error:
        raise UsageError(f"The BIDS filter file {path} {error}.") from None


def find_pet_images(
    bids_dir: Path, labels: Sequence[str], filters: Mapping[str, Any]
) -> dict[str, dict[str | None, list[Path]]]:
    """Raw PET images that pass section ``pet`` of the filters, by participant and session.

    Raises
    ------
    UsageError
        If a filter is unusable.
    """
    return _images(bids_dir, labels, _query(filters, "PET"), "pet", "pet")


def find_other_images(
    bids_dir: Path, labels: Sequence[str], filters: Mapping[str, Any], modality: str
) -> dict[str, dict[str | None, list[Path]]]:
    """Raw T2w, FLAIR or CT images by participant and session; those of MRI pass their section of the filters.

    BIDS and pybids have no rule for CT: it is looked for by its suffix in folders ``anat`` and ``ct``.

    Raises
    ------
    UsageError
        If a filter is unusable.
    """
    if modality != "CT":
        return _images(bids_dir, labels, _query(filters, modality), "anat", modality)
    found: dict[str, dict[str | None, list[Path]]] = {label: {} for label in labels}
    for label in labels:
        folder = bids_dir / f"sub-{label}"
        for path in sorted(p for where in ("*", "ses-*/*") for p in folder.glob(f"{where}/*_[Cc][Tt].nii*")):
            if path.parent.name in ("anat", "ct") and _is_plain(path.relative_to(bids_dir)):
                found[label].setdefault(entities_of(path).get("ses"), []).append(path)
    return found


def participant_labels(bids_dir: Path, asked: Iterable[str] | None) -> list[str]:
    """Labels to work on, sorted; ``UsageError`` if the dataset is none or lacks a label that is asked for."""
    if not bids_dir.is_dir():
        raise UsageError(f"The BIDS dataset {bids_dir} does not exist or is not a folder.")
    description = bids_dir / "dataset_description.json"
    if not description.exists():
        raise UsageError(f"{bids_dir} is not a BIDS dataset: it has no dataset_description.json.")
    try:
        read_json(description)
    except ValueError as error:
        raise UsageError(f"{description} {error}: correct it, a BIDS dataset needs one.") from None
    there = sorted(p.name.removeprefix("sub-") for p in bids_dir.iterdir() if p.name.startswith("sub-") and p.is_dir())
    if not there:
        raise UsageError(f"The BIDS dataset {bids_dir} has no participants: there is no folder sub-<label> in it.")
    labels = sorted({label.removeprefix("sub-") for label in asked or there})
    if absent := [label for label in labels if label not in there]:
        raise UsageError(
            f"The dataset {bids_dir} has no participant {', '.join(absent)}; it has {_some(there)}: "
            "correct the labels that were asked for."
        )
    return labels


def session_labels(bids_dir: Path, labels: Sequence[str], asked: Iterable[str] | None) -> list[str]:
    """Sessions that are asked for, sorted; ``UsageError`` if one exists for none of the participants."""
    wanted = sorted({session.removeprefix("ses-") for session in asked or ()})
    if not wanted:
        return []
    folders = (folder for label in labels for folder in (bids_dir / f"sub-{label}").glob("ses-*"))
    there = sorted({folder.name.removeprefix("ses-") for folder in folders if folder.is_dir()})
    if absent := [session for session in wanted if session not in there]:
        have = f"they have {_some(there)}" if there else "they have no sessions at all"
        raise UsageError(f"None of the participants has a session {', '.join(absent)}; {have}.")
    return wanted


def _some(labels: Sequence[str], most: int = 10) -> str:
    """The labels, or the first few of many and their number."""
    return ", ".join(labels[:most]) + (f" … ({len(labels)} in all)" if len(labels) > most else "")


def _query(filters: Mapping[str, Any], image: str) -> dict[str, Any]:
    """The section of the filters on a kind of image (T1w or PET) as arguments for pybids."""
    from bids.layout import Query

    if not isinstance(filters, Mapping) or not all(isinstance(section, Mapping) for section in filters.values()):
        raise UsageError('The BIDS filter file must hold sections such as {"t1w": {"session": "01"}}.')
    if unknown := sorted(set(filters) - _SECTIONS):
        raise UsageError(
            f"The BIDS filter file has an unknown section {', '.join(unknown)}; "
            f"the {image} is chosen by section {image.lower()}."
        )
    section = dict(filters.get(image.lower(), {}))
    if "subject" in section:
        raise UsageError("The BIDS filter file chooses by subject: use --participant-label for that.")
    words = {None: Query.NONE, "*": Query.ANY} | {f"Query.{query.name}": query for query in Query}
    return {
        entity: words.get(value, value) if value is None or isinstance(value, str) else value
        for entity, value in section.items()
    }


def _images(
    bids_dir: Path, labels: Sequence[str], query: Mapping[str, Any], datatype: str, suffix: str
) -> dict[str, dict[str | None, list[Path]]]:
    """Images of one kind that pass the filters, found by pybids: those of every participant by session."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    subjects = "|".join(re.escape(label) for label in labels)
    others = re.compile(rf"^/(?!sub-(?:{subjects})(?:/ses-[^/]+)?(?:/{datatype}(?:/[^/]*_{suffix}\.nii(?:\.gz)?)?)?$)")
    layout = BIDSLayout(
        bids_dir,
        validate=False,
        derivatives=False,
        indexer=BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=[others]),
    )
    chosen = {"datatype": datatype, "suffix": suffix, "extension": [".nii", ".nii.gz"]} | query
    try:
        found = layout.get(**chosen, return_type="filename")
    except Exception as error:  # for what it does not know, pybids raises errors of several unrelated classes
        raise UsageError(f"The BIDS filter file cannot be used ({error}).") from None
    images: dict[str, dict[str | None, list[Path]]] = {label: {} for label in labels}
    for path in sorted(Path(path) for path in found):
        inside = path.relative_to(bids_dir)
        if _is_plain(inside):
            label = inside.parts[0].removeprefix("sub-")
            images[label].setdefault(entities_of(path).get("ses"), []).append(path)
    for by_session in images.values():
        for session, paths in by_session.items():
            # the labelling networks know no contrast agent
            by_session[session] = [path for path in paths if "ce" not in entities_of(path)] or paths
    return images


def _is_plain(path: Path) -> bool:
    """Named after its folders; neither phases nor one echo of several nor what some software derived from raw files."""
    entities = entities_of(path)
    *folders, _, name = path.parts
    own = name.startswith("_".join(folders) + "_") and ("ses" in entities) == (len(folders) == 2)
    return own and not {"desc", "space", "echo"} & entities.keys() and entities.get("part", "mag") == "mag"


def _misnamed(label: str) -> str:
    """What to say of a participant whose label would be cut where names of files are taken apart."""
    return f"sub-{label} is not named as BIDS asks: rename the folder and its files, a label is letters and digits."


def _absent(label: str, wanted: Sequence[str], by_session: Mapping[str | None, Any], query: Mapping[str, Any]) -> str:
    """Why a participant has no T1w to work on."""
    passing = " that passes the BIDS filter file" if query else ""
    if not wanted:
        return f"sub-{label} has no T1w image{passing}."
    text = f"sub-{label} has no T1w image{passing} in session {', '.join(wanted)}"
    if None in by_session:
        return f"{text}; its T1w belongs to no session: leave out --session-label."
    return f"{text}; it has one in session {', '.join(map(str, by_session))}." if by_session else f"{text}."


def _case(
    bids_dir: Path,
    label: str,
    session: str | None,
    candidates: Sequence[Path],
    listings: dict[Path, list[Path]],
    derivatives: Mapping[str, Path],
) -> Case:
    """The newest of the T1w images of one session with all that is known about it."""
    notes: list[str] = []
    times = acquisition_times(bids_dir, label, session, candidates)
    t1w, reason = newest(candidates, times)
    if reason:
        others = ", ".join(p.name for p in candidates if p != t1w)
        notes.append(f"Of {len(candidates)} T1w images {t1w.name} is used, {reason}; not used: {others}.")
    sidecar, said = inherited_sidecar(bids_dir, t1w, listings)
    reusable, told = reusable_files(derivatives, t1w)
    date = times.get(t1w) or session_date(bids_dir, label, session)
    return Case(
        participant=label,
        session=session,
        t1w=t1w,
        sidecar=sidecar,
        t1w_date=date.date().isoformat() if date else None,
        derivatives=reusable,
        notes=(*notes, *said, *told),
        problem=unreadable(reusable.get("preproc_t1w", t1w)),
    )


def newest(candidates: Sequence[Path], times: Mapping[Path, datetime]) -> tuple[Path, str]:
    """The newest image and why it is taken (an empty sentence if there is no choice)."""
    ordered = sorted(candidates, key=lambda p: (_run(p), p.name))
    if len(ordered) == 1:
        return ordered[0], ""
    if all(path in times for path in ordered) and len(set(times.values())) > 1:
        return max(ordered, key=lambda p: times[p]), "the newest by acq_time in scans.tsv"
    if len({_run(path) for path in ordered}) > 1:
        return ordered[-1], "the highest run"
    return ordered[-1], "the last by name as nothing says which is newest"


def _run(path: Path) -> int:
    """Run number of an image, 0 if it has none."""
    run = entities_of(path).get("run", "0")
    return int(run) if run.isdigit() else 0


def acquisition_times(bids_dir: Path, label: str, session: str | None, images: Sequence[Path]) -> dict[Path, datetime]:
    """``acq_time`` in scans.tsv of those images that have one."""
    folder = bids_dir / f"sub-{label}" / (f"ses-{session}" if session else "")
    table = folder / (f"sub-{label}" + (f"_ses-{session}" if session else "") + "_scans.tsv")
    rows = read_tsv(table)[0] if table.exists() else []
    times = {row.get("filename", ""): _time(row.get("acq_time", "")) for row in rows}
    named = {image: times.get(image.relative_to(folder).as_posix()) for image in images}
    return {image: time for image, time in named.items() if time}


def session_date(bids_dir: Path, label: str, session: str | None) -> datetime | None:
    """``acq_time`` of the session in sessions.tsv."""
    table = bids_dir / f"sub-{label}" / f"sub-{label}_sessions.tsv"
    rows = read_tsv(table)[0] if session and table.exists() else []
    mine = [row for row in rows if row.get("session_id", "").removeprefix("ses-") == session]
    return _time(mine[0].get("acq_time", "")) if mine else None


def _time(text: str) -> datetime | None:
    """An ISO date or date and time, else None. Zones are dropped, so that times compare."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        return None


def inherited_sidecar(
    bids_dir: Path, image: Path, listings: dict[Path, list[Path]]
) -> tuple[dict[str, Any], list[str]]:
    """Sidecars merged by BIDS' inheritance principle: the nearer to the image and the more specific, the stronger.

    ``listings`` remembers the sidecars in each folder from one image to the next, which must be of the same kind.
    """
    entities = entities_of(image)
    folders = [folder for folder in (image.parent, *image.parent.parents) if folder.is_relative_to(bids_dir)]
    metadata: dict[str, Any] = {}
    notes = []
    for folder in reversed(folders):
        if folder not in listings:
            listings[folder] = [p for p in folder.iterdir() if p.name.endswith(f"{entities['suffix']}.json")]
        holding = [path for path in listings[folder] if (entities_of(path)).items() <= entities.items()]
        for path in sorted(holding, key=lambda p: len(entities_of(p))):
            try:
                metadata |= read_json(path)
            except ValueError as error:
                notes.append(f"The sidecar {path.name} is ignored: it {error}.")
    return metadata, notes


def unreadable(image: Path) -> str | None:
    """A sentence if the image's bytes are not there."""
    name = image.name
    if image.is_symlink() and not image.exists():
        return f"{name} is a link to a file that is not there: fetch it, with DataLad by `datalad get`."
    try:
        with image.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})."
    if not start:
        return f"{name} is empty."
    if start.startswith(_POINTERS):
        return f"{name} is a placeholder for content that was not fetched: run `datalad get` or `git lfs pull`."
    return None
