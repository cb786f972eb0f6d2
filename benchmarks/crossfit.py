"""The regional flow on heads that its training did not see, for all heads by turns; no image is made.

    python benchmarks/crossfit.py ARRAYS OUT [--people 9360] [--tracers AV45 …]

ARRAYS are the prepared heads (``python -m bids_petsynth.training.grid heads …``). They are shared among five folds. For
each a flow is trained from the start on people of the other heads, as the built-in model's is. People on one half of
the fold's heads calibrate its spread for those on the other half, so that who is measured shares a head with nobody who
was learnt from. All that is made is kept under OUT.
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
from model_tables import VARIANTS, Results, heading, oracle, prediction_rows, uncertainty_rows
from regional import crowd_of, heads_of, measured, people_of
from safetensors.torch import load_file, save_file

from bids_petsynth.models.folder import Model
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.pet.tracers import centiloid_equation
from bids_petsynth.training.pairs import load_heads
from bids_petsynth.training.regional import RegionalPeople, fit_part, with_fresh_regional
from bids_petsynth.training.validation import calibration

FOLDS = 5
#: One of so many people of a fold is measured, and so many others calibrate.
SHARES, CALIBRATING = 10, 4


def some(people: RegionalPeople, which: np.ndarray) -> RegionalPeople:
    """Those of the people where the mask ``which (N,)`` is true."""
    chosen = torch.from_numpy(which)
    records = tuple(record for record, kept in zip(people.records, which, strict=True) if kept)
    return RegionalPeople(records, people.means[chosen], people.heads[chosen])


def fitted(like: Model, people: RegionalPeople, folder: Path) -> Model:
    """A model with the recipe of ``like`` and a regional flow of its own, from ``folder`` if it was made before."""
    model = with_fresh_regional(like)
    weights = folder / "regional.safetensors"
    if weights.is_file():
        model.regional.load_state_dict(load_file(weights))
    else:
        print(f"{folder.name}: {len(people.records)} people, loss {fit_part(model, people):.3f}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.regional.state_dict(), weights)
    return model


def calibrated(model: Model, held: RegionalPeople, path: Path) -> Synthesizer:
    """The model with its spread calibrated on ``held`` people, from the file ``path`` if that was done before."""
    if not path.is_file():
        path.write_text(json.dumps(calibration(Synthesizer(model), held, None)))
    return Synthesizer(replace(model, **json.loads(path.read_text())))


def together(parts: Sequence[Results]) -> Results:
    """The people of several results."""
    figures = {key: np.concatenate([part.figures[key] for part in parts]) for key in parts[0].figures}
    return Results(np.concatenate([part.heads for part in parts]), figures)


def joined(oracles: Sequence[dict]) -> dict:
    """What the oracle of each fold says of its people, of all people."""
    return {v: tuple(map(np.concatenate, zip(*(each[v] for each in oracles), strict=True))) for v in VARIANTS}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--people", type=int, default=9360)
    parser.add_argument("--tracers", nargs="+", help="measured; all of the model's by default")
    arguments = parser.parse_args()
    built_in = Synthesizer.load()
    like, tracers, recipe = built_in.model, built_in.tracers, built_in.model.recipe
    heads = load_heads(arguments.arrays, recipe)
    people = people_of(heads, tracers, recipe.grid.voxel_size, arguments.people, arguments.out)
    whose = heads_of(heads, arguments.people)
    fold_of = {name: place % FOLDS for place, name in enumerate(heads.names)}
    half_of = {name: place // FOLDS % 2 for place, name in enumerate(heads.names)}
    theirs, half = (np.array([of[name] for name in whose]) for of in (fold_of, half_of))
    # whole turns over the heads have one share, so that each head is in each
    share = np.arange(arguments.people) // len(heads) % SHARES
    asked = recipe.regional.model_dump_json().encode()
    of = hashlib.sha256(people.means.numpy().tobytes() + asked).hexdigest()[:8]
    folds = []
    for fold in range(FOLDS):
        folder = arguments.out / f"fold{fold}_{of}"
        model = fitted(like, some(people, theirs != fold), folder)
        others = heads.select(lambda name, fold=fold: fold_of[name] != fold)
        crowd = crowd_of(others, recipe.grid.voxel_size * recipe.label_pool)
        for part in (0, 1):
            held = (theirs == fold) & (half != part) & np.isin(share, range(1, CALIBRATING + 1))
            tested = (theirs == fold) & (half == part) & (share == 0)
            engine = calibrated(model, some(people, held), folder / f"spread{part}.json")
            folds.append((engine, some(people, tested), whose[tested], crowd))
    count = sum(len(names) for _, _, names, _ in folds)
    print(f"{count} simulated people on {len(heads)} heads, {FOLDS} flows that did not see theirs.")
    print("Figures on simulated data verify the software; they say nothing about patients.")
    for tracer in arguments.tracers or tracers:
        parts, best = [], []
        for model, tested, names, crowd in folds:
            parts.append(measured(model, tested, tracer, names))
            if centiloid_equation(tracer):
                best.append(oracle(crowd, parts[-1], recipe.conditioning.variables, tracer))
        found = joined(best) if best else None
        results = together(parts)
        print(heading(tracer))
        for line in (*prediction_rows(results, tracer, found), *uncertainty_rows(results, tracer, found)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
