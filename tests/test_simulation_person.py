"""Coupling of simulated people, plasma and volumes to the published figures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bids_petsynth.anatomy.regions import n_classes
from bids_petsynth.simulation.anatomy import log_volume_factors
from bids_petsynth.simulation.person import draw_people
from bids_petsynth.simulation.plasma import draw_plasma, drop_some


@pytest.fixture(scope="module")
def crowd():
    rng = np.random.default_rng(11)
    people = draw_people(2000, rng)
    return people, draw_plasma(people, rng)


def test_people_follow_the_published_marginals(crowd):
    people, _ = crowd
    positive = people.positive
    assert 0.36 < positive.mean() < 0.47
    assert abs(people.centiloid[~positive].mean() - 6.8) < 2
    assert abs(people.centiloid[positive].mean() - 78) < 10
    assert abs((people.apoe4[positive] > 0).mean() - 0.55) < 0.06
    assert abs((people.apoe4[~positive] > 0).mean() - 0.23) < 0.05
    assert people.age[positive].mean() > people.age[~positive].mean()
    assert np.all(people.tau_neocortical[~positive] == 0)
    assert people.mmse[positive].mean() < people.mmse[~positive].mean()
    assert set(np.unique(people.apoe4)) <= {0.0, 1.0, 2.0}
    assert people.mmse.min() >= 0 and people.mmse.max() <= 30


def test_ptau217_has_the_published_accuracy_and_correlation(crowd):
    people, plasma = crowd
    ptau = plasma["ptau217_lumipulse"]
    assert 0.88 < roc_auc_score(people.positive, ptau) < 0.92
    assert 0.60 < spearmanr(ptau, people.centiloid)[0] < 0.72
    # ADNI: .106 pg/mL has sensitivity .946; .177 has sensitivity .789 and specificity .860
    assert abs((ptau[people.positive] > 0.106).mean() - 0.946) < 0.035
    assert abs((ptau[people.positive] > 0.177).mean() - 0.789) < 0.05
    assert abs((ptau[~people.positive] < 0.177).mean() - 0.860) < 0.05


@pytest.mark.parametrize(
    ("name", "negative", "positive"),
    [
        ("ptau217_lumipulse", 0.089, 0.295),
        ("ab42_40_lumipulse", 0.109, 0.0849),
        ("ptau181_simoa", 1.73, 3.47),
        ("gfap_simoa", 213, 365),
        ("nfl_simoa", 18.8, 25.4),
    ],
)
def test_plasma_medians(crowd, name, negative, positive):
    people, plasma = crowd
    assert np.median(plasma[name][~people.positive]) == pytest.approx(negative, rel=0.08)
    assert np.median(plasma[name][people.positive]) == pytest.approx(positive, rel=0.08)


def test_ratio_is_the_quotient_and_tells_amyloid_as_published(crowd):
    people, plasma = crowd
    quotient = plasma["ab42_lumipulse"] / plasma["ab40_lumipulse"]
    np.testing.assert_allclose(plasma["ab42_40_lumipulse"], quotient, rtol=1e-12)
    accuracy = [
        ((quotient < cut) == people.positive).mean() for cut in np.quantile(quotient, np.linspace(0.05, 0.95, 91))
    ]
    assert 0.73 < max(accuracy) < 0.83


def test_missing_values_are_dropped_at_the_asked_rate(crowd):
    _, plasma = crowd
    dropped = drop_some(plasma, np.random.default_rng(0), 0.3)
    assert set(dropped) == set(plasma)
    for name, column in dropped.items():
        missing = np.isnan(column)
        assert 0.25 < missing.mean() < 0.35
        np.testing.assert_array_equal(column[~missing], plasma[name][~missing])


def test_volumes_alone_tell_amyloid_only_a_little(crowd):
    people, _ = crowd
    rng = np.random.default_rng(3)
    volumes = log_volume_factors(people)[:, 1 : n_classes() - 1] + people.head_size[:, None]
    measured = volumes + 0.03 * rng.standard_normal(volumes.shape)
    relative = measured - measured.mean(1, keepdims=True)
    features = np.column_stack([measured, relative])
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=500)),
        HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=7, learning_rate=0.06, random_state=0),
        RandomForestClassifier(100, min_samples_leaf=10, max_depth=8, random_state=0),
    ]
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    areas = [
        roc_auc_score(
            people.positive, cross_val_predict(m, features, people.positive, cv=folds, method="predict_proba")[:, 1]
        )
        for m in models
    ]
    assert 0.60 < max(areas) < 0.67, areas


def test_one_seed_gives_one_crowd_and_rows_are_its_parts():
    one, two = (draw_people(20, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one.centiloid, two.centiloid)
    np.testing.assert_array_equal(one.uptake_pattern, two.uptake_pattern)
    part = one.rows([3, 7])
    assert len(part) == 2
    assert part.row(1)["age"] == one.age[7]
    assert {"age", "sex", "centiloid", "mmse"} <= set(one.to_frame().columns)
    assert len(one.to_frame()) == 20


def test_given_ages_and_sexes_are_kept_and_gaps_filled():
    people = draw_people(
        3, np.random.default_rng(5), ages=np.array([55.0, np.nan, 80.0]), sexes=np.array([1.0, 0.0, np.nan])
    )
    assert people.age[0] == 55 and people.age[2] == 80 and np.isfinite(people.age[1])
    assert people.sex[0] == 1 and people.sex[1] == 0 and people.sex[2] in (0, 1)


def test_patterns_correlate_within_a_lobe_only():
    from bids_petsynth.anatomy.regions import region_index

    people = draw_people(4000, np.random.default_rng(1))
    index = region_index()
    table = np.corrcoef(people.uptake_pattern.T)
    assert table[index["superior_frontal"], index["middle_frontal"]] == pytest.approx(0.5, abs=0.06)
    assert table[index["superior_frontal"], index["medial_occipital"]] == pytest.approx(0, abs=0.06)
