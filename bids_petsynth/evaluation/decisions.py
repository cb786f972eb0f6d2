"""How good decisions between classes are, with intervals that respect the independent unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from bids_petsynth.evaluation.delong import delong_clustered
from bids_petsynth.evaluation.statistics import Interval, bootstrap
from bids_petsynth.evaluation.uncertainty import Discrimination

#: Figures of decisions, in the order of :func:`figures`; the areas of the single classes follow them.
FIGURES = ("auc", "accuracy", "balanced_accuracy", "f1")


def class_areas(probability: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``(..., K)`` areas under the ROC curve, each class against all others; NaN where one side is empty.

    ``probability (..., N, K)``, ``y (N,)`` codes.
    """
    if probability.shape[-1] == 2:  # the first class's scores are those of the second, mirrored, but for rounding
        probability = np.stack([-probability[..., 1], probability[..., 1]], axis=-1)
    own = y[:, None] == np.arange(probability.shape[-1])
    m = own.sum(0)
    pairs = m * (len(y) - m)
    wins = (stats.rankdata(probability, axis=-2) * own).sum(-2) - m * (m + 1) / 2
    return wins / np.where(pairs > 0, pairs, np.nan)


def figures(probability: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``(S, 4 + K)``: the ``FIGURES`` of decisions for the most probable class, then the area of each class.

    ``probability (S, N, K)`` of S classifiers, ``y (N,)`` codes. The AUC of more than two classes is the mean of the
    classes' areas; F1 is the mean over classes. What needs a class of which nobody is there is NaN.
    """
    s, n, k = probability.shape
    areas = class_areas(probability, y)
    cell = (np.arange(s)[:, None] * k + y) * k + probability.argmax(2)
    confusion = np.bincount(cell.ravel(), minlength=s * k * k).reshape(s, k, k)
    right, there, said = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(2), confusion.sum(1)
    recall = right / np.where(there > 0, there, np.nan)
    f1 = 2 * right / np.where(there > 0, there + said, np.nan)
    return np.column_stack([areas.mean(1), right.sum(1) / n, recall.mean(1), f1.mean(1), areas])


def intervals(probabilities: np.ndarray, y: np.ndarray, clusters: np.ndarray, n: int, seed: int) -> Interval:
    """Figures ``(S, 4 + K)`` of S classifiers' ``(S, N, K)`` probabilities for the same people, with 95 % intervals."""
    return bootstrap(lambda i: figures(probabilities[:, i], y[i]), clusters, n, seed=seed)


def performance_rows(
    names: Sequence[Mapping[str, Any]], found: Interval, y: np.ndarray, clusters: np.ndarray, classes: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of figures, and rows of every class's area; each begins with the ``names`` of its classifier."""
    size = {"people": len(y), "independent_units": len(np.unique(clusters))}
    rows, areas = [], []
    for s, name in enumerate(names):
        row = {**name, **size}
        for f, figure in enumerate(FIGURES):
            row |= _bounded(figure, found, (s, f))
        rows.append(row)
        for k, label in enumerate(classes):
            areas.append({**name, "class": label, **_bounded("auc", found, (s, len(FIGURES) + k))})
    return rows, areas


def _bounded(name: str, found: Interval, place: tuple[int, int]) -> dict[str, float]:
    parts = {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
    return {key: float(value[place]) for key, value in parts.items()}


def widening(folds: int) -> float:
    """How much wider the variance of a cross-validated figure is than that of independent people (see ``compare``)."""
    return 1 + folds / (folds - 1)


def better_than_chance(probabilities: np.ndarray, y: np.ndarray, clusters: np.ndarray, folds: int) -> np.ndarray:
    """``(S, K)`` one-sided p of each class's area, of S classifiers ``(S, N, K)``, being no more than one half.

    With the variance of :func:`compare`; NaN for a class that too few independent units have.
    """
    out = np.full((len(probabilities), probabilities.shape[2]), np.nan)
    for k in range(out.shape[1]):
        try:
            found = delong_clustered(probabilities[:, :, k], y == k, clusters)
        except ValueError:
            continue
        error = np.sqrt(np.diag(found.covariance) * widening(folds))
        # areas of 0 or 1, and of scores that are all the same, have no spread
        z = (found.auc - 0.5) / np.maximum(error, 1e-9)
        out[:, k] = stats.norm.sf(z)
    return out


def compare(
    names: Sequence[str],
    probabilities: np.ndarray,
    y: np.ndarray,
    clusters: np.ndarray,
    classes: Sequence[str],
    folds: int,
) -> list[dict[str, Any]]:
    """Differences of the areas of every two of S classifiers ``(S, N, K)``: DeLong's test.

    Of two classes only the second is compared, for the first gives the same. A class that too few independent units
    have is left out.

    Notes
    -----
    ``p_delong`` takes the out-of-fold probabilities as if one classifier had made them. They come from ``folds``
    classifiers that were trained on each other's test people, so on null data areas vary more than twice as much as
    DeLong's variance says. The interval and ``p`` have the variance of Nadeau & Bengio (Mach. Learn. 52
    (2003) 239), larger by ``1 + folds · n_test / n_train``; they err toward no difference where effects are large.
    """
    rows = []
    for k, label in list(enumerate(classes))[1 if len(classes) == 2 else 0 :]:
        try:
            found = delong_clustered(probabilities[:, :, k], y == k, clusters)
        except ValueError:
            continue
        wider = Discrimination(found.auc, found.covariance * widening(folds))
        for a, b in combinations(range(len(names)), 2):
            delta, low, high, p = wider.difference(a, b)
            row = {"features": names[a], "compared_with": names[b], "class": label, "difference": delta}
            row |= {"difference_low": low, "difference_high": high, "p_delong": found.difference(a, b)[3], "p": p}
            rows.append(row)
    return rows


def kappa(a: np.ndarray, b: np.ndarray, n_classes: int) -> float:
    """Cohen's kappa of two decisions ``(N,)`` (codes); NaN if both always say the same one class."""
    table = np.bincount(a * n_classes + b, minlength=n_classes**2).reshape(n_classes, n_classes) / len(a)
    chance = table.sum(1) @ table.sum(0)
    return float((np.trace(table) - chance) / (1 - chance)) if chance < 1 else float("nan")


def agreement(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], clusters: np.ndarray, n_classes: int, n: int, seed: int
) -> list[dict[str, Any]]:
    """Of each pair of decisions ``(N,)``: the share of people with the same, and Cohen's kappa, with 95 % intervals."""

    def statistic(i: np.ndarray) -> np.ndarray:
        return np.array([[np.mean(a[i] == b[i]), kappa(a[i], b[i], n_classes)] for a, b in pairs])

    found = bootstrap(statistic, clusters, n, seed=seed)
    return [_bounded("same", found, (p, 0)) | _bounded("kappa", found, (p, 1)) for p in range(len(pairs))]
