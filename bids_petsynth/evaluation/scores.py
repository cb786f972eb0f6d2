"""Predicting a score, such as the MMSE, from sets of features: ridge regression, nested cross-validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bids_petsynth.evaluation.classifier import Scaling
from bids_petsynth.evaluation.folds import splits
from bids_petsynth.evaluation.statistics import bootstrap
from bids_petsynth.evaluation.study import combined, limit, numbers, title

#: Strengths of the penalty that leave-one-out chooses from, in the training people.
STRENGTHS = np.logspace(-1, 5, 13)


def regress_score(
    features: Mapping[str, pd.DataFrame],
    score: pd.Series,
    clusters: pd.Series,
    *,
    score_range: tuple[float, float] | None = None,
    seeds: int = 5,
    folds: int = 5,
    sets: Iterable[Sequence[str]] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, list[str]]:
    """How well sets of features predict a score of people that did not train.

    Parameters
    ----------
    features, clusters, seeds, folds, sets
        As in ``diagnosis.diagnose``.
    score
        A number per person, by the same index.
    score_range
        People outside are left out (20 to 30 in MRI2PET's experiment), ends included.

    Returns
    -------
    table
        Per set: ``mse`` and ``r`` with 95 % intervals, ``mse_of_mean``: of everybody predicted by the mean of the
        training people. ``r`` is NaN where predictions are constant.
    sentences
        What was left out, and why; the table is empty if nothing could be done.
    """
    name, sentences = str(score.name or "score"), []
    known = pd.to_numeric(score[~score.index.duplicated()], errors="coerce").dropna()
    if score_range is not None:
        inside = known.between(*score_range)
        if out := int((~inside).sum()):
            sentences.append(f"{out} of {len(known)} people have {name} outside {_span(score_range)}: left out.")
        known = known[inside]
    sources = {}
    for source, frame in features.items():
        table = numbers(source, frame.loc[~frame.index.duplicated()].reindex(known.index), sentences)
        if table.shape[1]:
            sources[source] = table
    complete = np.ones(len(known), bool)
    for table in sources.values():
        complete &= table.notna().any(axis=1).to_numpy()
    target = known.to_numpy(float)[complete]
    units = clusters[~clusters.index.duplicated()].reindex(known.index).astype(str).to_numpy()[complete]
    if not sources or len(np.unique(units)) < 2 * limit("least_people") or np.ptp(target) == 0:
        sentences.append(
            f"{name}: {len(target)} people with all features in {len(np.unique(units))} independent units; "
            f"{2 * limit('least_people'):.0f} with different scores are needed to predict it."
        )
        return pd.DataFrame(), sentences
    wanted = combined(sources) if sets is None else [tuple(s) for s in sets if set(s) <= set(sources)]
    plans = [splits(np.zeros(len(target), int), units, folds, seed + s) for s in range(seeds)]
    said = [_predicted(None, target, plans)]
    for group in wanted:
        x = np.column_stack([sources[source].to_numpy(float)[complete] for source in group])
        said.append(_predicted(x, target, plans))
    every = np.array(said)

    def statistic(i: np.ndarray) -> np.ndarray:
        return np.array([(np.mean((p[i] - target[i]) ** 2), _r(p[i], target[i])) for p in every])

    found = bootstrap(statistic, units, n_bootstrap, seed=seed)
    rows = []
    for s, group in enumerate(wanted, start=1):
        row: dict[str, Any] = {"features": title(group), "score": name, "people": len(target)}
        for f, figure in enumerate(("mse", "r")):
            parts = {"": found.estimate, "_low": found.low, "_high": found.high}
            row |= {figure + end: float(values[s, f]) for end, values in parts.items()}
        rows.append({**row, "mse_of_mean": float(found.estimate[0, 0])})
    return pd.DataFrame(rows), sentences


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"


def _r(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 1e-12 and b.std() > 0 else float("nan")


def ridge(x: np.ndarray, target: np.ndarray, held: np.ndarray) -> np.ndarray:
    """``(M,)`` predictions for ``held (M, F)`` by people ``x (N, F)``, the penalty chosen by leave-one-out."""
    from sklearn.linear_model import RidgeCV

    scaling = Scaling.of(x)
    return RidgeCV(STRENGTHS).fit(scaling(x), target).predict(scaling(held))


def _predicted(x: np.ndarray | None, target: np.ndarray, plans: Sequence[Sequence[tuple]]) -> np.ndarray:
    """``(N,)`` out-of-fold predictions, mean over repetitions; by the training people's mean where x is None."""
    out = np.zeros(len(target))
    for plan in plans:
        for train, test in plan:
            found = np.mean(target[train]) if x is None else ridge(x[train], target[train], x[test])
            out[test] += found / len(plans)
    return out
