"""``participant``: synthetic PET for every participant with a T1w."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from bids_petsynth.cli.common import (
    Parser,
    add_language,
    add_running,
    add_selection,
    derivative_folders,
    filters_of,
    find_requested,
    language_from,
    positive,
    set_up,
    threads_of,
    warn_of_absent_notes,
)
from bids_petsynth.errors import UsageError
from bids_petsynth.settings import Settings, Space


def parser() -> argparse.ArgumentParser:
    """Options of the level."""
    out = Parser(
        "participant",
        "Writes synthetic PET (mean and standard deviation over draws, in SUVR), regional tables and anatomical "
        "derivatives for every participant with a T1w. Research only; not a medical device.",
    )
    add_selection(out)
    what = out.add_argument_group("what is made")
    what.add_argument(
        "--tracer", nargs="+", metavar="NAME", help="tracers: AV45 FDG AV1451 … (default: AV45, none beside --target)"
    )
    what.add_argument(
        "--target",
        choices=("T1w",),
        help="draw a T1w from the person's real PET, with models that can, such as those of the recipe acadiff",
    )
    what.add_argument(
        "--model", type=Path, metavar="FOLDER", help="model folder (default: the built-in demonstration model)"
    )
    what.add_argument("--n-draws", type=positive, default=8, metavar="N", help="draws per scan (default: %(default)s)")
    what.add_argument("--save-draws", action="store_true", help="write every draw, not only their mean and SD")
    what.add_argument(
        "--output-spaces",
        nargs="+",
        default=["T1w"],
        metavar="SPACE[:res-N]",
        help="T1w (default) and TemplateFlow templates such as MNI152NLin2009cAsym:res-2",
    )
    what.add_argument("--record-values", action="store_true", help="write the clinical values, too, into the sidecars")
    what.add_argument(
        "-d",
        "--derivatives",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="preprocessed datasets to use: fmriprep=PATH or smriprep=PATH (T1w and brain mask)",
    )
    what.add_argument(
        "--classifier",
        type=Path,
        metavar="FOLDER",
        help="classifier that group --diagnosis has written: its probability is written too (research only)",
    )
    plan = out.add_argument_group("clinical columns")
    plan.add_argument(
        "--mapping", type=Path, metavar="TSV", help="what the dataset's columns mean (see --write-mapping)"
    )
    plan.add_argument(
        "--write-mapping", type=Path, metavar="TSV", help="write such a file with guesses filled in, and end"
    )
    plan.add_argument(
        "--dry-run", action="store_true", help="print inputs, variables and outputs of each participant, and end"
    )
    what.add_argument(
        "--max-gap",
        type=positive,
        default=365,
        metavar="DAYS",
        help="days between T1w and other real scans, for models that take such as sources (default: %(default)s)",
    )
    add_language(out)
    add_running(out)
    out.add_argument(
        "-w",
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="where intermediate files lie meanwhile (default: the system's temporary folder)",
    )
    out.add_argument(
        "--mem", type=memory, metavar="SIZE", help="memory for all workers, such as 16G (default: nine tenths of all)"
    )
    out.add_argument(
        "--use-plugin",
        type=Path,
        metavar="YAML",
        help="Nipype plugin to run the steps with, and its options: SLURM makes each a job of its own (docs/hpc.md)",
    )
    out.add_argument("--stop-on-first-crash", action="store_true", help="do not go on after a participant has failed")
    out.add_argument(
        "--reports-only", action="store_true", help="make the reports again from the output folder, and end"
    )
    out.add_argument(
        "--boilerplate-only",
        action="store_true",
        help="write the methods text of such a run with its citations into logs/, and end",
    )
    out.add_argument(
        "--skip-bids-validation",
        action="store_true",
        help="accepted for other BIDS Apps' sake: nothing is validated here",
    )
    return out


def settings_from(arguments: argparse.Namespace, threads: int = 1) -> Settings:
    """Check the arguments and freeze them.

    Raises
    ------
    UsageError
        If a tracer, space, folder or plugin is not usable.
    """
    from bids_petsynth.pet.tracers import tracer

    asked = arguments.tracer or ([] if arguments.target else ["AV45"])
    tracers = tuple(dict.fromkeys(tracer(name).name for name in asked))
    tracers += (arguments.target,) if arguments.target else ()
    plugin, plugin_args = _plugin_from(arguments)
    return Settings(
        bids_dir=arguments.bids_dir,
        out_dir=arguments.output_dir,
        tracers=tracers,
        model=arguments.model,
        device=arguments.device,
        n_draws=arguments.n_draws,
        save_draws=arguments.save_draws,
        seed=arguments.random_seed,
        spaces=tuple(dict.fromkeys(space_from(text) for text in arguments.output_spaces)),
        derivatives=derivative_folders(arguments.derivatives),
        mapping=arguments.mapping,
        classifier=arguments.classifier,
        record_values=arguments.record_values,
        nprocs=arguments.nprocs,
        omp_nthreads=threads,
        work_dir=arguments.work_dir,
        plugin=plugin,
        plugin_args=plugin_args,
        memory_gb=arguments.mem,
        stop_on_first_crash=arguments.stop_on_first_crash,
        texts=language_from(arguments),
        command=arguments.command,
    )


def _plugin_from(arguments: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """Name and options of the plugin that is asked for, if one is; refuses a work directory that will not do."""
    if "%" in str(arguments.work_dir or ""):
        raise UsageError(f"The work directory {arguments.work_dir} has a % in its path, which Nipype cannot take.")
    if arguments.use_plugin is None:
        return "", {}
    from bids_petsynth.workflows.batch import check_work_dir, read_plugin_file

    plugin, options = read_plugin_file(arguments.use_plugin)
    if plugin == "SLURM":
        check_work_dir(arguments.work_dir and arguments.work_dir.resolve())
    return plugin, options


def memory(text: str) -> float:
    """GiB from a number with the unit M, G or T (MB, GiB …, any case), a bare number counting as G; 4 at least."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is no size such as 16G or 12000M")
    size = float(match.group(1)) * {"M": 2**-10, "G": 1.0, "T": 2.0**10}[match.group(2).upper() or "G"]
    if size < 4:
        raise argparse.ArgumentTypeError(f"{text} is too little for one participant, which takes up to 4G")
    return size


def space_from(text: str) -> Space:
    """``T1w`` or ``NAME[:res-N]``."""
    name, _, resolution = text.partition(":")
    if name == "T1w" and resolution:
        raise UsageError("--output-spaces T1w takes no resolution: it is the model's own grid on the T1w.")
    match = re.fullmatch(r"res-0*([1-9]\d*)", resolution) if resolution else None
    if not re.fullmatch(r"[A-Za-z0-9]+", name) or (resolution and match is None):
        raise UsageError(f"--output-spaces takes names such as T1w or MNI152NLin2009cAsym:res-2, not {text!r}.")
    return Space(name, int(match.group(1)) if match else 2)


def run(arguments: argparse.Namespace) -> int:
    """Do it; 0 if every participant is done, 1 if one failed."""
    threads = threads_of(arguments)
    set_up(threads, arguments.verbose)
    settings = settings_from(arguments, threads)
    if arguments.reports_only:
        return _reports_only(arguments.participant_label, settings)
    if arguments.boilerplate_only:
        return _boilerplate_only(arguments, settings)
    cases = find_requested(arguments, settings.bids_dir, settings.derivatives)
    if arguments.write_mapping:
        return _write_mapping(arguments.write_mapping, cases, settings)
    _check(settings)
    cases = _with_sources(cases, arguments, settings)
    warn_of_absent_notes(settings.texts, settings.bids_dir, cases)
    if arguments.dry_run:
        return _dry_run(cases, settings)
    from bids_petsynth import __version__
    from bids_petsynth.bids.dataset import FAILED, write_dataset_files
    from bids_petsynth.bids.sink import check_writable
    from bids_petsynth.cli.progress import Progress
    from bids_petsynth.workflows import steps
    from bids_petsynth.workflows.participant import run as run_cases

    check_writable(settings.out_dir)
    _make_work_dir(settings.work_dir)
    write_dataset_files(settings.out_dir, settings.bids_dir, __version__, settings.derivatives)
    with Progress(len(cases) * len(settings.tracers), arguments.verbose > 0) as progress:
        if steps.description_of(settings.model).demonstration:
            progress.say("Demonstration model, trained on SIMULATED PET: nothing it writes is evidence about a person.")
        for case in cases:
            for sentence in case.notes:
                progress.say(sentence)
        outcomes = run_cases(cases, settings, progress.outcome)
    failed = [o for o in outcomes if o.status == FAILED]
    done = len(outcomes) - len(failed)
    print(f"{done} of {len(outcomes)} scans and tracers done; results in {settings.out_dir} (start with sub-*.html).")
    if failed:
        print(f"{len(failed)} failed; the reasons are above and in {settings.out_dir / 'status.tsv'}.")
    return 1 if failed else 0


def _with_sources(cases: list, arguments: argparse.Namespace, settings: Settings) -> list:
    """The cases with the real scans beside the T1w that the model takes as sources, if it takes any."""
    from bids_petsynth.bids.others import find_others
    from bids_petsynth.bids.pets import find_pets, with_others, with_pets
    from bids_petsynth.models.conditioning import is_pet
    from bids_petsynth.pet.tracers import canonical
    from bids_petsynth.workflows import steps

    sources = steps.description_of(settings.model).recipe.conditioning.sources
    # of any session: a T1w may be paired with a scan of another
    chosen = arguments.participant_label, None, filters_of(arguments)
    cases = with_others(cases, find_others(settings.bids_dir, sources, *chosen), arguments.max_gap)
    tracers = [name for name in sources if is_pet(name)]
    if not tracers:
        return cases
    pets = find_pets(settings.bids_dir, *chosen, settings.derivatives, canonical)
    return with_pets(cases, pets, tracers, arguments.max_gap)


def _check(settings: Settings) -> None:
    """Find out now what would else fail for everybody: model, tracers, device, mapping, classifier, templates."""
    from bids_petsynth.anatomy.normalisation import REGISTERED_AT, find_template
    from bids_petsynth.clinical.mapping import read_mapping
    from bids_petsynth.models.synthesizer import check_tracer, choose_device
    from bids_petsynth.workflows import steps
    from bids_petsynth.workflows.classification import tracers_of

    choose_device(settings.device)
    recipe = steps.description_of(settings.model).recipe
    for tracer in settings.tracers:
        check_tracer(recipe, tracer)
    if settings.mapping:
        read_mapping(settings.mapping)
    if settings.classifier:
        tracers_of(settings.classifier, settings)
    for space in settings.spaces:
        if not space.is_native:
            for resolution in (REGISTERED_AT, space.resolution):
                find_template(space.name, resolution)


def _make_work_dir(folder: Path | None) -> None:
    """Make the folder of ``--work-dir`` if need be; ``UsageError`` naming it if that fails."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The work directory {folder} cannot be made ({error.strerror}); choose another with --work-dir."
        ) from None


def _reports_only(labels: list[str] | None, settings: Settings) -> int:
    """Make the reports of these participants (all that the output folder knows, if None) and the methods text anew."""
    from bids_petsynth.reports.citation import write_citation
    from bids_petsynth.reports.content import participants_of
    from bids_petsynth.workflows import steps

    known = participants_of(settings.out_dir)
    wanted = known if labels is None else [label.removeprefix("sub-") for label in labels]
    if strangers := [label for label in wanted if label not in known]:
        raise UsageError(
            f"{settings.out_dir} has no results of sub-{', sub-'.join(strangers)}; run without --reports-only."
        )
    if not known:
        raise UsageError(f"{settings.out_dir} has no results to report on; run without --reports-only.")
    failures = [failure for label in wanted if (failure := steps.report(settings, label))]
    write_citation(settings.out_dir, anew=True)
    print(f"{len(wanted) - len(failures)} of {len(wanted)} reports made in {settings.out_dir}.")
    return 1 if failures else 0


def _boilerplate_only(arguments: argparse.Namespace, settings: Settings) -> int:
    """Write the methods text that a run with these settings calls for."""
    from bids_petsynth.bids.sink import check_writable
    from bids_petsynth.models.synthesizer import check_tracer
    from bids_petsynth.workflows import steps

    recipe = steps.description_of(settings.model).recipe
    for tracer in settings.tracers:
        check_tracer(recipe, tracer)
    check_writable(settings.out_dir)
    # only what is preprocessed of a T1w depends on the participants
    cases = find_requested(arguments, settings.bids_dir, settings.derivatives) if settings.derivatives else []
    steps.planned_citation(settings, cases)
    print(f"Methods text and citations written to {settings.out_dir / 'logs'}.")
    return 0


def _write_mapping(path: Path, cases: list, settings: Settings) -> int:
    """The mapping file of the columns of all tables of these cases."""
    from bids_petsynth.bids.tables import dataset_rows
    from bids_petsynth.clinical.mapping import write_mapping

    rows = [row for case in cases for row in dataset_rows(settings.bids_dir, case.participant, case.session)[0]]
    write_mapping(path, rows)
    print(f"{path} written: check its guesses, then give it as --mapping {path}.")
    return 0


def _dry_run(cases: list, settings: Settings) -> int:
    """Print what a run would read and write; nothing is written."""
    from bids_petsynth.bids.naming import output_path
    from bids_petsynth.clinical.language import TextOptions
    from bids_petsynth.errors import InputError
    from bids_petsynth.models.conditioning import used_variables
    from bids_petsynth.workflows import steps
    from bids_petsynth.workflows.outputs import planned
    from bids_petsynth.workflows.participant import plan

    recipe = steps.description_of(settings.model).recipe
    code = 0
    if recipe.conditioning.text is not None:
        for sentence in (settings.texts or TextOptions()).planned(recipe.conditioning.text):
            print(sentence)
    for case in cases:
        print(case.label)
        try:
            job = plan(case, settings)
        except InputError as error:
            code = 1
            print(f"  cannot be worked on: {error}")
            continue
        for kind, path in {"T1w": case.t1w, **case.derivatives}.items():
            print(f"  {kind:<12} {path}")
        used = used_variables(job.record, recipe.conditioning.variables)
        for scan in (*case.pets, *case.others):
            print(f"  {scan.modality:<12} {scan.path}")
        for name, value in sorted(job.record.values.items(), key=lambda item: item[0] not in used):
            if name in used or value.status != "missing":
                extra = "" if name in used else " (not an input of this model)"
                print(f"  {name:<20} {used.get(name, value.status):<10} {value.source}{extra}".rstrip())
        for sentence in (*case.notes, *job.record.warnings):
            print(f"  note: {sentence}")
        if settings.classifier:
            print(f"  {output_path('classes', case)}")
        for tracer in settings.tracers:
            print(f"  {tracer}: {'up to date' if tracer in job.current else 'to do'}")
            for path in planned(case, tracer, settings, round(recipe.grid.voxel_size)):
                print(f"    {path}")
    return code
