"""Writing outputs so that a file is either whole or not there, and saying from the outputs alone what is up to date.

Every file is written beside its destination under a hidden, unique name, flushed to disk and renamed. A killed run
leaves at worst such a hidden file; two runs that share an output folder replace whole files by whole files. An image is
written before its sidecar, and an outdated sidecar is removed first: a sidecar means a complete image made from the
inputs and settings whose hashes it carries.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import math
import os
import secrets
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from bids_petsynth.bids.naming import output_path, sidecar_path, stem
from bids_petsynth.errors import UsageError

INPUT_HASH, SETTINGS_HASH = "InputHash", "SettingsHash"


@dataclass(frozen=True)
class Sink:
    """Writers into one output folder.

    Attributes
    ----------
    out_dir
        The output folder; paths given to the methods are relative to it.
    settings_hash, input_hash
        Written into every sidecar as ``SettingsHash`` and ``InputHash`` and compared by ``is_current``.
    """

    out_dir: Path
    settings_hash: str = ""
    input_hash: str = ""

    def for_input(self, input_hash: str) -> Sink:
        """The same sink for the files made from another input."""
        return replace(self, input_hash=input_hash)

    def is_current(self, path: Path) -> bool:
        """Whether an output and its sidecar are there, made from this input with these settings."""
        return is_current(self.out_dir / path, self.input_hash, self.settings_hash)

    def forget(self, path: Path) -> None:
        """Remove an output's sidecar, so that a run killed while it renews the outputs does not count as done."""
        with _sentence(self.out_dir / path):
            sidecar_path(self.out_dir / path).unlink(missing_ok=True)

    def save_image(
        self,
        path: Path,
        data: np.ndarray,
        affine: np.ndarray,
        sidecar: Mapping[str, Any] | None = None,
        space_code: int = 1,
    ) -> Path:
        """Write an image, then its sidecar; return the image's full path.

        Parameters
        ----------
        path
            Relative path ending in ``.nii.gz`` or ``.nii``.
        data
            ``(X, Y, Z)`` or ``(X, Y, Z, T)``; booleans are stored as uint8, floating point as float32, integers as the
            smallest of uint8, int16, int32 that holds them. No scaling is stored.
        affine
            ``(4, 4)``, voxel → RAS+ mm; written as sform and qform.
        sidecar
            Metadata; hashes are added. None writes no sidecar.
        space_code
            NIfTI code of the space: 1 scanner, 4 MNI template.
        """
        image = nifti_image(data, affine, space_code)

        def write(file: BinaryIO) -> None:
            if path.name.endswith(".gz"):
                # Without name and time in its header, the same image gives the same bytes.
                with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as zipped:
                    image.to_stream(zipped)
            else:
                image.to_stream(file)

        return self._with_sidecar(path, write, sidecar)

    def save_tsv(
        self,
        path: Path,
        rows: Iterable[Mapping[str, Any]],
        columns: Sequence[str] | None = None,
        sidecar: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a table (missing values as ``n/a``), then its sidecar if any; columns default to those of the rows."""
        text = tsv_text(rows, columns)
        return self._with_sidecar(path, lambda file: file.write(text.encode()), sidecar)

    def save_json(self, path: Path, content: Mapping[str, Any]) -> Path:
        """Write a JSON file as it is, without hashes."""
        return write_bytes(self.out_dir / path, json_text(content).encode())

    def save_text(self, path: Path, text: str) -> Path:
        """Write a text file such as a report."""
        return write_bytes(self.out_dir / path, text.encode())

    def _with_sidecar(self, path: Path, write: Callable[[BinaryIO], Any], sidecar: Mapping[str, Any] | None) -> Path:
        target = self.out_dir / path
        beside = sidecar_path(target)
        if sidecar is None:
            return write_atomically(target, write)
        if not self.is_current(path):
            with _sentence(beside):
                beside.unlink(missing_ok=True)
        write_atomically(target, write)
        hashes = {INPUT_HASH: self.input_hash, SETTINGS_HASH: self.settings_hash}
        write_bytes(beside, json_text({**sidecar, **{key: value for key, value in hashes.items() if value}}).encode())
        return target


def hash_key(out_dir: Path) -> str:
    """The output folder's random key of hashes over clinical values, empty before :func:`make_hash_key`.

    A hash of a few values in a file that is shared would give them away to whoever tries all of them; with a key that
    is not shared it does not.

    Raises
    ------
    UsageError
        If the key is there and cannot be read, as one that another user made: hashes would be made without it.
    """
    path = Path(out_dir) / output_path("hash_key")
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): let its owner give the group read access (chmod g+r), "
            "or use an output folder of your own."
        ) from None


def make_hash_key(out_dir: Path) -> None:
    """Make the key of :func:`hash_key` unless it is there; of tasks that start at once all end with the same."""
    path = Path(out_dir) / output_path("hash_key")
    if not hash_key(out_dir):
        path.parent.mkdir(parents=True, exist_ok=True)
        own = _temporary(path)
        own.write_text(secrets.token_hex(32), encoding="ascii")
        own.chmod(0o600)
        try:
            os.link(own, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            own.replace(path)
        own.unlink(missing_ok=True)


def check_writable(out_dir: Path) -> None:
    """Make the output folder if need be and write a byte into it; ``UsageError`` naming it if that fails."""
    out_dir = Path(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        probe = _temporary(out_dir / "probe")
        try:
            probe.write_bytes(b"0")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"The output folder {out_dir} cannot be written to ({error.strerror}): choose another or correct it."
        ) from None


def is_current(path: Path, input_hash: str, settings_hash: str) -> bool:
    """Whether an output (or, given its ``.json``, what stands beside it) is whole and made from these inputs."""
    try:
        sidecar = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
        if path.suffix == ".json":
            complete = any(p.suffix != ".json" and stem(p) == stem(path) for p in path.parent.glob(f"{stem(path)}.*"))
        else:
            complete = path.stat().st_size > 0
    except (OSError, ValueError):
        return False
    return (
        complete
        and isinstance(sidecar, dict)
        and sidecar.get(INPUT_HASH, "") == input_hash
        and sidecar.get(SETTINGS_HASH, "") == settings_hash
    )


def nifti_image(data: np.ndarray, affine: np.ndarray, space_code: int = 1) -> nib.Nifti1Image:
    """A NIfTI image with sform and qform, millimetres and no scaling; ``Sink.save_image`` says how data are stored."""
    if data.dtype == bool:
        stored = data.astype(np.uint8)
    elif np.issubdtype(data.dtype, np.floating):
        stored = data.astype(np.float32)
    else:
        low, high = (int(data.min()), int(data.max())) if data.size else (0, 0)
        fits = (t for t in (np.uint8, np.int16, np.int32) if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
        stored = data.astype(next(fits))
    image = nib.Nifti1Image(stored, affine)
    image.set_sform(affine, space_code)
    image.set_qform(affine, space_code)
    image.header.set_xyzt_units("mm", "sec" if data.ndim == 4 else None)
    image.header.set_slope_inter(1, 0)
    return image


def json_text(content: Mapping[str, Any]) -> str:
    """JSON with an indent of 2, in the order given; numpy's numbers and paths become plain, non-finite numbers null."""
    return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def tsv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """A table as tab-separated text; None, NaN and empty text become ``n/a``, numbers keep six digits."""
    rows = list(rows)
    names = list(columns) if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
    lines = ["\t".join(names), *("\t".join(cell(row.get(name)) for name in names) for row in rows)]
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    """Text of one cell of a table, as ``tsv_text`` writes it."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        return f"{value:.6g}" if math.isfinite(value) else "n/a"
    text = " ".join(str(value).split()) if value is not None else ""
    return text or "n/a"


def _plain(value: Any) -> Any:
    """A value as JSON knows it."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return value.as_posix()
    return value


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_settings(settings: Any) -> str:
    """SHA-256 of settings (mappings, sequences, dataclasses, numbers, text); the order of keys does not matter."""
    text = json.dumps(_plain(settings), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a small file atomically, unless it already holds just that."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return path
    return write_atomically(path, lambda file: file.write(content))


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> Path:
    """Let ``write`` fill a hidden file beside ``path``, bring it to disk, rename it; ``UsageError`` if that fails."""
    with _sentence(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    # Some network file systems cannot synchronise a folder; the rename holds all the same.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return path


def _temporary(path: Path) -> Path:
    """A hidden name beside ``path`` that no other process uses."""
    return path.with_name(f".{uuid.uuid4().hex}.tmp")


@contextlib.contextmanager
def _sentence(path: Path) -> Iterator[None]:
    """Turns an error of the file system into one sentence."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}): free space or correct the folder, then run again."
        ) from error
