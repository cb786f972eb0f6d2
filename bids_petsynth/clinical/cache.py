"""What a text was turned into, kept in files that are named by what it was made from.

Entries come from clinical records: only their owner may read them, and a text itself is never a file's name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

log = logging.getLogger("bids_petsynth")


def content_key(*parts: str) -> str:
    """SHA-256 of texts, each with its length before it, so that no two lists of texts share a key."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode()
        whole.update(f"{len(data)}:".encode() + data)
    return whole.hexdigest()


@dataclass(frozen=True)
class ContentCache:
    """Files under ``folder``, each with its own checksum; a damaged or unreadable one counts as absent.

    A cache only saves time: where the folder cannot be written, a warning says so and work goes on without.
    """

    folder: Path

    def path(self, key: str, suffix: str) -> Path:
        """Where the entry ``key`` lies."""
        return self.folder / key[:2] / f"{key}.{suffix}"

    def get_text(self, key: str) -> str | None:
        """The text kept under ``key``, None if there is none or it is damaged."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            digest, newline, text = self.path(key, "txt").read_bytes().decode().partition("\n")
            if newline and digest == hashlib.sha256(text.encode()).hexdigest():
                return text
        return None

    def put_text(self, key: str, text: str) -> None:
        """Keep a text."""
        self._write(self.path(key, "txt"), f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())

    def get_array(self, key: str) -> np.ndarray | None:
        """The array kept under ``key``, None if there is none or it is damaged."""
        from safetensors import SafetensorError, safe_open

        with contextlib.suppress(OSError, SafetensorError, KeyError, TypeError):
            path = self.path(key, "safetensors")
            if path.is_file():
                with safe_open(path, framework="numpy") as file:
                    array = file.get_tensor("array")
                    if (file.metadata() or {}).get("sha256") == _digest(array):
                        return array
        return None

    def put_array(self, key: str, array: np.ndarray) -> None:
        """Keep an array."""
        from safetensors.numpy import save

        array = np.ascontiguousarray(array)
        self._write(self.path(key, "safetensors"), save({"array": array}, metadata={"sha256": _digest(array)}))

    def _write(self, path: Path, data: bytes) -> None:
        """Write beside and rename: a reader finds a whole file or none, whoever else writes the same entry."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".")  # readable by its owner alone
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.replace(beside, path)
            except BaseException:
                Path(beside).unlink(missing_ok=True)
                raise
        except OSError as error:
            _warn(self.folder, error.strerror or type(error).__name__)


@functools.cache
def _warn(folder: Path, reason: str) -> None:
    """Say it once, not for every entry."""
    log.warning("The text cache %s cannot be written (%s); everything is computed anew.", folder, reason)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()
