"""Files that sum up all participants, kept by many processes at once without a lock.

The tasks of an array job share an output folder, and each ends by bringing these files up to date. Were each to read
all that the others wrote, a thousand tasks would read a million times. So a file is brought up to date from itself:
what stands in it is taken over but for the sources that were written since, or that it does not know. Files are
replaced as wholes, and whoever replaced one looks again at all that was written since the version that it began with;
so what two processes write at the same moment is in the end seen by the one that writes last. Nothing here needs more
of a network file system than that a rename is whole and that a folder's list is true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from bids_petsynth.bids.sink import write_bytes

Entry = TypeVar("Entry")

#: Seconds within which two times of change may be the same: what file systems round them to.
ROUNDING = 2.0


def bring_up_to_date(
    path: Path,
    sources: Callable[[], Mapping[str, float]],
    read: Callable[[str], Entry | None],
    load: Callable[[Path], Mapping[str, Entry]],
    text_of: Callable[[Mapping[str, Entry]], str],
    anew: bool,
) -> Path:
    """Rebuild a file from its sources until nothing was added meanwhile.

    Parameters
    ----------
    sources
        Gives key → when the source was last written (seconds since the epoch), in the order of the file.
    read
        The entry of a key from its source, None if it has none; must not raise for a source that was just removed.
    load
        Entries of the file as it stands; an ``OSError``, ``ValueError``, ``KeyError`` or ``TypeError`` means that it
        cannot be used.
    text_of
        The file's content from all entries.
    anew
        Read every source, whatever stands in the file.
    """
    known, since = _entries(path, load)
    if anew:
        known = {}
    text = None
    while True:
        before, entries = text, {}
        for key, written in sources().items():
            entry = None if written >= since - ROUNDING else known.get(key)
            if entry is None:
                entry = read(key)
            if entry is not None:
                entries[key] = entry
        text = text_of(entries)
        if text == before and _bytes(path) == text.encode():
            return path
        write_bytes(path, text.encode())
        known = entries


def _entries(path: Path, load: Callable[[Path], Mapping[str, Entry]]) -> tuple[Mapping[str, Entry], float]:
    """Entries of the file and when it was written; nothing if it cannot be used."""
    try:
        # the time first: a version that replaces this one meanwhile then counts as older than it is
        written = path.stat().st_mtime
        return load(path), written
    except (OSError, ValueError, KeyError, TypeError):
        return {}, -math.inf


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
