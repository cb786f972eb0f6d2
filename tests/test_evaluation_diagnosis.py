"""Diagnosis: figures and DeLong against their sources, planted and absent effects, folds, bad cohorts."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics

from bids_petsynth.evaluation.classifier import KINDS, LOGISTIC
from bids_petsynth.evaluation.decisions import agreement, better_than_chance, class_areas, compare, figures, kappa
from bids_petsynth.evaluation.delong import delong_clustered
from bids_petsynth.evaluation.diagnosis import AS_IS, CLEANED, DROPPED, diagnose
from bids_petsynth.evaluation.features import sources as made_features
from bids_petsynth.evaluation.folds import Table, nested, out_of_fold
from bids_petsynth.evaluation.leakage import single_columns
from bids_petsynth.evaluation.study import BLOOD, REAL, SYNTHETIC, T1W, admit
from bids_petsynth.evaluation.uncertainty import delong

FAST = {"seeds": 1, "folds": 3, "kinds": (LOGISTIC,), "n_bootstrap": 100}


def index(n):
    return pd.Index([f"sub-{i:03d}" for i in range(n)], name="participant_id")


def frame(x, prefix="c"):
    return pd.DataFrame(x, index=index(len(x)), columns=[f"{prefix}{i}" for i in range(x.shape[1])])


def labels(y, names=("CN", "AD", "MCI")):
    return pd.Series([names[i] for i in y], index=index(len(y)), name="dx")


def alone(n):
    return pd.Series(index(n), index=index(n))


# Figures.


@pytest.mark.parametrize("k", [2, 3])
def test_figures_are_those_of_scikit_learn(k):
    rng = np.random.default_rng(k)
    y = rng.integers(k, size=80)
    p = rng.dirichlet(np.ones(k), size=(2, 80)).round(2) + np.eye(k)[y] * 0.2
    p = p / p.sum(-1, keepdims=True)
    found = figures(p, y)
    for one, row in zip(p, found, strict=True):
        decided = one.argmax(1)
        score = one[:, 1] if k == 2 else one
        assert row[0] == pytest.approx(metrics.roc_auc_score(y, score, multi_class="ovr"))
        assert row[1] == pytest.approx(metrics.accuracy_score(y, decided))
        assert row[2] == pytest.approx(metrics.balanced_accuracy_score(y, decided))
        assert row[3] == pytest.approx(metrics.f1_score(y, decided, average="macro"))
        assert row[4 + k - 1] == pytest.approx(metrics.roc_auc_score(y == k - 1, one[:, k - 1]))


def test_a_class_that_nobody_has_leaves_its_figures_unknown():
    found = figures(np.array([[[0.7, 0.3], [0.4, 0.6]]]), np.array([0, 0]))[0]
    assert found[1] == 0.5
    assert np.isnan(found[[0, 2, 3]]).all()


def test_kappa_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    a, b = rng.integers(3, size=(2, 60))
    assert kappa(a, b, 3) == pytest.approx(metrics.cohen_kappa_score(a, b))
    assert np.isnan(kappa(np.zeros(5, int), np.zeros(5, int), 2))
    found = agreement([(a, a)], np.arange(60), 3, 50, 0)[0]
    assert found["kappa"] == found["same"] == 1


# DeLong by clusters.


def test_clusters_of_one_give_delongs_test():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=50)
    scores = rng.normal(size=(3, 50)).round(1) + 0.7 * y
    plain, found = delong(scores, y), delong_clustered(scores, y, rng.permutation(50))
    np.testing.assert_allclose(found.auc, plain.auc)
    np.testing.assert_allclose(found.covariance, plain.covariance)


def obuchowski(score, y, clusters):
    """Variance of an area by its formula, with loops."""

    def wins(a, b):
        return (a > b) + 0.5 * (a == b)

    m, n = sum(y == 1), sum(y == 0)
    area = np.mean([[wins(a, b) for b in score[y == 0]] for a in score[y == 1]])
    groups = sorted(set(clusters))
    up, down = [], []
    for g in groups:
        mine = clusters == g
        v10 = [np.mean([wins(a, b) for b in score[y == 0]]) for a in score[mine & (y == 1)]]
        v01 = [np.mean([wins(a, b) for a in score[y == 1]]) for b in score[mine & (y == 0)]]
        up.append(sum(v10) - len(v10) * area if v10 else None)
        down.append(sum(v01) - len(v01) * area if v01 else None)
    i10, i01, units = sum(u is not None for u in up), sum(d is not None for d in down), len(groups)
    s10 = i10 / ((i10 - 1) * m) * sum(u**2 for u in up if u is not None)
    s01 = i01 / ((i01 - 1) * n) * sum(d**2 for d in down if d is not None)
    s11 = units / (units - 1) * sum(u * d for u, d in zip(up, down, strict=True) if None not in (u, d))
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def test_clustered_variance_is_that_of_obuchowskis_formula():
    rng = np.random.default_rng(4)
    clusters = rng.integers(9, size=40)
    y = rng.integers(2, size=40)
    score = rng.normal(size=40).round(1) + rng.normal(size=9)[clusters] + 0.5 * y
    found = delong_clustered(score, y, clusters)
    assert found.auc[0] == pytest.approx(metrics.roc_auc_score(y, score))
    assert found.covariance[0, 0] == pytest.approx(obuchowski(score, y, clusters))


def test_clustered_variance_holds_over_repetitions():
    """Every person is there five times, so areas vary as with a fifth of the people."""
    rng = np.random.default_rng(5)
    areas, said = [], []
    for _ in range(300):
        y = np.repeat(np.arange(40) % 2, 5)
        score = np.repeat(rng.normal(size=40), 5) + y
        found = delong_clustered(score, y, np.repeat(np.arange(40), 5))
        areas.append(found.auc[0])
        said.append(found.covariance[0, 0])
    assert np.mean(said) == pytest.approx(np.var(areas), rel=0.2)


def test_too_few_units_are_a_sentence():
    with pytest.raises(ValueError, match="two of each are needed"):
        delong_clustered(np.arange(6.0), np.array([1, 1, 0, 0, 0, 0]), np.array([0, 0, 1, 2, 3, 4]))


# Folds.


@pytest.mark.parametrize("n_clusters", [200, 12])
def test_nobody_is_on_both_sides_of_any_fold(n_clusters):
    rng = np.random.default_rng(0)
    clusters = np.arange(200) % n_clusters
    y = rng.integers(2, size=200)
    plan = nested(y, clusters, 5, 0)
    assert sorted(np.concatenate([fold.test for fold in plan])) == list(range(200))
    for fold in plan:
        assert not set(clusters[fold.train]) & set(clusters[fold.test])
        assert len(fold.inner) == 3
        for train, test in fold.inner:
            assert not set(clusters[train]) & set(clusters[test])
            assert set(train) | set(test) == set(fold.train)


def test_what_only_the_cluster_tells_is_not_learned():
    """A column that names the cluster, and clusters that have one class each: only a leak between folds would help."""
    rng = np.random.default_rng(1)
    of_cluster = rng.integers(2, size=40)
    clusters = np.repeat(np.arange(40), 5)
    x = np.eye(40)[clusters]
    y = of_cluster[clusters]
    found = out_of_fold(Table(x), y, nested(y, clusters, 4, 0), LOGISTIC, 0)[0]
    leaky = out_of_fold(Table(x), y, nested(y, np.arange(200), 4, 0), LOGISTIC, 0)[0]
    assert class_areas(leaky, y)[1] > 0.95
    assert class_areas(found, y)[1] < 0.65


def test_the_values_of_held_out_people_change_nobody_elses_probability():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 4)), np.arange(60) % 2
    x[rng.random(x.shape) < 0.2] = np.nan
    plan = nested(y, np.arange(60), 4, 0)
    changed = x.copy()
    who = plan[0].test[0]
    changed[who] = 1e3
    a, b = (out_of_fold(Table(table), y, plan[:1], LOGISTIC, 0)[0] for table in (x, changed))
    others = plan[0].test[1:]
    np.testing.assert_array_equal(a[others], b[others])
    assert not np.allclose(a[who], b[who])


# Effects.


def test_no_effect_gives_an_area_of_one_half_and_uniform_p():
    rng = np.random.default_rng(3)
    p, plain, areas, chance = [], [], [], []
    for _ in range(100):
        y = rng.permutation(np.arange(60) % 2)
        plan = nested(y, np.arange(60), 5, 0)
        plan = [type(fold)(fold.train, fold.test, ()) for fold in plan]
        said = np.array([out_of_fold(Table(rng.normal(size=(60, 3))), y, plan, LOGISTIC, 0)[0] for _ in range(2)])
        areas += [class_areas(one, y)[1] for one in said]
        chance.append(better_than_chance(said, y, np.arange(60), 5)[0, 1])
        row = compare(["a", "b"], said, y, np.arange(60), ["no", "yes"], 5)[0]
        p.append(row["p"])
        plain.append(row["p_delong"])
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert stats.kstest(chance, "uniform").pvalue > 0.01
    # what the wider variance is for: without it every fifth null comparison is called a difference
    assert stats.kstest(plain, "uniform").pvalue < 0.01
    assert np.mean(areas) == pytest.approx(0.5, abs=0.03)


def test_null_data_have_one_half_in_their_interval():
    rng = np.random.default_rng(11)
    y = np.arange(100) % 2
    found = diagnose({T1W: frame(rng.normal(size=(100, 4)))}, labels(y), alone(100), **(FAST | {"seeds": 3}))
    row = found.tables["performance"].iloc[0]
    assert row["auc_low"] < 0.5 < row["auc_high"]


def planted(n=240, seed=0):
    """T1w without effect; blood d = 1; synthetic PET is blood and noise; real PET d = 2 in one of its columns."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    blood = rng.normal(size=(n, 1)) + y[:, None]
    real = rng.normal(size=(n, 3)) + y[:, None] * [2, 0, 0]
    synthetic = np.column_stack([blood[:, 0] + 0.3 * rng.normal(size=n), rng.normal(size=(n, 2))])
    sources = {T1W: frame(rng.normal(size=(n, 5)), "v"), BLOOD: frame(blood, "b")}
    return sources | {SYNTHETIC: frame(synthetic, "r"), REAL: frame(real, "r")}, y


@pytest.fixture(scope="module")
def found():
    sources, y = planted()
    return diagnose(sources, labels(y), alone(len(y)), conditioning=sources[BLOOD], **FAST)


def test_planted_effects_come_back_in_sign_and_size(found):
    table = found.tables["performance"].set_index("features")
    expected = {T1W: 0.5, BLOOD: stats.norm.cdf(1 / np.sqrt(2)), REAL: stats.norm.cdf(2 / np.sqrt(2))}
    for name, auc in expected.items():
        assert table.loc[name, "auc"] == pytest.approx(auc, abs=0.07)
        assert table.loc[name, "auc_low"] - 0.03 <= auc <= table.loc[name, "auc_high"] + 0.03
    # the best decision between two normal distributions d apart is right in Φ(d / 2)
    assert table.loc[REAL, "accuracy"] == pytest.approx(stats.norm.cdf(1), abs=0.06)
    assert table.loc["synthetic PET + blood", "auc"] == pytest.approx(table.loc[BLOOD, "auc"], abs=0.03)
    assert (table["people"] == 240).all()
    chance = found.tables["performance_by_class"].set_index(["features", "class"])["p_chance"]
    assert chance[REAL, "AD"] < 1e-10
    assert chance[T1W, "AD"] > 0.01


def test_comparison_tells_sets_apart_that_differ_and_no_others(found):
    table = found.tables["comparison"].set_index(["features", "compared_with"])
    assert table.loc[(T1W, REAL), "difference"] < -0.3
    assert table.loc[(T1W, REAL), "p_holm"] < 1e-6
    assert table.loc[(BLOOD, "synthetic PET + blood"), "p_holm"] > 0.2
    assert (table["p_holm"] >= table["p"]).all()


def test_transfer_and_agreement(found):
    table = found.tables["transfer"].set_index(["trained_on", "tested_on"])
    alone_table = found.tables["performance"].set_index("features")
    for source in (REAL, SYNTHETIC):
        assert table.loc[(source, source), "auc"] == pytest.approx(alone_table.loc[source, "auc"])
    assert table.loc[(REAL, SYNTHETIC), "auc"] == pytest.approx(table.loc[(SYNTHETIC, SYNTHETIC), "auc"], abs=0.03)
    assert (found.tables["agreement"]["kappa"] > 0.1).all()
    assert list(found.tables["agreement"]["trained_on"]) == [REAL, SYNTHETIC, "each on its own"]


def test_the_chosen_classifier_needs_no_real_pet_and_tells_of_its_cohort(found):
    assert REAL not in found.classifier.about["Features"]
    assert found.classifier.about["PeopleByClass"] == {"AD": 120, "CN": 120}
    assert found.classifier.about["Leakage"] == []


def test_three_classes_one_of_which_is_planted():
    rng = np.random.default_rng(6)
    y = np.arange(150) % 3
    x = rng.normal(size=(150, 3))
    x[:, 0] += 2.5 * (y == 1)
    found = diagnose({T1W: frame(x)}, labels(y), alone(150), **(FAST | {"kinds": tuple(KINDS)}))
    areas = found.tables["performance_by_class"].set_index(["classifier", "class"])["auc"]
    whole = found.tables["performance"].set_index("classifier")["auc"]
    for kind in KINDS:
        assert areas[kind, "AD"] > 0.9
        assert areas[kind, "AD"] > max(areas[kind, "CN"], areas[kind, "MCI"]) + 0.1
        assert whole[kind] == pytest.approx(areas[kind].mean())


# Leakage and sensitivity.


def test_leak_is_named_taken_out_and_both_are_shown():
    rng = np.random.default_rng(7)
    y = np.arange(160) % 2
    cognition = rng.normal(size=160) - 5 * y
    other = rng.normal(size=160)
    scans = np.column_stack([cognition + 0.1 * rng.normal(size=160), rng.normal(size=(160, 2))])
    clinical = frame(np.column_stack([cognition, other]), "b").set_axis(["mmse", "nfl"], axis=1)
    given = {SYNTHETIC: frame(scans, "r"), BLOOD: clinical}
    found = diagnose(given, labels(y), alone(160), conditioning=clinical, defining=["mmse"], **FAST)
    assert any("mmse (AUC 1.00)" in sentence for sentence in found.sentences)
    assert list(found.tables["leakage"]["leaks"]) == [True, False]
    table = found.tables["without_leakage"].set_index(["features", "taken_out"])["auc"]
    assert table[SYNTHETIC, AS_IS] > 0.97
    assert table[SYNTHETIC, CLEANED] < 0.65
    assert table[BLOOD, AS_IS] > 0.97
    assert table[BLOOD, DROPPED] < 0.65
    assert (SYNTHETIC, DROPPED) not in table
    loss = found.tables["sensitivity"].set_index(["features", "left_out"])
    assert loss.loc[(BLOOD, "mmse"), "auc_loss"] > 0.3
    assert loss.loc[(BLOOD, "nfl"), "auc_loss"] == pytest.approx(0, abs=0.02)
    assert found.classifier.about["Leakage"][0]["column"] == "mmse"


def test_a_variable_may_leak_by_its_absence_by_its_middle_or_as_a_word():
    rng = np.random.default_rng(8)
    y = np.arange(120) % 2
    sources, classes = {T1W: frame(rng.normal(size=(120, 1)))}, labels(y)
    study = admit(sources, classes, alone(120))[0].planned(1, 4, 0)
    # classes are sorted, so that AD has code 0
    ill = study.y == 0
    middle = np.where(ill, rng.uniform(-1, 1, 120), rng.choice([-1, 1], 120) * rng.uniform(1, 2, 120))
    columns = {"absent": np.where(ill, rng.normal(size=120), np.nan), "middle": middle, "none": rng.normal(size=120)}
    words = pd.DataFrame(columns, index=study.sources[T1W].index).assign(word=np.where(ill, "yes", "no"), same=1.0)
    found = single_columns(study, words).set_index("column")
    assert found["leaks"].to_dict() == {"absent": True, "middle": True, "none": False, "word": True, "same": False}


def test_tables_of_a_cohort_go_in_and_a_logarithm_is_its_variable():
    """Frames by participant and session, features as the package makes them, variables as the dataset has them."""
    rng = np.random.default_rng(9)
    y = np.arange(80) % 2
    rows = pd.MultiIndex.from_arrays([index(80), [""] * 80], names=["participant_id", "session_id"])
    records = pd.DataFrame({"ptau217_lumipulse": np.exp(0.3 * rng.normal(size=80) + y), "mmse": 29.0}, index=rows)
    volumes = pd.DataFrame(rng.uniform(1e3, 2e3, (80, 3)), index=rows, columns=["a", "b", "c"])
    suvr = pd.DataFrame(rng.normal(1.2, 0.1, (80, 2)), index=rows, columns=["a", "b"])
    label = pd.Series(np.where(y, "AD", "CN"), index=rows, name="dx")
    units = pd.Series(rows.get_level_values(0), index=rows)
    given = made_features(volumes, records, {"AV45": suvr})
    found = diagnose(given, label, units, conditioning=records, about={"Cohort": "x"}, **FAST)
    assert [name for _, name in found.classifier.columns] == ["log ptau217_lumipulse"]
    assert found.classifier.about["Label"] == "dx"
    assert found.classifier.about["Cohort"] == "x"
    table = found.tables["sensitivity"].set_index(["features", "left_out"])
    assert table.loc[("T1w + blood", "ptau217_lumipulse"), "auc_loss"] > 0.2
    assert set(found.tables["leakage"]["column"]) == {"ptau217_lumipulse", "mmse"}
    none = diagnose(given, label, units, conditioning=records.iloc[:, :0], **FAST)
    assert "leakage" not in none.tables


# Bad cohorts.


def sentence_of(sources, label, n, **options):
    found = diagnose(sources, label, alone(n), **(FAST | options))
    assert set(found.tables) == {"classes"}
    assert found.classifier is None
    return " ".join(found.sentences)


def test_degenerate_cohorts_get_a_sentence():
    x = np.random.default_rng(0).normal(size=(40, 2))
    y = np.arange(40) % 2
    assert "fewer than two classes" in sentence_of({T1W: frame(x[:1])}, labels(y[:1]), 1)
    assert "fewer than two classes" in sentence_of({T1W: frame(x)}, labels(np.zeros(40, int)), 40)
    assert "no features" in sentence_of({T1W: frame(np.full((40, 2), np.nan))}, labels(y), 40)
    score = pd.Series(np.arange(40.0), index=index(40), name="mmse")
    assert "mmse has 40 different values and was not taken for classes" in sentence_of({T1W: frame(x)}, score, 40)
    nobody = pd.Series([None] * 40, index=index(40), name="dx", dtype=object)
    assert "fewer than two classes" in sentence_of({T1W: frame(x)}, nobody, 40)
    assert "Class MCI of dx has 2 people" in sentence_of({T1W: frame(x)}, labels(np.r_[np.zeros(38, int), 2, 2]), 40)


def test_few_independent_units_are_no_cohort():
    x, y = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 2
    found = diagnose({T1W: frame(x)}, labels(y), pd.Series(np.arange(60) % 3, index=index(60)), **FAST)
    assert "in 3 independent units and is left out" in found.sentences[0]


def test_constant_and_empty_columns_words_and_doubles_do_no_harm():
    rng = np.random.default_rng(1)
    y = np.arange(60) % 2
    table = frame(np.column_stack([np.ones(60), y + 0.3 * rng.normal(size=60)])).assign(empty=np.nan, word="x")
    doubled = pd.concat([table, table.iloc[:5]])
    label = pd.concat([labels(y), labels(y).iloc[:5]])
    found = diagnose({T1W: doubled, BLOOD: frame(np.ones((60, 1)))}, label, alone(60), **FAST)
    auc = found.tables["performance"].set_index("features")["auc"]
    assert auc[T1W] > 0.95
    assert auc[BLOOD] == pytest.approx(0.5, abs=0.05)
    assert found.tables["performance"]["people"][0] == 60
    assert any("word hold no numbers" in s for s in found.sentences)
    assert any("several times" in s for s in found.sentences)


def test_who_lacks_a_source_is_told_and_left_out():
    x, y = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 2
    real = frame(x).iloc[:40]
    found = diagnose({T1W: frame(x), REAL: real}, labels(y), alone(60), **FAST)
    assert (found.tables["performance"]["people"] == 40).all()
    assert "20 people have dx but no value of real PET" in found.sentences[0]
