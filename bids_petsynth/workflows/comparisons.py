"""All comparisons of a cohort: several at a time, each kept on disk, so that a rerun makes only what is missing."""

from __future__ import annotations

import json
import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.pets import Pair, preference, surplus
from bids_petsynth.bids.sink import hash_file, hash_settings, json_text, write_atomically, write_bytes
from bids_petsynth.errors import PetsynthError
from bids_petsynth.evaluation.comparison import Comparison, as_json, compare, from_json
from bids_petsynth.reports.content import Pet, Scan
from bids_petsynth.tables import code_hash
from bids_petsynth.types import Case


def key_of(case: Case) -> tuple[str, str]:
    """Participant and session as the tables have them."""
    return f"sub-{case.participant}", f"ses-{case.session}" if case.session else ""


@dataclass(frozen=True)
class Job:
    """One synthetic scan and the real one that it is compared with."""

    scan: Scan
    pet: Pet
    pair: Pair
    out_dir: Path
    window_min: tuple[float, float] | None = None
    fwhm: float | None = None
    seed: int = 0
    network: tuple[str, Path] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Participant, session and tracer as the tables have them."""
        return (*key_of(self.scan.case), self.pet.tracer.name)

    @property
    def record(self) -> Path:
        """Where the figures are kept."""
        return self.out_dir / output_path("comparison", self.scan.case, tracer=self.pet.tracer.name)

    @property
    def volume(self) -> Path:
        """Where what is needed for maps over people is kept."""
        return self.out_dir / output_path("comparison_maps", self.scan.case, tracer=self.pet.tracer.name)

    def fingerprint(self) -> str:
        """Hash of everything that the comparison depends on: contents by hashes or by size and time."""
        about = [(a.get("InputHash"), a.get("SettingsHash")) for a in (self.pet.about, self.scan.about)]
        files = [self.pair.pet.path, self.pet.mean]
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
        how = [self.window_min, self.fwhm, self.seed, code_hash("anatomy", "evaluation", "pet")]
        if self.network:
            how += [self.network[0], hash_file(self.network[1])]
        return hash_settings([about, stats, dict(self.pair.pet.sidecar), self.pair.pet.prepared, how])


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the comparison, or a sentence why there is none."""

    job: Job
    found: Comparison | None
    problem: str = ""


def jobs(scans: Sequence[Scan], pairs: Sequence[Pair], **settings) -> tuple[list[Job], list[tuple[Pair, str]]]:
    """Jobs for all pairs whose T1w has synthetic PET of the tracer, and the other pairs with the reason.

    Of several real scans of one tracer that fall on the same T1w, the nearest in time is compared.
    """
    done = {
        (scan.case.participant, scan.case.session, pet.tracer.name): (scan, pet) for scan in scans for pet in scan.pets
    }
    best: dict[tuple, Pair] = {}
    left: list[tuple[Pair, str]] = []
    for pair in pairs:
        if pair.case is None or pair.pet.problem:
            left.append((pair, pair.pet.problem or pair.note))
            continue
        key = (pair.case.participant, pair.case.session, pair.pet.tracer)
        if key not in done:
            lacking = f"there is no synthetic {pair.pet.tracer} of {pair.case.label}"
            left.append((pair, f"{lacking}: run participant with --tracer {pair.pet.tracer}"))
        elif key in best:
            best[key], other = sorted((best[key], pair), key=preference)
            left.append((other, surplus(best[key], other)))
        else:
            best[key] = pair
    return [Job(*done[key], pair, **settings) for key, pair in sorted(best.items(), key=lambda i: str(i[0]))], left


def run_all(todo: Sequence[Job], nprocs: int, say: Callable[[str], None]) -> list[Outcome]:
    """Every comparison, from disk where it is up to date; the others by ``nprocs`` processes."""
    outcomes: dict[tuple, Outcome] = {}
    missing = []
    for job in todo:
        found = _kept(job)
        if found is None:
            missing.append(job)
        else:
            outcomes[job.key] = found
    if missing:
        say(f"{len(missing)} real scans to prepare and compare ({len(outcomes)} are up to date)")
    for number, outcome in enumerate(_work(missing, nprocs), 1):
        outcomes[outcome.job.key] = outcome
        text = outcome.problem or "compared"
        say(f"[{number} of {len(missing)}] {' '.join(filter(None, outcome.job.key))}: {text}")
    return [outcomes[job.key] for job in todo]


def _work(missing: Sequence[Job], nprocs: int) -> Iterator[Outcome]:
    if min(nprocs, len(missing)) < 2:
        yield from map(one, missing)
        return
    # spawned, for a forked process inherits locks of the libraries
    with ProcessPoolExecutor(min(nprocs, len(missing)), multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(one, job): job for job in missing}
        for future in as_completed(running):
            try:
                yield future.result()
            except BrokenProcessPool:
                yield Outcome(
                    running[future], None, "its process was killed, most often for memory: use fewer --nprocs"
                )


def one(job: Job) -> Outcome:
    """Compare, and keep what was found; a scan that cannot be compared does not stop the others."""
    print_ = job.fingerprint()
    crash = job.out_dir / "logs" / f"{job.record.stem}_crash.txt"
    try:
        found, maps = compare(job.scan, job.pet, job.pair.pet, job.window_min, job.fwhm, job.seed, job.network)
    except PetsynthError as error:
        write_bytes(job.record, json_text({"Fingerprint": print_, "problem": str(error)}).encode())
        return Outcome(job, None, str(error))
    except Exception as error:
        write_bytes(crash, traceback.format_exc().encode())
        return Outcome(job, None, f"unexpected {type(error).__name__}; please report logs/{crash.name}")
    crash.unlink(missing_ok=True)
    job.record.unlink(missing_ok=True)
    # noise hardly compresses: it would take longer than it saves
    half = {name: values.astype(np.float16) for name, values in maps.items()}
    write_atomically(job.volume, lambda file: np.savez(file, **half))
    write_bytes(job.record, json_text({"Fingerprint": print_, **as_json(found)}).encode())
    return Outcome(job, found)


def _kept(job: Job) -> Outcome | None:
    """What an earlier run found, if nothing has changed since."""
    try:
        content = json.loads(job.record.read_text(encoding="utf-8"))
        if content["Fingerprint"] != job.fingerprint():
            return None
        if "problem" in content:
            return Outcome(job, None, content["problem"])
        return Outcome(job, from_json(content)) if job.volume.is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def kept_maps(job: Job) -> dict[str, np.ndarray]:
    """What ``compare`` kept for maps over people, float32; empty if there is nothing."""
    with np.load(job.volume, allow_pickle=False) as file:
        return {name: file[name].astype(np.float32) for name in file.files}
