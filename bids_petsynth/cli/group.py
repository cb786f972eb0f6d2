"""``group``: tables, figures and one report over all participants."""

from __future__ import annotations

import argparse
from pathlib import Path

from bids_petsynth.cli.common import (
    Parser,
    add_real_pet,
    add_running,
    add_selection,
    derivative_folders,
    pet_window,
    positive,
    set_up,
    threads_of,
)
from bids_petsynth.errors import UsageError


def parser() -> argparse.ArgumentParser:
    """Options of the level."""
    out = Parser(
        "group",
        "Writes tables, figures and OUTPUT_DIR/group.html over all participants that `participant` has worked on, and "
        "compares their synthetic PET with the real PET of the dataset where there is any. Needs no GPU.",
    )
    add_selection(out)
    what = out.add_argument_group("who is compared with whom")
    what.add_argument(
        "--group-column",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of the dataset's tables that tell groups",
    )
    what.add_argument(
        "--cluster-column",
        metavar="COLUMN",
        help="column that tells which participants are not independent, such as a family (default: head in a "
        "simulated dataset)",
    )
    what.add_argument(
        "--model", type=Path, metavar="FOLDER", help="model folder that was used, for the range of its training people"
    )
    what.add_argument("--mapping", type=Path, metavar="TSV", help="what the dataset's columns mean (see participant)")
    classes = out.add_argument_group("diagnosis")
    classes.add_argument(
        "--diagnosis",
        metavar="COLUMN",
        help="column with two or more classes that T1w, blood and PET are to tell apart",
    )
    classes.add_argument(
        "--diagnosis-cnn",
        action="store_true",
        help="also by a 3D network over whole scans: seconds per person on one core",
    )
    classes.add_argument(
        "--score", metavar="COLUMN", help="column with a score, such as MMSE, that they are to predict"
    )
    classes.add_argument(
        "--score-range", nargs=2, type=float, metavar=("LO", "HI"), help="people with a score outside are left out"
    )
    classes.add_argument(
        "--seeds",
        type=positive,
        default=5,
        metavar="N",
        help="repetitions of its cross-validation (default: %(default)s)",
    )
    classes.add_argument(
        "--folds", type=positive, default=5, metavar="N", help="outer folds of each (default: %(default)s)"
    )
    pet = add_real_pet(out, "real PET")
    pet.add_argument(
        "--fid-weights", type=Path, metavar="FILE", help="safetensors of a network whose features FID is computed on"
    )
    pet.add_argument(
        "--fid-network",
        default="resnet10",
        metavar="NAME",
        help="which of MONAI's networks it is (default: %(default)s)",
    )
    add_running(out)
    return out


def run(arguments: argparse.Namespace) -> int:
    """Do it; 0 if the report was written, whoever is missing in it, 1 if one of its parts could not be made."""
    threads = threads_of(arguments)
    set_up(threads, arguments.verbose)
    if arguments.score_range and not arguments.score_range[0] < arguments.score_range[1]:
        raise UsageError("--score-range takes two numbers, the smaller one first.")
    if arguments.folds < 2:
        raise UsageError("--folds 1 leaves nobody to test on; give 2 or more.")
    if arguments.diagnosis_cnn and not arguments.diagnosis:
        raise UsageError("--diagnosis-cnn needs --diagnosis COLUMN.")
    from bids_petsynth.workflows.group import Plan
    from bids_petsynth.workflows.group import run as run_group

    return run_group(
        Plan(
            bids_dir=arguments.bids_dir.resolve(),
            out_dir=arguments.output_dir,
            participants=tuple(arguments.participant_label or ()),
            sessions=tuple(arguments.session_label or ()),
            filter_file=arguments.bids_filter_file,
            derivatives=derivative_folders(arguments.derivatives),
            mapping=arguments.mapping,
            model=arguments.model,
            group_columns=tuple(arguments.group_column),
            cluster_column=arguments.cluster_column,
            diagnosis=arguments.diagnosis,
            diagnosis_cnn=arguments.diagnosis_cnn,
            score=arguments.score,
            score_range=tuple(arguments.score_range) if arguments.score_range else None,
            seeds=arguments.seeds,
            folds=arguments.folds,
            window_min=pet_window(arguments),
            fwhm=arguments.pet_fwhm,
            max_gap=arguments.max_gap,
            fid_network=arguments.fid_network,
            fid_weights=arguments.fid_weights,
            nprocs=max(1, arguments.nprocs // threads) if arguments.omp_nthreads else arguments.nprocs,
            seed=arguments.random_seed,
            command=arguments.command,
        )
    )
