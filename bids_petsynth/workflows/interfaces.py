"""Thin Nipype interfaces around the domain functions; what they hand on lies in the node's folder.

A node never raises: what went wrong is handed on as a sentence, the nodes after it pass it by, and the last one notes
it in the output folder's status. Nipype would otherwise write the node's inputs into crash files. For the same reason
the clinical record is no input of a node but is read where it is needed.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits

from bids_petsynth.bids.dataset import DONE, FAILED, record_status
from bids_petsynth.bids.sidecars import run_metadata
from bids_petsynth.errors import PetsynthError
from bids_petsynth.resources import available_cores
from bids_petsynth.settings import Settings
from bids_petsynth.types import Anatomy, Case, Grid
from bids_petsynth.workflows import steps


class _CaseSpec(BaseInterfaceInputSpec):
    case = traits.Instance(Case, mandatory=True)
    settings = traits.Instance(Settings, mandatory=True)
    use_gpu = traits.Bool(False, usedefault=True, desc="read by Nipype's MultiProc plugin")


class _AnatomyInput(_CaseSpec):
    input_hash = traits.Str(mandatory=True, desc="hash of the scan")
    write = traits.Bool(True, usedefault=True, desc="write the derivatives (False: they are up to date)")
    alone = traits.Bool(False, usedefault=True, desc="no tracer follows: note the outcome here")


class _AnatomyOutput(TraitedSpec):
    head_file = traits.Str(desc="the head on the model grid")
    warps = traits.Dict(desc="transform files by template")
    failure = traits.Str(desc="what went wrong, empty if nothing did")


class AnalyseHead(SimpleInterface):
    """T1w → labels, masks, alignment; writes the anatomical derivatives."""

    input_spec = _AnatomyInput
    output_spec = _AnatomyOutput

    def _run_interface(self, runtime):
        case, settings = self.inputs.case, self.inputs.settings
        self._results.update(head_file="", warps={})

        def work() -> None:
            head = steps.anatomy(case, settings, self.inputs.input_hash, self.inputs.write)
            if not self.inputs.alone:
                steps.ask(case, settings)
            self._results["warps"] = steps.warps(head, settings, Path(runtime.cwd))
            self._results["head_file"] = str(store_head(head, Path(runtime.cwd) / "head.npz"))

        failure = self._results["failure"] = attempt(work, settings, case.label)
        if self.inputs.alone:
            note_end(settings, case, None, failure)
        return runtime


class _SynthesisInput(_CaseSpec):
    tracer = traits.Str(mandatory=True)
    head_file = traits.Str(mandatory=True)
    failure = traits.Str(mandatory=True)


class _SynthesisOutput(TraitedSpec):
    draws_file = traits.Str(desc="draws in SUVR on the model grid")
    failure = traits.Str(desc="what went wrong here or before")


class Synthesise(SimpleInterface):
    """The generator: head and record → draws of one tracer. A GPU node where the device is one."""

    input_spec = _SynthesisInput
    output_spec = _SynthesisOutput

    def _run_interface(self, runtime):
        case, settings, tracer = self.inputs.case, self.inputs.settings, self.inputs.tracer
        path = Path(runtime.cwd) / "draws.npy"

        def work() -> None:
            head = load_head(Path(self.inputs.head_file))
            np.save(
                path, steps.draws(case, head, steps.record_of(case, settings), tracer, settings), allow_pickle=False
            )

        failure = self.inputs.failure or attempt(work, settings, f"{case.label}_trc-{tracer}")
        self._results.update(draws_file=str(path), failure=failure)
        return runtime


class _WriteInput(_SynthesisInput):
    input_hash = traits.Str(mandatory=True, desc="hash of the scan and of the variables that the model knows")
    draws_file = traits.Str(mandatory=True)
    warps = traits.Dict(mandatory=True)


class _WriteOutput(TraitedSpec):
    failure = traits.Str(desc="what went wrong here or before")


class WritePET(SimpleInterface):
    """Quantify the draws of one tracer, resample them where asked, write everything, note how it ended."""

    input_spec = _WriteInput
    output_spec = _WriteOutput

    def _run_interface(self, runtime):
        case, settings, tracer = self.inputs.case, self.inputs.settings, self.inputs.tracer
        warnings: list[str] = []

        def work() -> None:
            head = load_head(Path(self.inputs.head_file))
            draws = np.load(self.inputs.draws_file, allow_pickle=False)
            record = steps.record_of(case, settings)
            steps.outputs(case, head, draws, record, tracer, settings, self.inputs.input_hash, self.inputs.warps)
            limit = steps.limit_of(record, [tracer], settings)
            warnings.extend((*([limit] if limit else []), *record.warnings, *head.warnings))

        failure = self.inputs.failure or attempt(work, settings, f"{case.label}_trc-{tracer}")
        note_end(settings, case, tracer, failure, warnings)
        self._results["failure"] = failure
        return runtime


class _ReportInput(_CaseSpec):
    after = traits.List(traits.Str, mandatory=True, desc="what went wrong in the nodes that write the outputs")


class _ReportOutput(TraitedSpec):
    failure = traits.Str(desc="why the report could not be made, empty if it was")


class WriteReport(SimpleInterface):
    """The participant's probabilities and report from the files in the output folder, whether done or failed."""

    input_spec = _ReportInput
    output_spec = _ReportOutput

    def _run_interface(self, runtime):
        from threadpoolctl import threadpool_limits

        case, settings = self.inputs.case, self.inputs.settings
        with threadpool_limits(1):  # this node takes one core, and others run beside it
            # a failure of the classifier must not take the report along
            unclassified = attempt(lambda: steps.classified(case, settings), settings, f"{case.label}_classifier")
            self._results["failure"] = steps.report(settings, case.participant) or unclassified
        return runtime


def note_end(settings: Settings, case: Case, tracer: str | None, failure: str, warnings: Sequence[str] = ()) -> None:
    """Note how a case ended, with the run that it failed in or with its warnings."""
    if failure:
        about = run_metadata(settings.command, settings.seed)
        record_status(settings.out_dir, case, tracer, FAILED, failure, about)
    else:
        record_status(settings.out_dir, case, tracer, DONE, " ".join(warnings))


def attempt(work: Callable[[], Any], settings: Settings, name: str) -> str:
    """Do the work with the run's number of threads; return what to tell the user if it fails, else nothing."""
    import torch

    # a job of its own may have been granted fewer cores than the run that submitted it asks for
    torch.set_num_threads(min(settings.omp_nthreads, available_cores()))
    path = settings.out_dir / "logs" / f"{name}_crash.txt"
    path.unlink(missing_ok=True)
    try:
        work()
    except PetsynthError as error:
        return str(error)
    except Exception as error:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc())
        return f"{name}: stopped by an unexpected {type(error).__name__}; please report logs/{path.name}."
    return ""


def store_head(anatomy: Anatomy, path: Path) -> Path:
    """Write an anatomy as an uncompressed npz."""
    names = sorted(anatomy.quality)
    np.savez(
        path,
        t1w=anatomy.t1w,
        labels=anatomy.labels,
        probabilities=anatomy.probabilities,
        affine=anatomy.grid.affine,
        quality_names=np.array(names),
        quality=np.array([anatomy.quality[name] for name in names]),
        warnings=np.array(anatomy.warnings, dtype=str),
    )
    return path


def load_head(path: Path) -> Anatomy:
    """Read what :func:`store_head` wrote."""
    with np.load(path, allow_pickle=False) as data:
        quality = dict(zip(data["quality_names"].tolist(), data["quality"].tolist(), strict=True))
        t1w = data["t1w"]
        return Anatomy(
            t1w=t1w,
            labels=data["labels"],
            probabilities=data["probabilities"],
            grid=Grid(t1w.shape, data["affine"]),
            quality=quality,
            warnings=tuple(data["warnings"].tolist()),
        )
