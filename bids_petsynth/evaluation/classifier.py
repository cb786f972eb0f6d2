"""Classifiers of people by columns of a table: fitted by scikit-learn, kept and applied as plain numbers.

A fitted classifier is its numbers and nothing else: what stands in for missing values, how columns are scaled, and
coefficients or trees. They can be written as JSON and read by eye, and reading them runs no code of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Kinds of classifiers, and the options among which inner folds choose: inverse of the penalty's strength, or how many
#: trees.
KINDS: dict[str, tuple[Any, ...]] = {
    "logistic regression": (0.001, 0.01, 0.1, 1.0, 10.0),
    "gradient boosting": (10, 30, 60),
}
LOGISTIC, BOOSTING = KINDS
#: Smallest probability that is told apart from 0.
LEAST = 1e-6


@dataclass(frozen=True)
class Scaling:
    """Median of the known values in the place of missing ones, then zero mean and unit variance; ``(F,)`` each.

    A column without any known value is 0 everywhere, a constant one as well.
    """

    median: np.ndarray
    mean: np.ndarray
    sd: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> Scaling:
        """That of the people ``x (N, F)``; missing values are NaN."""
        known = np.isfinite(x)
        median = np.array([np.median(c[k]) if k.any() else 0.0 for c, k in zip(x.T, known.T, strict=True)])
        filled = np.where(known, x, median)
        sd = filled.std(0)
        return cls(median, filled.mean(0), np.where(sd > 1e-9 * (1 + np.abs(filled.mean(0))), sd, np.inf))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``(N, F)`` scaled."""
        return (np.where(np.isfinite(x), x, self.median) - self.mean) / self.sd


@dataclass(frozen=True)
class Tree:
    """A regression tree as arrays over its nodes: children (-1 at a leaf), column, threshold, value."""

    left: np.ndarray
    right: np.ndarray
    column: np.ndarray
    threshold: np.ndarray
    value: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``(N,)`` values of the leaves in which the rows of ``x (N, F)`` end."""
        # trees compare in single precision, as scikit-learn does
        x, node = x.astype(np.float32), np.zeros(len(x), int)
        while (inner := self.left[node] >= 0).any():
            here = node[inner]
            lower = x[inner, self.column[here]] <= self.threshold[here]
            node[inner] = np.where(lower, self.left[here], self.right[here])
        return self.value[node]


@dataclass(frozen=True)
class Classifier:
    """A fitted classifier.

    Attributes
    ----------
    kind
        A key of ``KINDS``.
    classes
        Names, in the order of the probabilities.
    columns
        Names of the columns that it takes, in order.
    share
        ``(K,)`` of each class among the people that it was trained on.
    start
        ``(K,)`` score of each class before any column is looked at.
    coefficients
        ``(K, F)`` of a logistic regression on scaled columns.
    trees
        Of gradient boosting: stages of one tree per class (one tree, of the second class, where there are two),
        whose values are multiplied by ``rate``.
    """

    kind: str
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    scaling: Scaling
    share: np.ndarray
    start: np.ndarray
    coefficients: np.ndarray | None = None
    trees: tuple[tuple[Tree, ...], ...] = ()
    rate: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)

    def probability(self, x: np.ndarray) -> np.ndarray:
        """``(N, K)`` probabilities of ``x (N, F)``, NaN where a value is missing, at the class shares of training."""
        scaled = self.scaling(np.asarray(x, float))
        score = np.tile(self.start, (len(scaled), 1))
        if self.coefficients is not None:
            score += scaled @ self.coefficients.T
        for stage in self.trees:
            for k, tree in enumerate(stage, start=len(self.classes) - len(stage)):
                score[:, k] += self.rate * tree(scaled)
        return softmax(score)

    def balanced(self, x: np.ndarray) -> np.ndarray:
        """The same as if all classes were equally common: decisions are its largest."""
        return rebalanced(self.probability(x), self.share)


def softmax(score: np.ndarray) -> np.ndarray:
    """``(N, K)`` probabilities from scores."""
    e = np.exp(score - score.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def rebalanced(probability: np.ndarray, share: np.ndarray) -> np.ndarray:
    """``(N, K)`` probabilities as if all classes were equally common, from those where their shares are ``(K,)``.

    In cross-validation this keeps the class shares of the training folds, which are lower for a class of which more
    people were held out, from pushing an AUC below one half.
    """
    odds = np.clip(probability, LEAST, None) / np.clip(share, LEAST, None)
    return odds / odds.sum(1, keepdims=True)


def estimator(kind: str, option: Any, seed: int) -> Any:
    """The unfitted scikit-learn estimator.

    Gradient boosting is stochastic (Friedman, Comput. Stat. Data Anal. 38 (2002) 367): every tree sees half of the
    people and a few of the columns.
    """
    if kind == LOGISTIC:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=option, max_iter=1000)
    from sklearn.ensemble import GradientBoostingClassifier

    return GradientBoostingClassifier(
        n_estimators=option, max_depth=2, subsample=0.5, max_features="sqrt", learning_rate=0.1, random_state=seed
    )


def shares(y: np.ndarray, n_classes: int) -> np.ndarray:
    """``(K,)`` share of each class among ``y (N,)`` codes."""
    return np.bincount(y, minlength=n_classes) / len(y)


def all_classes(probability: np.ndarray, present: Sequence[int], n_classes: int) -> np.ndarray:
    """``(N, K)`` probabilities from those of the classes that training saw."""
    out = np.zeros((len(probability), n_classes))
    out[:, list(present)] = probability
    return out


def freeze(
    fitted: Any,
    kind: str,
    scaling: Scaling,
    x: np.ndarray,
    y: np.ndarray,
    classes: Sequence[str],
    columns: Sequence[str],
) -> Classifier:
    """The numbers of an estimator fitted on the scaled people ``x (N, F)`` with classes ``y (N,)``, all present."""
    k = len(classes)
    known = {
        "kind": kind,
        "classes": tuple(classes),
        "columns": tuple(columns),
        "scaling": scaling,
        "share": shares(y, k),
    }
    if kind == LOGISTIC:
        weights, start = fitted.coef_, fitted.intercept_
        if len(weights) == 1:  # two classes: the score of the first is 0
            weights, start = np.vstack([0 * weights, weights]), np.array([0.0, start[0]])
        return Classifier(**known, start=start, coefficients=weights)
    trees = tuple(tuple(_tree(one.tree_) for one in stage) for stage in fitted.estimators_)
    # where boosting starts is what the estimator says beyond its trees
    first = fitted.decision_function(x[:1]).reshape(-1)
    grown = [fitted.learning_rate * sum(stage[i](x[:1])[0] for stage in trees) for i in range(len(first))]
    start = np.zeros(k)
    start[k - len(first) :] = first - grown
    return Classifier(**known, start=start, trees=trees, rate=float(fitted.learning_rate))


def _tree(tree: Any) -> Tree:
    return Tree(tree.children_left, tree.children_right, tree.feature, tree.threshold, tree.value[:, 0, 0])
