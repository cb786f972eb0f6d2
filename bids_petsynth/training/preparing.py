"""A site's heads and scans on the model grid, prepared with the project's own labels and kept for the next run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_petsynth.anatomy.segmentation import weights_hash
from bids_petsynth.bids.pets import Pair, preference, surplus
from bids_petsynth.bids.sink import hash_file, hash_settings, write_bytes
from bids_petsynth.errors import InputError, PetsynthError
from bids_petsynth.models.recipe import Recipe
from bids_petsynth.pet.quantification import quantify
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.tables import code_hash
from bids_petsynth.training.real import Stored, load_alone, load_scan, store_alone, store_head, store_scan
from bids_petsynth.types import Anatomy, Case, ClinicalRecord, Grid, OtherScan, PetScan

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: Columns of the table of pairs before the figures of quality.
COLUMNS = ("participant_id", "session_id", "tracer", "status", "reason", "gap_days")


@dataclass(frozen=True)
class Preparation:
    """How scans are prepared.

    Attributes
    ----------
    work
        Folder in which what is prepared is kept.
    window_min
        Minutes after injection that are averaged; None for the tracer's usual ones.
    fwhm
        Resolution in mm that scans are smoothed to; None leaves them as they are.
    """

    work: Path
    window_min: tuple[float, float] | None = None
    fwhm: float | None = None
    device: str = "cpu"
    seed: int = 0


def prepare(
    pairs: Iterable[Pair],
    recipe: Recipe,
    record_of: Callable[[Case], ClinicalRecord],
    how: Preparation,
    report: Callable[[str], None],
) -> tuple[list[Stored], list[dict[str, object]]]:
    """Prepare every pair that can be; the others are told and left out.

    Returns
    -------
    The people on disk, and a row for every scan: see :data:`COLUMNS`, then the figures of ``pet.preparation`` and the
    path of a picture.
    """
    people, rows = [], []
    ordered = sorted(pairs, key=lambda pair: (pair.pet.participant, pair.case.label if pair.case else ""))
    for _, several in groupby(ordered, key=lambda p: (p.pet.participant, p.case.label if p.case else "")):
        group = sorted(several, key=preference)
        head, scans, loads = None, {}, []
        kept: dict[str, Pair] = {}
        for pair in group:
            try:
                if (first := kept.get(pair.pet.tracer)) is not None:
                    raise InputError(surplus(first, pair))
                if pair.case is None:
                    raise InputError(pair.note)
                if pair.pet.problem:
                    raise InputError(pair.pet.problem)
                head = head or _head(pair.case, recipe, how)
                path, quality, load = _scan(pair, head[1], how)
                scans[pair.pet.tracer], kept[pair.pet.tracer] = path, pair
                loads += [load] if load is not None else []
                rows.append(_row(pair, "used", "") | quality | _notes(pair.note, quality))
            except PetsynthError as error:
                rows.append(_row(pair, "left out", str(error)))
                report(f"{pair.pet.label}: left out. {error}")
        if scans:
            case, others = group[0].case, {}
            for scan in case.others:
                try:
                    others[scan.modality], quality = _other(scan, head[1], how)
                    rows.append(_row(Pair(case, scan), "used", "") | quality)
                except PetsynthError as error:
                    rows.append(_row(Pair(case, scan), "left out", str(error)))
                    report(f"{scan.label}: left out. {error}")
            record = record_of(case)
            known = {name: value.value for name, value in record.values.items() if value.value is not None}
            known |= {"notes": record.notes} if record.notes else {}
            load = loads[0] if loads else None
            people.append(Stored(group[0].pet.participant, head[0], scans, known, load, others, record.site))
            report(f"{case.label}: {', '.join([*scans, *others])} ready")
    return people, rows


def prepare_together(
    fabric: Fabric,
    pairs: Sequence[Pair],
    unpaired: tuple[Sequence[Case], Sequence[Pair]],
    recipe: Recipe,
    record_of: Callable[[Case], ClinicalRecord],
    how: Preparation,
    report: Callable[[str], None],
) -> tuple[list[Stored], list[dict[str, object]], list[tuple[str, Path]], list[tuple[str, Path]]]:
    """What :func:`prepare` returns with the rows of all scans, :func:`heads_without_pet`, :func:`pets_without_t1w`.

    ``unpaired`` are cases, of which those without PET are prepared, and PET of people without a T1w. Of several
    processes each prepares its part of the people first; then all find everything prepared.
    """
    cases, lone = unpaired
    if fabric.world_size > 1:
        part, parts = fabric.global_rank, fabric.world_size
        prepare(share_of(pairs, part, parts), recipe, record_of, how, report)
        heads_without_pet(cases[part::parts], pairs, recipe, how, report)
        pets_without_t1w(share_of(lone, part, parts), recipe, how, report)
        fabric.barrier()
        report = report if fabric.is_global_zero else lambda line: None
    people, rows = prepare(pairs, recipe, record_of, how, report)
    heads = heads_without_pet(cases, pairs, recipe, how, report)
    references, more = pets_without_t1w(lone, recipe, how, report)
    return people, [*rows, *more], heads, references


def share_of(pairs: Iterable[Pair], part: int, parts: int) -> list[Pair]:
    """The pairs of every ``parts``-th participant."""
    people = sorted({pair.pet.participant for pair in pairs})
    mine = set(people[part::parts])
    return [pair for pair in pairs if pair.pet.participant in mine]


def heads_without_pet(
    cases: Iterable[Case], pairs: Iterable[Pair], recipe: Recipe, how: Preparation, report: Callable[[str], None]
) -> list[tuple[str, Path]]:
    """Participant and prepared head of every T1w that belongs to no pair; one that cannot be used is told."""
    paired = {pair.case.label for pair in pairs if pair.case is not None}
    heads = []
    for case in cases:
        if case.label not in paired and case.problem is None:
            try:
                heads.append((case.participant, _head(case, recipe, how)[0]))
            except PetsynthError as error:
                report(f"{case.label}: left out of pre-training. {error}")
    return heads


def pets_without_t1w(
    pairs: Iterable[Pair], recipe: Recipe, how: Preparation, report: Callable[[str], None]
) -> tuple[list[tuple[str, Path]], list[dict[str, object]]]:
    """Tracer and prepared file of every PET scan that no T1w can be found for, and a row for each, as in a pair.

    They lie on the grid by themselves, without SUVR: what they lend is the look of a scan.
    """
    references, rows = [], []
    for pair in pairs:
        try:
            if pair.pet.problem:
                raise InputError(pair.pet.problem)
            path, quality = _alone(pair.pet, recipe, how)
            note = f"{pair.note} The scan lies on the grid by itself and lends its style to pre-training."
            rows.append(_row(pair, "used", "") | quality | _notes(note, quality))
            references.append((pair.pet.tracer, path))
            report(f"{pair.pet.label}: ready, for pre-training alone. {pair.note}")
        except PetsynthError as error:
            rows.append(_row(pair, "left out", str(error)))
            report(f"{pair.pet.label}: left out. {error}")
    return references, rows


def _alone(pet: PetScan, recipe: Recipe, how: Preparation) -> tuple[Path, dict[str, object]]:
    """A scan on the model grid by itself, where it is kept, and its figures of quality."""
    from bids_petsynth.pet.preparation import pet_on_template
    from bids_petsynth.reports.training import alone_picture

    grid, spec = recipe.grid, tracer_named(pet.tracer)
    path = alone_path(pet, recipe, how)
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        shape = tuple(grid.shape)
        placed = pet_on_template(pet, spec, shape, grid.voxel_size, how.window_min, how.fwhm, how.seed)
        store_alone(placed.uptake, placed.brain, path)
        _write_figures(path, placed.quality, placed.notes)
    picture = _pictured(path, lambda: alone_picture(*load_alone(path), grid.voxel_size, spec))
    return path, _figures(path) | picture


def _row(pair: Pair, status: str, reason: str) -> dict[str, object]:
    pet = pair.pet
    gap = "n/a" if pair.gap_days is None else pair.gap_days
    return dict(
        zip(COLUMNS, (f"sub-{pet.participant}", pet.session or "n/a", pet.modality, status, reason, gap), strict=True)
    )


def _notes(note: str, quality: Mapping[str, object]) -> dict[str, object]:
    """What is noted of a scan, with a note on its pair before it."""
    return {"notes": f"{note} {quality.get('notes', '')}".strip()}


def _head(case: Case, recipe: Recipe, how: Preparation) -> tuple[Path, Anatomy]:
    """A head on the model grid, labelled unless it is kept already, and where it is kept."""
    from bids_petsynth.anatomy.head import analyse_head
    from bids_petsynth.anatomy.volume import read_t1w

    path = head_path(case, recipe, how)
    if not path.is_file():
        t1w = read_t1w(case.t1w, case.label)
        shape, voxel_size = tuple(recipe.grid.shape), recipe.grid.voxel_size
        anatomy = analyse_head(t1w, case.label, shape, voxel_size, device=how.device, seed=how.seed).anatomy
        store_head(anatomy, recipe.label_pool, path)
    with np.load(path, allow_pickle=False) as file:
        codes, t1w = file["codes"], file["t1w"].astype(np.float32)
        return path, Anatomy(t1w, codes, np.zeros(0), Grid(codes.shape, file["affine"]))


def _scan(pair: Pair, anatomy: Anatomy, how: Preparation) -> tuple[Path, dict[str, object], float | None]:
    """A scan in SUVR on the model grid, its figures of quality, and its Centiloid."""
    from bids_petsynth.pet.preparation import prepare_pet
    from bids_petsynth.reports.training import pair_picture

    pet, spec = pair.pet, tracer_named(pair.pet.tracer)
    path = scan_path(pet, anatomy.grid.affine, how)
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        made = prepare_pet(pet, anatomy, spec, window_min=how.window_min, fwhm=how.fwhm, seed=how.seed)
        store_scan(made.suvr, path)
        _write_figures(path, made.quality, made.notes)
    with np.load(path, allow_pickle=False) as file:
        suvr = file["suvr"].astype(np.float32)
    picture = _pictured(path, lambda: pair_picture(anatomy.t1w, suvr, anatomy.labels > 0, spec))
    result = quantify(suvr[None], anatomy.labels, anatomy.grid, spec)
    return path, _figures(path) | picture, None if result.centiloid is None else result.centiloid.mean


def _write_figures(path: Path, quality: Mapping[str, float], notes: Sequence[str]) -> None:
    """Keep a scan's figures of quality beside it."""
    figures = {name: round(float(value), 3) for name, value in quality.items()} | {"notes": " ".join(notes)}
    write_bytes(path.with_suffix(".json"), json.dumps(figures).encode())


def _figures(path: Path) -> dict[str, object]:
    """What :func:`_write_figures` kept."""
    return json.loads(path.with_suffix(".json").read_text())


def _pictured(path: Path, draw: Callable[[], bytes]) -> dict[str, object]:
    """What a row says of the picture beside a prepared scan, which is drawn unless it is kept."""
    picture = path.with_suffix(".jpg")
    if not picture.is_file():
        write_bytes(picture, draw())
    return {"picture": f"{path.parent.name}/{picture.name}"}


def _other(scan: OtherScan, anatomy: Anatomy, how: Preparation) -> tuple[Path, dict[str, object]]:
    """A T2w, FLAIR or CT image on the model grid, and the path of its picture."""
    from bids_petsynth.anatomy.others import prepare_other
    from bids_petsynth.reports.training import other_picture

    path = other_path(scan, anatomy.grid.affine, how)
    if not path.is_file():
        store_scan(prepare_other(scan, anatomy, how.seed), path)
    brain = anatomy.labels > 0
    return path, _pictured(path, lambda: other_picture(anatomy.t1w, load_scan(path).numpy(), brain, scan.modality))


def head_path(case: Case, recipe: Recipe, how: Preparation) -> Path:
    """Where a head is kept: the name changes with the T1w, the grids and the networks that label."""
    made_of = [_hash_of(case.t1w), recipe.grid.model_dump(mode="json"), recipe.label_pool, weights_hash()]
    return _kept(how.work / "heads", case.label, made_of)


def scan_path(pet: PetScan, affine: np.ndarray, how: Preparation) -> Path:
    """Where a PET scan in SUVR is kept: the name changes with scan, sidecar, settings and the head that it lies on.

    ``affine`` says where that head's grid lies.
    """
    made_of = [_hash_of(pet.path), dict(pet.sidecar), how.window_min, how.fwhm, _placement(affine)]
    return _kept(how.work / "scans", pet.label, made_of)


def alone_path(pet: PetScan, recipe: Recipe, how: Preparation) -> Path:
    """Where a PET scan that lies on the grid by itself is kept, as :func:`scan_path`."""
    made_of = [_hash_of(pet.path), dict(pet.sidecar), how.window_min, how.fwhm, recipe.grid.model_dump(mode="json")]
    return _kept(how.work / "scans", pet.label, made_of)


def other_path(scan: OtherScan, affine: np.ndarray, how: Preparation) -> Path:
    """Where a T2w, FLAIR or CT image is kept, as :func:`scan_path`."""
    return _kept(how.work / "scans", scan.label, [_hash_of(scan.path), scan.modality, _placement(affine)])


def _kept(folder: Path, label: str, made_of: list[object]) -> Path:
    """A name that changes with what a file is made of, and with the code that makes it."""
    return folder / f"{label}_{hash_settings([*made_of, code_hash('anatomy', 'pet')])[:12]}.npz"


def _placement(affine: np.ndarray) -> list[object]:
    """What of a head decides how its other scans are prepared: where it lies, and what labelled it."""
    return [affine.tolist(), weights_hash()]


def _hash_of(path: Path) -> str:
    """Hash of a file.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        return hash_file(path)
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror}); check the link or the permissions.") from None
