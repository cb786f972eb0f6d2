"""The regional flow beside an oracle, on many simulated people whose heads no training saw; no image is made.

    python benchmarks/regional.py ARRAYS OUT [--people 1200] [--model FOLDER] [--tracers AV45 …] [--guidance 2]

ARRAYS are the prepared heads (``python -m bids_petsynth.training.grid heads …``). The regional means of the people are
kept under OUT, so that another model of the same tracers is measured on the same people at once. Truth and draws are
means over soft labels, as the flow is trained; ``model.py`` measures images of fewer people in the written labels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from model import PEOPLE_SEED, save
from model_tables import VARIANTS, Results, heading, oracle, prediction_rows, uncertainty_rows, vector, without_plasma

from bids_petsynth.anatomy.regions import regions
from bids_petsynth.models.regional import Geometry, label_volumes, log_volumes
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.pet.tracers import centiloid_equation, target_weights
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.training.labelling import UNSEEN
from bids_petsynth.training.pairs import Heads, head_of, load_heads
from bids_petsynth.training.regional import RegionalPeople, simulate_regions
from bids_petsynth.training.simulated import workers

#: Classes that are compared: all but background and fluid.
CLASSES = [region.index for region in regions() if region.tissue != "csf"]


def people_of(heads: Heads, tracers: Sequence[str], voxel_size: float, n: int, out: Path) -> RegionalPeople:
    """Simulated people on the heads, scanned with all of the tracers; kept under ``out`` for just these heads."""
    of = hashlib.sha256(heads.classes.tobytes() + heads.measured.tobytes()).hexdigest()[:8]
    path = out / f"people_{'-'.join(tracers)}_{n}_{of}.npz"
    if not path.is_file():
        made = simulate_regions(heads, tracers, voxel_size, n, PEOPLE_SEED, workers())
        records = np.array([json.dumps(record) for record in made.records])
        parts = {"means": made.means, **vars(made.heads)}
        save(path, {"records": records, **{name: part.numpy() for name, part in parts.items()}})
    with np.load(path, allow_pickle=False) as file:
        records = tuple(json.loads(str(record)) for record in file["records"])
        means, *of_heads = (torch.from_numpy(file[name]) for name in ("means", "volumes", "transfer"))
        return RegionalPeople(records, means, Geometry(*of_heads))


def measured(model: Synthesizer, people: RegionalPeople, tracer: str, heads: np.ndarray) -> Results:
    """Truth and draws of one tracer under the names that the tables ask for; ``heads`` names each person's."""
    place, specs = model.tracers.index(tracer), model.model.recipe.conditioning.variables
    weights = np.stack([target_weights(tracer_named(tracer), v) for v in people.heads.volumes.numpy()])
    true = people.means[:, place].double().numpy()
    figures = {
        "values": np.stack([vector(record, specs) for record in people.records]),
        "volumes": log_volumes(people.heads.volumes[:, 1:]).double().numpy(),
        f"{tracer}/regional": true[:, CLASSES],
        f"{tracer}/target": (true * weights).sum(1),
    }
    for variant in VARIANTS:
        draws, target = [], []
        for number, (record, head) in enumerate(people.one_by_one()):
            known = record if variant == "plasma" else without_plasma(record)
            drawn = model.regional_draws(known, tracer, head, number).numpy()
            draws.append(drawn[:, CLASSES])
            target.append(drawn @ weights[number])
        figures |= {f"{tracer}/{variant}/draws": np.stack(draws), f"{tracer}/{variant}/target_draws": np.stack(target)}
    return Results(heads, figures)


def heads_of(heads: Heads, n: int) -> np.ndarray:
    """Name of the head of each of the ``n`` people of :func:`people_of`."""
    return np.array([heads.names[head_of(len(heads), PEOPLE_SEED, i)] for i in range(n)])


def crowd_of(heads: Heads, voxel: float) -> np.ndarray:
    """``(H, C - 1)`` log volumes of the regions of heads, whose label probabilities have voxels of ``voxel`` mm."""
    return log_volumes(label_volumes(torch.from_numpy(heads.probabilities) / 255, voxel)[:, 1:]).double().numpy()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--people", type=int, default=1200)
    parser.add_argument("--model", type=Path, help="model folder; the built-in one by default")
    parser.add_argument("--tracers", nargs="+", help="all of the model's by default")
    parser.add_argument("--guidance", type=float, help="in place of the model's; its calibration stays")
    arguments = parser.parse_args()
    model = Synthesizer.load(arguments.model)
    recipe = model.model.recipe
    if arguments.guidance is not None:
        process = recipe.process.model_copy(update={"guidance": arguments.guidance})
        model = Synthesizer(replace(model.model, recipe=recipe.model_copy(update={"process": process})))
    heads = load_heads(arguments.arrays, recipe)
    unseen, seen = heads.select(lambda name: name in UNSEEN), heads.select(lambda name: name not in UNSEEN)
    people = people_of(unseen, model.tracers, recipe.grid.voxel_size, arguments.people, arguments.out)
    crowd = crowd_of(seen, recipe.grid.voxel_size * recipe.label_pool)
    print(f"{len(people.records)} simulated people on {len(unseen)} heads, model {recipe.name} {model.model.version}.")
    print("Figures on simulated data verify the software; they say nothing about patients.")
    whose = heads_of(unseen, arguments.people)
    for tracer in arguments.tracers or model.tracers:
        results = measured(model, people, tracer, whose)
        specs = recipe.conditioning.variables
        found = oracle(crowd, results, specs, tracer) if centiloid_equation(tracer) else None
        print(heading(tracer))
        for line in (*prediction_rows(results, tracer, found), *uncertainty_rows(results, tracer, found)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
