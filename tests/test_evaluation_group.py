"""The statistics of the group level against closed forms, other libraries, and null and planted data."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from bids_petsynth.evaluation import agreement, calibration, fairness, view
from bids_petsynth.evaluation.groups import age_band
from bids_petsynth.evaluation.image import MS_WEIGHTS, image_figures, ms_ssim, ssim
from bids_petsynth.evaluation.pairs import CONSTANT, MODEL, Pairs, opponents
from bids_petsynth.evaluation.regional import icc21
from bids_petsynth.evaluation.statistics import (
    bootstrap,
    bootstrap_means,
    holm,
    mean_interval,
    resample_counts,
    resamples,
)
from bids_petsynth.evaluation.uncertainty import Predictive, auc, from_intervals
from bids_petsynth.pet.intervals import predictive

NAMES = ["left_precuneus", "right_precuneus", "pons", "centiloid_like"]


def pairs(truth: np.ndarray, predicted: np.ndarray, clusters=None, sd: float = 0.1, freedom: float = 7.0) -> Pairs:
    """Made-up comparisons: ``(N,)`` target SUVR, the same in every region; t intervals of that scale and freedom."""
    n = len(truth)
    index = pd.MultiIndex.from_tuples([(f"sub-{i:04d}", "") for i in range(n)], names=["participant_id", "session_id"])

    def frame(values):
        return pd.DataFrame(dict.fromkeys(NAMES, values), index=index)

    ends = {}
    for level in (80, 95):
        half = stats.t.ppf(0.5 + level / 200, freedom) * sd
        ends |= {f"low{level}": frame(predicted - half), f"high{level}": frame(predicted + half)}
    load = pd.DataFrame({"synthetic": 100 * (predicted - 1), "real": 100 * (truth - 1)}, index=index)
    return Pairs(
        "AV45",
        frame(predicted),
        frame(truth),
        load,
        pd.DataFrame({"mae_brain": np.abs(predicted - truth)}, index=index),
        pd.DataFrame({"ventricle_share": np.linspace(0, 1, n)}, index=index),
        pd.Series(np.arange(n) if clusters is None else clusters, index=index),
        pd.Series(stats.norm.sf((1.2 - predicted) / sd), index=index),
        ends,
    )


# images


@pytest.mark.parametrize("shape", [(44, 46, 44), (24, 30, 26)])
def test_ms_ssim_is_that_of_monai(shape):
    torch = pytest.importorskip("torch")
    from monai.metrics import MultiScaleSSIMMetric

    rng = np.random.default_rng(0)
    a = rng.normal(1, 0.5, shape)
    b = a + rng.normal(0, 0.2, shape)
    scales = 3 if min(shape) > 40 else 2
    weights = tuple(np.array(MS_WEIGHTS[:scales]) / sum(MS_WEIGHTS[:scales]))
    theirs = MultiScaleSSIMMetric(3, data_range=3.0, kernel_size=11, kernel_sigma=1.5, weights=weights)
    expected = theirs(torch.tensor(a)[None, None], torch.tensor(b)[None, None]).item()
    assert ms_ssim(a, b, 3.0)[0] == pytest.approx(expected, abs=1e-4)


def test_image_figures_of_a_partial_field_of_view():
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 2, (24, 24, 24))
    field = np.zeros(truth.shape, bool)
    field[:, :, 6:] = True
    predicted = np.where(field, truth + 0.1, 99.0)
    found = image_figures(predicted, np.where(field, truth, 0.0), np.ones(truth.shape, bool), (0.0, 3.0), field)
    assert found["mae_brain"] == pytest.approx(0.1) and found["mae_fov"] == pytest.approx(0.1)
    assert found["psnr_fov"] == pytest.approx(20 * np.log10(30))


def test_rescaled_moments_give_the_min_max_figures():
    rng = np.random.default_rng(2)
    a, b = rng.uniform(0, 2, (2, 20, 20, 20))
    scaled = [(v - v.min()) / np.ptp(v) for v in (a, b)]
    found = image_figures(a, b, np.ones(a.shape, bool), (0.0, 3.0))
    assert found["ssim_minmax"] == pytest.approx(ssim(*scaled, 1.0), abs=1e-6)
    assert found["ssim_fov"] == pytest.approx(ssim(a, b, 3.0), abs=1e-6)


# bootstrap


def test_weighted_bootstraps_are_the_plain_ones():
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(8), 5)
    a, b = rng.normal(size=(2, 40))
    b += a
    draws = resamples(clusters, 300, np.random.default_rng(4))
    counts = np.stack([np.bincount(index, minlength=40) for index in draws]).astype(float)
    plain = bootstrap(lambda i: a[i].mean(), clusters, 300, seed=4)
    fast = bootstrap_means(a[:, None], counts)
    assert (fast.low[0], fast.high[0]) == (pytest.approx(plain.low), pytest.approx(plain.high))
    plain = bootstrap(lambda i: np.corrcoef(a[i], b[i])[0, 1], clusters, 300, seed=4)
    fast = agreement.correlations(a[:, None], b[:, None], counts)
    assert (fast.low[0], fast.high[0]) == (pytest.approx(plain.low), pytest.approx(plain.high))
    plain = bootstrap(lambda i: icc21(np.column_stack([a[i], b[i]])).icc, clusters, 300, seed=4)
    assert agreement.icc_bootstrap(a[:, None], b[:, None], counts)[0] == pytest.approx([plain.low, plain.high])


def test_counts_are_distributed_as_resamples():
    clusters = np.array([0, 0, 0, 1, 1, 2, 3])
    draws = resamples(clusters, 20000, np.random.default_rng(0))
    plain = np.stack([np.bincount(index, minlength=7) for index in draws])
    fast = resample_counts(clusters, 20000, 1)
    assert fast.mean(0) == pytest.approx(plain.mean(0), abs=0.04)
    assert np.cov(fast.T) == pytest.approx(np.cov(plain.T), abs=0.1)


def test_weighted_areas_are_those_of_the_resampled_people():
    rng = np.random.default_rng(5)
    score, true = rng.integers(0, 6, 30).astype(float), rng.random(30) < 0.4
    counts = np.vstack([np.ones(30), resample_counts(np.arange(30), 20, 0)])
    expected = [auc(np.repeat(score, c.astype(int)), np.repeat(true, c.astype(int))) for c in counts]
    assert agreement._areas(score, true, counts) == pytest.approx(expected)


def test_mean_interval_and_holm_are_those_of_scipy_and_by_hand():
    values = np.array([1.0, 2.0, 4.0, 8.0])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)
    assert np.isnan(mean_interval(values[:1])).all()
    # Holm 1979: the smallest times 3, the next times 2 …
    assert holm(np.array([0.01, np.nan, 0.04, 0.03])) == pytest.approx([0.03, np.nan, 0.06, 0.06], nan_ok=True)


# agreement


def test_mcnemar_is_the_binomial_test():
    a = np.array([1] * 9 + [0] * 11, bool)
    b = np.array([1] * 2 + [0] * 7 + [1] + [0] * 10, bool)
    assert agreement._mcnemar(a, b) == pytest.approx(stats.binomtest(1, 8).pvalue)
    assert agreement._mcnemar(a, a) == 1


def test_status_by_hand():
    truth, predicted = np.array([1.0, 1.1, 1.3, 1.5, 1.25]), np.array([1.0, 1.3, 1.3, 1.1, 1.4])
    own = pairs(truth, predicted)
    methods = {MODEL: own.centiloid["synthetic"].to_numpy()}
    row = agreement.status_table(own, methods, own.centiloid["real"].to_numpy()).query("cutoff == 20").iloc[0]
    assert (row["n_positive"], row["n_called_positive"]) == (3, 3)
    assert row["sensitivity"] == pytest.approx(2 / 3) and row["specificity"] == pytest.approx(1 / 2)
    assert row["balanced_accuracy"] == pytest.approx(7 / 12)


def test_nobody_positive_has_no_area():
    own = pairs(np.linspace(0.9, 1.0, 6), np.linspace(0.9, 1.0, 6))
    methods = {MODEL: own.centiloid["synthetic"].to_numpy()}
    row = agreement.status_table(own, methods, own.centiloid["real"].to_numpy()).iloc[0]
    assert np.isnan(row["auc"]) and np.isnan(row["sensitivity"]) and row["specificity"] == 1


def test_regional_table_finds_a_planted_bias_on_one_side():
    rng = np.random.default_rng(6)
    truth = rng.normal(1.3, 0.3, 60)
    own = pairs(truth, truth + 0.02 * rng.normal(size=60))
    own.synthetic["left_precuneus"] += 0.2
    methods = {MODEL: own.synthetic.to_numpy()}
    rows = agreement.regional_table(own, methods).set_index("region")
    assert rows.loc["left_precuneus", "bias"] == pytest.approx(0.2, abs=0.01)
    assert rows.loc["right_precuneus", "bias_low"] < 0 < rows.loc["right_precuneus", "bias_high"]
    expected = icc21(own.synthetic[["pons"]].assign(real=own.real["pons"]).to_numpy())
    assert rows.loc["pons", "icc_low"] == pytest.approx(expected.low)
    sides = agreement.regional_summary(own, methods).set_index("side")
    assert sides.loc["left", "bias"] > 0.18 and abs(sides.loc["right", "bias"]) < 0.02


# opponents


def test_opponents_never_see_whom_they_predict():
    rng = np.random.default_rng(7)
    values, volumes = rng.normal(size=(40, 3)), rng.uniform(1, 2, (40, 5))
    clusters = np.repeat(np.arange(10), 4)
    truth = np.column_stack([values[:, 0] + 2, rng.normal(1, 0.1, 40)])
    found = opponents(truth, values, volumes, clusters)
    changed = truth.copy()
    changed[:4] = 50.0  # unit 0: what is predicted for it may not move
    again = opponents(changed, values, volumes, clusters)
    for name, predicted in found.items():
        assert again[name][:4] == pytest.approx(predicted[:4]), name
        assert np.isfinite(predicted).all()
    error = {name: np.abs(p - truth)[:, 0].mean() for name, p in found.items()}
    assert error["ridge"] < 0.2 < error[CONSTANT]
    assert error["ridge with volumes"] < error[CONSTANT] and error["blood-matched mean"] < error[CONSTANT]


def test_opponents_of_cohorts_with_gaps():
    rng = np.random.default_rng(8)
    values = np.where(rng.random((12, 2)) < 0.3, np.nan, rng.normal(size=(12, 2)))
    truth = rng.normal(1, 0.1, (12, 3))
    truth[:, 2], truth[0, 0] = np.nan, np.nan
    found = opponents(truth, values, np.full((12, 4), np.nan), np.arange(12))
    assert all(np.isfinite(p[:, :2]).all() for p in found.values())
    assert opponents(truth[:2], values[:2], np.ones((2, 4)), np.arange(2)) == {}
    assert opponents(truth[:3], values[:3, :0], np.ones((3, 4)), np.arange(3)).keys() == found.keys()


# uncertainty


@pytest.mark.parametrize("freedom", [2.0, 7.0, 255.0])
def test_intervals_give_back_their_distribution(freedom):
    ends = [3 + s * stats.t.ppf(q, freedom) * 0.4 for q, s in ((0.9, -1), (0.9, 1), (0.975, -1), (0.975, 1))]
    found = from_intervals(*np.array(ends)[:, None])
    assert found.location[0] == pytest.approx(3) and found.scale[0] == pytest.approx(0.4, rel=1e-3)
    assert found.freedom[0] == pytest.approx(freedom, rel=0.02)
    half = stats.t.ppf(0.75, freedom) * 0.4
    assert found.covers(np.array([3 + 0.99 * half]), 0.5) == 1 and found.covers(np.array([3 + 1.01 * half]), 0.5) == 0


@pytest.mark.parametrize("freedom, truth", [(3.0, 0.4), (7.0, -2.0), (255.0, 1.3)])
def test_crps_is_the_integral(freedom, truth):
    where = Predictive(np.array([0.2]), np.array([0.7]), np.array([freedom]))

    def part(x):
        return (stats.t.cdf((x - 0.2) / 0.7, freedom) - (x >= truth)) ** 2

    expected = sum(integrate.quad(part, *ends, limit=200)[0] for ends in ((-60, truth), (truth, 60)))
    assert where.crps(np.array([truth]))[0] == pytest.approx(expected, rel=1e-3)


def test_coverage_of_right_and_of_narrow_intervals():
    rng = np.random.default_rng(9)
    truth = 1 + 0.1 * stats.t.rvs(7, size=1500, random_state=rng)
    table = calibration.coverage_table(pairs(truth, np.ones(1500)), {}).set_index("figure")
    for level in (50, 80, 95):
        assert table.loc["target", f"coverage{level}"] == pytest.approx(level / 100, abs=0.035)
    # a Student-t with 7 degrees of freedom has a variance of 7/5
    assert table.loc["target", "spread_skill"] == pytest.approx(np.sqrt(5 / 7), abs=0.1)
    narrow = calibration.coverage_table(pairs(truth, np.ones(1500), sd=0.05), {}).set_index("figure")
    assert narrow.loc["target", "spread_skill"] < 0.6 and narrow.loc["target", "coverage95"] < 0.85


@pytest.mark.parametrize("m", [3, 4, 8, 256])
def test_spread_over_skill_of_right_draws_is_one_whatever_their_number(m):
    rng = np.random.default_rng(m)
    truth, draws = rng.normal(1.2, 0.2, 4000), rng.normal(1.2, 0.2, (4000, m))
    found = [predictive(one) for one in draws]
    own = pairs(truth, draws.mean(1))
    ends = {f"{end}{level}": i for level in (80, 95) for i, end in enumerate(("low", "high"))}
    for name, end in ends.items():
        own.intervals[name][own.target] = [getattr(one, f"interval{name[-2:]}")[end] for one in found]
    table = calibration.coverage_table(own, {}).set_index("figure")
    assert table.loc["target", "spread_skill"] == pytest.approx(1, abs=0.05)


def test_probabilities_that_are_right_reach_the_floor():
    rng = np.random.default_rng(10)
    predicted = rng.normal(1.2, 0.2, 800)
    truth = predicted + 0.1 * rng.normal(size=800)
    row = calibration.probability_table(pairs(truth, predicted), {}).iloc[0]
    assert abs(row["ece"] - row["ece_if_right"]) < 0.02
    wrong = calibration.probability_table(pairs(2.4 - truth, predicted), {}).iloc[0]
    assert wrong["ece"] > 0.3


# fairness


def test_gaps_under_the_null_are_uniform_and_a_planted_one_is_found():
    rng = np.random.default_rng(11)
    ps = []
    for _ in range(40):
        truth = rng.normal(1.3, 0.3, 60)
        own = pairs(truth, truth + 0.1 * rng.normal(size=60))
        sex = pd.Series(np.where(rng.random(60) < 0.5, "f", "m"), index=own.real.index)
        frame = fairness.gaps(own, {"sex": sex}).query("figure == 'regional_bias' and group == 'f'")
        ps.append(frame["p"].iloc[0])
    assert stats.kstest(ps, "uniform").pvalue > 0.005
    shift = np.where(sex == "f", 0.2, 0.0)
    own = pairs(truth, truth + 0.05 * rng.normal(size=60) + shift)
    row = fairness.gaps(own, {"sex": sex}).query("figure == 'regional_bias' and group == 'f'").iloc[0]
    assert row["gap"] == pytest.approx(0.2, abs=0.05) and row["gap_low"] < 0.2 < row["gap_high"]
    assert row["p_holm"] < 0.001


def test_small_groups_are_shown_and_not_tested():
    own = pairs(np.linspace(1, 2, 30), np.linspace(1, 2, 30) + np.tile([0.1, -0.1], 15))
    site = pd.Series(["a"] * 25 + ["b"] * 5, index=own.real.index)
    frame = fairness.gaps(own, {"site": site})
    assert set(frame["group"]) == {"a", "b"} and frame["p"].isna().all() and frame["mean"].notna().any()


def test_age_bands():
    found = age_band(pd.Series([59.9, 60, 69.9, 75, 80, np.nan]))
    assert found.tolist() == ["below 60", "60 to 69", "60 to 69", "70 to 79", "80 and over", ""]


def test_people_far_from_the_training_people_are_told_by_the_models_own_units():
    """A ratio whose mean in the model is that of logarithms is compared as one, whatever the table says of it."""
    scans = pd.MultiIndex.from_tuples([(f"sub-{k}", "") for k in range(4)], names=["participant_id", "session_id"])
    records = pd.DataFrame({"age": [70.0, 70, 70, 99], "ab42_40_lumipulse": [0.1, 0.1, 0.01, np.nan]}, index=scans)
    inputs = {
        "age": {"mean": 70.0, "sd": 8.0, "log": False},
        "ab42_40_lumipulse": {"mean": float(np.log(0.1)), "sd": 0.2, "log": True},
    }
    found = view.outside_training(SimpleNamespace(records=records), inputs)
    assert found[["participant_id", "variable", "side"]].values.tolist() == [
        ["sub-2", "ab42_40_lumipulse", "below"],
        ["sub-3", "age", "above"],
    ]
