"""The steps of one scan as plain functions: Nipype calls them through ``interfaces``, and nothing here knows it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from bids_petsynth.anatomy.volume import read_t1w
from bids_petsynth.api import Synthesizer, summarise
from bids_petsynth.bids.sidecars import Synthesis
from bids_petsynth.bids.sink import Sink, hash_file, hash_settings
from bids_petsynth.errors import InputError
from bids_petsynth.settings import Settings, Space
from bids_petsynth.types import Anatomy, Case, ClinicalRecord
from bids_petsynth.workflows.outputs import write_anatomy, write_pet


@lru_cache(maxsize=1)
def model_of(folder: Path | None, device: str) -> Synthesizer:
    """The model, loaded once per process."""
    return Synthesizer.load(folder, device)


def scan_hash(case: Case) -> str:
    """Hash of the input images' content.

    Raises
    ------
    InputError
        If one of them cannot be read.
    """
    files = [case.derivatives.get("preproc_t1w", case.t1w), case.derivatives.get("brain_mask")]
    try:
        return hash_settings([hash_file(file) for file in files if file])
    except OSError as error:
        raise InputError(
            f"{case.label}: {Path(error.filename or case.t1w).name} cannot be read ({error.strerror}); "
            "check the link or the permissions."
        ) from None


def pet_hash(scan: str, record: ClinicalRecord, used: list[str]) -> str:
    """Hash of what a synthetic scan depends on: the images and the variables that the model knows."""
    return hash_settings([scan, {name: record.get(name) for name in used}])


def anatomy_sink(settings: Settings, input_hash: str) -> Sink:
    """Where anatomical outputs go."""
    return Sink(settings.out_dir, hash_settings(settings.of_anatomy()), input_hash)


def pet_sink(settings: Settings, input_hash: str, tracer: str, model: str) -> Sink:
    """Where the outputs of one tracer go."""
    return Sink(settings.out_dir, hash_settings(settings.of_synthesis(tracer, model)), input_hash)


def anatomy(case: Case, settings: Settings, input_hash: str, write: bool) -> Anatomy:
    """Read, check, label and align the T1w; write its derivatives unless they are up to date."""
    model = model_of(settings.model, settings.device)
    preprocessed = case.derivatives.get("preproc_t1w")
    mask = case.derivatives.get("brain_mask")
    t1w = read_t1w(preprocessed or case.t1w, case.label)
    head = model.analyse(
        t1w,
        case.label,
        mask=None if mask is None else read_t1w(mask, case.label),
        corrected=preprocessed is not None,
        seed=settings.seed,
    )
    if write:
        write_anatomy(anatomy_sink(settings, input_hash), case, head, settings)
    return head.anatomy


def draws(head: Anatomy, record: ClinicalRecord, tracer: str, settings: Settings) -> np.ndarray:
    """Draws of one tracer in SUVR, ``(M, X, Y, Z)``."""
    model = model_of(settings.model, settings.device)
    return model.draw(head, record, tracer, settings.n_draws, settings.seed)


def outputs(
    case: Case,
    head: Anatomy,
    volumes: np.ndarray,
    record: ClinicalRecord,
    tracer: str,
    settings: Settings,
    input_hash: str,
    folder: Path,
) -> None:
    """Quantify and write one tracer's outputs; ``folder`` is for intermediate files."""
    from bids_petsynth.anatomy.normalisation import register

    generator = model_of(settings.model, settings.device).generator
    pet = summarise(head, volumes, tracer)
    templates: dict[Space, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for space in settings.spaces:
        if not space.is_native:
            found = register(head, space.name, space.resolution, folder, settings.seed)
            mean, affine = found.apply(pet.mean, head.grid.affine)
            templates[space] = (mean, found.apply(pet.std, head.grid.affine)[0], affine)
    used = list(generator.used_variables(record))
    sink = pet_sink(settings, input_hash, tracer, generator.model.fingerprint)
    write_pet(sink, case, pet, synthesis_of(settings), record, used, settings, templates)


def synthesis_of(settings: Settings) -> Synthesis:
    """How this run makes PET, for the sidecars."""
    model = model_of(settings.model, settings.device).generator.model
    process = model.recipe.process
    return Synthesis(
        model=model.recipe.name,
        version=model.version,
        weights_sha256=model.weights_sha256,
        demonstration=model.demonstration,
        sampler=process.solver,
        steps=process.steps,
        guidance=process.guidance,
        seed=settings.seed,
        n_draws=settings.n_draws,
    )
