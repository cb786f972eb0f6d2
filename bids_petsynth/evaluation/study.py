"""The people of a diagnostic analysis: who is admitted, their classes and folds, and columns by source."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bids_petsynth.evaluation.folds import Fold, Table, nested, out_of_fold
from bids_petsynth.tables import read_table

T1W, BLOOD, SYNTHETIC, REAL = "T1w", "blood", "synthetic PET", "real PET"
#: Sets of sources that are compared where all of their sources are given, after every source alone.
COMBINATIONS = ((T1W, BLOOD), (T1W, SYNTHETIC), (SYNTHETIC, BLOOD), (REAL, BLOOD))

Column = tuple[str, str]


def limit(name: str) -> float:
    """A number of ``data/diagnosis.tsv``."""
    return next(float(row["value"]) for row in read_table("diagnosis.tsv") if row["name"] == name)


@dataclass(frozen=True)
class Study:
    """N people of K classes.

    Attributes
    ----------
    sources
        Name → ``(N, F)`` frame of numbers; all have the same rows.
    y
        ``(N,)`` codes of ``classes``.
    clusters
        ``(N,)`` codes of the independent units.
    plans
        Outer folds of every seed.
    """

    sources: Mapping[str, pd.DataFrame]
    y: np.ndarray
    clusters: np.ndarray
    classes: tuple[str, ...]
    plans: tuple[tuple[Fold, ...], ...] = ()

    def planned(self, seeds: int, folds: int, seed: int) -> Study:
        """The same with folds for ``seeds`` repetitions."""
        plans = tuple(tuple(nested(self.y, self.clusters, folds, seed + s)) for s in range(seeds))
        return replace(self, plans=plans)

    def columns(self, sources: Sequence[str], without: Collection[str] = ()) -> list[Column]:
        """Sources and names of the columns of some sources, those of the variables ``without`` left out."""
        # a variable's logarithm is the variable (``features.clinical_features``)
        return [
            (source, name)
            for source in sources
            for name in self.sources[source]
            if str(name).removeprefix("log ") not in without and name not in without
        ]

    def values(self, columns: Sequence[Column]) -> np.ndarray:
        """``(N, F)`` of these columns."""
        if not columns:
            return np.empty((len(self.y), 0))
        return np.column_stack([self.sources[source][name].to_numpy(float) for source, name in columns])

    def judged(self, table: Table, kind: str) -> np.ndarray:
        """``(J, N, K)`` out-of-fold probabilities (``folds.out_of_fold``), the mean over the seeds."""
        return np.mean([out_of_fold(table, self.y, plan, kind, s) for s, plan in enumerate(self.plans)], axis=0)

    def probabilities(self, columns: Sequence[Column], kind: str) -> np.ndarray:
        """``(N, K)`` out-of-fold probabilities by some columns."""
        return self.judged(Table(self.values(columns)), kind)[0]


def combined(sources: Collection[str]) -> list[tuple[str, ...]]:
    """Every source alone, then the :data:`COMBINATIONS` that there are sources for."""
    return [(source,) for source in sources] + [c for c in COMBINATIONS if set(c) <= set(sources)]


def title(sources: Sequence[str]) -> str:
    """How tables name a set of sources."""
    return " + ".join(sources)


def admit(
    features: Mapping[str, pd.DataFrame], label: pd.Series, clusters: pd.Series
) -> tuple[Study | None, pd.DataFrame, list[str]]:
    """People with a class that enough others share, and at least one value of every source.

    Returns
    -------
    study
        None if fewer than two classes are left.
    classes
        Per class: people, those with all sources, their independent units, whether it is ``used``.
    sentences
        What was left out, and why.
    """
    name = str(label.name or "label")
    sentences: list[str] = []
    if not label.index.is_unique:
        sentences.append(f"{name}: rows of the same name are there several times; the first of each counts.")
        label = label[~label.index.duplicated()]
    text = label.dropna().map(_text)
    text = text[text != ""]
    sources = {}
    for source, frame in features.items():
        table = numbers(source, frame.loc[~frame.index.duplicated()].reindex(text.index), sentences)
        if table.shape[1]:
            sources[source] = table
        elif len(text):
            sentences.append(f"{source} has no values for people with {name}: it is left out.")
    complete = pd.Series(True, index=text.index)
    for source, frame in sources.items():
        known = frame.notna().any(axis=1)
        if (lacking := int((complete & ~known).sum())) and known.any():
            who = "1 person has" if lacking == 1 else f"{lacking} people have"
            sentences.append(f"{who} {name} but no value of {source}: all sets of features are judged without them.")
        complete &= known
    units = clusters[~clusters.index.duplicated()].reindex(text.index)
    # who has no unit named is one of their own
    units = units.where(units.notna(), pd.Series([f"row {i}" for i in range(len(units))], index=units.index))
    table = pd.DataFrame(
        [
            (value, int((text == value).sum()), int(mine.sum()), units[mine].nunique())
            for value in sorted(text.unique(), key=_order)
            for mine in [complete & (text == value)]
        ],
        columns=["class", "people", "with_all_features", "independent_units"],
    )
    least, least_units = int(limit("least_people")), int(limit("least_units"))
    table["used"] = (table["with_all_features"] >= least) & (table["independent_units"] >= least_units)
    if len(table) > limit("most_classes"):
        sentences.append(
            f"{name} has {len(table)} different values and was not taken for classes: use it as a score, or name a "
            f"column with at most {limit('most_classes'):.0f}."
        )
        return None, table.assign(used=False), sentences
    if not sources and len(text):
        sentences.append(f"There are no features of people with {name}: nothing is told apart.")
        return None, table.assign(used=False), sentences
    for row in table[~table["used"]].itertuples():
        sentences.append(
            f"Class {row[1]} of {name} has {row.with_all_features} people with all features in {row.independent_units} "
            f"independent units and is left out; a class needs {least} people in {least_units} units."
        )
    used = tuple(table.loc[table["used"], "class"])
    if len(used) < 2:
        sentences.append(f"{name} leaves fewer than two classes to tell apart: nothing is compared.")
        return None, table, sentences
    keep = complete & text.isin(used)
    study = Study(
        sources={source: frame[keep] for source, frame in sources.items()},
        y=text[keep].map({value: code for code, value in enumerate(used)}).to_numpy(int),
        clusters=np.unique(units[keep].astype(str), return_inverse=True)[1],
        classes=used,
    )
    return study, table, sentences


def numbers(source: str, frame: pd.DataFrame, sentences: list[str], keep: Sequence[str] | None = None) -> pd.DataFrame:
    """Columns as numbers, infinities as missing; without those that nobody has, or just those named in ``keep``."""
    found = frame.apply(pd.to_numeric, errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)
    if keep is not None:
        return found.reindex(columns=list(keep))
    words = [name for name in frame if frame[name].notna().any() and found[name].isna().all()]
    if words:
        sentences.append(f"{source}: {', '.join(map(str, words))} hold no numbers and are left out.")
    return found.dropna(axis=1, how="all")


def _text(value: object) -> str:
    """A class by its name; 1.0 is 1."""
    return f"{value:g}" if isinstance(value, float) else str(value).strip()


def _order(value: str) -> tuple[int, float, str]:
    """Numbers first and by size, then words."""
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value
