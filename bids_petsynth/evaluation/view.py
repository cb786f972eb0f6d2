"""The cohort without real PET: who has what, who stands out, and how the synthetic figures hang together.

Functions take a :class:`~bids_petsynth.evaluation.cohort.Cohort` and return tables; an empty table has no rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from bids_petsynth.clinical.variables import variables
from bids_petsynth.evaluation.agreement import counts_of, means
from bids_petsynth.evaluation.cohort import PET, SCAN, Cohort, in_order
from bids_petsynth.evaluation.groups import numbers
from bids_petsynth.evaluation.regional import bland_altman
from bids_petsynth.evaluation.statistics import holm, mean_interval
from bids_petsynth.evaluation.uncertainty import auc
from bids_petsynth.pet.tracers import default_cutoff, targets, tracer

DAYS_PER_YEAR = 365.25


def quality_rows(cohort: Cohort) -> pd.DataFrame:
    """One row per scan and tracer, whatever became of it: status, figures, quality, outliers."""
    rows = cohort.status.set_index(PET)
    rows = rows[~rows.index.duplicated()]
    measured = ["target_suvr", "target_suvr_sd", "centiloid_approximate", "probability_positive", "n_draws", "warnings"]
    rows = rows.join(cohort.synthetic.reindex(columns=measured))
    quality = ["label_confidence", "alignment_residual", "rotation", "brain_volume"]
    rows = rows.join(cohort.anatomy.reindex(columns=quality), on=SCAN)
    count = outliers(cohort)
    count = count.groupby(PET).size() if len(count) else pd.Series(dtype=float)
    rows["outlying_regions"] = count.reindex(rows.index).fillna(0).where(rows["status"] == "done")
    reason = rows.pop("reason")
    return rows.assign(reason=reason).reset_index()


def outliers(cohort: Cohort) -> pd.DataFrame:
    """Regions whose SUVR lies far from what the others have: modified z-score (Iglewicz & Hoaglin 1993).

    ``.6745 (x - median) / MAD`` over all scans of a tracer. ``x`` is the SUVR after its linear relation to the target
    SUVR is taken off, so that an odd pattern is found and a positive scan among negative ones is none.
    """
    parts = []
    for name in cohort.tracers:
        suvr = cohort.regional["suvr"].xs(name, level="tracer", drop_level=False)
        target = tracer(name).default_target
        if target not in suvr:
            continue
        rest = _without_line(suvr, suvr[target])
        rest = (rest - rest.median()).drop(columns=target)
        spread = rest.abs().median()
        # regions that follow the target exactly leave rounding errors
        score = (0.6745 * rest / spread.where(spread > 1e-6)).stack()
        far = score[score.abs() > numbers()["outlier_z"]]
        part = pd.DataFrame({"suvr": suvr.stack().reindex(far.index), "z": far})
        part.index.names = [*PET, "region"]
        parts.append(part.reset_index())
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=[*PET, "region", "suvr", "z"])
    return pd.concat(parts).sort_values("z", key=abs, ascending=False, ignore_index=True)


def _without_line(values: pd.DataFrame, by: pd.Series) -> pd.DataFrame:
    """What is left of every column after a straight line over ``by`` (Theil-Sen on up to 200 scans, so that those who
    stand out do not draw it); the values themselves with fewer than ten scans, or where ``by`` does not vary.
    """
    from scipy.stats import theilslopes

    if len(values) < 10 or not by.std() > 1e-6:
        return values
    few = np.unique(np.linspace(0, len(values) - 1, 200).round().astype(int))
    out = {}
    for name, column in values.items():
        known = column.iloc[few].notna().to_numpy() & by.iloc[few].notna().to_numpy()
        slope = theilslopes(column.iloc[few][known], by.iloc[few][known]).slope if known.sum() > 9 else 0.0
        out[name] = column - slope * by
    return pd.DataFrame(out)


def scalars(cohort: Cohort, name: str) -> pd.DataFrame:
    """Figures that sum up a tracer's scans, by scan: Centiloid where there is one, target and composites in SUVR."""
    frame = cohort.synthetic.xs(name, level="tracer")
    out = pd.DataFrame(index=frame.index)
    if tracer(name).target_class == "amyloid" and "centiloid_approximate" in frame:
        out["centiloid"] = frame["centiloid_approximate"]
    out["target"] = frame["target_suvr"]
    regional = cohort.regional["suvr"].xs(name, level="tracer")
    for composite in targets():
        if composite in regional and composite != tracer(name).default_target:
            out[composite] = regional[composite]
    return out


def by_group(cohort: Cohort, groupings: Mapping[str, pd.Series], clusters: pd.Series) -> pd.DataFrame:
    """Centiloid and regional SUVR by group, of each participant's first scan.

    ``p`` is that of Welch's analysis of variance over the groups that are large enough, Holm-corrected over the figures
    of a tracer and grouping. Where participants share an independent unit (``clusters``, by scan) there is no p, and
    intervals are resampled by units.
    """
    rows = []
    for name in cohort.tracers:
        figures = scalars(cohort, name)
        figures = figures.loc[cohort.once(cohort.synthetic, name).index]
        units = clusters.reindex(figures.index)
        for grouping, group in groupings.items():
            mine = group.reindex(figures.index)
            own, ps = [], []
            for figure in figures:
                values = figures[figure].dropna()
                parts = dict(tuple(values.groupby(mine[mine != ""])))
                for level, part in parts.items():
                    ends = _mean_interval(part, units)
                    own.append([level, figure, len(part), part.mean(), part.std(), *ends, part.median(), len(ps)])
                ps.append(_welch([part.to_numpy() for part in parts.values()]) if units.is_unique else np.nan)
            corrected = holm(np.array(ps))
            rows += [[name, grouping, *row[:-1], corrected[row[-1]]] for row in own]
    names = ["tracer", "grouping", "group", "figure", "n", "mean", "sd", "mean_low", "mean_high", "median", "p_holm"]
    return pd.DataFrame(rows, columns=names)


def _welch(parts: list[np.ndarray]) -> float:
    """p of Welch's analysis of variance over the groups that are large enough; NaN if fewer than two are."""
    from statsmodels.stats.oneway import anova_oneway

    large = [part for part in parts if len(part) >= numbers()["least_group"] and np.ptp(part) > 0]
    return float(anova_oneway(large, use_var="unequal").pvalue) if len(large) > 1 else float("nan")


def _mean_interval(values: pd.Series, units: pd.Series) -> tuple[float, float]:
    """Interval of the mean: Student's of people who are independent, resampled by ``units`` of others."""
    if units.is_unique:
        return mean_interval(values.to_numpy())
    found = means(values.to_numpy()[:, None], counts_of(units[values.index].to_numpy()))
    return float(found.low[0]), float(found.high[0])


def missing_values(cohort: Cohort, taken: Collection[str] = ()) -> pd.DataFrame:
    """How many participants (first scan) have each variable that somebody has or that the model takes (``taken``)."""
    records = cohort.records.loc[cohort.first]
    names = [n for n in variables() if n in records.columns or n in taken]
    rows = []
    for name in names:
        known = int(records[name].notna().sum()) if name in records else 0
        share = known / len(records) if len(records) else np.nan
        rows.append([name, variables()[name].unit.name, known, len(records), share, name in taken])
    return pd.DataFrame(rows, columns=["variable", "unit", "known", "n", "share", "model_input"])


def positivity_by_plasma(cohort: Cohort, clusters: pd.Series) -> pd.DataFrame:
    """Plasma markers against synthetic amyloid, over participants' first scans.

    Spearman's r with the Centiloid, and the area under the ROC curve of the marker for synthetic positivity at the
    default cut-off (its sign turned where the marker falls with amyloid). Circular where the synthesis used the marker.
    There is no p where participants share an independent unit (``clusters``, by scan).
    """
    from scipy import stats

    rows = []
    for name in cohort.tracers:
        if tracer(name).target_class != "amyloid":
            continue
        frame = cohort.once(cohort.synthetic, name)
        load = frame["centiloid_approximate"].astype(float)
        alone = clusters.reindex(frame.index).is_unique
        for marker in cohort.records:
            if variables()[marker].kind != "plasma":
                continue
            value = cohort.records[marker].reindex(frame.index)
            both = value.notna() & load.notna()
            x, y = value[both].to_numpy(), load[both].to_numpy()
            varies = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
            r, p = stats.spearmanr(x, y) if varies else (np.nan, np.nan)
            positive = y > default_cutoff().centiloid
            sign = -1 if r < 0 else 1
            area = auc(sign * x, positive) if varies else np.nan
            p = float(p) if len(x) >= numbers()["least_group"] and alone else np.nan
            rows.append([name, marker, len(x), int(positive.sum()), float(r), p, area])
    frame = pd.DataFrame(rows, columns=["tracer", "marker", "n", "n_positive", "spearman_r", "p", "auc"])
    return frame.assign(p_holm=holm(frame["p"].to_numpy(float)))


def of_both(cohort: Cohort, a: str, b: str) -> tuple[pd.DataFrame, bool]:
    """``x`` and ``y``, the figure of two tracers in each participant's first scan that has both; if it is Centiloid."""
    amyloid = all(tracer(t).target_class == "amyloid" for t in (a, b))
    column = "centiloid_approximate" if amyloid else "target_suvr"
    x, y = (cohort.synthetic[column].astype(float).xs(t, level="tracer") for t in (a, b))
    return cohort.once(pd.concat([x, y], axis=1, keys=["x", "y"]).dropna()), amyloid


def tracer_agreement(cohort: Cohort, clusters: pd.Series) -> pd.DataFrame:
    """Pairs of tracers of one scan: Centiloid where both have one (with Bland–Altman), else target SUVR.

    Of each participant the first scan that has both. The interval of the bias is resampled where participants share an
    independent unit (``clusters``, by scan).
    """
    rows = []
    for a, b in combinations(cohort.tracers, 2):
        both, amyloid = of_both(cohort, a, b)
        x, y = both["x"].to_numpy(), both["y"].to_numpy()
        r = float(np.corrcoef(x, y)[0, 1]) if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0 else np.nan
        row = [a, b, "centiloid" if amyloid else "target SUVR", len(x), r]
        if amyloid and len(x) > 2:
            found = bland_altman(y, x)
            row += [found.mean, *_mean_interval(both["y"] - both["x"], clusters.reindex(both.index)), *found.limits]
        else:
            row += [np.nan] * 5
        rows.append(row)
    names = ["tracer_a", "tracer_b", "figure", "n", "r"]
    return pd.DataFrame(rows, columns=[*names, "bias", "bias_low", "bias_high", "loa_low", "loa_high"])


def change(cohort: Cohort, frame: pd.DataFrame | None = None, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Change between each participant's consecutive scans, by tracer; per year where both dates are known.

    Parameters
    ----------
    frame
        By scan and tracer; the synthetic measures if None.
    columns
        Name of a figure → its column.
    """
    frame = cohort.synthetic if frame is None else frame
    columns = columns or {"centiloid": "centiloid_approximate", "target": "target_suvr"}
    rows = []
    ordered = frame.reset_index()
    ordered["date"] = cohort.dates.reindex(pd.MultiIndex.from_frame(ordered[SCAN])).to_numpy()
    for (person, name), several in ordered.groupby(["participant_id", "tracer"], sort=True):
        if len(several) < 2:
            continue
        dated = several["date"].notna().all()
        several = in_order(several, ["date", "session_id"] if dated else ["session_id"])
        for (_, old), (_, new) in zip(several.iloc[:-1].iterrows(), several.iloc[1:].iterrows(), strict=True):
            years = (new["date"] - old["date"]).days / DAYS_PER_YEAR if dated else np.nan
            row = {"participant_id": person, "tracer": name, "from": old["session_id"], "to": new["session_id"]}
            row["years"] = years
            for figure, column in columns.items():
                if column in several:
                    row[f"{figure}_change"] = new[column] - old[column]
                    row[f"{figure}_per_year"] = row[f"{figure}_change"] / years if years and years > 0 else np.nan
            rows.append(row)
    return pd.DataFrame(rows)


def outside_training(cohort: Cohort, inputs: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Scans with a variable far from the people that the model was trained on; the direction, not the value.

    ``inputs`` holds the model's ``mean`` and ``sd`` of each variable, and whether they are of its ``log``.
    """
    rows = []
    for name, of_model in inputs.items():
        if name not in cohort.records or not of_model["sd"] > 0:
            continue
        value = cohort.records[name]
        if of_model["log"]:
            value = np.log(value.where(value > 0))
        z = (value - of_model["mean"]) / of_model["sd"]
        for key, score in z[z.abs() > numbers()["training_sd"]].items():
            rows.append([*key, name, "above" if score > 0 else "below"])
    return pd.DataFrame(rows, columns=[*SCAN, "variable", "side"]).sort_values(SCAN, ignore_index=True)
