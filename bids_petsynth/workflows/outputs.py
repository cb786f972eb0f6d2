"""What is written for one scan: anatomical derivatives, synthetic PET, tables. Names come from ``bids.naming``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_petsynth.anatomy.head import Head
from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.api import SyntheticPET
from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.sidecars import (
    Synthesis,
    bids_uri,
    dseg_sidecar,
    mask_sidecar,
    pet_sidecar,
    probseg_sidecar,
    run_metadata,
    synthetic_t1w_sidecar,
    t1w_sidecar,
    table_sidecar,
)
from bids_petsynth.bids.sink import Sink
from bids_petsynth.models.conditioning import is_pet
from bids_petsynth.pet.quantification import suvr_rows, tacs_rows
from bids_petsynth.pet.tracers import CentiloidEquation, default_cutoff
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.settings import Settings, Space
from bids_petsynth.tables import read_table
from bids_petsynth.types import Case, ClinicalRecord, Grid

#: Written last of the anatomical outputs: its sidecar says that all of them are there.
ANATOMY_KEY = "dseg"
#: Written last of a tracer's outputs.
PET_KEY = "pet_mean"


def columns_of(table: str) -> dict[str, dict[str, str]]:
    """Description and units of a table's columns, from ``data/output_columns.tsv``."""
    rows = (row for row in read_table("output_columns.tsv") if row["table"] == table)
    return {
        row["column"]: {"Description": row["description"]} | ({"Units": row["units"]} if row["units"] else {})
        for row in rows
    }


def sources_of(case: Case, settings: Settings, given: Sequence[Path] = ()) -> list[str]:
    """BIDS URIs of the input images, those that were ``given`` beside the T1w among them."""
    datasets = {"raw": settings.bids_dir, **settings.derivatives}
    files = [case.derivatives.get("preproc_t1w", case.t1w), case.derivatives.get("brain_mask"), *given]
    return [bids_uri(Path(file).absolute(), datasets) for file in files if file]


def last_of(case: Case, target: str, res: int) -> Path:
    """What is written last of a target's outputs: its sidecar says that all of them are there."""
    if is_pet(target):
        return output_path(PET_KEY, case, tracer=target, res=res)
    return output_path("t1w_mean", case, res=res)


def write_t1w(
    sink: Sink,
    case: Case,
    draws: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    grid: Grid,
    synthesis: Synthesis,
    record: ClinicalRecord,
    used: Mapping[str, str],
    settings: Settings,
    templates: Mapping[Space, tuple[np.ndarray, np.ndarray, np.ndarray]],
    given: Sequence[Path],
) -> None:
    """A synthetic T1w: draws ``(M, X, Y, Z)`` (if asked for), their standard deviation, and last their mean.

    ``templates`` and ``given`` are those of :func:`write_pet`.
    """
    native, voxel = Space("T1w"), _voxel(grid.affine)
    res = round(voxel)
    sources = sources_of(case, settings, given)

    def about(kind: str, space: Space = native, voxel: float = voxel, draw: int | None = None) -> dict[str, Any]:
        return synthetic_t1w_sidecar(
            case,
            kind,
            synthesis,
            record,
            sources,
            spatial_reference=bids_uri(output_path("t1w", case), {}) if space.is_native else space.name,
            voxel_mm=voxel,
            used=used,
            draw=draw,
            record_values=settings.record_values,
            run=run_metadata(settings.command),
        )

    # an earlier run may have written more draws or other spaces
    sink.forget(output_path("t1w_mean", case, res=res))
    for old in (sink.out_dir / output_path("t1w", case)).parent.glob(f"{case.label}_space-*_desc-synth*_T1w.*"):
        old.unlink(missing_ok=True)
    for number, draw in enumerate(draws if settings.save_draws else (), 1):
        path = output_path("t1w_draw", case, res=res, draw=number)
        sink.save_image(path, draw, grid.affine, about("draw", draw=number))
    for space, (there, spread, affine) in templates.items():
        where = {"space": space.name, "res": space.resolution}
        sink.save_image(output_path("t1w_std", case, **where), spread, affine, about("std", space, _voxel(affine)), 4)
        sink.save_image(output_path("t1w_mean", case, **where), there, affine, about("mean", space, _voxel(affine)), 4)
    sink.save_image(output_path("t1w_std", case, res=res), std, grid.affine, about("std"))
    sink.save_image(output_path("t1w_mean", case, res=res), mean, grid.affine, about("mean"))


def write_anatomy(sink: Sink, case: Case, head: Head, settings: Settings) -> None:
    """Bias-corrected T1w, brain mask, tissue probabilities, alignment, labels with their table."""
    sources = sources_of(case, settings)
    affine = head.t1w.affine
    sink.forget(output_path(ANATOMY_KEY, case))
    sink.save_image(output_path("t1w", case), head.t1w.data, affine, t1w_sidecar(case, sources))
    sink.save_image(output_path("brain_mask", case), head.mask, affine, mask_sidecar(sources))
    for tissue, values in head.tissues.items():
        sink.save_image(output_path("probseg", case, tissue=tissue), values, affine, probseg_sidecar(tissue, sources))
    matrix = np.array2string(head.alignment.to_template, precision=8, suppress_small=True, separator=" ")
    text = "# scanner mm to template mm, rigid, RAS+\n" + matrix.replace("[", "").replace("]", "") + "\n"
    sink.save_text(output_path("xfm", case, to="petsynth"), text)
    counts = np.bincount(head.labels.ravel(), minlength=256) * head.t1w.grid.voxel_volume
    table = [
        {"index": code, "name": name, "volume-mm3": round(float(counts[code]), 1)} for code, name, _, _ in lookup()
    ]
    sink.save_tsv(output_path("morph", case), table)
    names = [
        {"index": code, "name": name, "hemisphere": side, "tissue": region.tissue, "lobe": region.lobe}
        for code, name, side, region in lookup()
    ]
    sink.save_tsv(output_path("dseg_table", case), names)
    anatomy = head.anatomy
    sidecar = dseg_sidecar(
        sources,
        anatomy.quality,
        anatomy.warnings,
        bias_correction=bias_correction("preproc_t1w" in case.derivatives),
        run=run_metadata(settings.command),
    )
    sink.save_image(output_path(ANATOMY_KEY, case), head.labels, affine, sidecar)


def write_pet(
    sink: Sink,
    case: Case,
    pet: SyntheticPET,
    settings: Settings,
    templates: Mapping[Space, tuple[np.ndarray, np.ndarray, np.ndarray]],
    given: Sequence[Path] = (),
) -> None:
    """Draws (if asked for), standard deviation, tables, and last the mean.

    ``templates`` holds for every output space but T1w the mean and SD resampled into it, and its affine; ``given`` are
    the real scans beside the T1w that the model was shown.
    """
    spec = tracer_named(pet.tracer)
    result, grid = pet.quantification, pet.anatomy.grid
    native, voxel = Space("T1w"), _voxel(grid.affine)
    res = round(voxel)
    sources = [*sources_of(case, settings, given), bids_uri(output_path(ANATOMY_KEY, case), {})]

    def about(kind: str, space: Space = native, voxel: float = voxel, draw: int | None = None) -> dict[str, Any]:
        return pet_sidecar(
            case,
            kind,
            pet.tracer,
            pet.synthesis,
            pet.record,
            sources,
            reference_region=spec.reference_name,
            spatial_reference=bids_uri(output_path("t1w", case), {}) if space.is_native else space.name,
            voxel_mm=voxel,
            used=pet.used,
            draw=draw,
            record_values=settings.record_values,
            warnings=pet.warnings,
            run=run_metadata(settings.command),
        )

    def place(kind: str, **entities: str | int) -> Path:
        return output_path(kind, case, tracer=pet.tracer, **entities)

    # an earlier run may have written more draws or other spaces
    sink.forget(place(PET_KEY, res=res))
    for old in (sink.out_dir / place("regions")).parent.glob(f"{case.label}_trc-{pet.tracer}_*"):
        old.unlink(missing_ok=True)
    if settings.save_draws:
        for number, draw in enumerate(pet.draws, 1):
            path = place("pet_draw", res=res, draw=number)
            sink.save_image(path, draw, grid.affine, about("draw", draw=number))
    for space, (mean, std, affine) in templates.items():
        where = {"space": space.name, "res": space.resolution}
        sink.save_image(place("pet_std", **where), std, affine, about("std", space, _voxel(affine)), 4)
        sink.save_image(place("pet_mean", **where), mean, affine, about("mean", space, _voxel(affine)), 4)
    rows, tacs = suvr_rows(result), tacs_rows(result, spec)
    frame = {name: tacs[0][name] for name in columns_of("tacs")}
    deviations = {row["name"]: row["sd"] for row in rows if row["index"] is not None}

    def dictionary(table: str) -> dict[str, Any]:
        made = (pet.tracer, pet.synthesis, pet.record, sources, pet.used, settings.record_values)
        return table_sidecar(columns_of(table), *made)

    sink.save_tsv(place("regions"), tacs, sidecar=dictionary("tacs"))
    sink.save_tsv(place("regions_std"), [{**frame, **deviations}], sidecar=dictionary("tacs"))
    sink.save_tsv(place("suvr"), rows, sidecar=dictionary("suvr"))
    if pet.sensitivity:
        sink.save_tsv(place("sensitivity"), pet.sensitivity, sidecar=dictionary("sensitivity"))
    about_centiloid = centiloid_metadata(result.equation)
    sink.save_tsv(place("measures"), [measures(pet)], sidecar={**dictionary("measures"), **about_centiloid})
    sink.save_image(place("pet_std", res=res), pet.std, grid.affine, about("std"))
    sink.save_image(place(PET_KEY, res=res), pet.mean, grid.affine, about("mean"))


def bias_correction(given: bool) -> str:
    """By what the T1w is bias-corrected: a preprocessed one is ``given``."""
    return "by the preprocessed dataset" if given else "N4"


def centiloid_metadata(equation: CentiloidEquation | None) -> dict[str, Any]:
    """The equation and the cut-off behind Centiloid and probability; nothing for a tracer without equation."""
    if equation is None:
        return {}
    cutoff = default_cutoff()
    return {
        "CentiloidEquation": {
            "Pipeline": equation.pipeline,
            "Slope": equation.slope,
            "Intercept": equation.intercept,
            "Source": equation.source,
        },
        "PositivityCutoff": {"Name": cutoff.name, "Centiloid": cutoff.centiloid, "Source": cutoff.source},
    }


def planned(case: Case, tracer: str, settings: Settings, res: int) -> list[Path]:
    """The images and tables that a run writes for one tracer, anatomy left out."""
    image = "pet" if is_pet(tracer) else "t1w"
    kinds = [(f"{image}_mean", {"res": res}), (f"{image}_std", {"res": res})]
    if settings.save_draws:
        kinds += [(f"{image}_draw", {"res": res, "draw": number + 1}) for number in range(settings.n_draws)]
    for space in settings.spaces:
        if not space.is_native:
            where = {"space": space.name, "res": space.resolution}
            kinds += [(f"{image}_mean", where), (f"{image}_std", where)]
    if image == "t1w":
        return [output_path(kind, case, **entities) for kind, entities in kinds]
    kinds += [(name, {}) for name in ("suvr", "measures", "sensitivity", "regions", "regions_std")]
    return [output_path(kind, case, tracer=tracer, **entities) for kind, entities in kinds]


def _voxel(affine: np.ndarray) -> float:
    """Size of an isotropic voxel in mm."""
    return float(np.linalg.norm(affine[:3, 0]))


def measures(pet: SyntheticPET) -> dict[str, object]:
    """The few figures that sum a scan up: target SUVR and Centiloid with 95 % intervals, probability of positivity."""
    result = pet.quantification
    target, centiloid = result.target.suvr, result.centiloid
    return {
        "target": result.target.name,
        "target_suvr": target and target.mean,
        "target_suvr_sd": target and target.sd,
        "target_suvr_low95": target and target.interval95 and target.interval95[0],
        "target_suvr_high95": target and target.interval95 and target.interval95[1],
        "centiloid_approximate": centiloid and centiloid.mean,
        "centiloid_low95": centiloid and centiloid.interval95 and centiloid.interval95[0],
        "centiloid_high95": centiloid and centiloid.interval95 and centiloid.interval95[1],
        "probability_positive": result.probability_positive,
        "n_draws": result.n_draws,
    }
