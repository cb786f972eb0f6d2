"""A raw BIDS dataset of simulated people: real heads, deformed, with simulated PET, plasma and clinical values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_petsynth.bids.dataset import check_ours
from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.sink import Sink, check_writable
from bids_petsynth.bids.tables import read_tsv
from bids_petsynth.errors import InputError
from bids_petsynth.pet.tracers import tracer as tracer_of
from bids_petsynth.simulation.anatomy import backward_map, deform, log_volume_factors
from bids_petsynth.simulation.parameters import parameters
from bids_petsynth.simulation.person import People, draw_people
from bids_petsynth.simulation.plasma import draw_plasma
from bids_petsynth.simulation.scanner import dynamic_series, simulate_pet
from bids_petsynth.simulation.uptake import classes_of, simulated_tracers, with_soft_tissue
from bids_petsynth.tables import read_table
from bids_petsynth.types import Anatomy, Case, Grid

README = """# Simulated dataset

Every value but age and sex and every PET image of this dataset is SIMULATED by bids-petsynth. No scan with a tracer was
made and no blood was drawn. The T1w images are real heads that were deformed to show the ageing and atrophy of
simulated people, so several participants may share a head (column `head` of participants.tsv): count heads, not
participants, as independent. Age (in whole years, 89 for older) and sex are those of the head's owner where that
dataset tells them, else drawn. What is learned from these data shows that software works; it says nothing about
patients.
"""


@dataclass(frozen=True)
class Written:
    """What :func:`write_dataset` did: new participants, and heads that failed with the reason."""

    participants: tuple[str, ...]
    failed: Mapping[str, str]


def write_dataset(
    cases: Iterable[Case],
    out_dir: Path,
    label_head: Callable[[Case], Anatomy],
    people_per_head: int = 1,
    seed: int = 0,
    tracers: Sequence[str] | None = None,
    dynamic: bool = False,
    traits: Callable[[Case], tuple[float, float]] | None = None,
    name: str = "Simulated PET",
    report: Callable[[str], None] = lambda line: None,
) -> Written:
    """Write a raw BIDS dataset of the same heads with simulated PET (``rec-sim``), plasma and clinical columns.

    Parameters
    ----------
    cases
        Heads to use, as ``bids.index.find_cases`` finds them.
    out_dir
        Folder of the new dataset, created if need be; people that an earlier run simulated there stay.
    label_head
        Gives a case its anatomy on the model grid; an :class:`InputError` of it fails that head only.
    people_per_head
        Simulated people per head.
    seed
        Each person depends on it, on the head's label and on their number, and not on which other heads are simulated.
    tracers
        Tracers to simulate; all that can be by default.
    dynamic
        Frames from the injection to the end of the tracer's window in place of one frame over the window.
    traits
        Age in years (NaN if unknown) and sex (0 female, 1 male, NaN) of a head's owner; the simulated person takes
        both.
    name
        Name of the dataset.
    report
        Called with a line of text per participant.

    Raises
    ------
    UsageError
        If the folder is not writable or holds another dataset, or a tracer cannot be simulated.
    """
    check_writable(out_dir)
    check_ours(out_dir, "raw")
    chosen = [tracer_of(tracer).name for tracer in tracers or simulated_tracers()]
    sink = Sink(out_dir)
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for case in cases:
        try:
            if case.problem:
                raise InputError(case.problem)
            anatomy = label_head(case)
            age, sex = traits(case) if traits else (np.nan, np.nan)
            for number in range(1, people_per_head + 1):
                rows.append(_write_person(sink, case, anatomy, number, seed, chosen, dynamic, age, sex))
                report(f"{rows[-1]['participant_id']}: simulated {', '.join(chosen)} written")
        except InputError as problem:
            failed[case.label] = str(problem)
            report(f"{case.label}: {problem}")
    _write_tables(sink, [*_others(out_dir, rows), *rows], name)
    return Written(tuple(row["participant_id"] for row in rows), failed)


def _write_person(
    sink: Sink,
    case: Case,
    anatomy: Anatomy,
    number: int,
    seed: int,
    tracers: list[str],
    dynamic: bool,
    age: float,
    sex: float,
) -> dict[str, Any]:
    """Draw one person and write their images; return their row of participants.tsv."""
    key = int.from_bytes(hashlib.sha256(f"{seed} {case.label} {number}".encode()).digest()[:6], "big")
    rng, generator = np.random.default_rng(key), torch.Generator().manual_seed(key)
    people = draw_people(1, rng, ages=np.array([age]), sexes=np.array([sex]))
    plasma = draw_plasma(people, rng)
    head = re.sub(r"[^A-Za-z0-9]", "", case.participant + (f"ses{case.session}" if case.session else ""))
    new = Case(participant=f"{head}sim{number:02d}", session=None, t1w=None)

    affine = np.asarray(anatomy.grid.affine, float)
    voxel = float(np.cbrt(anatomy.grid.voxel_volume))
    t1w = torch.from_numpy(np.asarray(anatomy.t1w, np.float32))[None]
    labels = with_soft_tissue(classes_of(torch.from_numpy(np.asarray(anatomy.labels).astype(np.int64)))[None], t1w)
    reference = np.array([age]) if np.isfinite(age) else None
    change = log_volume_factors(people, reference)
    shape_seed = torch.Generator().manual_seed(key)
    _, deformed = deform(t1w[:, None], labels, change, shape_seed, voxel_size=voxel)
    grid = backward_map(labels, change, torch.Generator().manual_seed(key), voxel_size=voxel)[0].numpy()
    image, image_affine = _deform_native(case, grid, anatomy.grid)
    sink.save_image(
        output_path("raw_t1w", new),
        image,
        image_affine,
        {
            "Description": "Real T1w, deformed to the SIMULATED ageing and atrophy of a person who does not exist",
            "Simulated": True,
            "SimulationSeed": seed,
            **{
                k: v
                for k, v in case.sidecar.items()
                if k in ("MagneticFieldStrength", "Manufacturer", "EchoTime", "RepetitionTime")
            },
        },
    )
    p = parameters("sim_acquisition.tsv")
    weight = max(p["weight_min"], p["weight_mean"] + p["weight_sd"] * rng.standard_normal())
    site = np.random.default_rng([int(parameters("sim_scanner.tsv")["site_seed"]), int(people.site[0])])
    gain = float(np.exp(p["calibration_sd"] * site.standard_normal()))
    for tracer in tracers:
        dose = tracer_of(tracer).activity_mbq * float(np.exp(p["activity_sd"] * rng.standard_normal()))
        starts, durations = frames(tracer, dynamic)
        if dynamic:
            series = dynamic_series(
                deformed, people, tracer, generator, torch.tensor(starts), torch.tensor(durations), voxel
            )
            pet = series[0].permute(1, 2, 3, 0).numpy()
        else:
            pet = simulate_pet(deformed, people, tracer, generator, voxel)[0].numpy()
        # activity (Bq/mL) = SUVR · SUV of the reference · injected activity (Bq) / body weight (g), for 1 g/mL
        pet = pet.clip(0) * (p["reference_suv"] * gain * dose * 1e6 / (weight * 1e3))
        sidecar = _pet_sidecar(tracer, dose, starts, durations, seed)
        sink.save_image(output_path("raw_pet", new, tracer=tracer), pet.astype(np.float32), affine, sidecar)
    return _row(new, head, people, plasma, weight)


def frames(tracer: str, dynamic: bool) -> tuple[list[float], list[float]]:
    """Starts (seconds after injection) and durations (seconds) of the frames of a scan."""
    low, high = (60 * minutes for minutes in tracer_of(tracer).window_min)
    if not dynamic:
        return [low], [high - low]
    durations: list[float] = []
    for row in read_table("sim_frames.tsv"):
        duration = float(row["duration_s"])
        count = int(row["count"]) or int((high - sum(durations)) // duration)
        durations += [duration] * count
    return [float(start) for start in np.cumsum([0.0, *durations[:-1]])], durations


def _deform_native(case: Case, grid: np.ndarray, model: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The T1w on its own grid (RAS order), moved as the map on the model grid says, and its affine."""
    import nibabel as nib
    from scipy.ndimage import map_coordinates

    scan = nib.as_closest_canonical(nib.load(case.t1w))
    data = np.nan_to_num(scan.get_fdata(dtype=np.float32))
    data = data[..., 0] if data.ndim == 4 and data.shape[-1] == 1 else data
    shape = np.array(grid.shape[:3])
    # from grid_sample's z, y, x in [-1, 1] to displacement in model voxels
    source = (grid[..., ::-1] + 1) * shape / 2 - 0.5
    move = source - np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    to_model = np.linalg.inv(model.affine) @ scan.affine
    to_native = np.linalg.inv(scan.affine) @ model.affine
    out = np.empty(data.shape, np.float32)
    for x in range(data.shape[0]):
        native = np.stack(np.meshgrid([x], np.arange(data.shape[1]), np.arange(data.shape[2]), indexing="ij"))[:, 0]
        here = np.einsum("ij,jyz->iyz", to_model[:3, :3], native) + to_model[:3, 3, None, None]
        moved = np.stack([map_coordinates(move[..., axis], here, order=1, mode="nearest") for axis in range(3)])
        where = native + np.einsum("ij,jyz->iyz", to_native[:3, :3], moved)
        out[x] = map_coordinates(data, where, order=1, mode="constant")
    return out, scan.affine


def _pet_sidecar(tracer: str, dose: float, starts: list[float], durations: list[float], seed: int) -> dict[str, Any]:
    """What BIDS asks of a raw PET image."""
    p = parameters("sim_scanner.tsv")
    return {
        "Description": "SIMULATED PET: no tracer was given to anyone",
        "Simulated": True,
        "SimulationSeed": seed,
        "Manufacturer": "Simulated",
        "ManufacturersModelName": "bids-petsynth simulated scanner",
        "BodyPart": "Brain",
        "Units": "Bq/mL",
        "TracerName": tracer,
        "TracerRadionuclide": tracer_of(tracer).radionuclide,
        "InjectedRadioactivity": round(dose, 2),
        "InjectedRadioactivityUnits": "MBq",
        "InjectedMass": "n/a",
        "InjectedMassUnits": "n/a",
        "SpecificRadioactivity": "n/a",
        "SpecificRadioactivityUnits": "n/a",
        "ModeOfAdministration": "bolus",
        "TimeZero": "10:00:00",
        "ScanStart": starts[0],
        "InjectionStart": 0,
        "InjectionEnd": 0,
        "FrameTimesStart": starts,
        "FrameDuration": durations,
        "AcquisitionMode": "simulated",
        "ImageDecayCorrected": True,
        "ImageDecayCorrectionTime": 0,
        "ReconMethodName": "simulated: point spread function and noise, no reconstruction",
        "ReconMethodParameterLabels": ["none"],
        "ReconFilterType": "Gaussian",
        "ReconFilterSize": (p["postfilter_min"] + p["postfilter_max"]) / 2,
        "AttenuationCorrection": "none (simulated without attenuation)",
    }


def _row(new: Case, head: str, people: People, plasma: dict[str, np.ndarray], weight: float) -> dict[str, Any]:
    """Row of participants.tsv."""
    person = people.row(0)
    row: dict[str, Any] = {
        "participant_id": f"sub-{new.participant}",
        "head": head,
        "age": round(person["age"], 1),
        "sex": "M" if person["sex"] == 1 else "F",
        "education": int(person["education"]),
        "apoe4": int(person["apoe4"]),
        "mmse": int(person["mmse"]),
        "weight": round(weight, 1),
    }
    row |= {name: float(f"{column[0]:.4g}") for name, column in plasma.items()}
    truth = ("centiloid", "tau_medial", "tau_neocortical", "neurodegeneration", "fdg_loss")
    row |= {f"simulated_{trait}": round(person[trait], 3) for trait in truth}
    return row | {"simulated_site": f"site{int(person['site']) + 1:02d}"}


def _others(out_dir: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of participants.tsv whom an earlier run into the same folder simulated."""
    table = out_dir / "participants.tsv"
    earlier = read_tsv(table)[0] if table.is_file() else []
    again = {row["participant_id"] for row in rows}
    return [dict(row) for row in earlier if row.get("participant_id") not in again]


def _write_tables(sink: Sink, rows: list[dict[str, Any]], name: str) -> None:
    """participants.tsv with its dictionary, dataset_description.json and README."""
    columns: dict[str, Any] = {}
    for row in read_table("sim_columns.tsv"):
        entry: dict[str, Any] = {"Description": f"{row['description']} (simulated)"}
        if row["units"]:
            entry["Units"] = row["units"]
        if row["levels"]:
            entry["Levels"] = dict(level.split("=") for level in row["levels"].split(","))
        columns[row["column"]] = entry
    sink.save_tsv(
        Path("participants.tsv"), sorted(rows, key=lambda row: row["participant_id"]), ["participant_id", *columns]
    )
    sink.save_json(Path("participants.json"), columns)
    sink.save_json(
        Path("dataset_description.json"),
        {
            "Name": f"{name} (SIMULATED)",
            "BIDSVersion": "1.10.0",
            "DatasetType": "raw",
            "License": "that of the heads it was made from",
            "Authors": ["bids-petsynth (simulated data)"],
            "GeneratedBy": [{"Name": "bids-petsynth", "Description": "PET, plasma and clinical values are simulated"}],
        },
    )
    sink.save_text(Path("README"), README)
