"""Bootstrap intervals that respect which people are independent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval; numbers, or arrays where the statistic is one."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resamples(clusters: np.ndarray, n: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """``n`` index arrays: clusters drawn with replacement, then people with replacement within each drawn one.

    ``clusters (N,)`` names the independent unit of each person (a head that several simulated people share, a family,
    the person themselves). Source: Davison & Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
    """
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    members = [np.flatnonzero(place == c) for c in range(place.max() + 1)]
    if len(members) == len(place):  # everybody is a cluster of their own
        alone = np.concatenate(members)
        yield from (alone[rng.integers(len(alone), size=len(alone))] for _ in range(n))
        return
    for _ in range(n):
        drawn = [members[c] for c in rng.integers(len(members), size=len(members))]
        # a cluster of one has no people to choose among
        yield np.concatenate([who[rng.integers(len(who), size=len(who))] for who in drawn])


def bootstrap(
    statistic: Callable[[np.ndarray], float | np.ndarray],
    clusters: np.ndarray,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic, clustered by the independent unit.

    Parameters
    ----------
    statistic
        Takes indices of people and returns a number or an array. A paired difference or ratio of two methods is a
        statistic as well: ``lambda i: figure(a[i]) - figure(b[i])``.
    clusters
        ``(N,)`` the independent unit of each person.
    n, level, seed
        Resamples, level of the interval, seed: the same seed gives the same resamples for every statistic.

    Notes
    -----
    Resamples in which the statistic is NaN (an AUC without positives) are left out. With few clusters the interval is
    somewhat too narrow: it knows five heads no better than their five draws allow.
    """
    rng = np.random.default_rng(seed)
    found = np.array([statistic(index) for index in resamples(clusters, n, rng)])
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(found, [tail, 100 - tail], axis=0)
    return Interval(np.asarray(statistic(np.arange(len(clusters)))), low, high)


def resample_counts(clusters: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """``(n, N)`` how often each person is in each of ``n`` resamples: weights for statistics that are means.

    Distributed as those of :func:`resamples`: clusters are drawn with replacement, and within a cluster of m people
    that is drawn k times, k · m people. Thousands of people take a fraction of a second.
    """
    rng = np.random.default_rng(seed)
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    size = np.bincount(place)
    drawn = rng.multinomial(len(size), np.full(len(size), 1 / len(size)), n)
    out = np.empty((n, len(place)))
    for cluster, people in enumerate(size):
        times = drawn[:, cluster]
        members = rng.multinomial(times * people, np.full(people, 1 / people)) if people > 1 else times[:, None]
        out[:, place == cluster] = members
    return out


def bootstrap_means(values: np.ndarray, counts: np.ndarray, level: float = 0.95) -> Interval:
    """Means over people of ``(N, K)`` figures with percentile intervals, all from the same resamples.

    ``counts`` is from :func:`resample_counts`; NaN is left out, and a figure without any value is NaN.
    """
    known = np.isfinite(values)
    filled, weight = np.where(known, values, 0), known.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (counts @ filled) / (counts @ weight)
        estimate = filled.sum(0) / weight.sum(0)
    return Interval(estimate, *percentiles(found, level))


def percentiles(found: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Ends ``(K,)`` of the percentile intervals of ``(B, K)``, NaN where nothing is known."""
    ends = [50 * (1 - level), 50 * (1 + level)]
    out = np.full((2, found.shape[1]), np.nan)
    known = np.isfinite(found)
    whole = known.all(0)
    # numpy's nanpercentile takes a hundred times longer
    out[:, whole] = np.percentile(found[:, whole], ends, axis=0)
    for column in np.flatnonzero(known.any(0) & ~whole):
        out[:, column] = np.percentile(found[known[:, column], column], ends)
    return out[0], out[1]


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student-t confidence interval of the mean of independent values; NaN of fewer than two."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def holm(p: np.ndarray) -> np.ndarray:
    """p-values corrected by Holm's procedure (statsmodels); NaN stays and does not count as a test."""
    from statsmodels.stats.multitest import multipletests

    out = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        out[known] = multipletests(p[known], method="holm")[1]
    return out
