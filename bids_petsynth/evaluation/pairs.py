"""All comparisons of a cohort as tables, and what simpler methods predict for the same people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bids_petsynth.clinical.variables import variables
from bids_petsynth.evaluation.baselines import (
    choose,
    matched_weights,
    population_weights,
    regional_regression,
    ridge_weights,
)
from bids_petsynth.evaluation.cohort import PET, SCAN, Cohort
from bids_petsynth.evaluation.groups import numbers
from bids_petsynth.pet.tracers import tracer as tracer_named

if TYPE_CHECKING:
    from bids_petsynth.evaluation.comparison import Comparison

MODEL = "synthetic PET"
#: Knows nothing of a person. Over folds its correlation with the truth is negative by construction (whoever is left out
#: pulls the mean of the others the other way), so figures of ranking are not given for it.
CONSTANT = "population mean"
#: What each opponent is, for the reader.
OPPONENTS = {
    CONSTANT: "mean regional SUVR of the other people",
    "blood-matched mean": "mean regional SUVR of the people with the nearest record",
    "ridge": "ridge regression of regional SUVR on the record",
    "ridge with volumes": "ridge regression of regional SUVR on the record and the person's regional volumes",
}
_NEIGHBOURS, _STRENGTHS = (3, 5, 10, 20, 40), (1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Pairs:
    """One tracer: N scans that are compared, one per participant, or all of them.

    Attributes
    ----------
    tracer
        Canonical name.
    synthetic, real
        ``(N, R)`` SUVR of regions and composites, by scan; NaN where the real field of view misses one.
    centiloid
        ``(N, 2)`` columns ``synthetic`` and ``real``; empty for a tracer without.
    image, atrophy
        ``(N, F)`` image figures; ``(N, A)`` measures of the head's atrophy.
    clusters
        ``(N,)`` the independent unit.
    probability
        ``(N,)`` of positivity at the default cut-off, NaN where it was not written.
    intervals
        ``low80`` … ``high95`` → ``(N, R)``; ``sd`` too.
    draws
        Scan → region → SUVR of every draw; empty where draws were not written.
    """

    tracer: str
    synthetic: pd.DataFrame
    real: pd.DataFrame
    centiloid: pd.DataFrame
    image: pd.DataFrame
    atrophy: pd.DataFrame
    clusters: pd.Series
    probability: pd.Series
    intervals: Mapping[str, pd.DataFrame]
    draws: Mapping[tuple[str, str], Mapping[str, list[float]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.real)

    @property
    def target(self) -> str:
        """Name of the composite that sums the tracer's scans up."""
        return tracer_named(self.tracer).default_target

    @property
    def regions(self) -> list[str]:
        """Columns that are regions (each voxel counts once), the composites left out."""
        from bids_petsynth.anatomy.regions import lookup

        names = {name for _, name, _, _ in lookup()}
        return [name for name in self.real if name in names]

    def at(self, index: pd.MultiIndex) -> Pairs:
        """The same of some of the scans."""
        return Pairs(
            self.tracer,
            self.synthetic.loc[index],
            self.real.loc[index],
            self.centiloid.loc[index],
            self.image.loc[index],
            self.atrophy.loc[index],
            self.clusters.loc[index],
            self.probability.loc[index],
            {name: frame.loc[index] for name, frame in self.intervals.items()},
            {key: self.draws[key] for key in index if key in self.draws},
        )


def tabulate(cohort: Cohort, found: Mapping[tuple[str, str, str], Comparison], clusters: pd.Series) -> dict[str, Pairs]:
    """Tracer → all of its comparisons, in the order of the cohort's tracers.

    ``found`` is by participant, session and tracer; ``clusters`` by scan.
    """
    out = {}
    for name in cohort.tracers:
        keys = [key for key in sorted(found) if key[2] == name]
        if not keys:
            continue
        index = pd.MultiIndex.from_tuples([key[:2] for key in keys], names=SCAN)
        parts = [found[key] for key in keys]
        real, synthetic = (
            pd.DataFrame([dict(getattr(part, side)) for part in parts], index=index, dtype=float)
            for side in ("real", "synthetic")
        )
        measured = cohort.synthetic.xs(name, level="tracer").reindex(index)
        load = pd.DataFrame(index=index)
        if any(part.centiloid is not None for part in parts):
            load["synthetic"] = measured["centiloid_approximate"].astype(float)
            load["real"] = [np.nan if part.centiloid is None else part.centiloid for part in parts]
        probability = measured.get("probability_positive", pd.Series(np.nan, index=index))
        out[name] = Pairs(
            tracer=name,
            synthetic=synthetic.reindex(columns=real.columns),
            real=real,
            centiloid=load,
            image=pd.DataFrame([dict(part.image) for part in parts], index=index, dtype=float),
            atrophy=pd.DataFrame([dict(part.atrophy) for part in parts], index=index, dtype=float),
            clusters=clusters.reindex(index),
            probability=probability.astype(float),
            intervals={
                figure: frame.xs(name, level="tracer").reindex(index=index, columns=real.columns)
                for figure, frame in cohort.regional.items()
                if figure != "suvr"
            },
            draws={key[:2]: part.draws for key, part in zip(keys, parts, strict=True) if part.draws},
        )
    return out


def once(cohort: Cohort, pairs: Pairs) -> Pairs:
    """The first comparison of every participant."""
    keyed = pairs.real.assign(tracer=pairs.tracer).set_index("tracer", append=True)
    keyed.index.names = PET
    return pairs.at(cohort.once(keyed, pairs.tracer).index)


def record_values(cohort: Cohort, index: pd.MultiIndex) -> np.ndarray:
    """``(N, V)`` transformed and standardised variables that a synthesis may use (no cognition), NaN where missing."""
    names = [name for name in cohort.records if variables()[name].default_input]
    frame = cohort.records.reindex(index)[names].copy()
    for name in names:
        if variables()[name].transform == "log":
            frame[name] = np.log(frame[name].where(frame[name] > 0))
    spread = frame.std(ddof=1)
    frame = frame.loc[:, spread > 0]
    return ((frame - frame.mean()) / spread[spread > 0]).to_numpy(float)


@dataclass(frozen=True)
class Fold:
    """People who are learned from, those who are judged, and by method the ``(T, L)`` weights of the former in each of
    the latter; ``known (L, R)`` are the figures that are learned from, without gaps."""

    learned: np.ndarray
    judged: np.ndarray
    known: np.ndarray
    weights: Mapping[str, np.ndarray]


def weighted_folds(
    truth: np.ndarray, values: np.ndarray, clusters: np.ndarray, folds: int = 5, seed: int = 0
) -> list[Fold]:
    """Folds over the independent units, with the opponents that are weighted sums of the people learned from.

    Parameters are those of :func:`opponents`. The weights serve regions and voxels alike. Empty with fewer than three
    units.
    """
    units, unit = np.unique(np.asarray(clusters, str), return_inverse=True)
    if len(units) < numbers()["least_clusters"]:
        return []
    order = np.random.default_rng(seed).permutation(len(units))
    fold = np.empty(len(units), int)
    fold[order] = np.arange(len(units)) % min(folds, len(units))
    fold = fold[unit]
    out = []
    for number in range(fold.max() + 1):
        judged, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        known = np.where(np.isfinite(truth[rest]), truth[rest], _column_means(truth[rest]))
        # a value that somebody to learn from lacks counts as average; one that the person lacks is not used
        mine, count = np.nan_to_num(values[rest]), len(rest)
        near = choose(matched_weights, [k for k in _NEIGHBOURS if k < count] or [1], mine, known) if count > 1 else 1
        strength = choose(ridge_weights, _STRENGTHS, mine, known) if count > 1 else _STRENGTHS[-1]
        plan = (
            (CONSTANT, population_weights, 0.0),
            ("blood-matched mean", matched_weights, near),
            ("ridge", ridge_weights, strength),
        )
        weights = {name: np.array([of(mine, person, option) for person in values[judged]]) for name, of, option in plan}
        out.append(Fold(rest, judged, known, weights))
    return out


def opponents(
    truth: np.ndarray,
    values: np.ndarray,
    volumes: np.ndarray,
    clusters: np.ndarray,
    folds: int = 5,
    seed: int = 0,
    dealt: Sequence[Fold] | None = None,
) -> dict[str, np.ndarray]:
    """What simpler methods predict for every person from the others, by nested folds over the independent units.

    Parameters
    ----------
    truth
        ``(N, R)`` real regional SUVR; NaN is replaced by the mean of the people who are learned from.
    values
        ``(N, V)`` standardised record, NaN where missing; see :func:`record_values`.
    volumes
        ``(N, K)`` volumes of regions, positive; NaN where missing.
    clusters
        ``(N,)``; a unit is never learned from and predicted in the same fold.
    folds, seed
        Number of folds (fewer if there are fewer units), and the seed by which units are dealt to them.
    dealt
        What :func:`weighted_folds` made of the same, if it is known.

    Returns
    -------
    Name of the opponent (:data:`OPPONENTS`) → ``(N, R)``; empty with fewer than three units. The number of neighbours
    and the strength of the ridge are chosen by leave-one-out among the people who are learned from.
    """
    dealt = weighted_folds(truth, values, clusters, folds, seed) if dealt is None else dealt
    if not dealt:
        return {}
    sizes = np.log(np.where(volumes > 0, volumes, np.nan))
    out = {name: np.full(truth.shape, np.nan) for name in OPPONENTS}
    for one in dealt:
        for name, weights in one.weights.items():
            out[name][one.judged] = weights @ one.known
        features = _filled(np.hstack([values, sizes]), one.learned)
        out["ridge with volumes"][one.judged] = (
            regional_regression(features[one.learned], one.known).predict(features[one.judged])
            if len(one.learned) > 1
            else one.known.mean(0)
        )
    return out


def _column_means(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1)


def _filled(features: np.ndarray, learned: np.ndarray) -> np.ndarray:
    """Missing features by the mean of the people who are learned from, with a column that tells so where some miss."""
    known = np.isfinite(features)
    filled = np.where(known, features, _column_means(features[learned]))
    partly = known.any(0) & ~known.all(0)
    return np.hstack([filled, known[:, partly].astype(float)])
