"""The ``participant`` level: what there is to do, one Nipype workflow per scan, running them, and the tally."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_petsynth.bids.dataset import DONE, FAILED, SKIPPED, record_status, write_cohort, write_status
from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.tables import dataset_rows
from bids_petsynth.clinical.mapping import read_mapping
from bids_petsynth.clinical.records import read_record
from bids_petsynth.errors import InputError, PetsynthError, UsageError
from bids_petsynth.settings import Settings
from bids_petsynth.types import Case, ClinicalRecord
from bids_petsynth.workflows import steps
from bids_petsynth.workflows.outputs import ANATOMY_KEY, PET_KEY

log = logging.getLogger("bids_petsynth")


@dataclass(frozen=True)
class Job:
    """What is to be done for one scan.

    Attributes
    ----------
    tracers
        Those whose outputs are missing or out of date.
    current
        Those whose outputs are up to date.
    write_anatomy
        Whether the anatomical derivatives are to be written.
    """

    case: Case
    record: ClinicalRecord
    scan_hash: str
    pet_hash: str
    tracers: tuple[str, ...]
    current: tuple[str, ...]
    write_anatomy: bool


@dataclass(frozen=True)
class Outcome:
    """How one scan and tracer (None: the scan as a whole) ended; ``reason`` is a sentence."""

    case: Case
    tracer: str | None
    status: str
    reason: str = ""


def record_of(case: Case, settings: Settings) -> ClinicalRecord:
    """The clinical record of a case from the dataset's tables, warnings of the reading included."""
    rows, warnings = dataset_rows(settings.bids_dir, case.participant, case.session)
    mapping = read_mapping(settings.mapping) if settings.mapping else None
    record = read_record(rows, mapping, scan_date=case.t1w_date, session=case.session)
    return replace(record, warnings=(*warnings, *record.warnings))


def plan(case: Case, settings: Settings) -> Job:
    """Compare what a case needs with what stands in the output folder.

    Raises
    ------
    InputError
        If the case cannot be worked on.
    """
    if case.problem:
        raise InputError(case.problem)
    model = steps.model_of(settings.model, settings.device).generator
    record = record_of(case, settings)
    scan = steps.scan_hash(case)
    pet = steps.pet_hash(scan, record, list(model.used_variables(record)))
    res = round(model.model.recipe.grid.voxel_size)
    current = tuple(
        tracer
        for tracer in settings.tracers
        if steps.pet_sink(settings, pet, tracer, model.model.fingerprint).is_current(
            output_path(PET_KEY, case, tracer=tracer, res=res)
        )
    )
    missing = tuple(tracer for tracer in settings.tracers if tracer not in current)
    anatomy = steps.anatomy_sink(settings, scan).is_current(output_path(ANATOMY_KEY, case))
    return Job(case, record, scan, pet, missing, current, not anatomy)


def init_participant_wf(job: Job, settings: Settings, on_gpu: bool = False):
    """The workflow of one scan.

    .. code-block:: text

        anatomy ──> synthesis (a node per tracer, GPU) ──> outputs (a node per tracer)

    Parameters
    ----------
    job
        What is to be done.
    on_gpu
        Mark the generator's nodes as GPU nodes, of which Nipype runs one at a time per GPU.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        Named after the case.

    Inputs
    ------
    None: the case is part of the nodes.

    Outputs
    -------
    Files in the output folder; see ``workflows.outputs``.
    """
    from nipype.pipeline import engine as pe

    from bids_petsynth.workflows.interfaces import AnalyseHead, Synthesise, WritePET

    workflow = pe.Workflow(name=job.case.label.replace("-", "_"))
    common = {"case": job.case, "settings": settings}
    resources = {"n_procs": settings.omp_nthreads, "mem_gb": 3.5}
    anatomy = pe.Node(
        AnalyseHead(**common, input_hash=job.scan_hash, write=job.write_anatomy), name="anatomy", **resources
    )
    workflow.add_nodes([anatomy])
    for tracer in job.tracers:
        asked = {**common, "input_hash": job.pet_hash, "record": job.record, "tracer": tracer}
        synthesis = pe.Node(Synthesise(**asked, use_gpu=on_gpu), name=f"synthesis_{tracer}", **resources)
        outputs = pe.Node(WritePET(**asked), name=f"outputs_{tracer}", **resources)
        workflow.connect(anatomy, "head_file", synthesis, "head_file")
        workflow.connect(synthesis, "draws_file", outputs, "draws_file")
        workflow.connect(synthesis, "head_file", outputs, "head_file")
    return workflow


def run(cases: Sequence[Case], settings: Settings, told: Callable[[Outcome], None] = lambda _: None) -> list[Outcome]:
    """Work through all cases and say how each ended.

    One case runs in this process; several run under Nipype's MultiProc where ``nprocs`` allows more than one.

    Parameters
    ----------
    told
        Called with each outcome as soon as it is known.
    """
    outcomes: list[Outcome] = []

    def note(case: Case, tracer: str | None, status: str, reason: str = "", keep: bool = True) -> None:
        if keep:
            record_status(settings.out_dir, case, tracer, status, reason)
        outcomes.append(Outcome(case, tracer, status, reason))
        told(outcomes[-1])

    jobs = []
    for case in cases:
        try:
            job = plan(case, settings)
        except UsageError:
            raise
        except PetsynthError as error:
            note(case, None, FAILED, str(error))
            continue
        for tracer in job.current:
            note(case, tracer, SKIPPED, "up to date")
        if job.tracers or job.write_anatomy:
            jobs.append(job)
    for batch in _batches(jobs, settings):
        _run_batch(batch, settings)
        for job in batch:
            for tracer in job.tracers or (None,):
                status, reason = _result(job, tracer, settings)
                note(job.case, tracer, status, reason, keep=status == FAILED)
        if settings.stop_on_first_crash and any(o.status == FAILED for o in outcomes):
            break
    write_status(settings.out_dir)
    write_cohort(settings.out_dir)
    return outcomes


def _batches(jobs: list[Job], settings: Settings) -> list[list[Job]]:
    """One job at a time in this process, or as many as keep the workers busy; results show after each batch."""
    size = 1 if settings.nprocs <= settings.omp_nthreads or len(jobs) == 1 else 4 * settings.nprocs
    return [jobs[i : i + size] for i in range(0, len(jobs), size)]


def _run_batch(jobs: list[Job], settings: Settings) -> None:
    """Run the workflows of some jobs; failures are in the status, not raised."""
    from nipype import config
    from nipype import logging as nipype_logging
    from nipype.pipeline import engine as pe

    on_gpu = steps.model_of(settings.model, settings.device).generator.device.startswith("cuda")
    keep = settings.work_dir is not None
    base = settings.work_dir or Path(tempfile.mkdtemp(prefix="petsynth_"))
    config.update_config(
        {
            "execution": {
                "crashdump_dir": str(settings.out_dir / "logs" / "nipype"),
                "crashfile_format": "txt",
                "stop_on_first_crash": str(settings.stop_on_first_crash).lower(),
                "poll_sleep_duration": "0.2",
                "remove_unnecessary_outputs": "true",
            },
            "logging": {"workflow_level": "ERROR", "interface_level": "ERROR", "utils_level": "ERROR"},
        }
    )
    nipype_logging.update_logging(config)
    for job in jobs:
        for tracer in job.tracers or (None,):  # a note from an earlier run must not speak for this one
            name = job.case.label + (f"_trc-{tracer}" if tracer else "")
            (settings.out_dir / "logs" / "status" / f"{name}.json").unlink(missing_ok=True)
        (settings.out_dir / "logs" / "status" / f"{job.case.label}.json").unlink(missing_ok=True)
    workflow = pe.Workflow(name="petsynth", base_dir=str(base))
    workflow.add_nodes([init_participant_wf(job, settings, on_gpu) for job in jobs])
    parallel = len(jobs) > 1 and settings.nprocs > 1
    arguments = {"n_procs": settings.nprocs, "memory_gb": _memory_gb(), "raise_insufficient": False}
    try:
        if parallel:
            # a forked worker inherits torch's threads in a broken state: workers start afresh
            from nipype.pipeline.plugins import MultiProcPlugin

            workflow.run(plugin=MultiProcPlugin(plugin_args={**arguments, "maxtasksperchild": 100}))
        else:
            workflow.run(plugin="Linear")
    except Exception as error:  # noted in the status by the node that failed; Nipype raises a summary at the end
        log.debug("Nipype: %s", error)
    finally:
        if keep:
            _drop_large_files(base)
        else:
            shutil.rmtree(base, ignore_errors=True)


def _result(job: Job, tracer: str | None, settings: Settings) -> tuple[str, str]:
    """How a job ended, from the notes that its nodes left."""
    import json

    folder = settings.out_dir / "logs" / "status"
    for name in ([f"{job.case.label}_trc-{tracer}"] if tracer else []) + [job.case.label]:
        path = folder / f"{name}.json"
        if path.is_file():
            row = json.loads(path.read_text())
            return row["status"], row["reason"]
    if tracer is None:
        model = steps.anatomy_sink(settings, job.scan_hash)
        if model.is_current(output_path(ANATOMY_KEY, job.case)):
            return DONE, ""
    return FAILED, (
        f"{job.case.label}: the worker ended without a result, most often because memory ran out; run it again with "
        "fewer --nprocs or more memory."
    )


def _memory_gb() -> float:
    """Memory that workers may share: nine tenths of the machine's, or of the container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return 0.9 * total / 2**30


def _drop_large_files(base: Path) -> None:
    """Heads and draws are only handed from node to node: a kept work directory does not hold them for ever."""
    for pattern in ("head.npz", "draws.npy"):
        for path in base.rglob(pattern):
            path.unlink(missing_ok=True)
