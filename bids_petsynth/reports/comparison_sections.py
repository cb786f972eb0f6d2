"""The parts of the group report that compare synthetic with real PET of the same tracer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bids_petsynth.evaluation import agreement, calibration, fairness, view
from bids_petsynth.evaluation.cohort import PET, SCAN, Cohort
from bids_petsynth.evaluation.findings import Section, Table
from bids_petsynth.evaluation.groups import numbers
from bids_petsynth.evaluation.pairs import (
    MODEL,
    OPPONENTS,
    Fold,
    Pairs,
    once,
    opponents,
    record_values,
    weighted_folds,
)
from bids_petsynth.evaluation.regional import bland_altman
from bids_petsynth.pet.tracers import centiloid_equation, cutoffs, default_cutoff, tracer
from bids_petsynth.reports import charts

RANKING = "This dataset is simulated: the order of methods verifies the software and says nothing about patients."


@dataclass(frozen=True)
class Compared:
    """One tracer: all comparisons, the first of each participant, and every method's prediction of the latter.

    ``regional`` is method → ``(N, R)``, ``centiloid`` method → ``(N,)`` (empty for a tracer without), ``target`` too;
    ``folds`` are those of the opponents.
    """

    every: Pairs
    first: Pairs
    regional: Mapping[str, np.ndarray]
    centiloid: Mapping[str, np.ndarray]
    target: Mapping[str, np.ndarray]
    folds: Sequence[Fold] = ()


def compared(cohort: Cohort, every: Pairs, equation: tuple[float, float] | None, seed: int = 0) -> Compared:
    """Predictions of the synthetic PET and its opponents.

    ``equation`` is slope and intercept of the Centiloid that the outputs used; the table's own if None.
    """
    first = once(cohort, every)
    index = first.real.index
    volumes = cohort.volumes.reindex(index).to_numpy(float)
    truth, values, units = first.real.to_numpy(float), record_values(cohort, index), first.clusters.to_numpy()
    folds = weighted_folds(truth, values, units, int(numbers()["folds"]), seed)
    others = opponents(truth, values, volumes, units, dealt=folds)
    regional = {MODEL: first.synthetic.to_numpy(float), **others}
    target, load = {}, {}
    if first.target in first.real:
        place = list(first.real.columns).index(first.target)
        target = {name: values[:, place] for name, values in regional.items()}
    if "real" in first.centiloid and target:
        known = centiloid_equation(every.tracer)
        slope, intercept = equation or ((known.slope, known.intercept) if known else (np.nan, np.nan))
        load = {name: slope * values + intercept for name, values in target.items() if name != MODEL}
        load = {MODEL: first.centiloid["synthetic"].to_numpy(float), **load}
    return Compared(every, first, regional, load, target, folds)


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _few(parts: Sequence[Compared]) -> list[str]:
    """Sentences on cohorts that are too small for intervals."""
    out = []
    for part in parts:
        units, people = part.first.clusters.nunique(), len(part.first)
        if units < numbers()["least_clusters"]:
            out.append(
                f"{part.first.tracer}: {people} participants of {units} independent units are too few for intervals "
                "and for opponents, so there are none."
            )
        elif units < people:
            out.append(
                f"{part.first.tracer}: {people} participants are {units} independent units; intervals are resampled "
                "by units, and tests for independent people are left out."
            )
    return out


def pairs_section(parts: Sequence[Compared], left: pd.DataFrame, quality: pd.DataFrame, simulated: bool) -> Section:
    """Who is compared and who cannot be."""
    sentences = [
        f"{part.every.tracer}: {len(part.every)} synthetic scans of {len(part.first)} participants are compared with "
        "real ones, prepared as for training."
        for part in parts
    ]
    sentences += [RANKING] if simulated and parts else []
    if not parts:
        reason = "no real scan of the dataset fits a synthetic one" if len(left) else "the dataset has no real PET"
        sentences.append(f"Nothing is compared: {reason}.")
    tables = []
    if len(left):
        sentences.append(f"{len(left)} real scans could not be compared.")
        tables.append(Table("left", "Real scans that are left out", left))
    sentences += _few(parts)
    if len(quality):
        tables.append(Table("realquality", "Preparation of the real scans", quality, filters=("tracer",)))
    if parts:
        known = pd.DataFrame(
            [
                {"method": MODEL, "what": "the synthetic PET of this folder"},
                *({"method": name, "what": f"{text}, by folds over the cohort"} for name, text in OPPONENTS.items()),
            ]
        )
        tables.append(Table("methods", "What the synthetic PET is compared with", known))
    return Section("pairs", "With real PET", sentences, tables)


def with_held_out(section: Section, figures: pd.DataFrame, demonstration: bool) -> Section:
    """The section with the ``figures`` of the model's card, where there is no cohort to learn opponents from."""
    if not len(figures):
        return section
    who = "simulated people" if demonstration else "people"
    text = (
        "This dataset has too little real PET to judge the synthetic PET, or simpler methods beside it. What the "
        f"model's card says of {who} that were kept from its training is below; it need not hold here."
    )
    note = "Regional SUVR over all regions: the model, and every region's mean over the same people"
    table = Table("heldout", "From the model's card, not from this dataset", figures, note)
    return replace(section, sentences=[*section.sentences, text], tables=[*section.tables, table])


def image_section(parts: Sequence[Compared], fid: Table | None = None, rivals: pd.DataFrame | None = None) -> Section:
    """Image figures, per scan and in all, against atrophy, and beside the ``rivals``' (``opponent_images``)."""
    if not parts:
        return Section("images", "Images")
    summary = _joined([agreement.image_summary(part.first) for part in parts])
    rows = []
    for part in parts:
        frame = fairness.per_person(part.every).join(part.every.image, rsuffix="_image")
        frame = frame[[name for name in frame if not name.endswith("_image")]]
        rows.append(frame.reset_index().assign(tracer=part.every.tracer))
    scans = pd.concat(rows, ignore_index=True)
    scans = scans[[*PET, *(name for name in scans if name not in PET)]]
    atrophy = _joined([fairness.atrophy_table(part.first) for part in parts])
    window = "; ".join(
        f"{p.first.tracer} {tracer(p.first.tracer).display[0]:g} to {tracer(p.first.tracer).display[1]:g}"
        for p in parts
    )
    note = (
        f"In the brain and over the field of view, fixed window (SUVR: {window}). minmax: each volume is scaled to "
        "its own minimum and maximum, as many papers do; it hides errors of level"
    )
    tables = [
        Table("image", "Image figures over people", summary, note),
        Table("scans", "Figures of every scan", scans, filters=("tracer",)),
    ]
    if rivals is not None and len(rivals):
        note = "All in template space, where the opponents' images are, so slightly smoother than above"
        tables.insert(1, Table("imageopponents", "Images beside simpler methods", rivals, note))
    if len(atrophy):
        tables.append(Table("atrophy", "Quality against atrophy", atrophy, "Spearman's r across people"))
    tables += [fid] if fid is not None else []
    return Section("images", "Images", [], tables)


def regional_section(parts: Sequence[Compared]) -> Section:
    """Regions: agreement of every one, and in sum, of every method."""
    if not parts:
        return Section("regions", "Regions")
    summary = _joined([agreement.regional_summary(part.first, part.regional) for part in parts])
    frame = _joined([agreement.regional_table(part.first, part.regional) for part in parts])
    figures = []
    for part in parts:
        rows = frame[(frame["tracer"] == part.first.tracer) & (frame["method"] == MODEL)]
        rows = rows[rows["hemisphere"] == "composite"]
        if not len(rows):
            continue
        worst = rows.loc[rows["mae"].idxmax()]
        content = charts.bars(
            rows["region"], rows["bias"], rows["bias_low"], rows["bias_high"], "bias: synthetic minus real SUVR", 0.0
        )
        figures.append(
            charts.figure(
                f"bias{part.first.tracer}",
                content,
                f"Bias of synthetic {part.first.tracer} in {len(rows)} composites with 95 % intervals; largest mean "
                f"absolute error {worst['mae']:.3f} SUVR ({worst['region']}).",
                f"{part.first.tracer}: mean difference, synthetic minus real, with 95 % intervals.",
            )
        )
        content = charts.bars(rows["region"], rows["r"], rows["r_low"], rows["r_high"], "r across people", 0.0)
        figures.append(
            charts.figure(
                f"correlation{part.first.tracer}",
                content,
                f"Pearson's r of synthetic with real {part.first.tracer} across people in {len(rows)} composites; "
                f"median {rows['r'].median():.2f}.",
                f"{part.first.tracer}: r across people (within a person it is trivially high), with 95 % intervals.",
            )
        )
    lead = frame[(frame["method"] == MODEL)]
    note = "r, ICC(2,1) across people; residual r: over people and regions, after the mean of the other people"
    tables = [
        Table("regionalsummary", "Regional SUVR in sum", summary, note),
        Table("regional", "Every region and composite", frame, "SUVR; limits of agreement of 95 %", shown=lead),
    ]
    return Section("regions", "Regions", [], tables, figures)


def global_section(parts: Sequence[Compared]) -> Section:
    """Target SUVR, Centiloid, status at the cut-offs."""
    if not parts:
        return Section("global", "Centiloid and status")
    scalars, status, figures = [], [], []
    for part in parts:
        name = part.first.tracer
        if part.target:
            truth = part.first.real[part.first.target].to_numpy(float)
            scalars.append(agreement.scalar_table(part.first, part.target, truth, "target SUVR"))
            figures += _agreement_figures(name, "target SUVR", part.target[MODEL], truth, not part.centiloid)
        if part.centiloid:
            truth = part.first.centiloid["real"].to_numpy(float)
            scalars.append(agreement.scalar_table(part.first, part.centiloid, truth, "Centiloid"))
            status.append(agreement.status_table(part.first, part.centiloid, truth))
            figures += _agreement_figures(name, "Centiloid", part.centiloid[MODEL], truth, True)
    tables = [Table("global", "Centiloid and target SUVR", _joined(scalars), "Centiloid is approximate")]
    frame = _joined(status)
    if len(frame):
        main = frame[frame["cutoff"] == default_cutoff().centiloid]
        limits = ", ".join(f"{c.centiloid:g}" for c in cutoffs())
        note = f"Cut-offs {limits} Centiloid; shown is {default_cutoff().centiloid:g}. p: exact McNemar tests"
        tables.append(Table("cutoffs", "Amyloid status", frame, note, shown=main))
    return Section("global", "Centiloid and status", [], tables, figures)


def _agreement_figures(name: str, figure: str, predicted: np.ndarray, truth: np.ndarray, wanted: bool) -> list:
    both = np.isfinite(predicted) & np.isfinite(truth)
    if not wanted or both.sum() < 2:
        return []
    x, y = truth[both], predicted[both]
    found = bland_altman(y, x)
    lines = [c.centiloid for c in cutoffs() if c.default] if figure == "Centiloid" else []
    short = figure.replace(" ", "").lower()
    words = f"bias {found.mean:+.3g}, limits of agreement {found.limits[0]:.3g} to {found.limits[1]:.3g}, n = {len(x)}"
    return [
        charts.figure(
            f"{short}{name}",
            charts.scatter(x, y, (f"real {figure}", f"synthetic {figure}"), lines=lines),
            f"Synthetic over real {figure} of {name}, {len(x)} participants, with the line of equality: {words}.",
            f"{name}: synthetic over real {figure}; dashed: equality{'; grey: cut-off' if lines else ''}.",
        ),
        charts.figure(
            f"blandaltman{short}{name}",
            charts.bland_altman_chart(y, x, found.mean, found.limits, figure),
            f"Bland-Altman plot of {figure} of {name}: {words}.",
            f"{name}: Bland-Altman plot of {figure} ({words}).",
        ),
    ]


def change_section(cohort: Cohort, parts: Sequence[Compared]) -> Section:
    """Change in synthetic against change in real PET."""
    rows, figures = [], []
    for part in parts:
        every = part.every
        values = pd.DataFrame(index=every.real.index)
        if every.target in every.real:
            values["target_synthetic"], values["target_real"] = every.synthetic[every.target], every.real[every.target]
        if "real" in every.centiloid:
            values["centiloid_synthetic"] = every.centiloid["synthetic"]
            values["centiloid_real"] = every.centiloid["real"]
        keyed = values.assign(tracer=every.tracer).set_index("tracer", append=True)
        keyed.index.names = PET
        moved = view.change(cohort, keyed, {name: name for name in values})
        for figure in ("target", "centiloid"):
            if f"{figure}_real_change" in moved:
                own = moved[["participant_id", "tracer", "from", "to", "years"]].assign(
                    figure=figure,
                    synthetic=moved[f"{figure}_synthetic_change"],
                    real=moved[f"{figure}_real_change"],
                )
                rows.append(own)
                both = own[["synthetic", "real"]].dropna()
                if figure == "centiloid" or "real" not in every.centiloid:
                    words = f"{len(both)} intervals"
                    content = charts.scatter(
                        both["real"].to_numpy(), both["synthetic"].to_numpy(), ("change in real", "change in synthetic")
                    )
                    figures.append(
                        charts.figure(
                            f"changes{every.tracer}",
                            content,
                            f"Change of synthetic over change of real {figure} of {every.tracer}, {words}.",
                            f"{every.tracer}: change between consecutive scans, {figure}; dashed: equality.",
                        )
                    )
    frame = _joined(rows)
    if not len(frame):
        return Section("changes", "Change in synthetic and real PET")
    people = pd.concat([part.every.clusters.reset_index().drop(columns=SCAN[1]) for part in parts])
    units = people.drop_duplicates("participant_id").set_index("participant_id").iloc[:, 0]
    tables = [
        Table("changesummary", "Change between scans", agreement.change_table(frame, units)),
        Table("changes", "Every interval", frame),
    ]
    text = "The T1w and the record of the later scan must carry the change: little change may be left to see."
    return Section("changes", "Change in synthetic and real PET", [text], tables, figures)


def uncertainty_section(parts: Sequence[Compared], groupings: Mapping[str, pd.Series]) -> Section:
    """Intervals and probabilities."""
    if not parts:
        return Section("uncertainty", "Uncertainty")
    coverage = _joined([calibration.coverage_table(part.first, groupings) for part in parts])
    bins = _joined([calibration.reliability_table(part.first) for part in parts])
    scores = _joined([calibration.probability_table(part.first, groupings) for part in parts])
    figures = []
    for part in parts:
        own = bins[bins["tracer"] == part.first.tracer] if len(bins) else bins
        if len(own):
            name = part.first.tracer
            words = "; ".join(f"said {r.probability:.2f}, seen {r.share:.2f} (n = {r.n})" for r in own.itertuples())
            figures.append(
                charts.figure(
                    f"reliability{name}",
                    charts.reliability_chart(own, name),
                    f"Reliability diagram of the probability of positivity of {name}: {words}.",
                    f"{name}: share of positive real scans in bins of the predicted probability, Wilson intervals.",
                )
            )
    main = coverage[coverage["grouping"] == calibration.ALL] if len(coverage) else coverage
    note = "Student-t predictive intervals; spread over skill of 1 is right, below it the intervals are too narrow"
    tables = [Table("coverage", "Predictive intervals", coverage, note, shown=main)] if len(coverage) else []
    if len(scores):
        tables += [
            Table("probability", "Probability of positivity", scores, "ece if right: the floor for so few people"),
            Table("reliability", "Reliability", bins),
        ]
    text = [] if len(coverage) and coverage["n"].any() else ["No scan has predictive intervals: they need two draws."]
    return Section("uncertainty", "Uncertainty", text, tables, figures)


def fairness_section(parts: Sequence[Compared], groupings: Mapping[str, pd.Series]) -> Section:
    """Figures by group with gaps to the others."""
    if not parts:
        return Section("fairness", "Fairness")
    frame = _joined([fairness.gaps(part.first, groupings) for part in parts])
    if not len(frame):
        return Section("fairness", "Fairness", ["No column tells groups apart; name one with --group-column."])
    main = frame[frame["figure"].isin(["regional_mae", "centiloid_absolute_error"])]
    figures = []
    for part in parts:
        name = part.first.tracer
        own = frame[(frame["tracer"] == name) & (frame["figure"] == "regional_mae")]
        if len(own):
            labels = [f"{r.grouping}: {r.group} (n = {r.n})" for r in own.itertuples()]
            content = charts.bars(
                labels, own["gap"], own["gap_low"], own["gap_high"], "gap in regional MAE (SUVR)", 0.0
            )
            figures.append(
                charts.figure(
                    f"gaps{name}",
                    content,
                    f"Gap of the regional error of synthetic {name} between each of {len(own)} groups and the others.",
                    f"{name}: mean regional error of a group minus that of everybody else, with 95 % intervals.",
                )
            )
    tested = frame["p_holm"].notna().sum()
    found = int((frame["p_holm"] < 0.05).sum())
    text = (
        f"{tested} gaps are tested, {found} of them differ from 0 after Holm's correction (p < .05). Groups of fewer "
        f"than {numbers()['least_group']:g} people are shown and not tested."
    )
    tables = [Table("fairness", "By group", frame, "Gap: the group minus everybody else", shown=main)]
    return Section("fairness", "Fairness", [text], tables, figures)
