"""Whether the draws' uncertainty is right: intervals, scores, reliability of probabilities, and discrimination."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from bids_petsynth.pet.intervals import predictive

#: Levels of the intervals that ``pet.intervals.predictive`` makes.
LEVELS = (0.80, 0.95)


def predictive_intervals(draws: np.ndarray) -> np.ndarray:
    """The project's Student-t predictive intervals (``pet.intervals``) of many figures.

    Parameters
    ----------
    draws
        ``(..., M)``, M ≥ 2.

    Returns
    -------
    ndarray
        ``(..., 2, 2)``: the levels 80 and 95 %, then lower and upper bound.
    """
    flat = np.reshape(draws, (-1, np.shape(draws)[-1]))
    found = [predictive(one) for one in flat]
    return np.array([[e.interval80, e.interval95] for e in found]).reshape(*np.shape(draws)[:-1], 2, 2)


def inside(truth: np.ndarray, intervals: np.ndarray) -> np.ndarray:
    """Whether ``truth (...)`` lies in ``intervals (..., 2, 2)``: ``(..., 2)`` of 0 and 1, NaN where one is unknown."""
    covered = (intervals[..., 0] <= truth[..., None]) & (truth[..., None] <= intervals[..., 1])
    known = np.isfinite(intervals).all(-1) & np.isfinite(truth)[..., None]
    return np.where(known, covered, np.nan)


def crps_fair(truth: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Fair continuous ranked probability score of ``draws (..., M)``: ``(...)``, in the unit of the figure.

    ``mean |x - y| - Σ|x_i - x_j| / (2 M (M - 1))``: its expectation does not depend on M (Ferro, Q. J. R. Meteorol.
    Soc. 140 (2014) 1917, eq. 7).
    """
    m = draws.shape[-1]
    ordered = np.sort(draws, -1)
    # Σ_ij |x_i - x_j| = 2 Σ_k (2k - M - 1) x_(k)
    pairs = 2 * (ordered * (2 * np.arange(1, m + 1) - m - 1)).sum(-1)
    return np.abs(draws - truth[..., None]).mean(-1) - pairs / (2 * m * (m - 1))


def spread_and_error(truth: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance and squared error ``(...)`` that are equal in the mean if ``draws (..., M)`` are calibrated.

    Of ``truth (...)`` and the mean of the draws. Their variance is multiplied by ``(M + 1) / M`` because the mean of M
    draws misses too (Fortin, J. Hydrometeorol. 15 (2014) 1708).
    """
    m = draws.shape[-1]
    return draws.var(-1, ddof=1) * (m + 1) / m, (draws.mean(-1) - truth) ** 2


def reliability(probability: np.ndarray, outcome: np.ndarray, bins: int = 10) -> np.ndarray:
    """Reliability table: rows of (people, mean probability, share of outcomes) of each bin of equal width that is hit.

    ``probability`` and ``outcome`` (0/1) are ``(N,)``.
    """
    place = np.minimum((probability * bins).astype(int), bins - 1)
    size = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, np.asarray(x, float), bins) for x in (probability, outcome)]
    hit = size > 0
    return np.column_stack([size[hit], *(total[hit] / size[hit] for total in sums)])


def calibration_error(probability: np.ndarray, outcome: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean over people of their bin's |share - probability| (Naeini, AAAI 2015)."""
    size, said, seen = reliability(probability, outcome, bins).T
    return float(np.sum(size * np.abs(said - seen)) / size.sum())


def calibration_floor(probability: np.ndarray, bins: int = 10, repeats: int = 500, seed: int = 0) -> float:
    """Mean calibration error of these probabilities if they were exactly right: with few people it is not 0."""
    rng = np.random.default_rng(seed)
    outcomes = rng.random((repeats, len(probability))) < probability
    return float(np.mean([calibration_error(probability, outcome, bins) for outcome in outcomes]))


@dataclass(frozen=True)
class Discrimination:
    """Areas under the ROC curve of K scores of the same independent people, and their covariance (DeLong)."""

    auc: np.ndarray
    covariance: np.ndarray

    def difference(self, a: int, b: int, level: float = 0.95) -> tuple[float, float, float, float]:
        """Area of score ``a`` minus that of ``b``: estimate, interval (two numbers), two-sided p of the paired test."""
        c = self.covariance
        delta = float(self.auc[a] - self.auc[b])
        error = float(np.sqrt(max(c[a, a] + c[b, b] - 2 * c[a, b], 0)))
        width = float(stats.norm.ppf((1 + level) / 2)) * error
        p = 2 * float(stats.norm.sf(abs(delta) / error)) if error > 0 else float(delta == 0)
        return delta, delta - width, delta + width, p

    def interval(self, which: int, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of one area."""
        width = float(stats.norm.ppf((1 + level) / 2) * np.sqrt(self.covariance[which, which]))
        return float(self.auc[which] - width), float(self.auc[which] + width)


def auc(score: np.ndarray, outcome: np.ndarray) -> float:
    """Area under the ROC curve of ``(N,)`` scores, ties counted half; NaN if all outcomes are the same."""
    positive = np.asarray(outcome, bool)
    m, n = positive.sum(), (~positive).sum()
    if m == 0 or n == 0:
        return float("nan")
    return float((stats.rankdata(score)[positive].sum() - m * (m + 1) / 2) / (m * n))


def delong(scores: np.ndarray, outcome: np.ndarray) -> Discrimination:
    """DeLong's test for ``(K, N)`` scores and ``(N,)`` outcomes (0/1) of independent people.

    Source: DeLong, Biometrics 44 (1988) 837, by midranks as in Sun & Xu, IEEE Signal Process. Lett. 21 (2014) 1389.

    Raises
    ------
    ValueError
        If there are fewer than two people with, or without, the outcome.
    """
    scores, positive = np.atleast_2d(scores), np.asarray(outcome, bool)
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        raise ValueError(f"{m} people with and {n} without the outcome; two of each are needed")
    ranks = stats.rankdata(scores, axis=1)
    above = (ranks[:, positive] - stats.rankdata(scores[:, positive], axis=1)) / n
    below = 1 - (ranks[:, ~positive] - stats.rankdata(scores[:, ~positive], axis=1)) / m
    covariance = np.atleast_2d(np.cov(above)) / m + np.atleast_2d(np.cov(below)) / n
    return Discrimination(above.mean(1), covariance)


@dataclass(frozen=True)
class Predictive:
    """Student-t predictive distributions ``(...)``: location, scale and degrees of freedom of each."""

    location: np.ndarray
    scale: np.ndarray
    freedom: np.ndarray

    def covers(self, truth: np.ndarray, level: float) -> np.ndarray:
        """1 where the central interval of a level holds ``truth (...)``, else 0; NaN where one is unknown."""
        half = stats.t.ppf((1 + level) / 2, self.freedom) * self.scale
        known = np.isfinite(half) & np.isfinite(truth) & np.isfinite(self.location)
        return np.where(known, np.abs(truth - self.location) <= half, np.nan)

    def crps(self, truth: np.ndarray) -> np.ndarray:
        """Continuous ranked probability score ``(...)``; NaN with one degree of freedom, which has none.

        Closed form of the Student-t: Jordan, Krüger & Lerch, J. Stat. Softw. 90 (2019) 12, appendix A.2.
        """
        from scipy.special import beta

        v = np.where(self.freedom > 1, self.freedom, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            z = (truth - self.location) / self.scale
            most = 2 * np.sqrt(v) / (v - 1) * beta(0.5, v - 0.5) / beta(0.5, v / 2) ** 2
            score = z * (2 * stats.t.cdf(z, v) - 1) + 2 * stats.t.pdf(z, v) * (v + z**2) / (v - 1) - most
        return self.scale * score


def from_intervals(low80: np.ndarray, high80: np.ndarray, low95: np.ndarray, high95: np.ndarray) -> Predictive:
    """The Student-t that has these 80 and 95 % intervals, as the tables of synthetic SUVR give them.

    The ratio of the widths tells the degrees of freedom (1 to 1000), the width the scale; NaN where an end is unknown.
    """
    grid = np.geomspace(1, 1000, 400)
    ratios = stats.t.ppf(0.975, grid) / stats.t.ppf(0.90, grid)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (high95 - low95) / (high80 - low80)
        freedom = np.exp(np.interp(ratio, ratios[::-1], np.log(grid)[::-1]))
    freedom = np.where(np.isfinite(ratio), freedom, np.nan)
    scale = (high95 - low95) / 2 / stats.t.ppf(0.975, freedom)
    return Predictive((low95 + high95) / 2, scale, freedom)
