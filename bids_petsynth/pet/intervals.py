"""Predictive intervals from a few draws.

M draws of one person's scan are M samples of what the scan could have been, and the scan itself would be one more. So
its predictive interval of level ``1 - α`` is ``mean ± t_{M-1, 1-α/2} · s · √(1 + 1/M)`` (Student-t; Hahn & Meeker,
*Statistical Intervals*, section 4.7): it has its nominal coverage for normal draws however few they are. A model whose
draws spread too little or too much on held-out people carries a spread factor in its calibration, which multiplies the
half-width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

#: Samples from which on their own distribution is known better than a normal one would tell it.
MANY = 100


@dataclass(frozen=True)
class Estimate:
    """What the draws say about one figure.

    ``sd`` is the spread of the draws as they are; ``interval80`` and ``interval95`` are predictive intervals. All three
    are None where there is a single draw.
    """

    mean: float
    sd: float | None
    interval80: tuple[float, float] | None
    interval95: tuple[float, float] | None


def predictive(samples: np.ndarray) -> Estimate:
    """Mean, spread and Student-t predictive intervals of one more sample like those given.

    Parameters
    ----------
    samples
        ``(M,)``; with M = 1 only the mean is known.
    """
    mean = float(np.mean(samples))
    scale = _scale(samples)
    if scale is None:
        return Estimate(mean, None, None, None)
    widths = [float(stdtrit(len(samples) - 1, 0.5 + level / 2)) * scale for level in (0.80, 0.95)]
    eighty, ninety_five = ((mean - width, mean + width) for width in widths)
    return Estimate(mean, float(np.std(samples, ddof=1)), eighty, ninety_five)


def probability_above(samples: np.ndarray, threshold: float) -> float | None:
    """Probability that one more sample exceeds a threshold; None with a single sample.

    From the same Student-t for a few samples. :data:`MANY` speak for themselves, by the rank that the threshold has
    among them: people near a threshold are often either well below or well above it.
    """
    if len(samples) >= MANY:
        above = int((np.asarray(samples) > threshold).sum())
        return (above + 0.5) / (len(samples) + 1)
    scale = _scale(samples)
    if scale is None:
        return None
    distance = float(np.mean(samples)) - threshold
    if scale == 0:
        return float(distance >= 0)
    return float(stdtr(len(samples) - 1, distance / scale))


def _scale(samples: np.ndarray) -> float | None:
    """Scale of the predictive Student-t with M - 1 degrees of freedom; None with a single sample."""
    count = len(samples)
    if count < 2:
        return None
    return float(np.std(samples, ddof=1)) * math.sqrt(1 + 1 / count)
