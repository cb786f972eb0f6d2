"""A cohort of made-up people: a BIDS dataset and an output folder of small files, as ``participant`` writes them.

Nothing in it was synthesised. Images are placeholders; tables hold what the caller asks for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.bids.dataset import DONE, FAILED, record_status
from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.sink import tsv_text
from bids_petsynth.models.synthesizer import built_in
from bids_petsynth.pet.tracers import centiloid_equation, targets, tracer
from bids_petsynth.types import Case

NAMES = [name for _, name, _, _ in lookup()]
CODES = {name: code for code, name, _, _ in lookup()}


@dataclass(frozen=True)
class Person:
    """One scan of a made-up person; ``load`` is the Centiloid of its synthetic PET, None if it failed."""

    label: str
    columns: Mapping[str, str] = field(default_factory=dict)
    load: float | None = 10.0
    session: str | None = None
    tracers: Sequence[str] = ("AV45",)
    date: str = ""
    spread: float = 0.1
    noise: float = 0.02
    waiting: bool = False


def suvr_of(person: Person, name: str) -> dict[str, float]:
    """Regional SUVR that gives the person's load in the target, with noise of its own in every region."""
    equation = centiloid_equation(name)
    level = (person.load - equation.intercept) / equation.slope if equation else 1 + person.load / 100
    rng = np.random.default_rng(list(f"{person.label} {person.session} {name}".encode()))
    values = {region: level + person.noise * rng.normal() for region in NAMES}
    return values | dict.fromkeys(targets(), level)


def write(folder: Path, people: Sequence[Person], about: Mapping[str, object] | None = None) -> tuple[Path, Path]:
    """Write the dataset and the output folder; returns both."""
    bids, out = folder / "bids", folder / "out"
    for path in (bids, out):
        path.mkdir(parents=True, exist_ok=True)
    description = {"Name": "made up", "BIDSVersion": "1.10.0", **(about or {})}
    (bids / "dataset_description.json").write_text(json.dumps(description))
    rows = {p.label: {"participant_id": f"sub-{p.label}", **p.columns} for p in people}
    (bids / "participants.tsv").write_text(tsv_text(rows.values()))
    times: dict[str, list[dict[str, str]]] = {}
    for person in people:
        case = Case(person.label, person.session, None)
        inside = bids / f"sub-{person.label}" / (f"ses-{person.session}" if person.session else "") / "anat"
        inside.mkdir(parents=True, exist_ok=True)
        (inside / f"{case.label}_T1w.nii.gz").write_bytes(b"not an image")
        if person.session and person.date:
            times.setdefault(person.label, []).append({"session_id": f"ses-{person.session}", "acq_time": person.date})
        if person.waiting:
            continue
        for name in person.tracers:
            if person.load is None:
                record_status(out, case, name, FAILED, f"{case.label}: the T1w is cut off; copy it again.")
            else:
                write_pet(out, case, name, person)
                record_status(out, case, name, DONE)
        if person.load is not None:
            write_anatomy(out, case)
        (out / f"sub-{person.label}.html").write_text("<p>a report</p>")
    for label, sessions in times.items():
        (bids / f"sub-{label}" / f"sub-{label}_sessions.tsv").write_text(tsv_text(sessions))
    return bids, out


def write_anatomy(out: Path, case: Case) -> None:
    """Labels (a placeholder), their JSON, volumes."""
    _put(out / output_path("dseg", case), b"labels")
    quality = {"label_confidence": 0.8, "alignment_residual": 4.0, "rotation": 5.0, "brain_volume": 1400.0}
    about = {"Quality": quality, "InputHash": "a", "SettingsHash": "b"}
    _put((out / output_path("dseg", case)).with_name(f"{case.label}_dseg.json"), json.dumps(about).encode())
    rng = np.random.default_rng(len(case.label) + sum(map(ord, case.label)))
    volumes = [{"index": CODES[n], "name": n, "volume-mm3": 5000 + 500 * rng.normal()} for n in NAMES]
    _put(out / output_path("morph", case), tsv_text(volumes).encode())


def write_pet(out: Path, case: Case, name: str, person: Person) -> None:
    """Tables of one tracer with intervals of a normal distribution of the person's spread, and image placeholders."""
    spec, equation = tracer(name), centiloid_equation(name)
    values = suvr_of(person, name)
    rows = []
    for region, value in values.items():
        row = {"name": region, "index": CODES.get(region), "hemisphere": "B", "suvr": value, "sd": person.spread}
        for level, z in ((80, 1.2816), (95, 1.96)):
            row |= {f"low{level}": value - z * person.spread, f"high{level}": value + z * person.spread}
        rows.append(row)
    _put(out / output_path("suvr", case, tracer=name), tsv_text(rows).encode())
    measures = {"target": spec.default_target, "target_suvr": values[spec.default_target], "n_draws": 8}
    about = {}
    if equation:
        load = person.load
        measures |= {"centiloid_approximate": load, "probability_positive": 1 / (1 + np.exp(-(load - 20) / 10))}
        about = {"CentiloidEquation": {"Slope": equation.slope, "Intercept": equation.intercept}}
    path = out / output_path("measures", case, tracer=name)
    _put(path, tsv_text([measures]).encode())
    _put(path.with_suffix(".json"), json.dumps(about).encode())
    mean = out / output_path("pet_mean", case, tracer=name)
    about = json.loads((built_in() / "model.json").read_text())
    model = {"Name": about["name"], "Version": about["version"], "WeightsSHA256": "0"}
    sidecar = {"Model": model, "DemonstrationModel": True, "InputHash": case.label, "SettingsHash": "s"}
    sidecar["Conditioning"] = {name: {"Status": "found"} for name in about["variables"]}
    _put(mean, b"image")
    _put(out / output_path("pet_std", case, tracer=name), b"image")
    _put(mean.with_name(mean.name.replace(".nii.gz", ".json")), json.dumps(sidecar).encode())


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
