"""Reading the tables under ``data/``: every scientific number that the code uses stands in one, with its source."""

from __future__ import annotations

import csv
import hashlib
from functools import cache
from importlib import resources
from pathlib import Path


def data_path(*parts: str) -> Path:
    """Path of a file of the package's ``data`` folder."""
    return Path(str(resources.files("bids_petsynth"))).joinpath("data", *parts)


@cache
def code_hash(*parts: str) -> str:
    """Hash of the package's modules and tables: of some of its subpackages with ``data``, of all if none is named.

    What was kept from an earlier run is made again when the code that made it has changed, whatever the version says.
    """
    root, digest = data_path().parent, hashlib.sha256()
    folders = [root / part for part in parts] or [root]
    for path in sorted({path for folder in folders for path in folder.rglob("*.py")} | {*data_path().rglob("*.tsv")}):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@cache
def read_table(name: str) -> tuple[dict[str, str], ...]:
    """Rows of ``data/<name>``, a TSV with a header; ``n/a`` becomes the empty string."""
    with data_path(name).open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return tuple({k: "" if v == "n/a" else v for k, v in row.items()} for row in rows)
