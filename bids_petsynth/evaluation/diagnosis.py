"""What synthetic PET is good for in telling classes of people apart, beside T1w, blood and real PET."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from bids_petsynth.evaluation.classifier import KINDS, LOGISTIC, Classifier
from bids_petsynth.evaluation.decisions import (
    FIGURES,
    agreement,
    better_than_chance,
    compare,
    figures,
    intervals,
    performance_rows,
)
from bids_petsynth.evaluation.folds import Table, fit
from bids_petsynth.evaluation.leakage import single_columns
from bids_petsynth.evaluation.statistics import bootstrap, holm
from bids_petsynth.evaluation.study import BLOOD, REAL, SYNTHETIC, T1W, Study, admit, combined, title

#: Classifiers of real PET on real, of synthetic PET on synthetic.
EACH = "each on its own"
#: How features are rid of a variable that leaks, in the order of the table.
AS_IS, DROPPED, CLEANED = "nothing", "the column", "the column, and its linear part in synthetic PET"


@dataclass(frozen=True)
class Diagnosis:
    """Tables by name, what has to be said about them, and the classifier that did best without real PET.

    Tables: ``classes``, ``performance``, ``performance_by_class``, ``comparison`` (DeLong, Holm), ``transfer``,
    ``agreement``, ``leakage``, ``without_leakage``, ``sensitivity``; those that could not be made are absent.
    """

    tables: Mapping[str, pd.DataFrame]
    sentences: tuple[str, ...]
    classifier: Classifier | None = None
    classes: tuple[str, ...] = field(default=())


def diagnose(
    features: Mapping[str, pd.DataFrame],
    label: pd.Series,
    clusters: pd.Series,
    *,
    seeds: int = 5,
    folds: int = 5,
    sets: Iterable[Sequence[str]] | None = None,
    conditioning: pd.DataFrame | None = None,
    defining: Collection[str] = (),
    kinds: Sequence[str] = tuple(KINDS),
    n_bootstrap: int = 1000,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Nested cross-validation of classifiers on several sets of features, over the same people.

    Parameters
    ----------
    features
        Source (``study.T1W``, ``BLOOD``, ``SYNTHETIC``, ``REAL`` or another name) → one row per person, columns of
        numbers. Missing values are replaced inside the folds. Who lacks a source altogether takes no part.
    label
        Class of each person, by the same index; two to ten classes.
    clusters
        Independent unit of each person (the participant, or the head that several simulated people share): folds
        and bootstrap keep it together.
    seeds, folds
        Repetitions, and outer folds of each; the probability of a person is the mean over the repetitions.
    sets
        Sources of each set of features; :func:`study.combined` by default.
    conditioning
        The variables that the synthesis was given, by the same index: each is checked for leakage, and the analysis is
        repeated without those that leak.
    defining
        Of them, those that such classes are made with (cognitive scores).
    about
        What the saved classifier tells of its cohort: ``Cohort`` (name of the dataset), ``Simulated`` and the like.

    Notes
    -----
    Decisions are for the class that is most probable if all were equally common, so that a rare class is decided for
    as well. Intervals of figures are percentiles of a clustered bootstrap over the judged people; what another training
    cohort would change is not in them, only in the tests (``decisions.compare``, ``better_than_chance``).
    """
    study, classes, sentences = admit(features, label, clusters)
    tables = {"classes": classes}
    if study is None:
        return Diagnosis(tables, tuple(sentences))
    study = study.planned(seeds, folds, seed)
    if len(study.plans[0]) < folds:
        sentences.append(
            f"There are only {len(study.plans[0])} outer folds, for a class has no more independent units."
        )
    wanted = combined(study.sources) if sets is None else [tuple(s) for s in sets if set(s) <= set(study.sources)]
    names = [{"features": title(s), "classifier": kind} for kind in kinds for s in wanted]
    said = np.array([study.probabilities(study.columns(sources), kind) for kind in kinds for sources in wanted])
    found = intervals(said, study.y, study.clusters, n_bootstrap, seed)
    rows, areas = performance_rows(names, found, study.y, study.clusters, study.classes)
    chance = better_than_chance(said, study.y, study.clusters, len(study.plans[0]))
    by_class = pd.DataFrame(areas).assign(p_chance=chance.ravel())
    tables |= {"performance": pd.DataFrame(rows), "performance_by_class": by_class}
    comparisons = [
        {"classifier": kind, **row}
        for kind, some in zip(kinds, np.split(said, len(kinds)), strict=True)
        for row in compare(
            [title(s) for s in wanted], some, study.y, study.clusters, study.classes, len(study.plans[0])
        )
    ]
    if comparisons:
        frame = pd.DataFrame(comparisons)
        tables["comparison"] = frame.assign(p_holm=holm(frame["p"].to_numpy(float)))
    if {SYNTHETIC, REAL} <= set(study.sources):
        tables |= _between(study, kinds, n_bootstrap, seed)
    if conditioning is not None:
        given = conditioning[~conditioning.index.duplicated()].reindex(_index(study))
        more, warnings = _leakage(study, wanted, given, defining, n_bootstrap, seed)
        tables |= more
        sentences += warnings
    made = _chosen(study, wanted, rows, kinds, tables, seed)
    if made is not None:
        made = replace(made, about={"Label": str(label.name or "label"), **(about or {}), **made.about})
    return Diagnosis(tables, tuple(sentences), made, study.classes)


def _index(study: Study) -> pd.Index:
    return next(iter(study.sources.values())).index


def _between(study: Study, kinds: Sequence[str], n: int, seed: int) -> dict[str, pd.DataFrame]:
    """Classifiers carried between real and synthetic PET, and whether decisions agree."""
    shared = [name for name in study.sources[SYNTHETIC] if name in study.sources[REAL]]
    if not shared:
        return {}
    x = {source: study.values([(source, name) for name in shared]) for source in (SYNTHETIC, REAL)}
    both = (REAL, SYNTHETIC)
    ways = [(a, b) for a in both for b in both]
    names = [{"trained_on": a, "tested_on": b, "classifier": kind} for kind in kinds for a, b in ways]
    said = [study.judged(Table(x[a], tuple(x[b] for b in both)), kind) for kind in kinds for a in both]
    said = np.concatenate(said)
    found = intervals(said, study.y, study.clusters, n, seed)
    rows, _ = performance_rows(names, found, study.y, study.clusters, study.classes)
    agree, pairs = [], []
    for kind, some in zip(kinds, np.split(said.argmax(2), len(kinds)), strict=True):
        decided = dict(zip(ways, some, strict=True))
        for trained in (*both, EACH):
            agree.append({"trained_on": trained, "classifier": kind, "people": len(study.y)})
            pairs.append(tuple(decided[source if trained == EACH else trained, source] for source in both))
    found_agreement = agreement(pairs, study.clusters, len(study.classes), n, seed)
    table = [{**name, **row} for name, row in zip(agree, found_agreement, strict=True)]
    return {"transfer": pd.DataFrame(rows), "agreement": pd.DataFrame(table)}


def _leakage(
    study: Study,
    wanted: Sequence[tuple[str, ...]],
    conditioning: pd.DataFrame,
    defining: Collection[str],
    n: int,
    seed: int,
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """What each variable of the synthesis tells by itself, the analysis without those that leak, and without each."""
    known = conditioning.loc[:, conditioning.notna().any()]
    if known.empty:
        return {}, []
    singles = single_columns(study, known, defining)
    tables, sentences = {"leakage": singles}, []
    leaking = list(singles.loc[singles["leaks"], "column"])
    if leaking:
        words = ", ".join(f"{row.column} (AUC {row.auc:.2f})" for row in singles[singles["leaks"]].itertuples())
        sentences.append(
            f"{words}: feeds the synthesis and nearly defines the class, so synthetic PET may only repeat it. The "
            "table without leakage shows the analysis with and without; to be sure, synthesise again without it."
        )
        tables["without_leakage"] = _without(study, wanted, leaking, known[leaking], n, seed)
    every = list(study.sources)
    held = [name for name in known if study.columns(every, [name]) != study.columns(every)]
    if held:
        tables["sensitivity"] = _sensitivity(study, wanted, held, n, seed)
    return tables, sentences


def _without(
    study: Study, wanted: Sequence[tuple[str, ...]], leaking: Sequence[str], values: pd.DataFrame, n: int, seed: int
) -> pd.DataFrame:
    """The sets of features as they are, without the leaking columns, and with synthetic PET cleaned of them too."""
    codes = [values[c] if _numeric(values[c]) else pd.get_dummies(values[c], dtype=float) for c in values]
    nuisance = pd.concat(codes, axis=1).to_numpy(float)
    names, said = [], []
    for sources in wanted:
        for manner in (AS_IS, DROPPED, CLEANED):
            columns = study.columns(sources, () if manner == AS_IS else leaking)
            synthetic = np.array([source == SYNTHETIC for source, _ in columns], bool)
            if not columns or (manner == CLEANED and not synthetic.any()):
                continue
            if manner == DROPPED and columns == study.columns(sources):
                continue
            table = Table(study.values(columns))
            if manner == CLEANED:
                table = replace(table, nuisance=nuisance, cleaned=synthetic)
            names.append({"features": title(sources), "taken_out": manner, "classifier": LOGISTIC})
            said.append(study.judged(table, LOGISTIC)[0])
    found = intervals(np.array(said), study.y, study.clusters, n, seed)
    return pd.DataFrame(performance_rows(names, found, study.y, study.clusters, study.classes)[0])


def _numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column)


def _sensitivity(
    study: Study, wanted: Sequence[tuple[str, ...]], held: Sequence[str], n: int, seed: int
) -> pd.DataFrame:
    """Loss of the figures when one clinical variable is left out of the features (logistic regression)."""
    sets = [s for s in wanted if study.columns(s, held) != study.columns(s)]
    names, said, whole = [], [], []
    for sources in sets:
        columns = study.columns(sources)
        said.append(study.probabilities(columns, LOGISTIC))
        at = len(said) - 1
        for name in held:
            rest = study.columns(sources, [name])
            if rest and len(rest) < len(columns):
                names.append({"features": title(sources), "left_out": name})
                said.append(study.probabilities(rest, LOGISTIC))
                whole.append((at, len(said) - 1))
    if not names:
        return pd.DataFrame(columns=["features", "left_out"])
    (with_it, without), every = np.transpose(whole), np.array(said)

    def losses(i: np.ndarray) -> np.ndarray:
        found = figures(every[:, i], study.y[i])
        return found[with_it] - found[without]

    found = bootstrap(losses, study.clusters, n, seed=seed)
    rows = []
    for s, name in enumerate(names):
        parts = {"loss": found.estimate, "loss_low": found.low, "loss_high": found.high}
        rows.append({**name, **{f"{f}_{k}": float(v[s, i]) for i, f in enumerate(FIGURES) for k, v in parts.items()}})
    return pd.DataFrame(rows)


def _chosen(
    study: Study,
    wanted: Sequence[tuple[str, ...]],
    rows: Sequence[Mapping[str, Any]],
    kinds: Sequence[str],
    tables: Mapping[str, pd.DataFrame],
    seed: int,
) -> Classifier | None:
    """The classifier with the largest AUC of those that ``participant`` can apply, fitted on everybody."""
    options = [(kind, sources) for kind in kinds for sources in wanted]
    usable = [i for i, (_, sources) in enumerate(options) if set(sources) <= {T1W, BLOOD, SYNTHETIC}]
    if not usable:
        return None
    best = max(usable, key=lambda i: rows[i]["auc"])
    kind, sources = options[best]
    columns = study.columns(sources)
    made = fit(study.values(columns), study.y, study.clusters, study.classes, columns, kind, seed)
    counts = np.bincount(study.y, minlength=len(study.classes)).tolist()
    about: dict[str, Any] = {
        "Features": list(sources),
        "People": len(study.y),
        "IndependentUnits": len(np.unique(study.clusters)),
        "PeopleByClass": dict(zip(study.classes, counts, strict=True)),
        "CrossValidated": {key: value for key, value in rows[best].items() if key not in ("features", "classifier")},
    }
    if (leak := tables.get("leakage")) is not None:
        about["Leakage"] = leak.loc[leak["leaks"], ["column", "class", "auc"]].to_dict("records")
    return replace(made, about=about)
