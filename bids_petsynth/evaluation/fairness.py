"""Whether synthetic PET is as good for some people as for others, and whether atrophy makes it worse."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from bids_petsynth.evaluation.agreement import counts_of, means
from bids_petsynth.evaluation.calibration import predictive_of
from bids_petsynth.evaluation.groups import numbers
from bids_petsynth.evaluation.pairs import Pairs
from bids_petsynth.evaluation.statistics import holm
from bids_petsynth.evaluation.voxelwise import against_atrophy
from bids_petsynth.pet.tracers import default_cutoff


def per_person(pairs: Pairs) -> pd.DataFrame:
    """Figures of every scan ``(N, F)`` that are compared between groups, and shown per scan.

    ``regional_mae`` and ``regional_bias`` over regions, ``target_error``, ``centiloid_error`` and its absolute value,
    ``status_right`` (1, 0) at the default cut-off, ``in_interval95`` (1, 0) of the target, image figures in the brain.
    """
    out = pd.DataFrame(index=pairs.real.index)
    difference = (pairs.synthetic - pairs.real)[pairs.regions]
    out["regional_mae"] = difference.abs().mean(axis=1)
    out["regional_bias"] = difference.mean(axis=1)
    if pairs.target in pairs.real:
        out["target_error"] = pairs.synthetic[pairs.target] - pairs.real[pairs.target]
    if "real" in pairs.centiloid:
        said, true = pairs.centiloid["synthetic"], pairs.centiloid["real"]
        out["centiloid_error"] = said - true
        out["centiloid_absolute_error"] = (said - true).abs()
        limit = default_cutoff().centiloid
        right = ((said > limit) == (true > limit)).astype(float)
        out["status_right"] = right.where(said.notna() & true.notna())
    if pairs.target in pairs.real:
        place = list(pairs.real.columns).index(pairs.target)
        out["in_interval95"] = predictive_of(pairs).covers(pairs.real.to_numpy(float), 0.95)[:, place]
    for name in ("mae_brain", "psnr_brain", "ssim_brain", "ms_ssim_brain"):
        if name in pairs.image:
            out[name] = pairs.image[name].replace([np.inf, -np.inf], np.nan)
    return out


def gaps(pairs: Pairs, groupings: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Mean of every figure in every group, and its gap to everybody else.

    Intervals are percentile bootstraps over the independent units. ``p`` tests the gap by its bootstrap standard error
    against a Student-t with one degree of freedom less than there are units; Holm-corrected over all tests of a tracer.
    Groups (or rests) of fewer than ``least_group`` people are shown and not tested.
    """
    figures = per_person(pairs)
    values = figures.to_numpy(float)
    units = pairs.clusters.to_numpy()
    counts = counts_of(units)
    rows = []
    for grouping, group in groupings.items():
        mine = group.reindex(figures.index)
        known = (mine != "").to_numpy() & mine.notna().to_numpy()
        for level in sorted(set(mine[known])):
            inside = (mine == level).to_numpy()
            rest = known & ~inside
            here = _masked(values, inside, counts)
            others = _masked(values, rest, counts)
            for place, name in enumerate(figures):
                n = int((np.isfinite(values[:, place]) & inside).sum())
                m = int((np.isfinite(values[:, place]) & rest).sum())
                row = {"tracer": pairs.tracer, "figure": name, "grouping": grouping, "group": level, "n": n}
                row |= {"mean": here[0][place], "mean_low": here[1][place], "mean_high": here[2][place]}
                row |= {"gap": here[0][place] - others[0][place], "gap_low": np.nan, "gap_high": np.nan, "p": np.nan}
                if counts is not None:
                    drawn = here[3][:, place] - others[3][:, place]
                    drawn = drawn[np.isfinite(drawn)]
                    if len(drawn) > 1 and min(n, m) > 1:
                        row["gap_low"], row["gap_high"] = np.percentile(drawn, [2.5, 97.5])
                        row["p"] = _p(row["gap"], drawn, units[inside | rest], min(n, m))
                rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.assign(p_holm=holm(frame["p"].to_numpy(float))) if len(frame) else frame


def _masked(values: np.ndarray, who: np.ndarray, counts: np.ndarray | None):
    """Means of the people in a mask, their intervals, and the means in all resamples."""
    kept = np.where(who[:, None], values, np.nan)
    found = means(kept, counts)
    if counts is None:
        return found.estimate, found.low, found.high, None
    known = np.isfinite(kept)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (counts @ np.where(known, kept, 0)) / (counts @ known.astype(float))
    return found.estimate, found.low, found.high, drawn


def _p(gap: float, drawn: np.ndarray, units: np.ndarray, smallest: int) -> float:
    error = float(np.std(drawn, ddof=1))
    if smallest < numbers()["least_group"] or not error > 0:
        return float("nan")
    # the bootstrap's variance is that of n, not n - 1, independent values
    freedom = len(np.unique(units.astype(str))) - 2
    error *= np.sqrt((freedom + 2) / max(freedom, 1))
    return float(2 * stats.t.sf(abs(gap) / error, max(freedom, 1)))


def atrophy_table(pairs: Pairs) -> pd.DataFrame:
    """Spearman's r of the figures of a scan with measures of the head's atrophy, with clustered bootstrap intervals."""
    figures = per_person(pairs)
    names = [n for n in ("regional_mae", "centiloid_absolute_error", "mae_brain", "ssim_brain") if n in figures]
    rows = []
    for measure in ("ventricle_share", "cortex_ml"):
        for name in names if measure in pairs.atrophy else ():
            x, y = figures[name].to_numpy(float), pairs.atrophy[measure].to_numpy(float)
            found = against_atrophy(x, y, pairs.clusters.to_numpy(), int(numbers()["resamples"]) // 2)
            n = int((np.isfinite(x) & np.isfinite(y)).sum())
            rows.append([pairs.tracer, measure, name, n, float(found.estimate), float(found.low), float(found.high)])
    names = ["tracer", "measure", "figure", "n", "spearman_r", "spearman_r_low", "spearman_r_high"]
    return pd.DataFrame(rows, columns=names)
