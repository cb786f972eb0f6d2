"""The parts of the group report that need no real PET."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bids_petsynth.clinical.variables import variables
from bids_petsynth.evaluation import view
from bids_petsynth.evaluation.cohort import PET, SCAN, WAITING, Cohort
from bids_petsynth.evaluation.findings import Section, Table
from bids_petsynth.evaluation.groups import numbers
from bids_petsynth.pet.tracers import default_cutoff, tracer
from bids_petsynth.reports import charts


def status_section(cohort: Cohort) -> Section:
    """Who is done, who failed, who is missing; all quality figures as a table to sort and filter."""
    rows = view.quality_rows(cohort)
    status = cohort.status
    failed = status[status["status"] == "failed"]
    waiting = status[status["status"] == WAITING]
    done = rows[rows["status"] == "done"]
    people = lambda frame: frame["participant_id"].nunique()  # noqa: E731
    sentences = [
        f"{people(done)} participants have synthetic PET ({len(done)} scans and tracers); {people(failed)} have "
        f"something that failed, {people(waiting)} are in the dataset and not worked on yet."
    ]
    if len(waiting):
        names = list(dict.fromkeys(waiting["participant_id"]))
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        sentences.append(f"Not worked on yet: {', '.join(names[:20])}{more}. Run this level again when they are done.")
    if not len(done):
        sentences.append(
            "There is no synthetic PET yet, so there is nothing to compare: run the level participant first."
        )
    sentences += cohort.sentences
    tables = [
        Table(
            "quality",
            "Every scan and tracer",
            rows,
            "Names lead to the participant's report. Click a heading to sort",
            shown=rows.assign(reason=rows["reason"].where(rows["status"] != "done", "")),
            filters=("status", "tracer"),
        )
    ]
    far = view.outliers(cohort)
    if len(far):
        regions = cohort.regional["suvr"].shape[1]
        count = far.groupby(PET)["region"].nunique()
        odd = count.index[count > numbers()["outlier_regions"] * regions]
        names = ", ".join(odd.get_level_values("participant_id").unique()[:20])
        if names:
            sentences.append(
                f"Odd patterns of uptake, a scan with more than {numbers()['outlier_regions']:.0%} of the regions far "
                f"from what the others have: {names}. Look at the reports."
            )
        tables.append(
            Table(
                "outliers",
                "Outlying regions",
                far,
                "Modified z-score of the SUVR after its relation to the target SUVR is taken off",
            )
        )
    return Section("status", "Who is there", sentences, tables)


def group_section(cohort: Cohort, groupings: Mapping[str, pd.Series], clusters: pd.Series) -> Section:
    """Centiloid and regional SUVR by group."""
    if not len(cohort.synthetic):
        return Section("groups", "Groups")
    if not groupings:
        text = "No column of the dataset tells at least two groups apart, so nothing is shown by group."
        return Section("groups", "Groups", [f"{text} Name one with --group-column."])
    frame = view.by_group(cohort, groupings, clusters)
    figures = []
    for name in cohort.tracers:
        values = view.scalars(cohort, name)
        values = values.loc[cohort.once(cohort.synthetic, name).index]
        amyloid = "centiloid" in values
        column, unit = ("centiloid", "Centiloid (approximate)") if amyloid else ("target", "target SUVR")
        parts = {}
        for grouping, group in groupings.items():
            mine = group.reindex(values.index)
            levels = sorted(set(mine) - {""})
            parts[grouping] = {level: values[column][mine == level].dropna().to_numpy() for level in levels}
        told = frame[(frame["tracer"] == name) & (frame["figure"] == column)]
        words = "; ".join(f"{r.grouping} {r.group}: mean {r.mean:.3g} (n = {r.n})" for r in told.itertuples())
        content = charts.spread(parts, unit, default_cutoff().centiloid if amyloid else None, name)
        line = "; the line is the cut-off of positivity" if amyloid else ""
        figures.append(
            charts.figure(
                f"groups{name}wide",
                content,
                f"Synthetic {name}, {unit}, by group: {words}.",
                f"Synthetic {name} by group, first scan of each participant{line}.",
            )
        )
    note = (
        f"First scan of each participant. p: Welch's analysis of variance over groups of {numbers()['least_group']:g} "
        "people or more, Holm-corrected over the figures of a tracer; none where participants share an independent unit"
    )
    lead = frame[frame["figure"].isin(["centiloid", "target"])]
    tables = [Table("groups", "Centiloid and SUVR by group", frame, note, shown=lead)]
    return Section("groups", "Groups", [], tables, figures)


def values_section(cohort: Cohort, inputs: Mapping[str, Mapping[str, float]] | None, clusters: pd.Series) -> Section:
    """Map of missing values, people outside the training range, plasma against synthetic positivity.

    ``inputs`` are the model's variables with ``mean`` and ``sd``, and whether those are of the value's ``log``; None
    if they are not known.
    """
    if not len(cohort.anatomy):
        return Section("values", "Clinical and blood values")
    sentences, figures, tables = [], [], []
    if inputs is None:
        sentences.append(
            f"These scans were made by {cohort.model_names}, which is not the model that this report was made with: "
            "who is outside of what it was trained on is left out. Run group again with --model and its folder."
        )
    taken = cohort.taken or tuple(inputs or ())
    frame = view.missing_values(cohort, taken)
    if len(frame):
        tables.append(Table("values", "Values that are known", frame, "Of each participant's first scan"))
        shares = pd.DataFrame({"all": frame.set_index("variable")["share"]})
        records = cohort.records.loc[cohort.first]
        site = _site(cohort)
        if site is not None:
            mine = site.reindex(records.index)
            for level in sorted(set(mine) - {""})[:12]:
                part = records[mine == level]
                shares[f"{level} (n = {len(part)})"] = part.notna().mean().reindex(shares.index).fillna(0.0)
        absent = frame[(frame["known"] == 0) & frame["model_input"]]["variable"]
        if len(absent):
            sentences.append(f"Nobody has these values that the model takes: {', '.join(absent)}.")
        figures.append(
            charts.figure(
                "missing",
                charts.heat(shares),
                "Map of known values: " + "; ".join(f"{r.variable} {r.share:.0%}" for r in frame.itertuples()) + ".",
                "Share of participants with a value, of all variables that the model takes or that somebody has.",
            )
        )
    else:
        sentences.append("No clinical or blood value of any participant was found in the dataset's tables.")
    outside = view.outside_training(cohort, inputs or {})
    limit = f"{numbers()['training_sd']:g} SD from the mean of the model's training people"
    if len(outside):
        sentences.append(
            f"{outside['participant_id'].nunique()} participants have a value more than {limit}: what is synthesised "
            "for them is an extrapolation."
        )
        tables.append(Table("outside", "Outside the training range", outside, f"More than {limit}"))
    elif inputs is not None and len(frame) and frame["known"].any():
        sentences.append(f"No participant has a value more than {limit}.")
    plasma = view.positivity_by_plasma(cohort, clusters)
    if len(plasma):
        circular = [m for m in dict.fromkeys(plasma["marker"]) if m in taken]
        note = "Spearman's r with the Centiloid; area under the ROC curve of the marker for synthetic positivity"
        tables.append(Table("plasma", "Plasma markers against synthetic amyloid", plasma, note))
        if circular:
            sentences.append(
                f"The synthesis itself used {', '.join(circular)}: that these go with synthetic amyloid says that the "
                "model heeds them, not that they are right."
            )
        figures += _plasma_figures(cohort, plasma)
    return Section("values", "Clinical and blood values", sentences, tables, figures)


def _site(cohort: Cohort) -> pd.Series | None:
    from bids_petsynth.clinical.text import columns_of_kind

    found = columns_of_kind(cohort.columns, "site")
    return cohort.columns[found[0]] if found else None


def _plasma_figures(cohort: Cohort, plasma: pd.DataFrame) -> list:
    """The marker that goes best with the Centiloid, of each tracer."""
    figures = []
    for name, rows in plasma.groupby("tracer"):
        rows = rows[rows["n"] > 2].dropna(subset="spearman_r")
        if not len(rows):
            continue
        best = rows.loc[rows["spearman_r"].abs().idxmax()]
        frame = cohort.once(cohort.synthetic, name)
        x = cohort.records[best["marker"]].reindex(frame.index)
        y = frame["centiloid_approximate"]
        both = x.notna() & y.notna()
        known = variables()[best["marker"]]
        label = f"{best['marker']} ({known.unit.name})"
        content = charts.scatter(
            x[both].to_numpy(), y[both].to_numpy(), (label, "synthetic Centiloid (approximate)"), identity=False
        )
        words = f"Spearman's r {best['spearman_r']:.2f}, n = {best['n']:.0f}"
        figures.append(
            charts.figure(
                f"plasma{name}",
                content,
                f"Synthetic Centiloid of {name} over {best['marker']}: {words}.",
                f"{name}: the plasma marker that goes best with the synthetic Centiloid ({words}).",
            )
        )
    return figures


def tracers_section(cohort: Cohort, clusters: pd.Series) -> Section:
    """Agreement of tracers on the same people."""
    frame = view.tracer_agreement(cohort, clusters)
    frame = frame[frame["n"] > 0]
    if not len(frame):
        return Section("tracers", "Agreement of tracers")
    figures = []
    for row in frame[frame["n"] > 2].itertuples():
        both, _ = view.of_both(cohort, row.tracer_a, row.tracer_b)
        content = charts.scatter(
            both["x"].to_numpy(),
            both["y"].to_numpy(),
            (f"synthetic {row.tracer_a}, {row.figure}", f"synthetic {row.tracer_b}, {row.figure}"),
            identity=row.figure == "centiloid",
        )
        figures.append(
            charts.figure(
                f"tracers{row.tracer_a}{row.tracer_b}",
                content,
                f"Synthetic {row.tracer_b} over synthetic {row.tracer_a} ({row.figure}): r = {row.r:.2f}, n = {row.n}.",
                f"{row.tracer_b} over {row.tracer_a}, {row.figure}; first scan of each participant that has both.",
            )
        )
    note = "First scan of each participant that has both; bias and limits of agreement: the second minus the first"
    tables = [Table("tracers", "Synthetic tracers against each other", frame, note)]
    return Section("tracers", "Agreement of tracers", [], tables, figures)


def change_section(cohort: Cohort) -> Section:
    """Change over sessions per person."""
    frame = view.change(cohort)
    if not len(frame):
        return Section("change", "Change over sessions")
    undated = frame["years"].isna().any()
    sentences = [f"{frame['participant_id'].nunique()} participants have more than one scan."]
    if undated:
        sentences.append(
            "Where acq_time is missing in scans.tsv or sessions.tsv, sessions are taken in the order of their labels."
        )
    figures = []
    for name in dict.fromkeys(frame["tracer"]):
        dated = cohort.synthetic.xs(name, level="tracer").reset_index()
        dated["date"] = cohort.dates.reindex(pd.MultiIndex.from_frame(dated[SCAN])).to_numpy()
        dated = dated[dated.groupby("participant_id")["date"].transform("count") > 1]
        if not len(dated):
            continue
        amyloid = tracer(name).target_class == "amyloid"
        column, label = ("centiloid_approximate", "synthetic Centiloid") if amyloid else ("target_suvr", "target SUVR")
        first = dated.groupby("participant_id")["date"].transform("min")
        dated["years"] = (dated["date"] - first).dt.days / view.DAYS_PER_YEAR
        dated = dated.sort_values(["participant_id", "years"])
        own = frame[frame["tracer"] == name]
        rate = own["centiloid_per_year" if amyloid else "target_per_year"].to_numpy(float)
        rate = rate[np.isfinite(rate)]
        words = f"mean change {rate.mean():+.3g} per year over {len(rate)} intervals" if len(rate) else "no rates"
        content = charts.courses(dated, column, label, default_cutoff().centiloid if amyloid else None)
        figures.append(
            charts.figure(
                f"change{name}",
                content,
                f"{label} of {name} of every participant over the years: {words}.",
                f"{name}: {words}. Every line is a participant.",
            )
        )
    return Section("change", "Change over sessions", sentences, [Table("change", "Change per person", frame)], figures)
