"""The ``participant`` level: what there is to do, one Nipype workflow per scan, running them, and the tally."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bids_petsynth.bids.dataset import (
    DONE,
    FAILED,
    ended_note,
    forget_sessionless,
    record_begun,
    record_status,
    status_note,
    write_cohort,
    write_status,
)
from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.sidecars import run_metadata
from bids_petsynth.bids.sink import hash_key, make_hash_key
from bids_petsynth.errors import InputError, PetsynthError, UsageError
from bids_petsynth.models.conditioning import used_variables
from bids_petsynth.models.synthesizer import choose_device
from bids_petsynth.reports.content import participants_of
from bids_petsynth.resources import available_memory_gb
from bids_petsynth.settings import Settings
from bids_petsynth.types import Case, ClinicalRecord
from bids_petsynth.workflows import steps
from bids_petsynth.workflows.outputs import ANATOMY_KEY, last_of

log = logging.getLogger("bids_petsynth")

#: Seconds after which what another machine wrote is seen at the latest (network file systems remember what was absent).
_LATEST = 60
#: What to say of a node that left no result, by plugin.
_WORKER_LOST = "the worker ended without a result, most often because memory ran out; use fewer --nprocs or less --mem."
_LOST = {
    "Linear": _WORKER_LOST,
    "MultiProc": _WORKER_LOST,
    "SLURM": "the job ended without a result, most often because memory or time ran out; give jobs more of them "
    "(sbatch_args in the plugin file).",
}


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

    @property
    def parts(self) -> tuple[str | None, ...]:
        """What an outcome is due for: each tracer, or the anatomy alone (None)."""
        return self.tracers or (None,)

    @property
    def name(self) -> str:
        """Name of its workflow (Nipype takes letters, digits and underscores)."""
        return re.sub(r"\W", "_", self.case.label)


@dataclass(frozen=True)
class Outcome:
    """How one scan and tracer (None: the scan as a whole) ended: done, or failed for a ``reason``.

    Of what is done, ``reason`` holds the warnings.
    """

    case: Case
    tracer: str | None
    status: str
    reason: str = ""


def plan(case: Case, settings: Settings) -> Job:
    """Compare what a case needs with what stands in the output folder.

    Raises
    ------
    InputError
        If the case cannot be worked on.
    """
    if case.problem:
        raise InputError(case.problem)
    model = steps.description_of(settings.model)
    record = steps.record_of(case, settings)
    scan = steps.scan_hash(case)
    used = list(used_variables(record, model.recipe.conditioning.variables))
    pet = steps.pet_hash(scan, record, used, steps.pets_hash(case), hash_key(settings.out_dir))
    res = round(model.recipe.grid.voxel_size)
    current = tuple(
        tracer
        for tracer in settings.tracers
        if steps.pet_sink(settings, pet, tracer).is_current(last_of(case, tracer, res))
    )
    missing = tuple(tracer for tracer in settings.tracers if tracer not in current)
    anatomy = steps.anatomy_sink(settings, scan).is_current(output_path(ANATOMY_KEY, case))
    return Job(case, record, scan, pet, missing, current, not anatomy)


def init_participant_wf(job: Job, settings: Settings, on_gpu: bool = False):
    """The workflow of one scan.

    .. code-block:: text

        anatomy ──> synthesis (a node per tracer) ──> outputs (a node per tracer) ──> report

    Parameters
    ----------
    job
        What is to be done.
    on_gpu
        Mark the nodes that run networks as GPU nodes, of which Nipype runs one at a time per GPU.

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
    from nipype.interfaces.utility import Merge
    from nipype.pipeline import engine as pe

    from bids_petsynth.workflows.interfaces import AnalyseHead, Synthesise, WritePET, WriteReport

    workflow = pe.Workflow(name=job.name)
    common = {"case": job.case, "settings": settings}
    resources = {"n_procs": settings.omp_nthreads, "mem_gb": 3.5}
    anatomy = pe.Node(
        AnalyseHead(
            **common,
            input_hash=job.scan_hash,
            write=job.write_anatomy,
            alone=not job.tracers,
            use_gpu=on_gpu,
        ),
        name="anatomy",
        **resources,
    )
    report = pe.Node(WriteReport(**common), name="report", n_procs=1, mem_gb=2)
    done = pe.Node(Merge(len(job.parts)), name="done", run_without_submitting=True)
    workflow.connect(done, "out", report, "after")
    if not job.tracers:
        workflow.connect(anatomy, "failure", done, "in1")
    for number, tracer in enumerate(job.tracers, 1):
        synthesis = pe.Node(Synthesise(**common, tracer=tracer, use_gpu=on_gpu), f"synthesis_{tracer}", **resources)
        outputs = pe.Node(WritePET(**common, tracer=tracer, input_hash=job.pet_hash), f"outputs_{tracer}", **resources)
        workflow.connect(
            [
                (anatomy, synthesis, [("head_file", "head_file"), ("failure", "failure")]),
                (anatomy, outputs, [("head_file", "head_file"), ("warps", "warps")]),
                (synthesis, outputs, [("draws_file", "draws_file"), ("failure", "failure")]),
                (outputs, done, [("failure", f"in{number}")]),
            ]
        )
    return workflow


def run(cases: Sequence[Case], settings: Settings, told: Callable[[Outcome], None] = lambda _: None) -> list[Outcome]:
    """Work through all cases and say how each ended.

    One case runs in this process; several run under Nipype's MultiProc where ``nprocs`` allows more than one at a time.
    A worker that is lost (most often for memory) takes those beside it along; they are run again one by one.

    Parameters
    ----------
    told
        Called with each outcome as soon as it is known.
    """
    from bids_petsynth.reports.citation import write_citation

    make_hash_key(settings.out_dir)
    about = run_metadata(settings.command, settings.seed)
    outcomes: list[Outcome] = []
    unreported = forget_sessionless(settings.out_dir, settings.bids_dir, cases)

    def tell(case: Case, tracer: str | None, status: str, reason: str = "") -> None:
        outcomes.append(Outcome(case, tracer, status, reason))
        told(outcomes[-1])

    def fail(case: Case, tracer: str | None, reason: str) -> None:
        record_status(settings.out_dir, case, tracer, FAILED, reason, about)
        unreported.add(case.participant)
        tell(case, tracer, FAILED, reason)

    def stop() -> bool:
        return settings.stop_on_first_crash and any(outcome.status == FAILED for outcome in outcomes)

    jobs: list[Job] = []
    for case in cases:
        try:
            job = plan(case, settings)
        except InputError as error:
            fail(case, None, str(error))
            continue
        if limit := steps.limit_of(job.record, job.tracers, settings):
            log.warning("%s: %s", case.label, limit)
        unreadable = (status_note(settings.out_dir, case, None) or (DONE,))[0] == FAILED  # in an earlier run
        if unreadable:
            unreported.add(case.participant)
        for tracer in job.current:
            status, reason = status_note(settings.out_dir, case, tracer) or (FAILED, "")
            if unreadable or status != DONE:
                # what stands there keeps its warnings
                record_status(settings.out_dir, case, tracer, DONE, reason if status == DONE else "up to date")
            tell(case, tracer, DONE, "up to date")
        if unreadable and not (job.current or job.tracers or job.write_anatomy):
            record_status(settings.out_dir, case, None, DONE, "up to date")
        if job.tracers or job.write_anatomy:
            jobs.append(job)
    at_once = settings.nprocs // settings.omp_nthreads
    plugin = settings.plugin or ("MultiProc" if at_once > 1 and len(jobs) > 1 else "Linear")
    size = {"Linear": 1, "MultiProc": 4 * at_once, "SLURM": 200}[plugin]
    with _with_prompts(settings) as own:
        for start in range(0, len(jobs), size):
            if stop():
                break
            batch = jobs[start : start + size]
            reason = _run_batch(batch, own, plugin, tell)
            for job in batch if plugin == "MultiProc" else []:
                if lost := [part for part in job.parts if ended_note(settings.out_dir, job.case, part) is None]:
                    again = replace(job, tracers=tuple(filter(None, lost)))
                    reason = _run_batch([again], own, plugin, tell)
            known = {(outcome.case.label, outcome.tracer) for outcome in outcomes}
            for job in batch:
                for part in job.parts:
                    note = ended_note(settings.out_dir, job.case, part)
                    if note is None:
                        fail(job.case, part, f"{job.case.label}: {reason}")
                    elif (job.case.label, part) not in known:  # its worker was lost when all was written
                        tell(job.case, part, *note)
    # of what was up to date, the probabilities may be those of another classifier
    worked = {job.case.label for job in jobs}
    for case in cases:
        if not case.problem and case.label not in worked and steps.classified(case, settings):
            unreported.add(case.participant)
    own = {case.participant for case in cases}
    # a run over everybody reads everything; a task of an array reads what is its own
    anew = own.issuperset(participants_of(settings.out_dir))
    write_status(settings.out_dir, anew)
    write_cohort(settings.out_dir, anew)
    for participant in sorted(own):
        steps.report_unless_there(settings, participant, anew=participant in unreported)
    write_citation(settings.out_dir, anew)
    return outcomes


def _run_batch(jobs: list[Job], settings: Settings, plugin: str, tell: Callable[..., None]) -> str:
    """Run the workflows of some jobs, telling each outcome as it comes; return what to say of those that left none."""
    from nipype.pipeline import engine as pe

    from bids_petsynth.workflows.workers import QUIET, configured

    base = _temporary(settings.work_dir)
    execution = {
        "crashdump_dir": str(base),
        "crashfile_format": "txt",
        "create_report": "false",
        "job_finished_timeout": str(_LATEST),
        "poll_sleep_duration": "0.2",
        "remove_node_directories": "true",
        "stop_on_first_crash": "false",
    }
    due, about = {}, run_metadata(settings.command, settings.seed)
    for job in jobs:
        for part in job.parts:
            record_begun(settings.out_dir, job.case, part, about)
            due[f"petsynth.{job.name}.{f'outputs_{part}' if part else 'anatomy'}"] = (job.case, part)

    def finished(node, status: str) -> None:
        key = due.get(node.fullname)
        if status != "end" or not key:
            return
        latest = time.monotonic() + (_LATEST if plugin == "SLURM" else 0)
        while (note := ended_note(settings.out_dir, *key)) is None and time.monotonic() < latest:
            time.sleep(1)
        if note:
            del due[node.fullname]
            tell(*key, *note)

    on_gpu = choose_device(settings.device).startswith("cuda")
    reason = _LOST[plugin]
    try:
        with configured({"execution": execution, "logging": QUIET}):
            workflow = pe.Workflow(name="petsynth", base_dir=str(base))
            workflow.add_nodes([init_participant_wf(job, settings, on_gpu) for job in jobs])
            workflow.run(plugin=_plugin(plugin, settings, finished))
    except PetsynthError as error:
        reason = str(error)
    except RuntimeError as error:  # Nipype's summary of nodes that were lost
        log.debug("Nipype: %s", error)
    except Exception as error:
        reason = f"the workflow could not be run ({type(error).__name__}: {error}); please report this."
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return reason


def _temporary(work_dir: Path | None) -> Path:
    """A new folder in the work directory that only its owner may read."""
    try:
        return Path(tempfile.mkdtemp(prefix="petsynth_", dir=work_dir))
    except OSError as error:
        raise UsageError(
            f"The work directory {work_dir or 'of the system (TMPDIR)'} cannot be written to "
            f"({error.strerror}); choose another with --work-dir."
        ) from None


@contextmanager
def _with_prompts(settings: Settings) -> Iterator[Settings]:
    """The settings with a folder in which this run keeps what comes of asking a language model, if one is asked."""
    if settings.texts is None or settings.texts.endpoint is None:
        yield settings
        return
    folder = _temporary(settings.work_dir)
    try:
        yield replace(settings, texts=replace(settings.texts, prompts=folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plugin(name: str, settings: Settings, finished: Callable[..., None]):
    """Nipype's plugin of this name, which calls ``finished`` with each node and its status."""
    from nipype.pipeline.plugins import LinearPlugin

    from bids_petsynth.workflows.batch import Slurm
    from bids_petsynth.workflows.workers import Workers

    arguments = {**settings.plugin_args, "status_callback": finished}
    if name == "MultiProc":
        memory = settings.memory_gb or 0.9 * available_memory_gb()
        share = {"n_procs": settings.nprocs, "memory_gb": memory, "raise_insufficient": False}
        return Workers({**share, **arguments})
    return Slurm(arguments) if name == "SLURM" else LinearPlugin(plugin_args=arguments)
