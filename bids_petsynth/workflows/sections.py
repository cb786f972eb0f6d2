"""The parts of the group report, made one after the other; one that fails does not take the others with it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.sink import write_bytes
from bids_petsynth.errors import PetsynthError, UsageError
from bids_petsynth.evaluation.cohort import Cohort
from bids_petsynth.evaluation.findings import Section

if TYPE_CHECKING:
    from bids_petsynth.evaluation.pairs import Pairs
    from bids_petsynth.reports import comparison_sections
    from bids_petsynth.reports.content import Scan
    from bids_petsynth.workflows.comparisons import Outcome
    from bids_petsynth.workflows.group import Compared, Plan


class Parts:
    """Sections in the order in which they are made, and sentences on those that failed.

    A traceback goes to ``logs/group_<name>_crash.txt`` of the output folder and nowhere else.
    """

    def __init__(self, out_dir: Path):
        self.out_dir = out_dir
        self.sections: list[Section] = []
        self.failed: list[str] = []

    def add(self, name: str, title: str, make: Callable[[], Section]) -> None:
        """Make a section; one that cannot be made says so in its place.

        Raises
        ------
        UsageError
            If ``make`` does: a wrong option ends the run.
        """
        crash = self.out_dir / "logs" / f"group_{name}_crash.txt"
        try:
            section = make()
        except UsageError:
            raise
        except Exception as error:
            why = f"{error}"
            if not isinstance(error, PetsynthError):
                write_bytes(crash, traceback.format_exc().encode())
                why = f"unexpected {type(error).__name__}; please report logs/{crash.name}"
            self.failed.append(f"{title} could not be made: {why}")
            section = Section(name, title, [f"This part could not be made: {why}. The other parts stand."])
        else:
            crash.unlink(missing_ok=True)
        self.sections.append(section)


def add_cohort(
    parts: Parts,
    cohort: Cohort,
    groupings: Mapping[str, pd.Series],
    inputs: Mapping[str, Mapping[str, float]] | None,
    clusters: pd.Series,
) -> None:
    """What can be said without real PET; ``inputs`` are the model's variables with its training people's values."""
    from bids_petsynth.reports import cohort_sections as make

    parts.add("status", "Who is there", lambda: make.status_section(cohort))
    parts.add("groups", "Groups", lambda: make.group_section(cohort, groupings, clusters))
    parts.add("values", "Clinical and blood values", lambda: make.values_section(cohort, inputs, clusters))
    parts.add("tracers", "Agreement of tracers", lambda: make.tracers_section(cohort, clusters))
    parts.add("change", "Change over sessions", lambda: make.change_section(cohort))


def add_real_pet(
    parts: Parts,
    plan: Plan,
    cohort: Cohort,
    compared: Compared,
    pairs: Mapping[str, Pairs],
    groupings: Mapping[str, pd.Series],
    clusters: pd.Series,
) -> None:
    """Synthetic against real PET."""
    from bids_petsynth.models.synthesizer import built_in
    from bids_petsynth.reports import comparison_sections as make
    from bids_petsynth.workflows import group
    from bids_petsynth.workflows.maps import maps_section

    done = [one for one in compared.outcomes if one.found]
    equations = {one.job.key[2]: group.equation_of(one.job.pet) for one in done}
    found: list[make.Compared] = []

    def start() -> Section:
        found.extend(make.compared(cohort, own, equations[name], plan.seed) for name, own in pairs.items())
        section = make.pairs_section(found, compared.left, group.preparation(compared.outcomes), cohort.simulated)
        if any(one.folds for one in found):
            return section
        return make.with_held_out(section, group.held_out_figures(plan.model, cohort), cohort.demonstration)

    parts.add("pairs", "With real PET", start)
    first = {one.first.tracer: set(one.first.real.index) for one in found}
    parts.add(
        "images", "Images", lambda: make.image_section(found, group.fid_table(plan, done, first), rivals(done, found))
    )
    parts.add("maps", "Maps", lambda: maps_section(done, first, clusters, plan.model or built_in()))
    parts.add("regions", "Regions", lambda: make.regional_section(found))
    parts.add("global", "Centiloid and status", lambda: make.global_section(found))
    parts.add("changes", "Change in synthetic and real PET", lambda: make.change_section(cohort, found))
    parts.add("uncertainty", "Uncertainty", lambda: make.uncertainty_section(found, groupings))
    parts.add("fairness", "Fairness", lambda: make.fairness_section(found, groupings))


def add_classes(
    parts: Parts,
    plan: Plan,
    cohort: Cohort,
    scans: Sequence[Scan],
    compared: Compared,
    pairs: Mapping[str, Pairs],
    clusters: pd.Series,
) -> None:
    """Diagnosis and score, where they are asked for; the chosen classifier is saved.

    Raises
    ------
    UsageError
        If the dataset lacks a column that was named.
    """
    from bids_petsynth.evaluation.classifier_folder import save_classifier
    from bids_petsynth.reports import diagnosis_section as make
    from bids_petsynth.workflows.scans import TITLE, scans_section

    if not plan.diagnosis and not plan.score:
        return
    features: dict[str, pd.DataFrame] = {}

    def diagnosis(label: pd.Series) -> Section:
        about = {"Column": plan.diagnosis, "Simulated": cohort.simulated, "DemonstrationModel": cohort.demonstration}
        found = make.diagnosis_of(cohort, features, label, clusters, plan.seeds, plan.folds, plan.seed, about)
        if found.classifier is not None:
            save_classifier(found.classifier, plan.out_dir / output_path("classifier").parent)
        return make.diagnosis_section(found, str(plan.diagnosis), cohort.simulated)

    def score(values: pd.Series) -> Section:
        return make.score_section(features, values, clusters, plan.score_range, plan.seeds, plan.folds, plan.seed)

    label = make.column_of(cohort, plan.diagnosis, "--diagnosis") if plan.diagnosis else None
    values = make.column_of(cohort, plan.score, "--score") if plan.score else None
    features |= make.features_of(cohort, pairs)
    if label is not None:
        parts.add("diagnosis", "Diagnosis", lambda: diagnosis(label))
        parts.add(
            "augmentation",
            "Synthetic scans added to real ones",
            lambda: make.augmentation_section(features, label, clusters, plan.folds, plan.seed),
        )
        if plan.diagnosis_cnn:
            parts.add("wholescans", TITLE, lambda: scans_section(plan, cohort, scans, compared, label, clusters))
    if values is not None:
        parts.add("score", f"Score {values.name}", lambda: score(values))


def rivals(done: Sequence[Outcome], parts: Sequence[comparison_sections.Compared]) -> pd.DataFrame:
    """Images of simpler methods beside the synthetic PET's; empty where there are too few people for folds."""
    from bids_petsynth.evaluation.opponent_images import PAINTED_FROM, image_errors, image_table
    from bids_petsynth.pet.tracers import tracer
    from bids_petsynth.workflows.comparisons import kept_maps

    jobs = {one.job.key: one.job for one in done}
    tables = []
    for part in parts:
        name, people = part.first.tracer, list(part.first.real.index)
        if not part.folds:
            continue
        read = [partial(kept_maps, jobs[(*key, name)]) for key in people]
        painted = pd.DataFrame(part.regional[PAINTED_FROM], columns=part.first.real.columns)
        errors = image_errors(read, part.folds, painted)
        low, high = tracer(name).display
        if errors:
            tables.append(image_table(name, errors, high - low, part.first.clusters.to_numpy()))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
