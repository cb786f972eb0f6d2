"""A saved classifier applied to a participant's outputs: its probability, with what has to be known about it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.sidecars import bids_uri
from bids_petsynth.bids.sink import Sink, hash_file, hash_key, hash_settings
from bids_petsynth.bids.tables import read_tsv
from bids_petsynth.errors import InputError, UsageError
from bids_petsynth.evaluation.classifier import Classifier
from bids_petsynth.evaluation.classifier_folder import CAVEATS, fingerprint, load_classifier
from bids_petsynth.evaluation.features import clinical_features, pet_features, volume_features
from bids_petsynth.evaluation.study import BLOOD, REAL, SYNTHETIC, T1W
from bids_petsynth.settings import Settings
from bids_petsynth.types import Case, ClinicalRecord
from bids_petsynth.workflows.outputs import columns_of

NEEDED = (T1W, BLOOD, SYNTHETIC, REAL)


@cache
def classifier_of(folder: Path) -> Classifier:
    """The classifier of a folder, read once per process.

    Raises
    ------
    UsageError
        If it is none, or needs features that one participant's outputs do not have.
    """
    found = load_classifier(folder)
    if strange := sorted({source for source, _ in found.columns} - set(NEEDED)):
        raise UsageError(
            f"The classifier {folder} takes {', '.join(strange)}, which this level does not make: "
            f"give one of {T1W}, {BLOOD} and PET."
        )
    return found


def tracers_of(folder: Path, settings: Settings) -> list[str]:
    """The tracers whose regional values a classifier takes.

    Raises
    ------
    UsageError
        If the run does not make one of them.
    """
    pet = [name for source, name in classifier_of(folder).columns if source in (SYNTHETIC, REAL)]
    needed = list(dict.fromkeys(name.split(" ", 1)[0] for name in pet))
    if lacking := [tracer for tracer in needed if tracer not in settings.tracers]:
        raise UsageError(f"The classifier {folder} takes {', '.join(lacking)}: give --tracer {' '.join(needed)}.")
    return needed


def classify(case: Case, record: ClinicalRecord, settings: Settings) -> bool:
    """Write the probabilities of a case whose synthetic PET is there, unless they are up to date.

    Returns
    -------
    Whether something was written; False as well where no classifier was given or the PET is not there.

    Raises
    ------
    InputError
        If the case has none of the values that the classifier takes.
    """
    if settings.classifier is None:
        return False
    classifier = classifier_of(settings.classifier)
    target = output_path("classes", case)
    tables = {t: output_path("suvr", case, tracer=t) for t in tracers_of(settings.classifier, settings)}
    tables[T1W] = output_path("morph", case)
    clinical = {name.removeprefix("log ") for source, name in classifier.columns if source == BLOOD}
    values = {name: record.get(name) for name in sorted(clinical)}
    there = all((settings.out_dir / path).is_file() for path in tables.values())
    made_from = []
    if there:
        files = [hash_file(settings.out_dir / path) for path in tables.values()]
        made_from = [hash_key(settings.out_dir), *files, values]
    sink = Sink(settings.out_dir, fingerprint(settings.classifier), hash_settings(made_from))
    if there and sink.is_current(target):
        return False
    # what stands there is of other values
    sink.forget(target)
    (settings.out_dir / target).unlink(missing_ok=True)
    if not there:
        return False
    try:
        x = _row(classifier, settings.out_dir, tables, values)
    except (KeyError, ValueError):
        raise InputError(f"{case.label}: regional tables cannot be read; remove its outputs, run again.") from None
    if x.isna().all(axis=None):
        raise InputError(
            f"{case.label}: has no value that the classifier takes, so no probability is computed; "
            "add one to the dataset's tables."
        )
    own, balanced = (p[0] for p in (classifier.probability(x.to_numpy()), classifier.balanced(x.to_numpy())))
    rows = [
        {"class": name, "probability": float(p), "probability_equal_shares": float(q), "training_share": float(share)}
        for name, p, q, share in zip(classifier.classes, own, balanced, classifier.share, strict=True)
    ]
    sink.save_tsv(target, rows, sidecar=_about(classifier, settings.classifier, x, list(tables.values())))
    return True


def _row(
    classifier: Classifier, out_dir: Path, tables: Mapping[str, Path], values: Mapping[str, float | None]
) -> pd.DataFrame:
    """The classifier's columns of one participant, in its order, NaN where missing."""

    def first(key: str, column: str) -> pd.DataFrame:
        # of a region and a composite of one name the region stands first, and counts
        rows = {row["name"]: row.get(column) for row in reversed(read_tsv(out_dir / tables[key])[0])}
        return pd.DataFrame([rows]).apply(pd.to_numeric, errors="coerce")

    volumes = first(T1W, "volume-mm3")
    record = pd.DataFrame([{name: value for name, value in values.items() if value is not None}], index=[0])
    suvr = {tracer: first(tracer, "suvr") for tracer in tables if tracer != T1W}
    found = {
        T1W: pd.concat([volumes, volume_features(volumes)], axis=1),
        BLOOD: pd.concat([record, clinical_features(record)], axis=1),
        SYNTHETIC: pet_features(suvr) if suvr else pd.DataFrame(index=[0]),
    }
    # a classifier trained on real PET is carried to synthetic PET
    found[REAL] = found[SYNTHETIC]
    # a variable that is no logarithm stands in both tables of the blood
    found = {source: frame.loc[:, ~frame.columns.duplicated()] for source, frame in found.items()}
    row = [found[source][name].iloc[0] if name in found[source] else None for source, name in classifier.columns]
    return pd.DataFrame([row]).astype(float)


def _about(classifier: Classifier, folder: Path, x: pd.DataFrame, files: list[Path]) -> dict[str, Any]:
    """What the table's sidecar says."""
    missing = [name for (_, name), absent in zip(classifier.columns, x.isna().iloc[0], strict=True) if absent]
    return {
        "Description": "Probability of each class by a classifier, from SYNTHETIC PET and what it was made from",
        "Synthetic": True,
        "Caveats": list(CAVEATS),
        "Classifier": {
            "Name": folder.name,
            "Kind": classifier.kind,
            "Classes": list(classifier.classes),
            "Features": list(dict.fromkeys(source for source, _ in classifier.columns)),
            "TrainedOnRealPET": any(source == REAL for source, _ in classifier.columns),
            **{key: value for key, value in classifier.about.items() if key != "Features"},
        },
        "Columns": len(classifier.columns),
        "MissingColumns": missing,
        "Sources": [bids_uri(path, {}) for path in files],
        **columns_of("classes"),
    }
