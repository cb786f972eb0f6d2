"""Thin Nipype interfaces around the domain functions; what they hand on lies in the node's folder.

Each catches what the user must be told, notes it in the output folder's status, and raises it again, so that Nipype
drops the rest of this participant and goes on with the others.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from bids_petsynth.bids.dataset import DONE, FAILED, record_status
from bids_petsynth.errors import PetsynthError
from bids_petsynth.settings import Settings
from bids_petsynth.types import Anatomy, Case, ClinicalRecord, Grid
from bids_petsynth.workflows import steps


class _CaseSpec(BaseInterfaceInputSpec):
    case = traits.Instance(Case, mandatory=True, nohash=True)
    settings = traits.Instance(Settings, mandatory=True, nohash=True)
    input_hash = traits.Str(mandatory=True, desc="hash of the inputs; decides whether a stored result can be reused")


class _AnatomyOutput(TraitedSpec):
    head_file = File(desc="the head on the model grid")


class AnalyseHead(SimpleInterface):
    """T1w → labels, masks, alignment; writes the anatomical derivatives."""

    class input_spec(_CaseSpec):
        write = traits.Bool(True, usedefault=True, desc="write the derivatives (False: they are up to date)")

    output_spec = _AnatomyOutput

    def _run_interface(self, runtime):
        with _noted(self.inputs.settings, self.inputs.case, None):
            anatomy = steps.anatomy(self.inputs.case, self.inputs.settings, self.inputs.input_hash, self.inputs.write)
            self._results["head_file"] = str(_store_head(anatomy, Path(runtime.cwd) / "head.npz"))
        return runtime


class _SynthesisOutput(TraitedSpec):
    draws_file = File(desc="draws in SUVR on the model grid")
    head_file = File(desc="the head, handed on")


class Synthesise(SimpleInterface):
    """The generator: head and record → draws of one tracer. A GPU node where the device is one."""

    class input_spec(_CaseSpec):
        record = traits.Instance(ClinicalRecord, mandatory=True, nohash=True)
        tracer = traits.Str(mandatory=True)
        head_file = File(exists=True, mandatory=True)
        use_gpu = traits.Bool(False, usedefault=True, desc="read by Nipype's MultiProc plugin")

    output_spec = _SynthesisOutput

    def _run_interface(self, runtime):
        with _noted(self.inputs.settings, self.inputs.case, self.inputs.tracer):
            anatomy = load_head(Path(self.inputs.head_file))
            draws = steps.draws(anatomy, self.inputs.record, self.inputs.tracer, self.inputs.settings)
            path = Path(runtime.cwd) / "draws.npy"
            np.save(path, draws, allow_pickle=False)
            self._results.update(draws_file=str(path), head_file=self.inputs.head_file)
        return runtime


class _WriteOutput(TraitedSpec):
    done = traits.Bool()


class WritePET(SimpleInterface):
    """Quantify the draws of one tracer, resample them where asked, write everything."""

    class input_spec(_CaseSpec):
        record = traits.Instance(ClinicalRecord, mandatory=True, nohash=True)
        tracer = traits.Str(mandatory=True)
        head_file = File(exists=True, mandatory=True)
        draws_file = File(exists=True, mandatory=True)

    output_spec = _WriteOutput

    def _run_interface(self, runtime):
        case, settings, tracer = self.inputs.case, self.inputs.settings, self.inputs.tracer
        with _noted(settings, case, tracer):
            anatomy = load_head(Path(self.inputs.head_file))
            draws = np.load(self.inputs.draws_file, allow_pickle=False)
            folder = Path(runtime.cwd)
            steps.outputs(case, anatomy, draws, self.inputs.record, tracer, settings, self.inputs.input_hash, folder)
            record_status(settings.out_dir, case, tracer, DONE)
            self._results["done"] = True
        return runtime


@contextmanager
def _noted(settings: Settings, case: Case, tracer: str | None) -> Iterator[None]:
    """Set the node's threads; note a failure in the status before it is raised again."""
    import torch

    torch.set_num_threads(settings.omp_nthreads)
    try:
        yield
    except PetsynthError as error:
        record_status(settings.out_dir, case, tracer, FAILED, str(error))
        raise
    except Exception as error:
        name = f"{case.label}{'_trc-' + tracer if tracer else ''}_crash.txt"
        path = settings.out_dir / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc())
        sentence = f"{case.label}: stopped by an unexpected {type(error).__name__}; the details are in logs/{name}."
        record_status(settings.out_dir, case, tracer, FAILED, sentence)
        raise


def _store_head(anatomy: Anatomy, path: Path) -> Path:
    """An uncompressed npz: arrays, and the rest as numbers."""
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
    """Read what :func:`_store_head` wrote."""
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
