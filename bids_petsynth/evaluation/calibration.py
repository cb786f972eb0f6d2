"""Tables of whether the intervals and probabilities of synthetic PET are right, over all people and by group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from bids_petsynth.evaluation.agreement import counts_of, means
from bids_petsynth.evaluation.pairs import Pairs
from bids_petsynth.evaluation.statistics import percentiles
from bids_petsynth.evaluation.uncertainty import (
    Predictive,
    calibration_error,
    crps_fair,
    from_intervals,
    reliability,
)
from bids_petsynth.pet.tracers import default_cutoff

#: Levels of the intervals that are looked at.
LEVELS = (0.50, 0.80, 0.95)
ALL = "all"


def predictive_of(pairs: Pairs) -> Predictive:
    """The predictive distributions ``(N, R)`` that the tables give."""
    ends = [pairs.intervals[name].to_numpy(float) for name in ("low80", "high80", "low95", "high95")]
    return from_intervals(*ends)


def coverage_table(pairs: Pairs, groupings: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Coverage, width, scores and spread over skill of the target and of all regions, over everybody and by group.

    ``crps`` is that of the Student-t; ``fair_crps`` that of the single draws where they were written. ``spread_skill``
    is the root of the mean square error that the spread promises over that of the mean of the draws (1: right).
    """
    if not len(pairs):
        return pd.DataFrame()
    truth, spread = pairs.real.to_numpy(float), predictive_of(pairs)
    place = {name: number for number, name in enumerate(pairs.real.columns)}
    chosen = {"all regions": [place[name] for name in pairs.regions]}
    if pairs.target in place:
        chosen["target"] = [place[pairs.target]]
    parts: list[tuple[str, str, np.ndarray]] = [(ALL, "", np.ones(len(pairs), bool))]
    for grouping, group in groupings.items():
        mine = group.reindex(pairs.real.index)
        parts += [(grouping, level, (mine == level).to_numpy()) for level in sorted(set(mine) - {""})]
    draws = _draw_scores(pairs)
    rows = []
    for grouping, level, who in parts:
        counts = counts_of(pairs.clusters.to_numpy()[who]) if who.any() else None
        for figure, columns in chosen.items():
            own = np.ix_(who, columns)
            part = Predictive(spread.location[own], spread.scale[own], spread.freedom[own])
            known = np.isfinite(part.scale) & np.isfinite(truth[own])
            row = {"tracer": pairs.tracer, "grouping": grouping, "group": level, "figure": figure}
            row["n"] = int(known.any(1).sum())
            for one in LEVELS:
                found = means(_mean(part.covers(truth[own], one))[:, None], counts)
                name = f"coverage{round(100 * one)}"
                row |= {name: found.estimate[0], f"{name}_low": found.low[0], f"{name}_high": found.high[0]}
            width = 2 * stats.t.ppf(0.975, part.freedom) * part.scale
            row["width95"] = _all(width)
            row["crps"] = _all(part.crps(truth[own]))
            row["fair_crps"] = _all(draws[own])
            row |= _spread_skill(part, truth[own], counts)
            rows.append(row)
    return pd.DataFrame(rows)


def _draw_scores(pairs: Pairs) -> np.ndarray:
    """``(N, R)`` fair CRPS of the written draws, NaN where there are fewer than two."""
    out = np.full(pairs.real.shape, np.nan)
    for row, key in enumerate(pairs.real.index):
        for column, name in enumerate(pairs.real.columns):
            draws = pairs.draws.get(key, {}).get(name, ())
            if len(draws) > 1:
                out[row, column] = crps_fair(pairs.real.iat[row, column], np.array(draws))
    return out


def _spread_skill(part: Predictive, truth: np.ndarray, counts: np.ndarray | None) -> dict[str, float]:
    """The squared scale, s² (1 + 1/M), is what the squared error of the mean of M right draws is on average.

    The variance of the Student-t is larger by ν / (ν - 2), for it does not know the spread.
    """
    variance = part.scale**2
    error = np.where(np.isfinite(variance), (truth - part.location) ** 2, np.nan)
    both = np.column_stack([_mean(variance), _mean(error)])
    with np.errstate(invalid="ignore", divide="ignore"):
        out = {"spread_skill": float(np.sqrt(_all(both[:, 0]) / _all(both[:, 1])))}
        low = high = np.nan
        if counts is not None:
            known = np.isfinite(both).all(1)
            sums = counts[:, known] @ both[known]
            low, high = (float(x[0]) for x in percentiles(np.sqrt(sums[:, :1] / sums[:, 1:])))
    return out | {"spread_skill_low": low, "spread_skill_high": high}


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over regions, per person."""
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _all(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def reliability_table(pairs: Pairs) -> pd.DataFrame:
    """Bins of predicted probability of positivity against the share of positive real scans, with Wilson's intervals.

    There are none where participants share an independent unit.
    """
    from statsmodels.stats.proportion import proportion_confint

    probability, outcome = _status(pairs)
    names = ["tracer", "n", "probability", "share", "share_low", "share_high"]
    if not len(probability):
        return pd.DataFrame(columns=names)
    rows, alone = [], pairs.clusters.is_unique
    for size, said, seen in reliability(probability, outcome):
        low, high = proportion_confint(round(seen * size), int(size), method="wilson") if alone else (np.nan, np.nan)
        rows.append([pairs.tracer, int(size), said, seen, low, high])
    return pd.DataFrame(rows, columns=names)


def probability_table(pairs: Pairs, groupings: Mapping[str, pd.Series], seed: int = 0) -> pd.DataFrame:
    """Brier score and expected calibration error (ten bins) of the probability of positivity, by group.

    ``ece_if_right`` is what the same probabilities would get on average if they were exactly right: the error has a
    floor that falls with the number of people.
    """
    probability, outcome = _status(pairs)
    rng = np.random.default_rng(seed)
    index = pairs.real.index[_known(pairs)]
    parts = [(ALL, "", np.ones(len(index), bool))]
    for grouping, group in groupings.items():
        mine = group.reindex(index)
        parts += [(grouping, level, (mine == level).to_numpy()) for level in sorted(set(mine) - {""})]
    rows = []
    for grouping, level, who in parts:
        p, y = probability[who], outcome[who]
        if not len(p):
            continue
        right = [calibration_error(p, rng.random(len(p)) < p) for _ in range(200)]
        brier = means(((p - y) ** 2)[:, None], counts_of(pairs.clusters.loc[index].to_numpy()[who]))
        row = {"tracer": pairs.tracer, "cutoff": default_cutoff().centiloid, "grouping": grouping, "group": level}
        row |= {"n": len(p), "n_positive": int(y.sum()), "brier": brier.estimate[0], "brier_low": brier.low[0]}
        row |= {"brier_high": brier.high[0], "ece": calibration_error(p, y), "ece_if_right": float(np.mean(right))}
        rows.append(row)
    return pd.DataFrame(rows)


def _known(pairs: Pairs) -> np.ndarray:
    if "real" not in pairs.centiloid:
        return np.zeros(len(pairs), bool)
    return (pairs.probability.notna() & pairs.centiloid["real"].notna()).to_numpy()


def _status(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and whether the real scan is above the default cut-off, of those who have both."""
    known = _known(pairs)
    if not known.any():
        return np.empty(0), np.empty(0)
    real = pairs.centiloid["real"].to_numpy(float)[known]
    return pairs.probability.to_numpy(float)[known], (real > default_cutoff().centiloid).astype(float)
