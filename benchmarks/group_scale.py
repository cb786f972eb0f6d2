"""CPU time, memory and report size of ``group`` over many people with volumes and real scans.

    python benchmarks/group_scale.py DATASET DERIVATIVES OUT [--people 1000]

DATASET with simulated PET (``simulate``) and DERIVATIVES that ``participant`` made of it are multiplied: each person
takes one's images (hard links), the SUVR and Centiloid of their tables times a factor of their own (probabilities
stay), and their PET counts as PETPrep's. So the time is that of tables, comparison and report, not of bringing raw
PET onto the T1w. OUT keeps both; a second call measures a rerun.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd

from bids_petsynth.bids.naming import entities_of
from bids_petsynth.bids.sink import tsv_text
from bids_petsynth.cli.main import main as command
from bids_petsynth.pet.tracers import centiloid_equation

#: Columns of ``…_suvr.tsv`` and ``…_measures.tsv`` that are in SUVR, and those in Centiloid.
SUVR = ("suvr", "sd", "low80", "high80", "low95", "high95")
SUVR += ("target_suvr", "target_suvr_sd", "target_suvr_low95", "target_suvr_high95")
CENTILOID = ("centiloid_approximate", "centiloid_low95", "centiloid_high95")


def copied(source: Path, target: Path, old: str, new: str, factor: float) -> None:
    """A folder under another participant's name: images linked, text renamed, SUVR times ``factor``."""
    for path in sorted(p for p in source.rglob("*") if p.is_file() and "figures" not in p.parts):
        place = target / str(path.relative_to(source)).replace(old, new)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix not in (".json", ".tsv", ".txt", ".html"):
            os.link(path, place)
        elif path.name.endswith(("suvr.tsv", "measures.tsv")):
            frame = pd.read_csv(path, sep="\t", keep_default_na=False, na_values=["n/a"])
            frame[[c for c in SUVR if c in frame]] *= factor
            if equation := centiloid_equation(entities_of(path)["trc"]):
                columns = [c for c in CENTILOID if c in frame]
                frame[columns] = equation.intercept + factor * (frame[columns] - equation.intercept)
            place.write_text(tsv_text(frame.to_dict("records")))
        else:
            place.write_text(path.read_text().replace(old, new))


def multiplied(dataset: Path, made: Path, out: Path, people: int) -> None:
    """The dataset, its PETPrep-like derivatives and the output folder of ``people``."""
    rows = pd.read_csv(dataset / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    names = rows.participant_id.tolist()
    factors = np.exp(np.random.default_rng(0).normal(0, 0.03, people))
    bids, prep, results = out / "bids", out / "petprep", out / "out"
    for number, factor in enumerate(factors):
        old, new = names[number % len(names)], f"sub-{number:04d}"
        copied(dataset / old, bids / new, old, new, 1)
        copied(made / old, results / new, old, new, factor)
        (results / f"{new}.html").write_text("a report")
        for pet in (bids / new).glob("pet/*_pet.*"):
            place = prep / new / "pet" / pet.name.replace("_pet.", "_space-T1w_desc-preproc_pet.")
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(pet, place)
    for folder, source in ((bids, dataset), (prep, dataset), (results, made)):
        shutil.copy(source / "dataset_description.json", folder)
    table = pd.concat([rows.iloc[[k % len(rows)]] for k in range(people)])
    table["participant_id"] = [f"sub-{k:04d}" for k in range(people)]
    table.to_csv(bids / "participants.tsv", sep="\t", index=False)
    status = pd.read_csv(made / "status.tsv", sep="\t", dtype=str, keep_default_na=False).drop_duplicates(
        "participant_id"
    )
    status = status.set_index("participant_id").loc[[names[k % len(names)] for k in range(people)]].reset_index()
    status["participant_id"] = table.participant_id.to_numpy()
    status.to_csv(results / "status.tsv", sep="\t", index=False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("derivatives", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--people", type=int, default=1000)
    arguments = parser.parse_args()
    out = arguments.out
    if not out.is_dir():
        part = out.with_name(f"{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        multiplied(arguments.dataset, arguments.derivatives, part, arguments.people)
        part.replace(out)
    wall, cpu = time.monotonic(), time.process_time()
    code = command([str(out / "bids"), str(out / "out"), "group", "-d", f"petprep={out / 'petprep'}"])
    if code:
        raise SystemExit(f"group ended with code {code}: nothing was measured.")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() - cpu + children.ru_utime + children.ru_stime
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
    size = (out / "out" / "group.html").stat().st_size / 1e6
    print(
        f"{arguments.people} people: CPU {cpu / 60:.1f} min, wall {(time.monotonic() - wall) / 60:.1f} min, "
        f"largest process {peak:.2f} GiB, report {size:.1f} MB"
    )


if __name__ == "__main__":
    main()
