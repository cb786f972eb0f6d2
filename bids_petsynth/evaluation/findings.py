"""What an evaluation hands to the writers of tables and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Table:
    """One table: its file name (letters and digits), title, rows, and what a reader has to know.

    ``shown`` is what the report shows where the whole table is too long for it; ``filters`` are columns by which the
    reader can choose rows there.
    """

    name: str
    title: str
    frame: pd.DataFrame
    note: str = ""
    shown: pd.DataFrame | None = None
    filters: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """One part of the report: sentences, tables and figures (``reports.canvas.Figure``), in this order."""

    name: str
    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Any] = ()
