"""What is written for one scan: anatomical derivatives, synthetic PET, tables. Names come from ``bids.naming``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    t1w_sidecar,
    table_sidecar,
)
from bids_petsynth.bids.sink import Sink
from bids_petsynth.pet.quantification import suvr_rows, tacs_rows
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.settings import Settings, Space
from bids_petsynth.types import Case, ClinicalRecord

#: Written last of the anatomical outputs: its sidecar says that all of them are there.
ANATOMY_KEY = "dseg"
#: Written last of a tracer's outputs.
PET_KEY = "pet_mean"


def sources_of(case: Case, settings: Settings) -> list[str]:
    """BIDS URIs of the input images."""
    datasets = {"raw": settings.bids_dir, **settings.derivatives}
    files = [case.derivatives.get("preproc_t1w", case.t1w), case.derivatives.get("brain_mask")]
    return [bids_uri(Path(file).absolute(), _absolute(datasets)) for file in files if file]


def _absolute(datasets: dict[str, Path]) -> dict[str, Path]:
    return {name: Path(path).absolute() for name, path in datasets.items()}


def write_anatomy(sink: Sink, case: Case, head: Head, settings: Settings) -> None:
    """Bias-corrected T1w, brain mask, tissue probabilities, alignment, labels with their table."""
    sources = sources_of(case, settings)
    affine = head.t1w.affine
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
    sidecar = dseg_sidecar(sources, anatomy.quality, anatomy.warnings)
    sink.save_image(output_path(ANATOMY_KEY, case), head.labels, affine, sidecar)


def write_pet(
    sink: Sink,
    case: Case,
    pet: SyntheticPET,
    synthesis: Synthesis,
    record: ClinicalRecord,
    used: Sequence[str],
    settings: Settings,
    templates: dict[Space, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> None:
    """Draws (if asked for), standard deviation, tables, and last the mean.

    ``templates`` holds for every output space but T1w the mean and SD resampled into it, and its affine.
    """
    spec = tracer_named(pet.tracer)
    anatomy = pet.anatomy
    result = pet.quantification
    voxel = float(np.linalg.norm(anatomy.grid.affine[:3, 0]))
    sources = [*sources_of(case, settings), bids_uri(output_path(ANATOMY_KEY, case), {})]
    warnings = [*record.warnings, *anatomy.warnings, *result.notes]
    common = {"reference_region": spec.reference_name, "used": used, "record_values": settings.record_values}

    def sidecar(kind: str, space: Space, draw: int | None = None) -> dict:
        where = bids_uri(output_path("t1w", case), {}) if space.is_native else space.name
        return pet_sidecar(
            case,
            kind,
            pet.tracer,
            synthesis,
            record,
            sources,
            spatial_reference=where,
            voxel_mm=voxel if space.is_native else float(space.resolution),
            draw=draw,
            warnings=warnings,
            **common,
        )

    native = Space("T1w")
    res = round(voxel)
    affine = anatomy.grid.affine
    if settings.save_draws:
        for number, draw in enumerate(pet.draws, 1):
            path = output_path("pet_draw", case, tracer=pet.tracer, res=res, draw=number)
            sink.save_image(path, draw, affine, sidecar("draw", native, number))
    for space, (mean, std, where) in templates.items():
        entities = {"tracer": pet.tracer, "space": space.name, "res": space.resolution}
        sink.save_image(output_path("pet_std", case, **entities), std, where, sidecar("std", space), 4)
        sink.save_image(output_path("pet_mean", case, **entities), mean, where, sidecar("mean", space), 4)
    columns = {
        "frame_start": {"Description": "Start of the tracer's usual window after injection", "Units": "s"},
        "frame_end": {"Description": "End of the tracer's usual window after injection", "Units": "s"},
    }
    about = table_sidecar(columns, pet.tracer, synthesis, record, sources, used, settings.record_values)
    sink.save_tsv(output_path("regions", case, tracer=pet.tracer), tacs_rows(result, spec), sidecar=about)
    rows = suvr_rows(result)
    deviations = {row["name"]: row["sd"] for row in rows if row["index"] is not None}
    frame = {k: v for k, v in tacs_rows(result, spec)[0].items() if k in columns}
    sink.save_tsv(output_path("regions_std", case, tracer=pet.tracer), [{**frame, **deviations}], sidecar=about)
    sink.save_tsv(output_path("suvr", case, tracer=pet.tracer), rows, sidecar=about)
    sink.save_tsv(output_path("measures", case, tracer=pet.tracer), [measures(pet)], sidecar=about)
    std_path = output_path("pet_std", case, tracer=pet.tracer, res=res)
    sink.save_image(std_path, pet.std, affine, sidecar("std", native))
    mean_path = output_path(PET_KEY, case, tracer=pet.tracer, res=res)
    sink.save_image(mean_path, pet.mean, affine, sidecar("mean", native))


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
