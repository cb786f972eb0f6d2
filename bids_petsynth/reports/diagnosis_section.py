"""The part of the group report on classes of people: what T1w, blood, synthetic and real PET tell of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from bids_petsynth.clinical.variables import variables
from bids_petsynth.errors import UsageError
from bids_petsynth.evaluation.augmentation import augment
from bids_petsynth.evaluation.cohort import Cohort
from bids_petsynth.evaluation.diagnosis import Diagnosis, diagnose
from bids_petsynth.evaluation.features import pet_features, sources
from bids_petsynth.evaluation.findings import Section, Table
from bids_petsynth.evaluation.pairs import Pairs, once
from bids_petsynth.evaluation.scores import regress_score
from bids_petsynth.evaluation.study import REAL, SYNTHETIC, T1W

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
    """Source → one row per participant: regional volumes, plasma, synthetic and real regional SUVR.

    Of the first scan; SUVR of the first that has the tracer, or a real scan of it.
    """
    people = cohort.first

    def of_people(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.droplevel("session_id").reindex(people.get_level_values("participant_id"))
        return frame.set_axis(people)

    suvr = {name: of_people(cohort.once(cohort.regional["suvr"], name)) for name in cohort.tracers}
    if not suvr:
        return {}
    out = sources(cohort.volumes.reindex(people), cohort.records.reindex(people), suvr)
    real = {name: of_people(once(cohort, one).real) for name, one in pairs.items()}
    if real:
        out[REAL] = pet_features(real)
    return {name: frame for name, frame in out.items() if frame.notna().any(axis=None)}


def column_of(cohort: Cohort, column: str, option: str) -> pd.Series:
    """A column of the dataset's tables, by participant's first scan; missing where empty.

    Raises
    ------
    UsageError
        If the dataset has no such column.
    """
    if column not in cohort.columns:
        have = ", ".join(sorted(cohort.columns)) or "none"
        raise UsageError(f"The dataset has no column {column} for {option}; it has {have}.")
    text = cohort.columns[column].reindex(cohort.first)
    return text.where(text != "").rename(column)


def diagnosis_of(
    cohort: Cohort,
    features: Mapping[str, pd.DataFrame],
    label: pd.Series,
    clusters: pd.Series,
    seeds: int,
    folds: int,
    seed: int,
    about: Mapping[str, object],
) -> Diagnosis:
    """Nested cross-validation of the classes ``label``, over participants."""
    given = [name for name in cohort.taken if name in cohort.records]
    return diagnose(
        features,
        label,
        clusters.reindex(cohort.first),
        seeds=seeds,
        folds=folds,
        conditioning=cohort.records.reindex(cohort.first)[given],
        defining=[name for name in given if variables()[name].kind == "cognition"],
        seed=seed,
        about=about,
    )


def augmentation_section(
    features: Mapping[str, pd.DataFrame], label: pd.Series, clusters: pd.Series, folds: int, seed: int
) -> Section:
    """Real pairs with and without synthetic scans of people who have no real one; nothing where there are none."""
    title = "Synthetic scans added to real ones"
    if not {T1W, SYNTHETIC, REAL} <= set(features):
        return Section("augmentation", title)
    have = features[REAL].notna().any(axis=1)
    if have.all():
        return Section("augmentation", title)
    t1w, synthetic = features[T1W].dropna(how="all"), features[SYNTHETIC].dropna(how="all")
    frame, sentences = augment(
        t1w, features[REAL][have], synthetic, label, clusters.reindex(label.index), folds=folds, seed=seed
    )
    note = "Judged on held-out people with real scans; after MRI2PET's experiment"
    tables = [Table("augmentation", title, frame, note)] if len(frame) else []
    return Section("augmentation", title, sentences, tables)


def score_section(
    features: Mapping[str, pd.DataFrame],
    score: pd.Series,
    clusters: pd.Series,
    score_range: tuple[float, float] | None,
    seeds: int,
    folds: int,
    seed: int,
) -> Section:
    """A score predicted from sets of features."""
    frame, sentences = regress_score(
        features,
        score,
        clusters.reindex(score.index),
        score_range=score_range,
        seeds=seeds,
        folds=folds,
        seed=seed,
    )
    tables = (
        [Table("score", f"Prediction of {score.name}", frame, "Ridge regression, nested folds")] if len(frame) else []
    )
    return Section("score", f"Score {score.name}", sentences, tables)


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
    if found.classifier is not None:
        sentences.append(
            "The classifier that did best without real PET is in group/classifier: participant --classifier takes it."
        )
    return Section("diagnosis", "Diagnosis", sentences, tables)
