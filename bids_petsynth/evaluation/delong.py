"""DeLong's test where people are not independent: several scans of a person, several people on one head."""

from __future__ import annotations

import numpy as np
from scipy import stats

from bids_petsynth.evaluation.uncertainty import Discrimination


def delong_clustered(scores: np.ndarray, outcome: np.ndarray, clusters: np.ndarray) -> Discrimination:
    """Areas under the ROC curve of K scores and their covariance, with clusters as the independent units.

    Parameters
    ----------
    scores
        ``(K, N)``.
    outcome
        ``(N,)`` 0 or 1.
    clusters
        ``(N,)`` the independent unit of each.

    Notes
    -----
    Obuchowski, Biometrics 53 (1997) 567, equations 3 to 5. With clusters of one it is DeLong's test
    (``evaluation.uncertainty.delong``).

    Raises
    ------
    ValueError
        If there are fewer than two clusters with, or without, the outcome.
    """
    scores, positive = np.atleast_2d(scores), np.asarray(outcome, bool)
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    with_it, without = np.unique(place[positive]), np.unique(place[~positive])
    if min(len(with_it), len(without)) < 2:
        raise ValueError(
            f"{len(with_it)} independent units with and {len(without)} without the outcome; two of each are needed"
        )
    m, n, units = int(positive.sum()), int((~positive).sum()), int(place.max()) + 1
    ranks = stats.rankdata(scores, axis=1)
    above = (ranks[:, positive] - stats.rankdata(scores[:, positive], axis=1)) / n
    below = 1 - (ranks[:, ~positive] - stats.rankdata(scores[:, ~positive], axis=1)) / m
    area = above.mean(1)
    # (K, units) sums of each unit's deviations
    up = np.array([np.bincount(place[positive], row, units) for row in above - area[:, None]])
    down = np.array([np.bincount(place[~positive], row, units) for row in below - area[:, None]])
    i, j = len(with_it), len(without)
    s10 = up @ up.T * i / ((i - 1) * m)
    s01 = down @ down.T * j / ((j - 1) * n)
    s11 = (up @ down.T + down @ up.T) * units / (units - 1)
    return Discrimination(area, s10 / m + s01 / n + s11 / (m * n))
