"""Figures of merit against closed forms, published worked examples and other libraries' versions."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bids_petsynth.evaluation import image, regional, statistics, uncertainty

RNG = np.random.default_rng(0)


def test_errors_and_psnr_of_a_constant_offset():
    truth = RNG.random((4, 5, 6))
    found = image.errors(truth + 0.3, truth, (0.0, 3.0))
    assert found["mae"] == pytest.approx(0.3) and found["mse"] == pytest.approx(0.09)
    assert found["psnr"] == pytest.approx(20.0)
    mask = np.zeros(truth.shape, bool)
    mask[0] = True
    assert image.errors(np.where(mask, truth, 9), truth, (0.0, 3.0), mask)["psnr"] == np.inf


def test_ssim_of_constants_is_the_closed_form_and_it_falls_with_noise():
    a, b, width = np.full((16, 16, 16), 1.0), np.full((16, 16, 16), 1.5), 3.0
    c1 = (0.01 * width) ** 2
    assert image.ssim(a, b, width) == pytest.approx((2 * 1.5 + c1) / (1 + 1.5**2 + c1))
    volume = RNG.random((16, 16, 16))
    assert image.ssim(volume, volume, width) == pytest.approx(1.0)
    noisy = [image.ssim(volume, volume + sd * RNG.standard_normal(volume.shape), width) for sd in (0.05, 0.5)]
    assert 1 > noisy[0] > noisy[1]


def test_ssim_agrees_with_monai():
    import torch
    from monai.metrics import SSIMMetric

    a = RNG.random((20, 18, 16))
    b = a + 0.2 * RNG.standard_normal(a.shape)
    metric = SSIMMetric(3, data_range=2.0, win_size=11, kernel_sigma=1.5)
    theirs = metric(*(torch.tensor(v)[None, None] for v in (a, b))).item()
    assert image.ssim(a, b, 2.0) == pytest.approx(theirs, abs=1e-5)


def test_minmax_hides_an_error_of_level_that_the_fixed_window_shows():
    truth = RNG.random((16, 16, 16))
    found = image.image_figures(1.5 * truth, truth, truth > 0.5, (0.0, 3.0))
    assert found["ssim_minmax"] == pytest.approx(1.0) and found["psnr_minmax"] > 100
    assert found["ssim_fov"] < 0.9 and found["mae_brain"] == pytest.approx(truth[truth > 0.5].mean() / 2)


def test_white_noise_has_its_variance_in_every_band():
    edges = np.linspace(0.02, 0.24, 12)
    mask = np.zeros((32, 40, 33), bool)
    mask[4:28, 4:36, 4:29] = True
    window = image.taper(mask, 2.0, 4.0)
    assert window.max() > 0.95 and (window[~mask] <= 0.05).all()
    noise = 2 * RNG.standard_normal((20, *mask.shape))
    spectrum = np.mean([image.power_spectrum(v, window, 2.0, edges) for v in noise], 0)
    assert np.abs(spectrum / 4 - 1).max() < 0.1


def test_a_wave_lies_in_its_own_band_and_parseval_holds():
    x = np.arange(64) * 2.0
    wave = np.cos(2 * np.pi * 0.0625 * x)[:, None, None] * np.ones((64, 16, 16))
    edges = np.array([0.0, 0.06, 0.065, 1.0])
    whole = np.ones(wave.shape)
    found = image.power_spectrum(wave, whole, 2.0, edges)
    assert found[1] > 1e6 * max(found[0], found[2], 1e-12)
    volume = RNG.standard_normal((10, 9, 8))
    one_band = image.power_spectrum(volume, np.ones(volume.shape), 2.0, [0.0, 9.0])
    assert one_band[0] == pytest.approx(volume.var())
    assert image.spectrum_ratio(np.full((3, 2), 2.0), np.full((5, 2), 4.0)) == pytest.approx([0.5, 0.5])


SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)


def test_icc_of_shrout_and_fleiss():
    """Table 2 of the paper gives .29; the interval is that of R's psych on the same table."""
    found = regional.icc21(SHROUT_FLEISS)
    assert found.icc == pytest.approx(0.290, abs=5e-4)
    assert (found.low, found.high) == (pytest.approx(0.019, abs=1e-3), pytest.approx(0.761, abs=1e-3))


def test_icc_sees_a_bias_that_correlation_does_not():
    truth = RNG.standard_normal(200)
    shifted = regional.icc21(np.column_stack([truth, truth + 1]))
    assert shifted.icc == pytest.approx(truth.var(ddof=1) / (truth.var(ddof=1) + 0.5), rel=1e-6)
    assert regional.correlation(truth + 1, truth) == pytest.approx(1.0)


def test_bland_altman_of_peak_flow_meters():
    """The example of Bland & Altman 1986: mean -2.1, SD 38.8, interval of the mean -22.0 to 17.8 l/min."""
    large = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
    mini = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
    found = regional.bland_altman(np.array(large, float), np.array(mini, float))
    assert found.mean == pytest.approx(-2.1, abs=0.05) and found.sd == pytest.approx(38.8, abs=0.05)
    # the paper rounds the standard error to 9.4
    assert found.mean_interval == (pytest.approx(-22.0, abs=0.1), pytest.approx(17.8, abs=0.1))
    assert found.limits == (pytest.approx(-78.1, abs=0.1), pytest.approx(73.9, abs=0.1))
    assert found.lower_interval[0] < found.limits[0] < found.lower_interval[1] < found.upper_interval[0]


def test_regional_figures_leave_out_absent_regions():
    truth = np.array([[1.0, 2.0], [2.0, np.nan], [4.0, 3.0]])
    predicted = truth + np.array([[0.1, -0.2], [0.1, 0.0], [0.1, -0.2]])
    assert regional.mean_absolute_error(predicted, truth) == pytest.approx([0.1, 0.2])
    assert regional.bias(predicted, truth) == pytest.approx([0.1, -0.2])
    assert regional.correlation(predicted, truth) == pytest.approx([1.0, 1.0])
    one, other = RNG.standard_normal((2, 50))
    assert regional.correlation(one, other) == pytest.approx(np.corrcoef(one, other)[0, 1])
    assert np.isnan(regional.correlation(np.ones(3), np.arange(3.0)))


def test_residual_correlation_does_not_reward_the_population_mean():
    pattern = 1 + RNG.random(40)
    people = pattern + 0.1 * RNG.standard_normal((30, 40))
    nearly_mean = pattern + 1e-3 * RNG.standard_normal((30, 40))
    assert regional.correlation(nearly_mean.ravel(), people.ravel()) > 0.8
    assert abs(regional.residual_correlation(nearly_mean, people, pattern)) < 0.1
    assert regional.residual_correlation(people, people, pattern) == pytest.approx(1.0)


@pytest.mark.parametrize("m", [2, 4, 8])
def test_perfect_draws_are_covered_nominally_however_few(m):
    draws, truth = RNG.standard_normal((6000, m)), RNG.standard_normal(6000)
    covered = uncertainty.inside(truth, uncertainty.predictive_intervals(draws)).mean(0)
    assert covered == pytest.approx([0.80, 0.95], abs=0.02)
    spread, error = uncertainty.spread_and_error(truth, draws)
    assert spread.mean() / error.mean() == pytest.approx(1.0, abs=0.1)
    spread, error = uncertainty.spread_and_error(truth, draws / 2)
    assert spread.mean() / error.mean() < 0.56


def test_unknown_truth_is_not_counted_as_missed():
    intervals = uncertainty.predictive_intervals(np.array([[0.0, 1.0], [np.nan, np.nan]]))
    covered = uncertainty.inside(np.array([np.nan, 1.0]), intervals)
    assert np.isnan(covered).all()


def test_fair_crps_is_its_definition_and_does_not_depend_on_the_number_of_draws():
    draws, truth = RNG.standard_normal((3, 5)), RNG.standard_normal(3)
    pairs = np.abs(draws[:, :, None] - draws[:, None]).sum((1, 2)) / (2 * 5 * 4)
    assert uncertainty.crps_fair(truth, draws) == pytest.approx(np.abs(draws - truth[:, None]).mean(1) - pairs)
    # a standard normal forecast of a standard normal truth scores 1/√π
    for m in (2, 10):
        scores = uncertainty.crps_fair(RNG.standard_normal(40000), RNG.standard_normal((40000, m)))
        assert scores.mean() == pytest.approx(1 / np.sqrt(np.pi), abs=0.015)


def test_reliability_and_calibration_error():
    said = np.array([0.05, 0.05, 0.95, 1.0])
    assert uncertainty.reliability(said, np.array([0, 1, 1, 1])) == pytest.approx(
        np.array([[2, 0.05, 0.5], [2, 0.975, 1.0]])
    )
    assert uncertainty.calibration_error(said, np.array([0, 1, 1, 1])) == pytest.approx((0.45 + 0.025) / 2)
    probability = RNG.random(4000)
    right = RNG.random(4000) < probability
    floor = uncertainty.calibration_floor(probability)
    assert uncertainty.calibration_error(probability, right) == pytest.approx(floor, abs=0.015)
    assert uncertainty.calibration_error(probability**3, right) > 0.1


def test_auc_and_delong():
    outcome = RNG.random(300) < 0.4
    good = outcome + 0.8 * RNG.standard_normal(300)
    scores = np.stack([good, np.round(good, 0), RNG.standard_normal(300)])
    found = uncertainty.delong(scores, outcome)
    theirs = [roc_auc_score(outcome, s) for s in scores]
    assert found.auc == pytest.approx(theirs) and [uncertainty.auc(s, outcome) for s in scores] == pytest.approx(theirs)
    delta, low, high, p = found.difference(0, 2)
    assert delta == pytest.approx(theirs[0] - theirs[2]) and 0 < low < delta < high and p < 1e-6
    assert found.difference(0, 0)[1:] == (0, 0, 1)
    # DeLong's standard error against the bootstrap's, which shares nothing with it
    by_bootstrap = statistics.bootstrap(lambda i: uncertainty.auc(good[i], outcome[i]), np.arange(300), n=400)
    low, high = found.interval(0)
    assert (by_bootstrap.low, by_bootstrap.high) == (pytest.approx(low, abs=0.012), pytest.approx(high, abs=0.012))
    assert np.isnan(uncertainty.auc(good, np.zeros(300)))
    with pytest.raises(ValueError, match="without the outcome"):
        uncertainty.delong(good, np.ones(300))


def test_bootstrap_of_independent_people_is_the_normal_interval_and_seeded():
    values = RNG.standard_normal(200)
    found = statistics.bootstrap(lambda i: values[i].mean(), np.arange(200), n=2000)
    error = values.std(ddof=1) / np.sqrt(200)
    assert (found.high - found.low) == pytest.approx(2 * 1.96 * error, rel=0.08)
    again = statistics.bootstrap(lambda i: values[i].mean(), np.arange(200), n=2000)
    other = statistics.bootstrap(lambda i: values[i].mean(), np.arange(200), n=2000, seed=1)
    assert again.low == found.low and other.low != found.low
    assert str(found).startswith(f"{values.mean():.3f} [")


def test_bootstrap_by_clusters_is_wider_when_people_share_a_head():
    clusters = np.repeat(np.arange(10), 20)
    values = RNG.standard_normal(10)[clusters] + 0.1 * RNG.standard_normal(200)
    by_head = statistics.bootstrap(lambda i: values[i].mean(), clusters, n=500)
    by_person = statistics.bootstrap(lambda i: values[i].mean(), np.arange(200), n=500)
    assert by_head.high - by_head.low > 2.5 * (by_person.high - by_person.low)
    # a paired difference is a statistic too, and far more certain than either mean
    paired = statistics.bootstrap(lambda i: np.array([(values[i] + 0.1 - values[i]).mean(), 0.0]), clusters, n=50)
    assert paired.low == pytest.approx([0.1, 0.0]) and paired.high == pytest.approx([0.1, 0.0])


def test_every_resample_keeps_people_with_their_cluster():
    clusters = np.array(["a", "a", "a", "b", "c", "c"])
    for index in statistics.resamples(clusters, 50, np.random.default_rng(0)):
        names, counts = np.unique(clusters[index], return_counts=True)
        sizes = {"a": 3, "b": 1, "c": 2}
        assert all(count % sizes[name] == 0 for name, count in zip(names, counts, strict=True))
