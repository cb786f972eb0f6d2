"""Whether the answer was in the question: variables that steer the synthesis and also nearly are the class."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from bids_petsynth.evaluation.classifier import LOGISTIC
from bids_petsynth.evaluation.decisions import class_areas
from bids_petsynth.evaluation.folds import Table
from bids_petsynth.evaluation.study import Study, limit


def single_columns(study: Study, frame: pd.DataFrame, defining: Collection[str] = ()) -> pd.DataFrame:
    """How well each column alone tells the classes apart.

    Parameters
    ----------
    study
        With folds.
    frame
        ``(N, V)`` the variables that the synthesis was given, rows as in the study; words are taken as categories.
    defining
        Columns that such a class is known to be made with, such as cognitive scores.

    Returns
    -------
    DataFrame
        ``column``, ``class`` that it tells apart best, cross-validated ``auc``, ``bound``, ``leaks``; largest first.

    Notes
    -----
    The column enters with its square and with whether it is known, for a score that was only taken of patients says
    by its absence who is none.
    """
    rows = []
    for name in frame:
        x = _spread(frame[name])
        areas = class_areas(study.judged(Table(x), LOGISTIC)[0], study.y) if x.shape[1] else np.full(1, 0.5)
        best = int(np.nanargmax(areas))
        bound = limit("leak_auc_defining" if name in defining else "leak_auc")
        rows.append((str(name), study.classes[best], float(areas[best]), bound, bool(areas[best] >= bound)))
    found = pd.DataFrame(rows, columns=["column", "class", "auc", "bound", "leaks"])
    return found.sort_values("auc", ascending=False, kind="stable", ignore_index=True)


def _spread(column: pd.Series) -> np.ndarray:
    """``(N, F)`` of one column; without columns if it says the same of everybody."""
    number = pd.to_numeric(column, errors="coerce").astype(float)
    if column.notna().any() and number.isna().all():
        return pd.get_dummies(column, dummy_na=True, dtype=float).to_numpy()
    ranked = number.rank(pct=True).to_numpy() - 0.5
    parts = np.column_stack([ranked, ranked**2, number.notna().to_numpy(float)])
    differ = [len(np.unique(part[np.isfinite(part)])) > 1 for part in parts.T]
    return parts[:, differ]
