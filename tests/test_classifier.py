"""Classifiers as plain numbers: the same probabilities as scikit-learn's, whatever is missing."""

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bids_petsynth.evaluation import classifier
from bids_petsynth.evaluation.classifier import BOOSTING, KINDS, LOGISTIC, Scaling, estimator, freeze, rebalanced


def people(n=120, columns=6, classes=2, missing=0.1, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    x = rng.normal(size=(n, columns)) * 3 + 5
    x[:, 0] += 2 * y
    x[rng.random(x.shape) < missing] = np.nan
    return x, y


def test_scaling_is_that_of_scikit_learn():
    x, _ = people()
    expected = make_pipeline(SimpleImputer(strategy="median"), StandardScaler()).fit_transform(x)
    np.testing.assert_allclose(Scaling.of(x)(x), expected, atol=1e-12)


def test_columns_without_values_or_without_spread_become_nought():
    x = np.column_stack([np.full(5, np.nan), np.full(5, 7.0), np.arange(5.0)])
    scaling = Scaling.of(x)
    np.testing.assert_array_equal(scaling(x)[:, :2], 0)
    np.testing.assert_array_equal(scaling(np.array([[3.0, 8.0, np.nan]]))[:, :2], 0)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", list(KINDS))
def test_numbers_give_the_probabilities_of_scikit_learn(kind, classes):
    x, y = people(classes=classes)
    names = ["a", "b", "c"][:classes]
    scaling = Scaling.of(x)
    scaled = scaling(x)
    fitted = estimator(kind, KINDS[kind][1], 3).fit(scaled, y)
    frozen = freeze(fitted, kind, scaling, scaled, y, names, [("s", str(i)) for i in range(x.shape[1])])
    other, _ = people(seed=9, missing=0.4)
    np.testing.assert_allclose(frozen.probability(other), fitted.predict_proba(scaling(other)), atol=1e-9)
    np.testing.assert_allclose(frozen.balanced(other).sum(1), 1)


def test_rebalanced_probabilities_are_those_of_bayes_at_equal_prevalence():
    likelihood = np.array([[0.2, 0.6], [0.5, 0.1]])
    share = np.array([0.9, 0.1])
    posterior = likelihood * share / (likelihood * share).sum(1, keepdims=True)
    np.testing.assert_allclose(rebalanced(posterior, share), likelihood / likelihood.sum(1, keepdims=True))


def test_logistic_regression_recovers_planted_coefficients():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20000, 3))
    slope = np.array([1.0, -0.5, 0.0])
    y = (rng.random(20000) < 1 / (1 + np.exp(-(x @ slope + 0.3)))).astype(int)
    scaling = Scaling.of(x)
    fitted = estimator(LOGISTIC, 10.0, 0).fit(scaling(x), y)
    frozen = freeze(fitted, LOGISTIC, scaling, scaling(x), y, ["no", "yes"], [("s", c) for c in "abc"])
    np.testing.assert_allclose(frozen.coefficients[1], slope, atol=0.05)
    assert isinstance(fitted, LogisticRegression)


def test_trees_see_what_a_line_does_not():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(600, 1))
    y = (np.abs(x[:, 0]) > 0.67).astype(int)
    right = {}
    for kind in (LOGISTIC, BOOSTING):
        scaling = Scaling.of(x)
        fitted = estimator(kind, KINDS[kind][-1], 0).fit(scaling(x), y)
        frozen = freeze(fitted, kind, scaling, scaling(x), y, ["in", "out"], [("s", "x")])
        right[kind] = np.mean(frozen.probability(x).argmax(1) == y)
    assert right[LOGISTIC] < 0.6 < 0.95 < right[BOOSTING]
    assert classifier.KINDS.keys() == right.keys()
