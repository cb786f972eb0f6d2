"""Maps over people in template space, voxel by voxel, and whether errors grow with atrophy.

People are added one after the other; the memory needed is that of a few volumes, however many they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.evaluation.statistics import Interval, bootstrap


@dataclass
class VoxelwiseMaps:
    """Running mean and variance of volumes that may lack voxels (NaN).

    Source: Welford 1962 (Technometrics 4:419); of two halves, Chan 1983 (Am Stat 37:242).

    Examples
    --------
    >>> maps = VoxelwiseMaps()
    >>> maps.add(np.array([[[1.0, 2.0]]])), maps.add(np.array([[[3.0, 2.0]]]))
    (None, None)
    >>> maps.maps()["mean"]
    array([[[2., 2.]]])
    """

    _count: np.ndarray | None = field(default=None, repr=False)
    _mean: np.ndarray | None = field(default=None, repr=False)
    _squares: np.ndarray | None = field(default=None, repr=False)
    people: int = 0

    def add(self, difference: np.ndarray) -> None:
        """One independent person's difference, synthetic minus real, in template space: ``(X, Y, Z)``, or any shape.

        Points of a surface projection do as well as voxels. Several scans of one person are no independent ones: add
        their mean.

        Raises
        ------
        ValueError
            If the shape differs from the earlier ones'.
        """
        if self._count is None:
            self._count = np.zeros(difference.shape, np.int32)
            self._mean, self._squares = (np.zeros(difference.shape) for _ in range(2))
        self._check(difference.shape)
        known = np.isfinite(difference)
        self.people += 1
        self._count += known
        off = np.where(known, difference - self._mean, 0)
        self._mean += off / np.maximum(self._count, 1)
        off *= np.where(known, difference - self._mean, 0)
        self._squares += off

    def merge(self, other: VoxelwiseMaps) -> None:
        """Take in other people's maps, such as those of another process.

        Raises
        ------
        ValueError
            If the shapes differ.
        """
        if other._count is None:
            return
        if self._count is None:
            self._count, self._mean, self._squares = (a.copy() for a in (other._count, other._mean, other._squares))
            self.people = other.people
            return
        self._check(other._count.shape)
        total = np.maximum(self._count + other._count, 1)
        off = other._mean - self._mean
        self._squares += other._squares + off**2 * self._count * other._count / total
        self._mean += off * other._count / total
        self._count += other._count
        self.people += other.people

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape != self._count.shape:
            raise ValueError(f"a volume of {shape} voxels among volumes of {self._count.shape}")

    def maps(self, least: int = 2) -> dict[str, np.ndarray]:
        """Maps of the volumes' shape.

        Parameters
        ----------
        least
            People that a voxel must be known in, two or more; others are NaN.

        Returns
        -------
        dict
            ``mean`` (SUVR), ``sd`` (n - 1), ``t`` of the paired t-test of no difference (NaN where all differences are
            the same), ``p`` two-sided, ``q`` after Benjamini and Hochberg over all voxels with a t, and ``n``. Empty if
            nobody was added.
        """
        from scipy.stats import false_discovery_control
        from scipy.stats import t as student

        if self._count is None:
            return {}
        n = self._count
        told = n >= max(least, 2)
        mean = np.where(told, self._mean, np.nan)
        sd = np.where(told, np.sqrt(self._squares / np.maximum(n - 1, 1)), np.nan)
        # differences that are all the same leave rounding errors, no spread
        spread = told & (np.nan_to_num(sd) > 1e-9 * np.maximum(np.abs(self._mean), 1e-9))
        t = np.divide(mean * np.sqrt(n), sd, out=np.full(n.shape, np.nan), where=spread)
        p, q = (np.full(n.shape, np.nan) for _ in range(2))
        p[spread] = 2 * student.sf(np.abs(t[spread]), n[spread] - 1)
        q[spread] = false_discovery_control(p[spread]) if spread.any() else []
        return {"mean": mean, "sd": sd, "t": t, "p": p, "q": q, "n": n.copy()}


def atrophy_measures(codes: np.ndarray, voxel_volume: float) -> dict[str, float]:
    """What atrophy changes, from ``dseg`` codes ``(X, Y, Z)`` with voxels of ``voxel_volume`` mm³.

    Returns
    -------
    dict
        ``brain_ml`` (grey and white matter), ``ventricles_ml``, ``cortex_ml``, and ``ventricle_share`` of brain,
        ventricles and the fluid around them, which does not depend on the size of the head. NaN without labels.
    """
    counts = np.bincount(np.asarray(codes, np.uint8).ravel(), minlength=256) * voxel_volume / 1000
    sums = {"gm": 0.0, "deep": 0.0, "wm": 0.0, "csf": 0.0, "ventricles": 0.0, "cortex": 0.0}
    for code, _, _, region in lookup():
        sums[region.tissue] += counts[code]
        ventricle = region.tissue == "csf" and region.name != "extra_axial_csf"
        sums["ventricles"] += counts[code] * ventricle
        sums["cortex"] += counts[code] * (region.tissue == "gm" and region.lobe != "cerebellum")
    brain = sums["gm"] + sums["deep"] + sums["wm"]
    whole = brain + sums["csf"]
    share = sums["ventricles"] / whole if whole else np.nan
    found = {"brain_ml": brain, "ventricles_ml": sums["ventricles"], "cortex_ml": sums["cortex"]}
    return {name: float(value) if whole else float("nan") for name, value in found.items()} | {
        "ventricle_share": float(share)
    }


def against_atrophy(
    errors: np.ndarray, measures: np.ndarray, clusters: np.ndarray, n: int = 1000, seed: int = 0
) -> Interval:
    """Spearman's rank correlation of image errors ``(N,)`` with a measure of atrophy ``(N,)``.

    The interval resamples the independent units ``clusters (N,)``. People with either value unknown are left out; all
    NaN with fewer than three people or where one side is constant.
    """
    from scipy.stats import rankdata

    errors, measures, clusters = (np.asarray(values) for values in (errors, measures, clusters))
    known = np.isfinite(errors) & np.isfinite(measures)
    errors, measures, clusters = errors[known], measures[known], clusters[known]
    if len(errors) < 3 or not (np.ptp(errors) and np.ptp(measures)):
        return Interval(*(np.array(np.nan) for _ in range(3)))

    def rho(index: np.ndarray) -> float:
        # ten times as fast as scipy's spearmanr, which also computes a p-value
        a, b = rankdata(errors[index]), rankdata(measures[index])
        return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else np.nan

    return bootstrap(rho, clusters, n, seed=seed)
