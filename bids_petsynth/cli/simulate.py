"""``simulate``: any dataset with T1w scans becomes a raw BIDS dataset of the same heads with SIMULATED PET."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bids_petsynth.cli.common import Parser, add_running, add_selection, find_requested, positive, set_up, threads_of
from bids_petsynth.errors import UsageError

if TYPE_CHECKING:  # these import numpy, which must not come before the threads are fixed
    from bids_petsynth.types import Anatomy, Case

#: Age that is told of whoever is older, as in shared datasets (HIPAA, 45 CFR 164.514).
OLDEST_TOLD = 89


def parser() -> argparse.ArgumentParser:
    """Options of the level."""
    out = Parser(
        "simulate",
        "Writes a raw BIDS dataset of the same heads with SIMULATED PET, plasma and clinical values (rec-sim), to "
        "develop and test analyses on. It says nothing about patients.",
    )
    add_selection(out)
    what = out.add_argument_group("what is made")
    what.add_argument("--tracer", nargs="+", metavar="NAME", help="tracers to simulate (default: AV45 FBB FDG AV1451)")
    what.add_argument("--people-per-head", type=positive, default=1, metavar="N", help="simulated people for each head")
    what.add_argument("--dynamic", action="store_true", help="frames from injection on instead of one static frame")
    add_running(out)
    return out


def run(arguments: argparse.Namespace) -> int:
    """Do it; 0 if every head could be used, 1 if one failed."""
    threads = threads_of(arguments)
    set_up(threads, arguments.verbose)
    if arguments.output_dir.resolve() == arguments.bids_dir.resolve():
        raise UsageError("The simulated dataset needs a folder of its own; choose another OUTPUT_DIR.")
    cases = find_requested(arguments, arguments.bids_dir.resolve(), {})
    import torch

    from bids_petsynth.models.synthesizer import choose_device
    from bids_petsynth.simulation.dataset import write_dataset

    torch.set_num_threads(threads)
    written = write_dataset(
        cases,
        arguments.output_dir,
        label_head=partial(label, device=choose_device(arguments.device), seed=arguments.random_seed),
        people_per_head=arguments.people_per_head,
        seed=arguments.random_seed,
        tracers=arguments.tracer,
        dynamic=arguments.dynamic,
        traits=partial(owner, arguments.bids_dir),
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    people, failed = len(written.participants), len(written.failed)
    print(
        f"{people} simulated people on {len(cases) - failed} of {len(cases)} heads; dataset in {arguments.output_dir}."
    )
    return 1 if failed else 0


def label(case: Case, device: str, seed: int) -> Anatomy:
    """The head's labels on the built-in model's grid."""
    from bids_petsynth.anatomy.head import analyse_head
    from bids_petsynth.anatomy.volume import read_t1w

    return analyse_head(read_t1w(case.t1w, case.label), case.label, device=device, seed=seed).anatomy


def owner(bids_dir: Path, case: Case) -> tuple[float, float]:
    """Age and sex of a head's owner from the dataset's tables; NaN where they are not told.

    Age in whole years and at most 89, as the tables of shared datasets have it: it is written beside a real head.
    """
    from bids_petsynth.bids.tables import dataset_rows
    from bids_petsynth.clinical.records import read_record

    record = read_record(dataset_rows(bids_dir, case.participant, case.session)[0], session=case.session)
    age, sex = (record.get(name) for name in ("age", "sex"))
    return (float("nan") if age is None else float(min(int(age), OLDEST_TOLD))), (float("nan") if sex is None else sex)
