"""Reading the tables under ``data/``: every scientific number that the code uses stands in one, with its source."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources
from pathlib import Path


def data_path(*parts: str) -> Path:
    """Path of a file of the package's ``data`` folder."""
    return Path(str(resources.files("bids_petsynth"))).joinpath("data", *parts)


@cache
def read_table(name: str) -> tuple[dict[str, str], ...]:
    """Rows of ``data/<name>``, a TSV with a header; ``n/a`` becomes the empty string."""
    with data_path(name).open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return tuple({k: "" if v == "n/a" else v for k, v in row.items()} for row in rows)
