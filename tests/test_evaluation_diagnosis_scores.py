"""Scores and augmentation: planted relations of known size, and what must not help."""

import numpy as np
import pandas as pd
import pytest

from bids_petsynth.evaluation.augmentation import AUGMENTED, PAIRED, REAL_PET, SYNTHETIC_PET, augment
from bids_petsynth.evaluation.scores import regress_score
from bids_petsynth.evaluation.study import BLOOD, T1W


def index(n):
    return pd.Index([f"sub-{i:03d}" for i in range(n)], name="participant_id")


def frame(x, prefix="c"):
    return pd.DataFrame(x, index=index(len(x)), columns=[f"{prefix}{i}" for i in range(x.shape[1])])


def alone(n):
    return pd.Series(index(n), index=index(n))


FAST = {"seeds": 2, "n_bootstrap": 100}


def test_score_is_predicted_as_well_as_it_can_be():
    """Score = 2 x + noise of variance 1: no prediction has less error than 1 or more r than √(4/5)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5))
    score = pd.Series(25 + 2 * x[:, 0] + rng.normal(size=400), index=index(400), name="MMSE")
    table, sentences = regress_score(
        {T1W: frame(x), BLOOD: frame(rng.normal(size=(400, 2)))}, score, alone(400), **FAST
    )
    row = table.set_index("features").loc
    assert row[T1W, "mse"] == pytest.approx(1, abs=0.15)
    assert row[T1W, "r"] == pytest.approx(np.sqrt(0.8), abs=0.03)
    assert row[T1W, "mse_low"] < 1.05 < row[T1W, "mse_high"] + 0.1
    assert row[BLOOD, "mse"] == pytest.approx(row[BLOOD, "mse_of_mean"], rel=0.05)
    assert row[BLOOD, "mse_of_mean"] == pytest.approx(score.var(), rel=0.05)
    assert abs(row[BLOOD, "r"]) < 0.25
    assert sentences == []


def test_score_range_leaves_people_out_and_says_so():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(90, 2))
    score = pd.Series(np.r_[np.full(30, 12.0), rng.integers(20, 31, 60)], index=index(90), name="MMSE")
    table, sentences = regress_score({T1W: frame(x)}, score, alone(90), score_range=(20, 30), **FAST)
    assert table["people"][0] == 60
    assert sentences == ["30 of 90 people have MMSE outside 20 to 30: left out."]


@pytest.mark.parametrize("score", [np.full(40, 28.0), np.full(40, np.nan), np.r_[20.0, np.full(39, np.nan)]])
def test_no_score_is_a_sentence(score):
    x = frame(np.random.default_rng(0).normal(size=(40, 2)))
    table, sentences = regress_score({T1W: x}, pd.Series(score, index=index(40), name="MMSE"), alone(40), **FAST)
    assert table.empty
    assert "different scores are needed to predict it" in sentences[-1]


def cohort(n=240, pairs=40, seed=0):
    """Five of 20 columns of PET differ by .8 between classes; synthetic PET is another draw of the same law."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 2)
    real, synthetic = (rng.normal(size=(n, 20)) + 0.8 * y[:, None] * (np.arange(20) < 5) for _ in range(2))
    t1w = rng.normal(size=(n, 3))
    label = pd.Series(np.where(y, "AD", "CN"), index=index(n), name="dx")
    return frame(t1w, "v"), frame(real, "r").iloc[:pairs], frame(synthetic, "r"), label


def test_good_synthetic_scans_of_others_help():
    t1w, real, synthetic, label = cohort()
    table, sentences = augment(t1w, real, synthetic, label, alone(240), seeds=3, n_bootstrap=100)
    found = table.set_index("trained_on")
    assert found.loc[AUGMENTED, "auc"] > found.loc[PAIRED, "auc"] + 0.02
    assert found.loc[PAIRED, "trained_people"] == 32
    assert found.loc[AUGMENTED, "trained_people"] == 232
    assert (found["people"] == 40).all()
    assert found.loc[[REAL_PET, SYNTHETIC_PET], "auc"].min() > 0.65
    assert sentences == []


def test_synthetic_scans_with_shuffled_classes_do_not_help():
    t1w, real, synthetic, label = cohort()
    rng = np.random.default_rng(5)
    noise = pd.DataFrame(rng.normal(size=synthetic.shape), synthetic.index, synthetic.columns)
    table, _ = augment(t1w, real, noise, label, alone(240), seeds=2, n_bootstrap=50)
    found = table.set_index("trained_on")["auc"]
    assert found[AUGMENTED] < found[PAIRED] + 0.02
    assert found[SYNTHETIC_PET] < 0.7


def test_kin_of_held_out_people_are_not_trained_on():
    """The others are copies of the pairs under other names in the same families: to train on them would be to peek."""
    rng = np.random.default_rng(3)
    y = np.arange(40) % 2
    x = rng.normal(size=(40, 30))
    twice = np.vstack([x, x])
    label = pd.Series(np.where(np.r_[y, y], "AD", "CN"), index=index(80), name="dx")
    family = pd.Series(np.r_[np.arange(40), np.arange(40)], index=index(80))
    given = (frame(twice[:, :2], "v"), frame(x, "r"), frame(twice, "r"), label)
    kin = augment(*given, family, seeds=1, n_bootstrap=20)[0].set_index("trained_on")["auc"]
    peeking = augment(*given, alone(80), seeds=1, n_bootstrap=20)[0].set_index("trained_on")["auc"]
    assert peeking[AUGMENTED] > kin[AUGMENTED] + 0.1
    assert peeking[AUGMENTED] > 0.7


def test_nobody_to_add_is_a_sentence():
    t1w, real, synthetic, label = cohort(n=40, pairs=40)
    table, sentences = augment(t1w, real, synthetic, label, alone(40), seeds=1)
    assert table.empty
    assert "nothing to add to the pairs" in sentences[-1]
