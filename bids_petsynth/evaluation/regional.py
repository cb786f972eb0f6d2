"""Agreement of one figure per person and region: error, bias, correlation across people, ICC, Bland–Altman."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


def mean_absolute_error(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``(R,)`` over people from ``(N, R)``; people without the region (NaN) are left out."""
    return np.nanmean(np.abs(predicted - truth), axis=0)


def bias(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``(R,)`` mean of predicted minus true over people from ``(N, R)``; NaN is left out."""
    return np.nanmean(predicted - truth, axis=0)


def correlation(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pearson's r across people.

    Parameters
    ----------
    predicted, truth
        ``(N,)`` or ``(N, R)``; pairs with a NaN are left out.

    Returns
    -------
    ndarray
        ``()`` or ``(R,)``; NaN where one of the two does not vary. Within a person r across regions is trivially high,
        so it is never taken that way.
    """
    both = np.isfinite(predicted) & np.isfinite(truth)
    a, b = (np.where(both, x, np.nan) for x in (predicted, truth))
    a, b = a - np.nanmean(a, 0), b - np.nanmean(b, 0)
    square = np.nansum(a**2, 0) * np.nansum(b**2, 0)
    return np.nansum(a * b, 0) / np.sqrt(np.where(square > 0, square, np.nan))


def residual_correlation(predicted: np.ndarray, truth: np.ndarray, population: np.ndarray) -> float:
    """r over people and regions together of what is left after the population's mean pattern.

    Parameters
    ----------
    predicted, truth
        ``(N, R)``.
    population
        ``(R,)`` mean of people who are not among these (the training people).
    """
    return float(correlation((predicted - population).ravel(), (truth - population).ravel()))


@dataclass(frozen=True)
class Agreement:
    """An intraclass correlation with its confidence interval."""

    icc: float
    low: float
    high: float


def icc21(ratings: np.ndarray, level: float = 0.95) -> Agreement:
    """ICC(2,1): absolute agreement of single ratings, two-way random effects.

    Parameters
    ----------
    ratings
        ``(N, K)``: N people rated by K raters (here the scan and its synthesis); rows with NaN are left out.
    level
        Of the confidence interval.

    Notes
    -----
    Shrout & Fleiss, Psychol. Bull. 86 (1979) 420, for the estimate; McGraw & Wong, Psychol. Methods 1 (1996) 30,
    table 7, for the interval.
    """
    x = ratings[np.isfinite(ratings).all(1)]
    n, k = x.shape
    if n < 2:
        return Agreement(math.nan, math.nan, math.nan)
    mean, rows, columns = x.mean(), x.mean(1), x.mean(0)
    msr = k * np.sum((rows - mean) ** 2) / (n - 1)
    msc = n * np.sum((columns - mean) ** 2) / (k - 1)
    mse = np.sum((x - rows[:, None] - columns + mean) ** 2) / ((n - 1) * (k - 1))
    if mse <= 1e-12 * (msr + msc):  # raters differ by a constant: no error is left to estimate an interval from
        icc = msr / (msr + k * msc / n) if msr > 0 else math.nan
        return Agreement(float(icc), float(icc), float(icc))
    icc = (msr - mse) / (msr + (k - 1) * mse + k * (msc - mse) / n)
    f = msc / mse
    part = n * (1 + (k - 1) * icc) - k * icc
    freedom = (k - 1) * (n - 1) * (k * icc * f + part) ** 2 / ((n - 1) * (k * icc * f) ** 2 + part**2)
    tail = (1 + level) / 2
    upper, lower = stats.f.ppf(tail, n - 1, freedom), stats.f.ppf(tail, freedom, n - 1)
    rest = k * msc + (k * n - k - n) * mse
    with np.errstate(invalid="ignore", divide="ignore"):  # two people leave no interval
        low = n * (msr - upper * mse) / (upper * rest + n * msr)
        high = n * (lower * msr - mse) / (rest + n * lower * msr)
    return Agreement(float(icc), float(low), float(high))


@dataclass(frozen=True)
class BlandAltman:
    """Mean difference, its standard deviation and the 95 % limits of agreement, with intervals for all three."""

    mean: float
    sd: float
    mean_interval: tuple[float, float]
    limits: tuple[float, float]
    lower_interval: tuple[float, float]
    upper_interval: tuple[float, float]


def bland_altman(predicted: np.ndarray, truth: np.ndarray, level: float = 0.95) -> BlandAltman:
    """Bland–Altman analysis of ``(N,)`` pairs of independent people.

    Sources: Bland & Altman, Lancet 327 (1986) 307; the standard error of a limit from their Stat. Methods Med. Res. 8
    (1999) 135, section 2.
    """
    difference = (predicted - truth)[np.isfinite(predicted - truth)]
    n, mean, sd = len(difference), float(difference.mean()), float(difference.std(ddof=1))
    z = float(stats.norm.ppf(0.975))
    t = float(stats.t.ppf((1 + level) / 2, n - 1))
    of_mean, of_limit = t * sd / math.sqrt(n), t * sd * math.sqrt(1 / n + z**2 / (2 * (n - 1)))
    low, high = mean - z * sd, mean + z * sd
    return BlandAltman(
        mean,
        sd,
        (mean - of_mean, mean + of_mean),
        (low, high),
        (low - of_limit, low + of_limit),
        (high - of_limit, high + of_limit),
    )
