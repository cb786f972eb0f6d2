"""The group level, step by step: read the outputs, compare with real PET, write tables and the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bids_petsynth.bids.sink import check_writable, write_bytes
from bids_petsynth.errors import UsageError
from bids_petsynth.evaluation.cohort import PET, Cohort, read_cohort
from bids_petsynth.evaluation.findings import Table
from bids_petsynth.evaluation.groups import groups
from bids_petsynth.tables import code_hash
from bids_petsynth.types import Case

if TYPE_CHECKING:
    from bids_petsynth.bids.pets import Pair
    from bids_petsynth.reports.content import Pet, Scan
    from bids_petsynth.workflows.comparisons import Outcome

STATE = Path("group", "work", "state.txt")


@dataclass(frozen=True)
class Plan:
    """What is asked for; names are those of the options."""

    bids_dir: Path
    out_dir: Path
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    filter_file: Path | None = None
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    mapping: Path | None = None
    model: Path | None = None
    group_columns: tuple[str, ...] = ()
    cluster_column: str | None = None
    diagnosis: str | None = None
    diagnosis_cnn: bool = False
    score: str | None = None
    score_range: tuple[float, float] | None = None
    seeds: int = 5
    folds: int = 5
    window_min: tuple[float, float] | None = None
    fwhm: float | None = None
    max_gap: int = 365
    fid_network: str = "resnet10"
    fid_weights: Path | None = None
    nprocs: int = 1
    seed: int = 0
    command: str = ""


def run(plan: Plan) -> int:
    """Do it; returns the exit code, 1 if a part of the report could not be made.

    Raises
    ------
    UsageError
        If the dataset or the output folder is unusable, or a column or model does not exist.
    """
    from bids_petsynth import __version__
    from bids_petsynth.bids.dataset import check_ours, write_dataset_files
    from bids_petsynth.bids.index import participant_labels
    from bids_petsynth.reports.group import state_of

    participant_labels(plan.bids_dir, plan.participants or None)
    if not plan.out_dir.is_dir():
        raise UsageError(
            f"There is no output folder {plan.out_dir}: run the level participant first, or name its folder."
        )
    check_writable(plan.out_dir)
    check_ours(plan.out_dir, "derivative")
    settings = {**asdict(plan), "nprocs": 0, "command": "", "version": __version__, "code": code_hash()}
    report = plan.out_dir / "group.html"
    state = state_of(_inputs(plan), settings)
    note = plan.out_dir / STATE
    if report.is_file() and note.is_file() and note.read_text() == state:
        print(f"Nothing has changed: {report} is up to date.")
        return 0
    if not (plan.out_dir / "dataset_description.json").is_file():
        # what participant wrote names its own derivatives, and stays
        write_dataset_files(plan.out_dir, plan.bids_dir, __version__, plan.derivatives)
    sentences, failed = _work(plan)
    if failed:
        # the next run tries again
        note.unlink(missing_ok=True)
    else:
        write_bytes(note, state.encode())
    for sentence in sentences:
        print(sentence)
    for sentence in failed:
        print(f"bids-petsynth: {sentence}", file=sys.stderr)
    print(f"{report} written{f', without {len(failed)} of its parts' if failed else ''}.")
    return 1 if failed else 0


def _inputs(plan: Plan) -> list[Path]:
    """Every file that the report depends on, by its name."""
    found = [*plan.bids_dir.glob("*.tsv"), *plan.bids_dir.glob("*.json"), *(plan.bids_dir / "phenotype").glob("*")]
    for root in (plan.bids_dir, *plan.derivatives.values()):
        for person in Path(root).glob("sub-*"):
            found += [
                p
                for p in person.rglob("*")
                if p.suffix in (".json", ".tsv") or "_pet.nii" in p.name or "_T1w.nii" in p.name
            ]
    found += plan.out_dir.glob("logs/status/*.json")
    found += [p for p in plan.out_dir.glob("sub-*/**/*") if p.suffix in (".json", ".tsv")]
    found += [path for path in (plan.filter_file, plan.mapping) if path]
    found += [plan.fid_weights] if plan.fid_weights else []
    found += [plan.model / "model.json"] if plan.model else []
    return found


def _work(plan: Plan) -> tuple[Sequence[str], list[str]]:
    """Read, compare, write; sentences for the user, and those on parts of the report that failed."""
    from bids_petsynth.bids.index import find_cases, read_filter_file
    from bids_petsynth.clinical.mapping import read_mapping
    from bids_petsynth.evaluation.pairs import tabulate
    from bids_petsynth.reports.content import read_participant
    from bids_petsynth.reports.group import write_group
    from bids_petsynth.reports.participant import report_path
    from bids_petsynth.workflows.sections import Parts, add_classes, add_cohort, add_real_pet

    filters = read_filter_file(plan.filter_file) if plan.filter_file else None
    cases = find_cases(plan.bids_dir, plan.participants or None, plan.sessions or None, filters, {})
    labels = sorted({case.participant for case in cases})
    chosen = {(case.participant, case.session) for case in cases}
    scans = [s for label in labels for s in read_participant(plan.out_dir, label)]
    scans = [s for s in scans if not plan.sessions or (s.case.participant, s.case.session) in chosen]
    mapping = read_mapping(plan.mapping) if plan.mapping else None
    cohort = read_cohort(plan.out_dir, plan.bids_dir, scans, cases, mapping, is_simulated(plan.bids_dir))
    groupings = groups(cohort, plan.group_columns)
    clusters = clusters_of(cohort, plan.cluster_column)
    inputs = model_inputs(plan.model, cohort)
    parts = Parts(plan.out_dir)
    add_cohort(parts, cohort, groupings, inputs, clusters)
    compared = _compare(plan, cases, scans, filters)
    pairs = tabulate(cohort, {one.job.key: one.found for one in compared.outcomes if one.found}, clusters)
    add_real_pet(parts, plan, cohort, compared, pairs, groupings, clusters)
    add_classes(parts, plan, cohort, scans, compared, pairs, clusters)
    reports = {f"sub-{label}": report_path(label) for label in labels if (plan.out_dir / report_path(label)).is_file()}
    write_group(
        plan.out_dir,
        parts.sections,
        facts(cohort, cases, plan),
        reports,
        cohort.demonstration,
        cohort.simulated,
        {"Synthetic": True, "DemonstrationModel": cohort.demonstration, "SimulatedDataset": cohort.simulated},
    )
    return parts.sections[0].sentences[:2], parts.failed


@dataclass(frozen=True)
class Compared:
    """All comparisons, and the real scans that could not be compared, with the reason."""

    outcomes: Sequence[Outcome]
    left: pd.DataFrame


def _compare(plan: Plan, cases: list[Case], scans: list[Scan], filters: dict | None) -> Compared:
    """Find the real scans and compare each with its synthetic one."""
    from bids_petsynth.bids.pets import find_pets, pair
    from bids_petsynth.pet.tracers import canonical
    from bids_petsynth.workflows.comparisons import jobs, run_all

    real = find_pets(
        plan.bids_dir, plan.participants or None, plan.sessions or None, filters, plan.derivatives, canonical
    )
    how = {"out_dir": plan.out_dir, "window_min": plan.window_min, "fwhm": plan.fwhm, "seed": plan.seed}
    if plan.fid_weights:
        from bids_petsynth.evaluation.perception import network

        how["network"] = (plan.fid_network, plan.fid_weights)
        network(*how["network"])  # what is wrong with it is said before anything is done
    todo, left = jobs(scans, pair(cases, real, plan.max_gap), **how)
    outcomes = run_all(todo, plan.nprocs, say)
    rest = [(one.job.pair, one.problem) for one in outcomes if one.problem]
    return Compared(outcomes, left_out([*left, *rest]))


def fid_table(plan: Plan, done: Sequence[Outcome], first: Mapping[str, set]) -> Table | None:
    """Fréchet distance of each tracer's synthetic to its real scans, if a network is named."""
    import numpy as np

    from bids_petsynth.evaluation.perception import frechet

    if not plan.fid_weights:
        return None
    rows = []
    for name, scans in first.items():
        found = [one.found.features for one in done if one.job.key[2] == name and one.job.key[:2] in scans]
        sides = [np.array([one[side] for one in found]) for side in ("synthetic", "real")]
        row = {"tracer": name, "network": f"{plan.fid_network}, {plan.fid_weights.name}", "n": len(found)}
        rows.append({**row, "features": sides[0].shape[-1], "fid": frechet(*sides)})
    note = "Biased upwards unless there are many more people than features; only of one network with itself comparable"
    return Table("fid", "Fréchet distance", pd.DataFrame(rows), note) if rows else None


def equation_of(pet: Pet) -> tuple[float, float] | None:
    """Slope and intercept of the Centiloid that a synthetic scan has in its sidecar."""
    equation = pet.centiloid.get("CentiloidEquation")
    return (float(equation["Slope"]), float(equation["Intercept"])) if equation else None


def left_out(rest: Sequence[tuple[Pair, str]]) -> pd.DataFrame:
    """Real scans that could not be compared, with the reason."""
    rows = [
        (f"sub-{p.pet.participant}", f"ses-{p.pet.session}" if p.pet.session else "", p.pet.tracer, why)
        for p, why in rest
    ]
    return pd.DataFrame(rows, columns=[*PET, "reason"])


def preparation(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Figures of how the real scans were prepared, with what is odd about each."""
    rows = []
    for one in outcomes:
        if one.found:
            gap = one.job.pair.gap_days
            row = dict(zip(PET, one.job.key, strict=True)) | {"gap_days": float("nan") if gap is None else gap}
            rows.append({**row, **one.found.quality, "notes": " ".join(one.found.notes)})
    return pd.DataFrame(rows)


def say(line: str) -> None:
    """Tell the user how far it is."""
    print(line, file=sys.stderr, flush=True)


def is_simulated(bids_dir: Path) -> bool:
    """Whether the dataset says that ``simulate`` or ``bids-petsynth-example`` made it."""
    from bids_petsynth.bids.dataset import made_here
    from bids_petsynth.bids.tables import read_json

    try:
        return made_here(read_json(bids_dir / "dataset_description.json"))
    except ValueError:
        return False


def made_by(folder: Path | None, cohort: Cohort) -> tuple[Path, dict] | None:
    """The folder (the built-in one if None) and ``model.json`` of the model, if it alone made the outputs."""
    from bids_petsynth.models.folder import verified
    from bids_petsynth.models.synthesizer import built_in

    folder = folder or built_in()
    about = verified(folder)
    made = {(model.get("Name"), model.get("Version")) for model in cohort.models}
    return (folder, about) if made <= {(about["name"], about["version"])} else None


def model_inputs(folder: Path | None, cohort: Cohort) -> dict[str, dict[str, float]] | None:
    """Variables of a model with mean and SD of the people that it was trained on.

    None where the outputs are of another model (see :func:`made_by`), whose variables these are not.
    """
    from bids_petsynth.models.recipe import parse_recipe

    found = made_by(folder, cohort)
    if found is None:
        return None
    folder, about = found
    recipe = parse_recipe((folder / "recipe.toml").read_text(encoding="utf-8"), str(folder / "recipe.toml"))
    logs = {spec.name for spec in recipe.conditioning.variables if spec.transform == "log"}
    return {name: entry | {"log": name in logs} for name, entry in about.get("variables", {}).items()}


def held_out_figures(folder: Path | None, cohort: Cohort) -> pd.DataFrame:
    """What the card of the model in use says of the people that were kept from its training, and of their mean.

    Empty where there are no outputs or they are of another model (see :func:`made_by`), or its card has no such table.
    """
    found = made_by(folder, cohort)
    if found is None or not cohort.models:
        return pd.DataFrame()
    folder, about = found
    lines = (folder / "MODEL_CARD.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    head = next((i for i, row in enumerate(cells) if row[:4] == ["tracer", "MAE", "baseline", "bias"]), None)
    if head is None:
        return pd.DataFrame()
    rows = []
    for row in cells[head + 1 :]:
        if row[0] not in about["tracers"]:  # another table
            break
        tracer, model, mean, bias, *_ = row
        told = {"mae": model, "mae_of_mean": mean, "bias": bias}
        rows.append({"tracer": tracer} | {k: float("nan") if v == "n/a" else float(v) for k, v in told.items()})
    return pd.DataFrame(rows)


def facts(cohort: Cohort, cases: list[Case], plan: Plan) -> list[tuple[str, str]]:
    """What stands at the top of the report."""
    from bids_petsynth import __version__

    people = len({case.participant for case in cases})
    done = cohort.synthetic.index.get_level_values("participant_id").nunique() if len(cohort.synthetic) else 0
    return [
        ("participants in the dataset", str(people)),
        ("with synthetic PET", str(done)),
        ("tracers", ", ".join(cohort.tracers) or "none"),
        ("model", cohort.model_names or "none"),
        ("bids-petsynth", __version__),
        ("made", pd.Timestamp.now().strftime("%Y-%m-%d")),
    ]


def clusters_of(cohort: Cohort, column: str | None) -> pd.Series:
    """The independent unit of every scan: the participant, or what a column says.

    Raises
    ------
    UsageError
        If the dataset has no such column.
    """
    index = cohort.anatomy.index
    people = pd.Series(index.get_level_values("participant_id").astype(str), index=index, name="unit")
    if column is None and cohort.simulated and "head" in cohort.columns:
        column = "head"
    if column is None:
        return people
    if column not in cohort.columns:
        raise UsageError(f"The dataset has no column {column}; correct --cluster-column.")
    text = cohort.columns[column]
    return text.where(text != "", people).rename("unit")
