"""Groups of people: by columns of the dataset, sex, age band and APOE; and the numbers of ``data/group.tsv``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

from bids_petsynth.clinical.text import columns_of_kind
from bids_petsynth.errors import UsageError
from bids_petsynth.evaluation.cohort import Cohort
from bids_petsynth.tables import read_table


@cache
def numbers() -> dict[str, float]:
    """The settings of ``data/group.tsv`` by name."""
    return {row["name"]: float(row["value"]) for row in read_table("group.tsv")}


def age_band(age: pd.Series) -> pd.Series:
    """Text such as ``60 to 69``, empty where the age is missing."""
    limit = numbers()
    first, last, width = (int(limit[name]) for name in ("age_first", "age_last", "age_band"))
    names = [
        f"below {first}",
        *(f"{low} to {low + width - 1}" for low in range(first, last, width)),
        f"{last} and over",
    ]
    edges = [-np.inf, *range(first, last + 1, width), np.inf]
    return pd.cut(age.astype(float), edges, right=False, labels=names).astype(object).fillna("").astype(str)


def groups(cohort: Cohort, asked: Sequence[str] = ()) -> dict[str, pd.Series]:
    """Name of a grouping → group of every scan as text (empty: unknown), of groupings with two groups or more.

    ``sex``, ``age band`` and ``APOE e4`` come from the record; columns that are asked for, and those whose name tells
    that they hold a diagnosis, a site, or race or ethnicity (``data/group_kinds.tsv``), from the dataset's tables.

    Raises
    ------
    UsageError
        If the dataset has no column that is asked for.
    """
    found: dict[str, pd.Series] = {}
    if absent := [name for name in asked if name not in cohort.columns]:
        have = ", ".join(sorted(cohort.columns)) or "none"
        raise UsageError(f"The dataset has no column {', '.join(absent)} for its participants; it has {have}.")
    for name in (*asked, *columns_of_kind(cohort.columns)):
        levels = {text for text in cohort.columns[name] if text}
        if name in asked or len(levels) <= numbers()["levels_max"]:
            found[name] = cohort.columns[name]
    records = cohort.records
    if "sex" in records:
        found["sex"] = records["sex"].map({0.0: "female", 1.0: "male"}).fillna("")
    if "age" in records:
        found["age band"] = age_band(records["age"])
    if "apoe4" in records:
        found["APOE e4"] = records["apoe4"].map(lambda n: "" if pd.isna(n) else ("carrier" if n > 0 else "none"))
    return {name: group for name, group in found.items() if len(set(group) - {""}) > 1}
