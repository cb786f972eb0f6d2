"""The steps of one scan as plain functions: Nipype calls them through ``interfaces``, and nothing here knows it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from bids_petsynth.anatomy.segmentation import weights_hash
from bids_petsynth.anatomy.volume import read_t1w
from bids_petsynth.api import Synthesizer, summarise, synthesis_of
from bids_petsynth.bids.dataset import newest_note
from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.sidecars import run_metadata, synthesis_metadata
from bids_petsynth.bids.sink import Sink, hash_file, hash_settings
from bids_petsynth.bids.tables import dataset_rows
from bids_petsynth.clinical.language import TextOptions, read_notes
from bids_petsynth.clinical.limits import untold
from bids_petsynth.clinical.mapping import read_mapping
from bids_petsynth.clinical.records import read_record
from bids_petsynth.errors import InputError
from bids_petsynth.models.conditioning import is_pet, used_variables
from bids_petsynth.models.folder import Model, load_model
from bids_petsynth.models.synthesizer import Synthesizer as Generator
from bids_petsynth.models.synthesizer import built_in, reader_of
from bids_petsynth.pet.tracers import centiloid_equation
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.settings import Settings, Space
from bids_petsynth.types import Anatomy, Case, ClinicalRecord, OtherScan, PetScan
from bids_petsynth.workflows.outputs import bias_correction, centiloid_metadata, write_anatomy, write_pet, write_t1w

log = logging.getLogger("bids_petsynth")


@lru_cache(maxsize=1)
def model_of(folder: Path | None, device: str, texts: TextOptions | None = None) -> Synthesizer:
    """The model on its device, loaded once per process."""
    return Synthesizer.load(folder, device, texts)


@lru_cache(maxsize=1)
def description_of(folder: Path | None) -> Model:
    """The model on the CPU, to read off what it knows: the parent of workers must not start CUDA."""
    return load_model(folder or built_in())


def record_of(case: Case, settings: Settings) -> ClinicalRecord:
    """The clinical record of a case from the dataset's tables, warnings of the reading included."""
    rows, warnings = dataset_rows(settings.bids_dir, case.participant, case.session)
    mapping = read_mapping(settings.mapping) if settings.mapping else None
    sessions = list((settings.bids_dir / f"sub-{case.participant}").glob("ses-*")) if case.session else []
    record = read_record(
        rows, mapping, scan_date=case.t1w_date, session=case.session, several_sessions=len(sessions) > 1
    )
    columns = settings.texts.notes_columns if settings.texts else ()
    notes = read_notes(rows, case.participant, case.session, columns, mapping)
    return replace(record, warnings=(*warnings, *record.warnings), notes=notes)


def pets_hash(case: Case) -> list[str]:
    """Hashes of the real scans that a case brings along beside its T1w.

    Raises
    ------
    InputError
        If one of them cannot be read.
    """
    pets = [_hash_of(pet.path, case) + hash_settings(dict(pet.sidecar)) for pet in case.pets]
    return [*pets, *(scan.modality + _hash_of(scan.path, case) for scan in case.others)]


def scan_hash(case: Case) -> str:
    """Hash of the input images' content.

    Raises
    ------
    InputError
        If one of them cannot be read.
    """
    files = [case.derivatives.get("preproc_t1w", case.t1w), case.derivatives.get("brain_mask")]
    return hash_settings([_hash_of(file, case) for file in files if file])


def _hash_of(file: Path, case: Case) -> str:
    """Hash of an image's content; ``InputError`` if it cannot be read."""
    try:
        return hash_file(file)
    except OSError as error:
        raise InputError(
            f"{case.label}: {file.name} cannot be read ({error.strerror}); check the link or the permissions."
        ) from None


def pet_hash(scan: str, record: ClinicalRecord, used: Sequence[str], pets: Sequence[str] = (), key: str = "") -> str:
    """Hash of what a synthetic scan depends on: the images and the variables that the model knows.

    ``key`` is the output folder's (``bids.sink.hash_key``).
    """
    values = {name: record.get(name) for name in used}
    return hash_settings([key, scan, values, *([record.notes] if record.notes else []), *pets])


def anatomy_sink(settings: Settings, input_hash: str) -> Sink:
    """Where anatomical outputs go; its hash covers all that they depend on beside the scan."""
    grid = description_of(settings.model).recipe.grid.model_dump(mode="json")
    about = [settings.of_anatomy(), weights_hash(), grid, version("bids-petsynth")]
    return Sink(settings.out_dir, hash_settings(about), input_hash)


def pet_sink(settings: Settings, input_hash: str, tracer: str) -> Sink:
    """Where the outputs of one tracer go; its hash covers all that they depend on beside scan and record."""
    model = description_of(settings.model).fingerprint
    about = [settings.of_synthesis(tracer), weights_hash(), model, version("bids-petsynth")]
    if description_of(settings.model).recipe.conditioning.text is not None:
        about.append((settings.texts or TextOptions()).identity)
    return Sink(settings.out_dir, hash_settings(about), input_hash)


def anatomy(case: Case, settings: Settings, input_hash: str, write: bool) -> Anatomy:
    """Read, check, label and align the T1w; write its derivatives unless they are up to date."""
    model = model_of(settings.model, settings.device, settings.texts)
    preprocessed = case.derivatives.get("preproc_t1w")
    mask = case.derivatives.get("brain_mask")
    head = model.analyse(
        read_t1w(preprocessed or case.t1w, case.label),
        case.label,
        mask=None if mask is None else read_t1w(mask, case.label),
        corrected=preprocessed is not None,
        seed=settings.seed,
    )
    if write:
        write_anatomy(anatomy_sink(settings, input_hash), case, head, settings)
    return head.anatomy


def ask(case: Case, settings: Settings) -> None:
    """Ask for the prompt of a case where a language model writes it: once, for all tracers and nodes of the run."""
    texts = model_of(settings.model, settings.device, settings.texts).generator.texts
    if texts is not None and texts.style == "llm":
        record = record_of(case, settings)
        texts.prompt(record, record.notes)


def warps(head: Anatomy, settings: Settings, folder: Path) -> dict[str, list[str]]:
    """Registrations to the templates that were asked for: name → transform files in ``folder``."""
    from bids_petsynth.anatomy.normalisation import register

    names = {space.name for space in settings.spaces if not space.is_native}
    return {name: list(register(head, name, folder, settings.seed)) for name in sorted(names)}


def draws(case: Case, head: Anatomy, record: ClinicalRecord, tracer: str, settings: Settings) -> np.ndarray:
    """Draws of one tracer in SUVR, ``(M, X, Y, Z)``."""
    model = model_of(settings.model, settings.device, settings.texts)
    scans = given_scans(case, tracer, settings)
    if not scans and not is_pet(tracer):
        raise InputError(
            f"{case.label}: there is no real scan to draw a {tracer} from; add PET of one of the model's sources, or "
            f"leave --target {tracer} out."
        )
    given = {scan.modality: scan_on(head, scan, settings) for scan in scans}
    return model.draw(head, record, tracer, settings.n_draws, settings.seed, case.label, given)


def given_scans(case: Case, target: str, settings: Settings) -> list[PetScan | OtherScan]:
    """The case's real scans beside the T1w that the model is given to draw a target."""
    scans = [*case.pets, *case.others]
    there = {"T1w", *(scan.modality for scan in scans)}
    taken = description_of(settings.model).taken(there, target)
    return [scan for scan in scans if scan.modality in taken]


def scan_on(head: Anatomy, scan: PetScan | OtherScan, settings: Settings) -> np.ndarray:
    """A real scan on the model grid, prepared as in training: PET in SUVR, others with white matter at 1.

    Raises
    ------
    InputError
        If it cannot be used.
    """
    from bids_petsynth.anatomy.others import prepare_other
    from bids_petsynth.pet.preparation import prepare_pet

    if isinstance(scan, OtherScan):
        return prepare_other(scan, head, settings.seed)
    model, spec = description_of(settings.model), tracer_named(scan.tracer)
    return prepare_pet(scan, head, spec, model.source_window, model.source_fwhm, seed=settings.seed).suvr


def outputs(
    case: Case,
    head: Anatomy,
    volumes: np.ndarray,
    record: ClinicalRecord,
    tracer: str,
    settings: Settings,
    input_hash: str,
    transforms: Mapping[str, Sequence[str]],
) -> None:
    """Quantify and write one tracer's outputs, in every output space."""
    from bids_petsynth.anatomy.normalisation import into_template

    model = description_of(settings.model)
    generator = Generator(model, texts=reader_of(model, settings.texts))
    given = given_scans(case, tracer, settings)
    names = [scan.modality for scan in given]
    if is_pet(tracer):
        pet = summarise(head, volumes, record, tracer, generator, settings.seed, case.label, names)
        mean, std = pet.mean, pet.std
    else:
        mean = volumes.mean(0)
        std = volumes.std(0, ddof=1) if len(volumes) > 1 else np.zeros_like(mean)
    affine = head.grid.affine
    templates: dict[Space, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for space in settings.spaces:
        if not space.is_native:
            files = transforms[space.name]
            there, where = into_template(mean, affine, space.name, space.resolution, files)
            spread, _ = into_template(std, affine, space.name, space.resolution, files)
            templates[space] = (there, spread, where)
    paths, sink = [scan.path for scan in given], pet_sink(settings, input_hash, tracer)
    if generator.texts and generator.texts.prompt(record, record.notes).warning:
        # not made as the settings ask, and so not up to date: the next run asks again
        sink = replace(sink, settings_hash="")
    if is_pet(tracer):
        write_pet(sink, case, pet, settings, templates, paths)
        return
    made = synthesis_of(model, settings.seed, len(volumes), tracer, names)
    used = used_variables(record, model.recipe.conditioning.variables)
    write_t1w(sink, case, volumes, mean, std, head.grid, made, record, used, settings, templates, paths)


def limit_of(record: ClinicalRecord, tracers: Sequence[str], settings: Settings) -> str:
    """What a record cannot tell of amyloid or tau, in a sentence; nothing if there is no such tracer."""
    used = used_variables(record, description_of(settings.model).recipe.conditioning.variables)
    sentences = (untold(used, tracer_named(tracer).target_class) for tracer in tracers if is_pet(tracer))
    return " ".join(dict.fromkeys(filter(None, sentences)))


def classified(case: Case, settings: Settings) -> bool:
    """Write the probabilities of ``--classifier``; whether they changed. A sentence is logged where there are none."""
    from bids_petsynth.workflows.classification import classify

    if settings.classifier is None:
        return False
    try:
        return classify(case, record_of(case, settings), settings)
    except InputError as error:
        log.warning("%s", error)
        return False


def report(settings: Settings, participant: str) -> str:
    """Write a participant's report; a sentence if that failed, which is also logged."""
    from bids_petsynth.reports.participant import try_report

    failure = try_report(settings.out_dir, participant, settings.model or built_in())
    if failure:
        log.warning("%s", failure)
    return failure


def report_unless_there(settings: Settings, participant: str, anew: bool) -> None:
    """Write a participant's report where a run left none or an older one, or if no workflow could report a failure."""
    path = settings.out_dir / output_path("report", Case(participant, None, None))
    if anew or not path.is_file() or path.stat().st_mtime < newest_note(settings.out_dir, participant):
        report(settings, participant)


def planned_citation(settings: Settings, cases: Sequence[Case] = ()) -> None:
    """Write the methods text of what a run with these settings would do.

    ``cases`` tell which T1w come from a preprocessed dataset; without any, none does.
    """
    from bids_petsynth.reports.boilerplate import methods
    from bids_petsynth.reports.citation import write_methods
    from bids_petsynth.reports.content import Pet, Scan

    model = description_of(settings.model)
    run = run_metadata(settings.command)
    known = [spec.name for spec in model.recipe.conditioning.variables]
    draws = 1 if model.recipe.draws_alike else settings.n_draws
    abouts = {
        tracer: synthesis_metadata(synthesis_of(model, settings.seed, draws, tracer), ClinicalRecord({}), known)
        for tracer in settings.tracers
    }
    spaces = [space.name for space in settings.spaces if not space.is_native]
    case, nowhere = Case("planned", None, None), Path()
    pets = [
        Pet(
            tracer=tracer_named(tracer),
            mean=nowhere,
            std=nowhere,
            about={**abouts[tracer], **run},
            regions=(),
            measures={"target": tracer_named(tracer).default_target},
            centiloid=centiloid_metadata(centiloid_equation(tracer)),
            spaces=spaces,
        )
        for tracer in settings.tracers
        if is_pet(tracer)
    ]
    given = {"preproc_t1w" in case.derivatives for case in cases if not case.problem} or {False}
    drawn = abouts["T1w"] | run if "T1w" in abouts else {}
    anatomies = [{"BiasCorrection": bias_correction(each), **run} for each in given]
    found = methods([Scan(case, None, None, None, about, pets, {}, drawn_about=drawn) for about in anatomies])
    if found:
        write_methods(settings.out_dir, found)
