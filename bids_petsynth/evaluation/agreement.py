"""Tables of how well synthetic and real PET agree: images, regions, global figures, status at cut-offs, change.

Rows are methods (the synthetic PET and its opponents, see ``evaluation.pairs``) so that a figure never stands alone.
Intervals are percentile bootstraps over the independent units unless a function says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pandas as pd

from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.evaluation.groups import numbers
from bids_petsynth.evaluation.pairs import CONSTANT, MODEL, Pairs
from bids_petsynth.evaluation.regional import bland_altman, correlation, icc21
from bids_petsynth.evaluation.statistics import Interval, bootstrap_means, holm, percentiles, resample_counts
from bids_petsynth.evaluation.uncertainty import auc
from bids_petsynth.pet.tracers import cutoffs

_SIDES = {name: side for _, name, side, _ in lookup()}
#: People below which a correlation is not computed.
LEAST = 3


def counts_of(clusters: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """Bootstrap weights of the people, None where there are too few independent units for an interval."""
    _, place = np.unique(np.asarray(clusters, str), return_inverse=True)
    return _counts(tuple(place.tolist()), seed) if len(place) else None


@lru_cache(maxsize=4)
def _counts(place: tuple[int, ...], seed: int) -> np.ndarray | None:
    if len(set(place)) < numbers()["least_clusters"]:
        return None
    return resample_counts(np.array(place), int(numbers()["resamples"]), seed)


def means(values: np.ndarray, counts: np.ndarray | None) -> Interval:
    """Means of ``(N, K)`` over people with intervals, NaN where there are none."""
    if counts is None:
        with np.errstate(invalid="ignore"):
            known = np.isfinite(values)
            mean = np.where(known, values, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
        return Interval(mean, np.full(mean.shape, np.nan), np.full(mean.shape, np.nan))
    return bootstrap_means(values, counts)


def correlations(a: np.ndarray, b: np.ndarray, counts: np.ndarray | None) -> Interval:
    """Pearson's r across people of every column of ``(N, K)``, from weighted moments in every resample."""
    both = np.isfinite(a) & np.isfinite(b)
    estimate = np.where(both.sum(0) >= LEAST, correlation(a, b), np.nan)
    if counts is None:
        return Interval(estimate, np.full(estimate.shape, np.nan), np.full(estimate.shape, np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        shift_a, shift_b = (
            np.nanmean(np.where(both, x, np.nan), 0, keepdims=True) if both.any() else 0 for x in (a, b)
        )
        x, y = (np.where(both, value - shift, 0) for value, shift in ((a, shift_a), (b, shift_b)))
        n = counts @ both.astype(float)
        mx, my = counts @ x / n, counts @ y / n
        vx, vy = counts @ x**2 / n - mx**2, counts @ y**2 / n - my**2
        found = (counts @ (x * y) / n - mx * my) / np.sqrt(np.where((vx > 1e-12) & (vy > 1e-12), vx * vy, np.nan))
    return Interval(estimate, *percentiles(np.where(np.isfinite(estimate), found, np.nan)))


def image_summary(pairs: Pairs) -> pd.DataFrame:
    """Mean of every image figure over people."""
    counts = counts_of(pairs.clusters.to_numpy())
    values = pairs.image.replace([np.inf, -np.inf], np.nan)
    found = means(values.to_numpy(float), counts)
    return pd.DataFrame(
        {
            "tracer": pairs.tracer,
            "figure": values.columns,
            "n": values.notna().sum().to_numpy(),
            "mean": found.estimate,
            "mean_low": found.low,
            "mean_high": found.high,
            "sd": values.std(ddof=1).to_numpy(),
            "median": values.median().to_numpy(),
        }
    )


def regional_table(pairs: Pairs, methods: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Agreement of every region and composite.

    ``methods`` are ``(N, R)`` predictions by name. The interval of the ICC is McGraw and Wong's where people are
    independent, else the bootstrap's; limits of agreement are Bland and Altman's.
    """
    truth = pairs.real.to_numpy(float)
    counts = counts_of(pairs.clusters.to_numpy())
    alone = pairs.clusters.nunique() == len(pairs)
    frames = []
    for name, predicted in methods.items():
        difference = predicted - truth
        error, shift = means(np.abs(difference), counts), means(difference, counts)
        r = correlations(predicted, truth, counts)
        rows = pd.DataFrame(
            {
                "tracer": pairs.tracer,
                "method": name,
                "region": pairs.real.columns,
                "hemisphere": [_SIDES.get(region, "composite") for region in pairs.real.columns],
                "n": np.isfinite(difference).sum(0),
                "mae": error.estimate,
                "mae_low": error.low,
                "mae_high": error.high,
                "bias": shift.estimate,
                "bias_low": shift.low,
                "bias_high": shift.high,
                "r": r.estimate,
                "r_low": r.low,
                "r_high": r.high,
            }
        )
        agreed = [icc21(np.column_stack([p, t])) for p, t in zip(predicted.T, truth.T, strict=True)]
        rows["icc"] = [one.icc for one in agreed]
        ends = [(one.low, one.high) for one in agreed] if alone else icc_bootstrap(predicted, truth, counts)
        rows[["icc_low", "icc_high"]] = np.array(ends, float).reshape(-1, 2)
        spread = [np.nanstd(d, ddof=1) if np.isfinite(d).sum() > 1 else np.nan for d in difference.T]
        rows["sd_difference"] = spread
        rows["loa_low"], rows["loa_high"] = (shift.estimate + z * rows["sd_difference"] for z in (-1.96, 1.96))
        frames.append(_unranked(rows))
    return pd.concat(frames, ignore_index=True)


def icc_bootstrap(a: np.ndarray, b: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    """``(K, 2)`` percentile ends of the ICC(2,1) of two raters, from weighted moments in every resample."""
    if counts is None:
        return np.full((a.shape[1], 2), np.nan)
    both = np.isfinite(a) & np.isfinite(b)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.where(both.any(0), np.where(both, a, 0).sum(0) / np.maximum(both.sum(0), 1), 0)
        x, y = (np.where(both, value - centre, 0) for value in (a, b))
        n = counts @ both.astype(float)
        half, gap = (x + y) / 2, x - y
        mean_half, mean_gap = counts @ half / n, counts @ gap / n
        msr = 2 * (counts @ half**2 - n * mean_half**2) / (n - 1)
        msc = n * mean_gap**2 / 2
        mse = (counts @ gap**2 - n * mean_gap**2) / 2 / (n - 1)
        found = (msr - mse) / (msr + mse + 2 * (msc - mse) / n)
    return np.column_stack(percentiles(found))


def regional_summary(pairs: Pairs, methods: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """One row per method and side: error over regions, median r and ICC across people, r of what is left after the
    population mean (of the other people, by folds) over people and regions together.
    """
    regions = pairs.regions
    population = methods.get(CONSTANT)
    rows = []
    for side, title in (("", "all"), ("L", "left"), ("R", "right"), ("B", "midline")):
        chosen = [place for place, name in enumerate(pairs.real.columns) if name in regions]
        chosen = [place for place in chosen if not side or _SIDES[pairs.real.columns[place]] == side]
        if not chosen:
            continue
        truth = pairs.real.to_numpy(float)[:, chosen]
        counts = counts_of(pairs.clusters.to_numpy())
        for name, every in methods.items():
            predicted = every[:, chosen]
            difference = predicted - truth
            with np.errstate(invalid="ignore"):
                own = np.column_stack([_row_mean(np.abs(difference)), _row_mean(difference)])
            found = means(own, counts)
            r = correlation(predicted, truth) if len(truth) >= LEAST else np.full(len(chosen), np.nan)
            icc = [icc21(np.column_stack([p, t])).icc for p, t in zip(predicted.T, truth.T, strict=True)]
            left = np.nan
            if population is not None and name != CONSTANT and len(truth) >= LEAST:
                mean = population[:, chosen]
                left = float(correlation((predicted - mean).ravel(), (truth - mean).ravel()))
            row = [pairs.tracer, name, title, len(truth), len(chosen)]
            row += [found.estimate[0], found.low[0], found.high[0], found.estimate[1], found.low[1], found.high[1]]
            ranks = [np.nan, np.nan] if name == CONSTANT else [_median(r), _median(icc)]
            rows.append([*row, *ranks, left])
    names = ["tracer", "method", "side", "n", "regions", "mae", "mae_low", "mae_high", "bias", "bias_low", "bias_high"]
    return pd.DataFrame(rows, columns=[*names, "median_r", "median_icc", "residual_r"])


def _row_mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _median(values) -> float:
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else float("nan")


def scalar_table(pairs: Pairs, methods: Mapping[str, np.ndarray], truth: np.ndarray, figure: str) -> pd.DataFrame:
    """Error, Bland–Altman, r and ICC of one figure ``(N,)`` (Centiloid, target SUVR)."""
    counts = counts_of(pairs.clusters.to_numpy())
    rows = []
    for name, predicted in methods.items():
        both = np.isfinite(predicted) & np.isfinite(truth)
        row = {"tracer": pairs.tracer, "figure": figure, "method": name, "n": int(both.sum())}
        difference = (predicted - truth)[:, None]
        error, shift = means(np.abs(difference), counts), means(difference, counts)
        r = correlations(predicted[:, None], truth[:, None], counts)
        for key, part in (("mae", error), ("bias", shift), ("r", r)):
            row |= {key: part.estimate[0], f"{key}_low": part.low[0], f"{key}_high": part.high[0]}
        pair = np.column_stack([predicted, truth])
        found = icc21(pair)
        ends = (found.low, found.high)
        if pairs.clusters.nunique() < len(pairs):
            ends = icc_bootstrap(predicted[:, None], truth[:, None], counts)[0]
        row |= {"icc": found.icc, "icc_low": ends[0], "icc_high": ends[1]}
        limits = bland_altman(predicted, truth) if both.sum() > 1 else None
        row["loa_low"], row["loa_high"] = limits.limits if limits else (np.nan, np.nan)
        rows.append(row)
    return _unranked(pd.DataFrame(rows))


def status_table(pairs: Pairs, methods: Mapping[str, np.ndarray], truth: np.ndarray) -> pd.DataFrame:
    """Positivity at every cut-off of ``data/cutoffs.tsv``: discrimination and agreement of status, per method.

    ``p_bias``: exact McNemar test whether a method calls as many people positive as the real scans do. ``p_model``: of
    an opponent, exact McNemar test whether it and the synthetic PET are right equally often, Holm-corrected over the
    opponents of a cut-off. Both treat people as independent; NaN where they are not.
    """
    counts = counts_of(pairs.clusters.to_numpy())
    alone = pairs.clusters.nunique() == len(pairs)
    rows = []
    for cutoff in cutoffs():
        model = methods.get(MODEL)
        block = []
        for name, predicted in methods.items():
            both = np.isfinite(predicted) & np.isfinite(truth)
            said, true = predicted[both] > cutoff.centiloid, truth[both] > cutoff.centiloid
            own = None if counts is None else counts[:, both]
            row = {"tracer": pairs.tracer, "cutoff": cutoff.centiloid, "method": name, "n": int(both.sum())}
            row |= {"n_positive": int(true.sum()), "n_called_positive": int(said.sum())}
            row |= _discrimination(predicted[both], said, true, own)
            row["p_bias"] = _mcnemar(said, true) if alone and both.any() else np.nan
            row["p_model"] = np.nan
            if name != MODEL and model is not None and alone:
                every = both & np.isfinite(model)
                right = [(p[every] > cutoff.centiloid) == (truth[every] > cutoff.centiloid) for p in (predicted, model)]
                row["p_model"] = _mcnemar(*right) if every.any() else np.nan
            block.append(row)
        corrected = holm(np.array([row["p_model"] for row in block], float))
        rows += [{**row, "p_model": p} for row, p in zip(block, corrected, strict=True)]
    return _unranked(pd.DataFrame(rows))


def _unranked(rows: pd.DataFrame) -> pd.DataFrame:
    """Without figures of ranking for the opponent that gives everybody the same."""
    ranks = [f"{name}{end}" for name in ("r", "icc", "auc") for end in ("", "_low", "_high")]
    constant = rows["method"] == CONSTANT
    return rows.assign(**{name: rows[name].mask(constant) for name in ranks if name in rows})


def _discrimination(score: np.ndarray, said: np.ndarray, true: np.ndarray, counts: np.ndarray | None) -> dict:
    """AUC, sensitivity, specificity, balanced accuracy, with intervals where both classes are there."""
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.ones((1, len(true))) if counts is None else np.vstack([np.ones(len(true)), counts])
        sensitivity = (weight @ (said & true)) / (weight @ true)
        specificity = (weight @ (~said & ~true)) / (weight @ ~true)
    parts = {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
    }
    parts = {"auc": _areas(score, true, weight), **parts}
    out = {}
    for name, found in parts.items():
        low, high = percentiles(found[1:, None]) if len(found) > 1 else (np.array([np.nan]), np.array([np.nan]))
        out |= {name: float(found[0]), f"{name}_low": float(low[0]), f"{name}_high": float(high[0])}
    return out


def _areas(score: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for every row of weights ``(B, N)``; the first row must be ones."""
    if not true.any() or true.all():
        return np.full(len(weights), np.nan)
    # wins[i] of a positive over the negatives, weighted: ranks among the sorted scores
    order = np.argsort(score, kind="stable")
    value, place = np.unique(score[order], return_inverse=True)
    weight = weights[:, order]
    positive, negative = weight * true[order], weight * ~true[order]
    by_value = np.zeros((len(weights), len(value)))
    np.add.at(by_value.T, place, negative.T)
    below = np.cumsum(by_value, 1) - by_value / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (positive * below[:, place]).sum(1) / (positive.sum(1) * negative.sum(1))
    area[0] = auc(score, true)
    return area


def _mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided McNemar test of two paired yes-or-no answers (statsmodels)."""
    from statsmodels.stats.contingency_tables import mcnemar

    table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
    if not table[0][1] + table[1][0]:
        return 1.0
    return float(mcnemar(table, exact=True).pvalue)


def change_table(changes: pd.DataFrame, clusters: pd.Series) -> pd.DataFrame:
    """Change in synthetic against change in real PET.

    Parameters
    ----------
    changes
        A row for every interval: ``participant_id``, ``tracer``, ``figure``, ``synthetic``, ``real``.
    clusters
        ``participant_id`` → independent unit.
    """
    rows = []
    for (name, figure), own in changes.groupby(["tracer", "figure"], sort=False):
        a, b = own["synthetic"].to_numpy(float), own["real"].to_numpy(float)
        counts = counts_of(clusters.reindex(own["participant_id"]).to_numpy())
        error, shift = means(np.abs(a - b)[:, None], counts), means((a - b)[:, None], counts)
        r = correlations(a[:, None], b[:, None], counts)
        row = {"tracer": name, "figure": figure, "n_intervals": len(own), "n": own["participant_id"].nunique()}
        for key, part in (("mae", error), ("bias", shift), ("r", r)):
            row |= {key: part.estimate[0], f"{key}_low": part.low[0], f"{key}_high": part.high[0]}
        both = np.isfinite(a) & np.isfinite(b)
        row["same_direction"] = float(np.mean(np.sign(a[both]) == np.sign(b[both]))) if both.any() else np.nan
        rows.append(row)
    return pd.DataFrame(rows)
