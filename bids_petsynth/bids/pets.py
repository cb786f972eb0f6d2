"""Finding the real PET scans of a dataset, and the T1w that belongs to each.

A PET series that PETPrep has already brought onto the T1w takes the place of its raw scan. A scan that cannot be used
(a link without its target, no tracer) becomes a ``PetScan`` with a ``problem``, and the others go on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

from bids_petsynth.bids.derivatives import check_derivatives
from bids_petsynth.bids.index import (
    acquisition_times,
    find_pet_images,
    inherited_sidecar,
    newest,
    participant_labels,
    session_date,
    session_labels,
    unreadable,
)
from bids_petsynth.bids.naming import DEFAULTS, entities_of, stem
from bids_petsynth.errors import UsageError
from bids_petsynth.types import Case, OtherScan, PetScan

UNKNOWN = "unknown"
"""``PetScan.tracer`` of a scan with no tracer, which has a ``problem``."""

# What PETPrep adds to the name of the raw image. Not pvc: a scan with correction of partial volume is another quantity.
_ADDED = ("space", "res", "desc")


@dataclass(frozen=True)
class Pair:
    """A real PET scan and the T1w that it is to be laid on.

    Attributes
    ----------
    case, pet
        The T1w, None if no T1w fits, and the PET scan.
    gap_days
        Days between the two, whichever came first; None if a date is not known or there is no T1w.
    note
        A sentence if there is no T1w, or if nothing tells how far apart the two sessions are.
    """

    case: Case | None
    pet: PetScan | OtherScan
    gap_days: int | None = None
    note: str = ""


def find_pets(
    bids_dir: Path,
    participants: Iterable[str] | None = None,
    sessions: Iterable[str] | None = None,
    filters: Mapping[str, Any] | None = None,
    derivatives: Mapping[str, Path] | None = None,
    canonical: Callable[[str], str] = str,
) -> list[PetScan]:
    """One scan per participant, session and tracer, sorted; participants without PET have none.

    Images with ``space`` or ``desc`` in their name, such as synthetic ones, are no raw PET. Of several raw images one
    that PETPrep has prepared is taken first, then a real and attenuation-corrected one, then the newest run, then its
    dynamic reconstruction; the notes say which was taken and why.

    Parameters
    ----------
    bids_dir, participants, sessions
        As in :func:`bids_petsynth.bids.index.find_cases`.
    filters
        Content of a ``--bids-filter-file``; its section ``pet`` chooses among PET files.
    derivatives
        Name → folder of preprocessed datasets; the first that has ``…_space-T1w_desc-preproc_pet`` of a raw scan gives
        it. What the sidecar there says goes over the raw one's, but for its nulls. There must be a raw image, with or
        without its content: only its sidecar names the tracer.
    canonical
        Gives a tracer its canonical name and raises ``UsageError`` for a tracer that is not known, which keeps the
        dataset's own spelling. By default all do.

    Raises
    ------
    UsageError
        If the dataset, a label, a filter or a derivatives folder is unusable; nothing is to be run then.
    """
    bids_dir = Path(bids_dir).resolve()
    labels = participant_labels(bids_dir, participants)
    wanted = session_labels(bids_dir, labels, sessions)
    check_derivatives(derivatives or {})
    listings: dict[Path, list[Path]] = {}
    scans: list[PetScan] = []
    for label, by_session in find_pet_images(bids_dir, labels, filters or {}).items():
        for session in sorted(by_session, key=str):
            if wanted and session not in wanted:
                continue
            times = acquisition_times(bids_dir, label, session, by_session[session])
            day = session_date(bids_dir, label, session)
            by_tracer: dict[str, dict[Path, PetScan]] = {}
            for image in by_session[session]:
                sidecar, notes = inherited_sidecar(bids_dir, image, listings)
                tracer, problem = _tracer(image, sidecar, canonical)
                when = times.get(image) or day
                raw = PetScan(
                    participant=label,
                    session=session,
                    tracer=tracer,
                    path=image,
                    sidecar=sidecar,
                    date=when.date().isoformat() if when else None,
                    notes=tuple(notes),
                    problem=problem,
                )
                scan = _replaced(raw, image.parent.relative_to(bids_dir), derivatives or {})
                scan = replace(scan, problem=problem or unreadable(scan.path))
                by_tracer.setdefault(_letters(tracer), {})[image] = scan
            scans += [_best(by_tracer[key], times) for key in sorted(by_tracer)]
    return scans


def _tracer(path: Path, sidecar: Mapping[str, Any], canonical: Callable[[str], str]) -> tuple[str, str | None]:
    """Name of an image's tracer, and a sentence if there is none or sidecar and name contradict each other."""
    texts = (sidecar.get("TracerName"), entities_of(path).get("trc"))
    spellings = [text.strip() for text in texts if isinstance(text, str) and _letters(text) not in ("", "na")]
    if not spellings:
        return UNKNOWN, f"{path.name} has no tracer: write TracerName into its sidecar or trc-<label> into its name."
    known = []
    for spelling in spellings:
        with suppress(UsageError):
            known.append(canonical(spelling))
    # without a table of tracers, two spellings may well mean the same
    if canonical is not str and len(set(known)) > 1:
        text = f"{path.name} is {spellings[0]} by TracerName of its sidecar but {spellings[1]} by its name"
        return known[0], f"{text}: correct one of them."
    return (known or spellings)[0], None


def _letters(name: str) -> str:
    """A tracer's name without case and punctuation, as ``MC1`` and ``Mc1`` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _replaced(raw: PetScan, folder: Path, derivatives: Mapping[str, Path]) -> PetScan:
    """A raw scan, or in its place what PETPrep made of it: ``folder`` is where that lies in the derivatives."""
    for name, root in derivatives.items():
        for path in sorted((Path(root) / folder).glob("*_desc-preproc_pet.nii*")):
            own = entities_of(path)
            if own.get("space") == "T1w" and {k: v for k, v in own.items() if k not in _ADDED} == entities_of(raw.path):
                said, told = inherited_sidecar(Path(root), path, {})
                sidecar = {**raw.sidecar, **{key: value for key, value in said.items() if value is not None}}
                notes = (*raw.notes, *told, f"{name}: {path.name} is used in place of {raw.path.name}.")
                return replace(raw, path=path, sidecar=sidecar, prepared=True, notes=notes)
    absent = f"no preprocessed PET of {raw.path.name} in T1w space, the raw scan is used."
    return replace(raw, notes=raw.notes + tuple(f"{n}: {absent}" for n in derivatives if n.lower() == "petprep"))


def _best(scans: Mapping[Path, PetScan], times: Mapping[Path, datetime]) -> PetScan:
    """The one to use of several scans with one tracer, by their raw images; a note says why."""
    pool = [image for image, scan in scans.items() if scan.prepared] or list(scans)
    reasons = ["preprocessed in T1w space"] if len(pool) < len(scans) else []
    good = max(_quality(image)[:2] for image in pool)
    runs: dict[str, list[Path]] = {}
    for image in pool:
        if _quality(image)[:2] == good:
            runs.setdefault(re.sub("_rec-[^_]+", "", stem(image)), []).append(image)
    kept = [max(images, key=_quality) for images in runs.values()]
    if len(kept) < len(pool):
        reasons.append("by its reconstruction (real, attenuation-corrected, dynamic, later by name goes first)")
    image, reason = newest(kept, times)
    if len(scans) == 1:
        return scans[image]
    others = ", ".join(other.name for other in scans if other != image)
    why = ", ".join([*reasons, reason] if reason else reasons)
    note = f"Of {len(scans)} PET images {image.name} is used, {why}; not used: {others}."
    return replace(scans[image], notes=(note, *scans[image].notes))


def _quality(image: Path) -> tuple[bool, bool, bool, str]:
    """Rank of a reconstruction: real, with attenuation correction, dynamic (BIDS' labels ``acdyn`` … ``nacstat``)."""
    label = entities_of(image).get("rec", "").lower()
    return label != DEFAULTS["rec"], not label.startswith("nac"), label.endswith("dyn"), image.name


def pair(cases: Sequence[Case], pets: Sequence[PetScan | OtherScan], max_gap: int = 365) -> list[Pair]:
    """A pair for every scan, in their order, with the T1w of the same participant that fits it.

    That is the T1w of the same session, else the nearest in time if it is at most ``max_gap`` days away, else, where
    dates are not known, the participant's only T1w. Cases with a problem count as absent; a problem of the PET scan
    makes no difference.
    """
    return [_pair([case for case in cases if case.participant == pet.participant], pet, max_gap) for pet in pets]


def preference(pair: Pair) -> tuple[str, float, int]:
    """Key that sorts the scans of one T1w by tracer, each tracer's nearest to the T1w in time first, or newest."""
    scan = pair.pet
    # where dates are not known, the T1w's own session is nearest
    unknown = 0 if pair.case is not None and pair.case.session == scan.session else math.inf
    gap = unknown if pair.gap_days is None else pair.gap_days
    return scan.modality, gap, -date.fromisoformat(scan.date[:10]).toordinal() if scan.date else 0


def surplus(kept: Pair, other: Pair) -> str:
    """Why ``other`` is not used beside ``kept``, a scan of the same kind that belongs to the same T1w."""
    (_, near, _), (_, far, _) = preference(kept), preference(other)
    how_far = [f"{gap:g} days" if math.isfinite(gap) else "an unknown time" for gap in (near, far)]
    why = f"it lies {how_far[0]} from the T1w, this one {how_far[1]}" if near < far else "it is the newer, or the first"
    return f"One {kept.pet.modality} scan belongs to a T1w, and that is {kept.pet.path.name}: {why}."


def with_pets(cases: Sequence[Case], pets: Sequence[PetScan], tracers: Collection[str], max_gap: int) -> list[Case]:
    """The cases with the usable scans of these tracers that :func:`pair` finds to belong to them, one per tracer."""
    fitting = _fitting(cases, [pet for pet in pets if pet.tracer in tracers], max_gap)
    return [replace(c, pets=scans, notes=(*c.notes, *notes)) for c, (scans, notes) in zip(cases, fitting, strict=True)]


def with_others(cases: Sequence[Case], scans: Sequence[OtherScan], max_gap: int) -> list[Case]:
    """The cases with the usable T2w, FLAIR and CT images that belong to them, paired as PET is, one of each."""
    fitting = _fitting(cases, scans, max_gap)
    return [replace(c, others=own, notes=(*c.notes, *notes)) for c, (own, notes) in zip(cases, fitting, strict=True)]


def _fitting(
    cases: Sequence[Case], scans: Sequence[PetScan | OtherScan], max_gap: int
) -> list[tuple[tuple[PetScan | OtherScan, ...], list[str]]]:
    """For each case the scans that belong to it, one of each modality, and a sentence on each that gives way."""
    paired = pair(cases, [scan for scan in scans if scan.problem is None], max_gap)
    found = sorted((p for p in paired if p.case is not None), key=preference)
    out = []
    for case in cases:
        first: dict[str, Pair] = {}
        notes = []
        for own in (p for p in found if p.case.label == case.label):
            if (kept := first.setdefault(own.pet.modality, own)) is not own:
                notes.append(f"{own.pet.path.name} is not used. {surplus(kept, own)}")
        out.append((tuple(p.pet for p in first.values()), notes))
    return out


def _pair(cases: Sequence[Case], pet: PetScan | OtherScan, max_gap: int) -> Pair:
    """The T1w that fits a scan among those of its participant."""
    usable = [case for case in cases if case.t1w and not case.problem]
    if not usable:
        problems = dict.fromkeys(case.problem for case in cases if case.problem)
        return Pair(None, pet, note=" ".join(problems) or f"sub-{pet.participant} has no T1w image.")
    for case in usable:
        if case.session == pet.session:
            return Pair(case, pet, _gap(case, pet))
    gaps = [(gap, case.label, case) for case in usable if (gap := _gap(case, pet)) is not None]
    if gaps:
        gap, _, case = min(gaps, key=lambda entry: entry[:2])
        if gap <= max_gap:
            return Pair(case, pet, gap)
        return Pair(None, pet, note=f"The nearest T1w, {case.t1w.name}, is {gap} days away, more than {max_gap}.")
    if len(usable) > 1:
        several = f"None of {len(usable)} T1w images of sub-{pet.participant} is of the session of {pet.path.name}"
        return Pair(None, pet, note=f"{several}, and no acq_time in scans.tsv tells which is nearest: add it.")
    (case,) = usable
    text = f"{case.t1w.name} and {pet.path.name} are of two sessions, and no acq_time tells how far apart they are."
    return Pair(case, pet, note=text if case.session and pet.session else "")


def _gap(case: Case, pet: PetScan | OtherScan) -> int | None:
    """Days between T1w and PET, None if a date is not known."""
    if not case.t1w_date or not pet.date:
        return None
    return abs((date.fromisoformat(case.t1w_date[:10]) - date.fromisoformat(pet.date[:10])).days)
