"""The JSON that is written beside each kind of output.

Sidecars say which clinical variables were used and their status, never their values unless that is asked for.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bids_petsynth.types import Case, ClinicalRecord


def has_regional_part(process: str) -> bool:
    """Whether a process, as sidecars name it, draws regional means first."""
    return process.startswith("regional flow")


@dataclass(frozen=True)
class Synthesis:
    """How the PET was made: the model (name, version, SHA-256 of its weights), its sampler and the settings of the run.

    ``demonstration`` marks a model that was trained on simulated PET; ``process`` and ``space`` are the recipe's kinds
    (``rectified-flow``, ``codec`` …). ``prompt`` tells how the record was put into words, ``text_encoder`` what read
    them; both are empty for models without a prompt. ``network`` names the network and what is added to it, ``inputs``
    what it was given of the person, of the scans that it may do without those that were there. ``calibrated`` says
    whether the spread of the draws was measured on held-out scans.
    """

    model: str
    version: str
    weights_sha256: str
    demonstration: bool
    sampler: str
    steps: int
    guidance: float
    seed: int
    n_draws: int
    process: str = ""
    space: str = ""
    prompt: str = ""
    text_encoder: str = ""
    network: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    calibrated: bool = True

    @property
    def centred(self) -> bool:
        """Whether the draws were centred on their expectation: those of models with a regional part are."""
        return has_regional_part(self.process)


_KINDS = {
    "mean": "mean over {n} draws",
    "std": "standard deviation over {n} draws (the model's uncertainty)",
    "draw": "one of {n} draws",
}


def bids_uri(path: Path, datasets: Mapping[str, Path]) -> str:
    """A file as BIDS URI: ``bids:<name>:<path>`` in one of the datasets, ``bids::<path>`` if relative (an output).

    The innermost dataset counts, as derivatives often lie inside the raw dataset. A link inside a dataset, of a file or
    a folder, belongs to it wherever it leads.
    """
    path = Path(path)
    if not path.is_absolute():
        return f"bids::{path.as_posix()}"
    roots = [(name, way(Path(root))) for name, root in datasets.items() for way in (Path.absolute, Path.resolve)]
    for place in (path, path.parent.resolve() / path.name):
        if within := [(name, root) for name, root in roots if place.is_relative_to(root)]:
            name, root = max(within, key=lambda item: len(item[1].parts))
            return f"bids:{name}:{place.relative_to(root).as_posix()}"
    raise ValueError(f"{path} lies in none of the datasets {', '.join(datasets)}.")


#: Packages whose versions decide what comes out.
_SOFTWARE = (
    "bids-petsynth",
    "antspyx",
    "monai",
    "nibabel",
    "nipype",
    "numpy",
    "pybids",
    "scipy",
    "templateflow",
    "torch",
)


def run_metadata(command: str, seed: int | None = None) -> dict[str, Any]:
    """The command line (if there was one) and the versions of Python and of the packages that matter.

    ``seed`` is added where no sampler tells it, as of a failure.
    """
    software = {"python": platform.python_version(), **{name: version(name) for name in _SOFTWARE}}
    run = {**({"Command": command} if command else {}), "Software": software}
    return run if seed is None else {**run, "Seed": seed}


def t1w_sidecar(case: Case, sources: Sequence[str]) -> dict[str, Any]:
    """For ``desc-preproc_T1w``."""
    notes = {"Notes": list(case.notes)} if case.notes else {}
    return {
        "Description": "T1w with its bias field corrected",
        "SkullStripped": False,
        "Sources": list(sources),
        **notes,
    }


def mask_sidecar(sources: Sequence[str]) -> dict[str, Any]:
    """For ``desc-brain_mask``."""
    return {"Description": "Brain mask from the label map", "Type": "Brain", "Sources": list(sources)}


def dseg_sidecar(
    sources: Sequence[str],
    quality: Mapping[str, float] | None = None,
    warnings: Sequence[str] = (),
    *,
    bias_correction: str = "",
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """For ``dseg``: with the figures of the anatomy's quality and what is doubtful about it.

    ``bias_correction`` says by what the T1w was corrected; ``run`` is what :func:`run_metadata` returns.
    """
    return {
        "Description": "Regions labelled by the built-in network; names of the codes in the TSV beside",
        "Manual": False,
        "Sources": list(sources),
        **({"BiasCorrection": bias_correction} if bias_correction else {}),
        **({"Quality": dict(quality)} if quality else {}),
        **({"Warnings": list(warnings)} if warnings else {}),
        **(run or {}),
    }


def probseg_sidecar(tissue: str, sources: Sequence[str]) -> dict[str, Any]:
    """For ``label-<tissue>_probseg``."""
    return {
        "Description": f"Probability of {tissue} by the labelling network",
        "Manual": False,
        "Sources": list(sources),
    }


def pet_sidecar(
    case: Case,
    kind: str,
    tracer: str,
    synthesis: Synthesis,
    record: ClinicalRecord,
    sources: Sequence[str],
    *,
    reference_region: str,
    spatial_reference: str,
    voxel_mm: float,
    used: Collection[str] | None = None,
    draw: int | None = None,
    record_values: bool = False,
    warnings: Sequence[str] = (),
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """For a synthetic PET image.

    Parameters
    ----------
    case
        Whose PET it is; its notes are repeated.
    kind, draw
        ``mean``, ``std`` or ``draw`` with its number.
    tracer
        As in the name.
    synthesis
        Model, sampler and settings.
    record, used, record_values
        The person's values; only the variables in ``used`` (those that the model knows; None for all) are listed, with
        their status and source, and with value and note only if ``record_values``.
    sources, spatial_reference
        BIDS URIs of the inputs and of the image whose space it is (or the name or address of a template).
    reference_region
        Region whose mean uptake is 1.
    voxel_mm
        Size of a voxel in mm.
    warnings
        Sentences on what is doubtful about this result.
    run
        What :func:`run_metadata` returns.
    """
    return {
        "Description": f"SYNTHETIC {tracer} PET, not measured: {_KINDS[kind].format(n=synthesis.n_draws)}"
        + (". Demonstration model: it was trained on simulated PET" if synthesis.demonstration else ""),
        "Synthetic": True,
        "TracerName": tracer,
        "Units": "unitless",
        "ReferenceRegion": reference_region,
        "SkullStripped": False,
        "SpatialReference": spatial_reference,
        "Resolution": f"{voxel_mm:g} mm isotropic",
        "Sources": list(sources),
        **synthesis_metadata(synthesis, record, used, record_values),
        **({"Draw": draw} if draw is not None else {}),
        **({"Notes": list(case.notes)} if case.notes else {}),
        **({"Warnings": list(warnings)} if warnings else {}),
        **(run or {}),
    }


def synthetic_t1w_sidecar(
    case: Case,
    kind: str,
    synthesis: Synthesis,
    record: ClinicalRecord,
    sources: Sequence[str],
    *,
    spatial_reference: str,
    voxel_mm: float,
    used: Collection[str] | None = None,
    draw: int | None = None,
    record_values: bool = False,
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """For a synthetic T1w; arguments as for :func:`pet_sidecar`."""
    return {
        "Description": f"SYNTHETIC T1w, not measured: {_KINDS[kind].format(n=synthesis.n_draws)}"
        + (". Demonstration model: it was trained on simulated PET" if synthesis.demonstration else ""),
        "Synthetic": True,
        "Units": "arbitrary, white matter about 1",
        "AlignedBy": "the measured T1w, which gave the grid and was not shown to the network",
        "SkullStripped": False,
        "SpatialReference": spatial_reference,
        "Resolution": f"{voxel_mm:g} mm isotropic",
        "Sources": list(sources),
        **synthesis_metadata(synthesis, record, used, record_values),
        **({"Draw": draw} if draw is not None else {}),
        **({"Notes": list(case.notes)} if case.notes else {}),
        **(run or {}),
    }


def table_sidecar(
    columns: Mapping[str, Mapping[str, Any]],
    tracer: str,
    synthesis: Synthesis,
    record: ClinicalRecord,
    sources: Sequence[str],
    used: Collection[str] | None = None,
    record_values: bool = False,
) -> dict[str, Any]:
    """For a table computed from synthetic PET; ``columns`` gives Description and Units of each."""
    return {
        "Description": f"Computed from SYNTHETIC {tracer} PET, nothing was measured",
        "Synthetic": True,
        "TracerName": tracer,
        "Sources": list(sources),
        **synthesis_metadata(synthesis, record, used, record_values),
        **{name: dict(text) for name, text in columns.items()},
    }


def synthesis_metadata(
    synthesis: Synthesis, record: ClinicalRecord, used: Collection[str] | None = None, record_values: bool = False
) -> dict[str, Any]:
    """Model, sampler and conditioning variables, as every file made from synthetic PET carries them."""
    variables = {}
    for name in sorted(record.values if used is None else used):
        value = record.values.get(name)
        entry: dict[str, Any] = {"Status": value.status if value else "missing"}
        if value and value.source:
            entry["Source"] = value.source
        if value and value.unit:
            entry["ConvertedFrom"] = value.unit
        if value and record_values:  # a note may quote the value, so it goes with it
            entry |= {"Value": value.value, "Note": value.note}
        variables[name] = entry
    return {
        "Model": {
            "Name": synthesis.model,
            "Version": synthesis.version,
            "WeightsSHA256": synthesis.weights_sha256,
            "Process": synthesis.process,
            "Space": synthesis.space,
            **({"Network": list(synthesis.network)} if synthesis.network else {}),
            **({"Inputs": list(synthesis.inputs)} if synthesis.inputs else {}),
        },
        "DemonstrationModel": synthesis.demonstration,
        "Sampler": {
            "Name": synthesis.sampler,
            "Steps": synthesis.steps,
            "Guidance": synthesis.guidance,
            "Seed": synthesis.seed,
            "Draws": synthesis.n_draws,
        },
        "Conditioning": variables,
        **({"Prompt": {"Style": synthesis.prompt, "Encoder": synthesis.text_encoder}} if synthesis.prompt else {}),
    }
