"""Nested cross-validation by the independent unit: nobody is judged by a classifier that saw them or their kin."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bids_petsynth.evaluation.classifier import (
    BOOSTING,
    KINDS,
    LEAST,
    Classifier,
    Scaling,
    all_classes,
    estimator,
    freeze,
    rebalanced,
    shares,
)

#: Inner folds that choose the options.
INNER = 3

Split = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Fold:
    """Indices of people: those trained on, those held out, and the splits of the former that choose options."""

    train: np.ndarray
    test: np.ndarray
    inner: tuple[Split, ...]


def splits(y: np.ndarray, clusters: np.ndarray, folds: int, seed: int) -> list[Split]:
    """Splits of ``(N,)`` people into training and held-out ones, stratified by class, whole clusters together.

    There are fewer than ``folds`` where a class has fewer clusters, none where one has a single cluster.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    n = min(folds, *(len(np.unique(clusters[y == c])) for c in np.unique(y)))
    if n < 2:
        return []
    alone = len(np.unique(clusters)) == len(clusters)
    splitter = (StratifiedKFold if alone else StratifiedGroupKFold)(n, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # a class in fewer people than folds is spread as far as it goes
        warnings.simplefilter("ignore", UserWarning)
        found = list(splitter.split(np.zeros(len(y)), y, clusters))
    return [(train, test) for train, test in found if len(train) and len(test)]


def nested(y: np.ndarray, clusters: np.ndarray, folds: int, seed: int) -> list[Fold]:
    """Outer folds, each with its inner splits (indices of the whole cohort)."""
    out = []
    for train, test in splits(y, clusters, folds, seed):
        inner = splits(y[train], clusters[train], INNER, seed)
        out.append(Fold(train, test, tuple((train[a], train[b]) for a, b in inner)))
    return out


@dataclass(frozen=True)
class Table:
    """Columns of people for one analysis.

    Attributes
    ----------
    x
        ``(N, F)``, NaN where missing: what classifiers are trained on.
    judged
        What they are applied to, each ``(N, F)``: the same unless they are carried to another kind of scan.
    nuisance
        ``(N, A)`` columns whose linear part is taken off the columns ``cleaned``, as the training people have it.
    """

    x: np.ndarray
    judged: tuple[np.ndarray, ...] = ()
    nuisance: np.ndarray | None = None
    cleaned: np.ndarray | None = None

    def scaled(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Training people, and the held-out ones of each of ``judged``, prepared by what the training people tell."""
        scaling = Scaling.of(self.x[train])
        here, there = scaling(self.x[train]), [scaling(x[test]) for x in self.judged or (self.x,)]
        if self.nuisance is not None:
            other = Scaling.of(self.nuisance[train])
            z, z_test = other(self.nuisance[train]), other(self.nuisance[test])
            slope = np.linalg.lstsq(z, here[:, self.cleaned], rcond=None)[0]
            here[:, self.cleaned] -= z @ slope
            for x in there:
                x[:, self.cleaned] -= z_test @ slope
        return here, there


def out_of_fold(table: Table, y: np.ndarray, folds: Sequence[Fold], kind: str, seed: int) -> np.ndarray:
    """``(J, N, K)`` probabilities of everybody by classifiers that did not see them, as if classes were equally common.

    Parameters
    ----------
    table
        Columns of N people, judged in J ways (one, where ``judged`` is empty).
    y
        ``(N,)`` codes of K classes.
    folds
        From :func:`nested`.
    """
    k, own = int(y.max()) + 1, replace(table, judged=())
    out = np.full((len(table.judged) or 1, len(y), k), np.nan)
    for fold in folds:
        option = choose(own, y, fold.inner, kind, seed)
        x, held = table.scaled(fold.train, fold.test)
        found = _all_options(x, y[fold.train], np.concatenate(held), kind, (option,), seed, k)[0]
        out[:, fold.test] = rebalanced(found, shares(y[fold.train], k)).reshape(len(held), len(fold.test), k)
    return out


def predict(
    table: Table, y: np.ndarray, clusters: np.ndarray, held: np.ndarray, kind: str, seed: int, n_classes: int
) -> np.ndarray:
    """``(M, K)`` probabilities of ``held (M, F)`` by the people of a table, the option chosen by folds over them."""
    option = choose(table, y, splits(y, clusters, INNER, seed), kind, seed)
    scaling = Scaling.of(table.x)
    return _all_options(scaling(table.x), y, scaling(held), kind, (option,), seed, n_classes)[0]


def choose(table: Table, y: np.ndarray, inner: Sequence[Split], kind: str, seed: int) -> Any:
    """The option with the least log loss over the inner splits; the middle one where there are no splits."""
    options = KINDS[kind]
    if len(options) == 1 or not inner:
        return options[len(options) // 2]
    k, loss = int(y.max()) + 1, np.zeros(len(options))
    for train, test in inner:
        x, (held,) = table.scaled(train, test)
        for i, p in enumerate(_all_options(x, y[train], held, kind, options, seed, k)):
            loss[i] -= np.log(np.clip(p[np.arange(len(test)), y[test]], LEAST, None)).sum()
    return options[int(np.argmin(loss))]


def _all_options(
    x: np.ndarray, y: np.ndarray, held: np.ndarray, kind: str, options: Sequence[Any], seed: int, n_classes: int
) -> list[np.ndarray]:
    """Probabilities of the held-out people under each option; trees are grown once."""
    present = np.unique(y)
    if len(present) == 1:
        return [all_classes(np.ones((len(held), 1)), present, n_classes)] * len(options)
    if kind != BOOSTING:
        found = [estimator(kind, option, seed).fit(x, y).predict_proba(held) for option in options]
    else:
        stages = list(estimator(kind, max(options), seed).fit(x, y).staged_predict_proba(held))
        found = [stages[trees - 1] for trees in options]
    return [all_classes(p, present, n_classes) for p in found]


def fit(
    x: np.ndarray,
    y: np.ndarray,
    clusters: np.ndarray,
    classes: Sequence[str],
    columns: Sequence[str],
    kind: str,
    seed: int = 0,
) -> Classifier:
    """A classifier of all people ``x (N, F)``, its option chosen by cross-validation over them."""
    inner = splits(y, clusters, INNER, seed)
    option = choose(Table(x), y, inner, kind, seed)
    scaling = Scaling.of(x)
    scaled = scaling(x)
    return freeze(estimator(kind, option, seed).fit(scaled, y), kind, scaling, scaled, y, classes, columns)
