"""Classes of people told apart by a network that looks at whole scans, beside the tables of regions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bids_petsynth.evaluation.cohort import Cohort
from bids_petsynth.evaluation.comparison import maps_volume, voxels, written_anatomy
from bids_petsynth.evaluation.findings import Section, Table
from bids_petsynth.evaluation.study import REAL, SYNTHETIC, T1W, Study, admit
from bids_petsynth.evaluation.volumes import diagnose_volumes
from bids_petsynth.workflows.comparisons import kept_maps, key_of

if TYPE_CHECKING:
    from bids_petsynth.reports.content import Scan
    from bids_petsynth.workflows.group import Compared, Plan

Reader = Callable[[Hashable], np.ndarray]

TITLE = "Diagnosis by whole scans"
_TITLES = {
    "performance": "How well a network over whole scans tells the classes apart",
    "performance_by_class": "Its areas under the ROC curve, one class against the others",
    "comparison": "Differences between kinds of scans (DeLong)",
}
_NOTE = "One repetition; the network has no options to choose, so there are no inner folds"


def scans_section(
    plan: Plan,
    cohort: Cohort,
    scans: Sequence[Scan],
    compared: Compared,
    label: pd.Series,
    clusters: pd.Series,
) -> Section:
    """T1w, synthetic and, where there is enough, real PET, by the tracer that most people have.

    Parameters
    ----------
    label
        Class by participant's first scan, missing where unknown.
    clusters
        By scan, the independent unit.
    """
    of = {name: cohort.once(cohort.synthetic, name).index for name in cohort.tracers}
    if not of:
        return Section("wholescans", TITLE)
    tracer = max(of, key=lambda name: len(of[name]))
    by_key = {key_of(scan.case): scan for scan in scans}
    pets = {key: pet for key, scan in by_key.items() for pet in scan.pets if pet.tracer.name == tracer}
    jobs = {one.job.key[:2]: one.job for one in compared.outcomes if one.found and one.job.key[2] == tracer}
    real = {key: job for key, job in jobs.items() if job.volume.is_file() and "uptake" in kept_maps(job)}
    people = [key for key in label.dropna().index if key in pets]

    def t1w(key: Hashable) -> np.ndarray:
        return written_anatomy(by_key[key], pets[key]).t1w

    def synthetic(key: Hashable) -> np.ndarray:
        return voxels(pets[key].mean, by_key[key].case.label)

    read: dict[str, Reader] = {T1W: t1w, SYNTHETIC: synthetic}
    study, sentences = _study(label, clusters, [key for key in people if key in real])
    if study is not None:
        # both kinds of PET in template space, where the real one was kept
        read[SYNTHETIC] = lambda key: maps_volume(sum(kept_maps(real[key])[name] for name in ("uptake", "difference")))
        read[REAL] = lambda key: maps_volume(kept_maps(real[key])["uptake"])
    else:
        study, sentences = _study(label, clusters, people)
    if study is None:
        return Section("wholescans", TITLE, sentences)
    found = diagnose_volumes(study.planned(1, plan.folds, plan.seed), read, seed=plan.seed)
    sentences = [
        f"A small 3D network looks at the whole scan ({len(study.y)} people, {tracer}), averaged to cubes of some "
        "8 mm, in the place of regions that somebody chose.",
        *sentences,
    ]
    tables = [Table("wholescans" + name.replace("_", ""), _TITLES[name], frame, _NOTE) for name, frame in found.items()]
    return Section("wholescans", TITLE, sentences, tables)


def _study(label: pd.Series, clusters: pd.Series, people: list) -> tuple[Study | None, list[str]]:
    """The people with a scan, if they are enough for two classes."""
    index = pd.MultiIndex.from_tuples(people, names=label.index.names) if people else label.index[:0]
    there = pd.DataFrame({"scan": np.ones(len(index))}, index=index)
    study, _, sentences = admit({"scans": there}, label.reindex(index), clusters.reindex(index))
    return study, sentences
