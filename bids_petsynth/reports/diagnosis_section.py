"""The part of the group report on classes of people: what T1w, blood, synthetic and real PET tell of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from bids_petsynth.clinical.variables import variables
from bids_petsynth.errors import UsageError
from bids_petsynth.evaluation.cohort import Cohort
from bids_petsynth.evaluation.diagnosis import Diagnosis, diagnose
from bids_petsynth.evaluation.findings import Section, Table
from bids_petsynth.evaluation.pairs import Pairs, once
from bids_petsynth.evaluation.study import BLOOD, REAL, SYNTHETIC, T1W

_TITLES = {
    "classes": "Classes",
    "performance": "How well the classes are told apart",
    "performance_by_class": "Areas under the ROC curve, one class against the others",
    "comparison": "Differences between sets of features (DeLong)",
    "transfer": "Trained on real and applied to synthetic PET, and the reverse",
    "agreement": "Agreement of decisions on synthetic and real PET",
    "leakage": "Variables that steer the synthesis and tell the class by themselves",
    "without_leakage": "The same without the variables that leak",
    "sensitivity": "Sensitivity to each clinical variable",
}


def features_of(cohort: Cohort, pairs: Mapping[str, Pairs]) -> dict[str, pd.DataFrame]:
    """Source → one row per participant (first scan): regional volumes, plasma, synthetic and real regional SUVR."""
    people = cohort.first
    plasma = [name for name in cohort.records if variables()[name].kind == "plasma"]
    out = {T1W: cohort.volumes.reindex(people).dropna(axis=1, how="all"), BLOOD: cohort.records.reindex(people)[plasma]}
    if len(cohort.synthetic):
        parts = [
            cohort.regional["suvr"].xs(t, level="tracer").reindex(people).add_prefix(f"{t} ") for t in cohort.tracers
        ]
        out[SYNTHETIC] = pd.concat(parts, axis=1).dropna(axis=1, how="all")
    real = [once(cohort, one).real.reindex(people).add_prefix(f"{name} ") for name, one in pairs.items()]
    if real:
        out[REAL] = pd.concat(real, axis=1).dropna(axis=1, how="all")
    return {name: frame for name, frame in out.items() if frame.shape[1] and frame.notna().any(axis=None)}


def diagnosis_of(
    cohort: Cohort,
    pairs: Mapping[str, Pairs],
    column: str,
    clusters: pd.Series,
    inputs: Mapping[str, object],
    seeds: int,
    folds: int,
    seed: int,
) -> Diagnosis:
    """Nested cross-validation of the classes of a column, over participants.

    Raises
    ------
    UsageError
        If the dataset has no such column.
    """
    if column not in cohort.columns:
        have = ", ".join(sorted(cohort.columns)) or "none"
        raise UsageError(f"The dataset has no column {column} for --diagnosis; it has {have}.")
    label = cohort.columns[column].reindex(cohort.first)
    label = label.where(label != "")
    given = [name for name in inputs if name in cohort.records]
    return diagnose(
        features_of(cohort, pairs),
        label,
        clusters.reindex(cohort.first),
        seeds=seeds,
        folds=folds,
        conditioning=cohort.records.reindex(cohort.first)[given],
        defining=[name for name in given if variables()[name].kind == "cognition"],
        seed=seed,
    )


def diagnosis_section(found: Diagnosis, column: str, simulated: bool) -> Section:
    """Tables and sentences of a diagnosis."""
    tables = [
        Table("diagnosis" + re.sub("[^a-z]", "", name), _TITLES.get(name, name.replace("_", " ")), frame)
        for name, frame in found.tables.items()
        if len(frame)
    ]
    sentences = [f"Classes are those of the column {column}.", *found.sentences]
    if simulated:
        sentences.insert(1, "The dataset is simulated: the order of features verifies the software, no more.")
    return Section("diagnosis", "Diagnosis", sentences, tables)
