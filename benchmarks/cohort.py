"""What T1w, blood, synthetic and real PET tell of amyloid positivity, on simulated people whose heads no training saw.

    python benchmarks/cohort.py ARRAYS OUT --people 300 [--model FOLDER] [--tracer AV45]

ARRAYS are the prepared heads (``python -m bids_petsynth.training.grid heads …``). No image is synthesised: the regional
values of the synthetic PET are the means of the model's regional draws, which its images are painted with. Every person
is a line of OUT/people.jsonl; what is there is not made again. Simulated data: the order of the features verifies the
software and says nothing about patients.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bids_petsynth.anatomy.alignment import template_grid
from bids_petsynth.anatomy.regions import n_classes, regions
from bids_petsynth.evaluation.diagnosis import Diagnosis, diagnose
from bids_petsynth.evaluation.features import sources
from bids_petsynth.evaluation.study import REAL
from bids_petsynth.models.regional import Geometry
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.pet.quantification import normalise
from bids_petsynth.pet.tracers import default_cutoff
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.training.labelling import UNSEEN
from bids_petsynth.training.pairs import Heads, dseg_codes, load_heads, simulate_case

#: No training and no other benchmark uses it.
SEED = 4_000_000
#: What the published studies found, the least informative first.
ORDER = ("T1w", "blood", "synthetic PET + blood", "real PET")


def one(heads: Heads, model: Synthesizer, tracer: str, number: int) -> dict[str, object]:
    """One simulated person: class, head, record, and regional volumes (mm³) and SUVR by region name."""
    recipe = model.model.recipe
    size = recipe.grid.voxel_size
    case = simulate_case(heads, (tracer,), size, SEED, number, augment=False)
    grid = template_grid(tuple(recipe.grid.shape), size)
    measured = case.measured.numpy()
    scan = normalise(case.pet[tracer][None].numpy(), dseg_codes(measured, grid), grid, tracer_named(tracer))[0]
    names = [region.name for region in regions()]
    inside = np.where(measured < n_classes(), measured, 0).ravel()
    count = np.bincount(inside, minlength=n_classes())[1:]
    real = np.bincount(inside, scan.ravel(), n_classes())[1:] / np.maximum(count, 1)
    head = Geometry.of(case.labels[None], size * recipe.label_pool)
    # class 0 lies around the brain
    synthetic = model.regional_draws(case.record, tracer, head, number).mean(0).numpy()[1:]
    there = [i for i, n in enumerate(count) if n]
    return {
        "number": number,
        "head": case.head,
        "positive": bool(case.truth["centiloid"] > default_cutoff().centiloid),
        "record": dict(case.record),
        "volumes": {names[i]: float(count[i] * size**3) for i in there},
        "real": {names[i]: float(real[i]) for i in there},
        "synthetic": {names[i]: float(synthetic[i]) for i in there},
    }


def evaluate(people: list[Mapping], tracer: str, seeds: int) -> Diagnosis:
    """Nested cross-validation over the heads, as the level ``group`` does it."""
    index = pd.Index([f"{person['number']:04d}" for person in people])
    frames = {
        key: pd.DataFrame([person[key] for person in people], index=index)
        for key in ("volumes", "record", "synthetic", "real")
    }
    features = sources(frames["volumes"], frames["record"], {tracer: frames["synthetic"]})
    features[REAL] = frames["real"].add_prefix(f"{tracer} ")
    label = pd.Series(["positive" if p["positive"] else "negative" for p in people], index, name="amyloid")
    heads = pd.Series([person["head"] for person in people], index)
    return diagnose(features, label, heads, seeds=seeds)


def print_tables(found: Diagnosis, people: int) -> None:
    """The tables as Markdown."""
    for sentence in found.sentences:
        print(sentence)
    if "performance" not in found.tables:
        return
    table = found.tables["performance"]
    print(f"\n{people} simulated people\n\n| features | classifier | AUC | balanced accuracy |\n|---|---|---|---|")
    for row in table.to_dict("records"):
        auc, accuracy = (
            f"{row[f]:.3f} [{row[f'{f}_low']:.3f}, {row[f'{f}_high']:.3f}]" for f in ("auc", "balanced_accuracy")
        )
        print(f"| {row['features']} | {row['classifier']} | {auc} | {accuracy} |")
    for kind, rows in table.groupby("classifier"):
        areas = rows.set_index("features")["auc"]
        said = ", ".join(f"{name} {areas[name]:.3f}" for name in ORDER)
        holds = all(areas[a] <= areas[b] for a, b in zip(ORDER, ORDER[1:], strict=False))
        print(f"\n{kind}: {said}: the published order {'holds' if holds else 'does not hold'}")
    if "comparison" in found.tables:
        table = found.tables["comparison"]
        steps = set(zip(ORDER, ORDER[1:], strict=False))
        pairs = table[["features", "compared_with"]].itertuples(index=False, name=None)
        print("\n" + table[[set(pair) in map(set, steps) for pair in pairs]].to_string(index=False))


def main() -> None:
    """Make the people that are missing, then evaluate all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arrays", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--tracer", default="AV45")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seeds", type=int, default=2, help="repetitions of the cross-validation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "people.jsonl"
    people = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    if len(people) < arguments.people:
        model = Synthesizer.load(arguments.model, "cpu")
        heads = load_heads(arguments.arrays, model.model.recipe).select(lambda name: name in UNSEEN)
        with file.open("a") as lines:
            for number in range(len(people), arguments.people):
                people.append(one(heads, model, arguments.tracer, number))
                lines.write(json.dumps(people[-1]) + "\n")
                lines.flush()
    people = people[: arguments.people]
    print_tables(evaluate(people, arguments.tracer, arguments.seeds), len(people))


if __name__ == "__main__":
    main()
