"""Finding the other images of the head that a recipe takes as sources: T2w, FLAIR, CT."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from bids_petsynth.bids.index import (
    acquisition_times,
    find_other_images,
    newest,
    participant_labels,
    session_date,
    session_labels,
    unreadable,
)
from bids_petsynth.types import OtherScan

MODALITIES = ("T2w", "FLAIR", "CT")


def find_others(
    bids_dir: Path,
    modalities: Collection[str],
    participants: Iterable[str] | None = None,
    sessions: Iterable[str] | None = None,
    filters: Mapping[str, Any] | None = None,
) -> list[OtherScan]:
    """One scan per participant, session and modality, sorted: the newest, as for the T1w; a note tells of several.

    Parameters
    ----------
    modalities
        Those of :data:`MODALITIES` that are wanted; any others are passed by.
    filters
        Content of a ``--bids-filter-file``; its sections ``t2w`` and ``flair`` choose.
    bids_dir, participants, sessions
        As in :func:`bids_petsynth.bids.index.find_cases`.

    Raises
    ------
    UsageError
        If the dataset, a label or a filter is unusable.
    """
    bids_dir = Path(bids_dir).resolve()
    wanted = [name for name in MODALITIES if name in modalities]
    if not wanted:
        return []
    labels = participant_labels(bids_dir, participants)
    asked = session_labels(bids_dir, labels, sessions)
    scans = []
    for modality in wanted:
        for label, by_session in find_other_images(bids_dir, labels, filters or {}, modality).items():
            for session in sorted(by_session, key=str):
                if not asked or session in asked:
                    scans.append(_scan(bids_dir, label, session, modality, by_session[session]))
    return sorted(scans, key=lambda scan: scan.label)


def _scan(bids_dir: Path, label: str, session: str | None, modality: str, images: list[Path]) -> OtherScan:
    """The newest of the images of one session."""
    times = acquisition_times(bids_dir, label, session, images)
    image, reason = newest(images, times)
    others = ", ".join(path.name for path in images if path != image)
    notes = (f"Of {len(images)} {modality} images {image.name} is used, {reason}; not used: {others}.",) * bool(reason)
    when = times.get(image) or session_date(bids_dir, label, session)
    return OtherScan(
        label, session, modality, image, when.date().isoformat() if when else None, notes, unreadable(image)
    )
