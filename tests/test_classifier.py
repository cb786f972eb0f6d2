"""Classifiers as plain numbers: the same probabilities as scikit-learn's, whatever is missing."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bids_petsynth.errors import UsageError
from bids_petsynth.evaluation.classifier import BOOSTING, KINDS, LOGISTIC, Scaling, estimator, freeze, rebalanced
from bids_petsynth.evaluation.classifier_folder import load_classifier, save_classifier
from bids_petsynth.evaluation.folds import fit


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


# On disk.


def fitted(kind, classes=2, columns=6, missing=0.1):
    x, y = people(classes=classes, columns=columns, missing=missing)
    x[:, -1] = 3.0  # a constant column has no finite scale
    names = [("T1w", str(i)) for i in range(x.shape[1])]
    return fit(x, y, np.arange(len(y)), ["a", "b", "c"][:classes], names, kind)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_classifier_comes_back_from_its_folder_to_the_last_bit(kind, classes, tmp_path):
    made = replace(fitted(kind, classes), about={"Tracer": "AV45", "People": 120})
    save_classifier(made, tmp_path / "some" / "where")
    found = load_classifier(tmp_path / "some" / "where")
    x, _ = people(seed=5, missing=0.3)
    np.testing.assert_array_equal(found.probability(x), made.probability(x))
    assert (found.kind, found.classes, found.columns, found.about) == (kind, made.classes, made.columns, made.about)
    text = json.loads((tmp_path / "some" / "where" / "classifier.json").read_text())
    assert "not a diagnosis" in text["Caveats"][0]


def damaged(name, change):
    def apply(content):
        content[name] = change(content[name])
        return content

    return apply


@pytest.mark.parametrize(
    ("kind", "spoil", "sentence"),
    [
        (LOGISTIC, None, "is no classifier: it has no classifier.json"),
        (LOGISTIC, lambda c: "{", "cannot be read as JSON"),
        (LOGISTIC, lambda c: [1], "was not written by this software"),
        (LOGISTIC, lambda c: {"Format": "sklearn"}, "was not written by this software"),
        (LOGISTIC, damaged("FormatVersion", lambda v: 99), "format 99, which this version does not know"),
        (LOGISTIC, damaged("Coefficients", lambda v: v[:1]), "is damaged"),
        (LOGISTIC, damaged("Coefficients", lambda v: [["x"] * 6] * 2), "is damaged"),
        (LOGISTIC, damaged("Start", lambda v: [None, 0]), "is damaged"),
        (LOGISTIC, damaged("Scaling", lambda v: {**v, "sd": [-1.0] * 6}), "is damaged"),
        (LOGISTIC, damaged("Classes", lambda v: ["a"]), "is damaged"),
        (LOGISTIC, damaged("Kind", lambda v: "oracle"), "is damaged"),
        # a node that leads back to itself would never end
        (BOOSTING, damaged("Trees", lambda v: [[{**v[0][0], "left": [0] * len(v[0][0]["left"])}]]), "is damaged"),
        (BOOSTING, damaged("Trees", lambda v: [[{**v[0][0], "column": [77] * len(v[0][0]["left"])}]]), "is damaged"),
        (BOOSTING, damaged("Trees", lambda v: [[v[0][0], v[0][0]]]), "is damaged"),
    ],
)
def test_foreign_and_damaged_folders_get_one_sentence(kind, spoil, sentence, tmp_path):
    if spoil:
        path = save_classifier(fitted(kind), tmp_path)
        content = spoil(json.loads(path.read_text()))
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UsageError, match=sentence) as error:
        load_classifier(tmp_path)
    assert str(error.value).count(". ") == 0
