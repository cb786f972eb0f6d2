"""Simulated people on real heads as ground to train on, from prepared arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bids_petsynth.models.conditioning import is_pet
from bids_petsynth.models.recipe import Recipe, load_recipe
from bids_petsynth.tables import data_path
from bids_petsynth.training.labelling import UNSEEN
from bids_petsynth.training.pairs import Heads, Record, TrainingCase, draw_records, load_heads, simulate_case
from bids_petsynth.training.regional import RegionalPeople, simulate_regions, training_ranges

#: People in the pool when training starts (they must be simulated first).
FIRST_PEOPLE = 16
EVALUATION_SEED = 1_000_000
#: People on unseen heads, half of them clearly amyloid-positive, whose figures the card tells.
FIGURE_PEOPLE = 24
#: People on unseen heads whose regional means alone are simulated, to calibrate the spread of the draws: over 300 the
#: error's own spread is known no better than to a tenth.
REGIONAL_CALIBRATION_PEOPLE = 1200
#: People on unseen heads whose scans are simulated to calibrate the texture of the draws.
TEXTURE_SEED, TEXTURE_PEOPLE = 2_600_000, 100
#: People whose regional SUVR the model folder tells as the training range.
RANGE_PEOPLE = 200

#: Amyloid-negative people whose surface projections are the norm.
NORMAL_PEOPLE = 60

STANDING = """\
**This is a demonstration model. It was trained on simulated PET only and has never seen a real PET scan.**
Its output looks like PET and follows the simulation's rules; it says nothing about a patient. Never use it for
diagnosis, treatment or scientific conclusions about people. A model trained on a site's own paired scans takes its
place with `--model`."""


@dataclass(frozen=True)
class SimulatedGround:
    """Simulated people for a recipe, on all heads of ``arrays`` but the unseen ones (see ``training.ground``)."""

    arrays: Path
    recipe: Recipe

    demonstration = True
    unpaired, references = (), ()
    standing = STANDING
    figures_note = "They verify the software on its own simulation; they are no evidence on real scans."

    @cached_property
    def _heads(self) -> Heads:
        return load_heads(self.arrays, self.recipe)

    @cached_property
    def _seen(self) -> Heads:
        return self._heads.select(lambda name: name not in UNSEEN)

    @cached_property
    def _unseen(self) -> Heads:
        return self._heads.select(lambda name: name in UNSEEN)

    @property
    def names(self) -> tuple[str, ...]:
        return self._seen.names

    @property
    def pool(self) -> tuple[int, int, int]:
        return FIRST_PEOPLE, self.recipe.training.pool, self.recipe.training.refresh

    def case(self, number: int) -> TrainingCase:
        return simulate_case(self._seen, scanned(self.recipe), self._voxel, self.recipe.training.seed, number)

    def records(self) -> Sequence[Record]:
        return draw_records(2000, np.random.default_rng([self.recipe.training.seed, 2000]))[1]

    def people(self) -> RegionalPeople:
        n = self.recipe.regional.people
        return simulate_regions(self._seen, *self._tracers, n, self.recipe.training.seed, workers())

    def held_people(self) -> RegionalPeople:
        n = REGIONAL_CALIBRATION_PEOPLE
        return simulate_regions(self._unseen, *self._tracers, n, EVALUATION_SEED, workers())

    def held_cases(self, n: int | None = None) -> list[TrainingCase]:
        return evaluation_cases(self._unseen, self.recipe, FIGURE_PEOPLE if n is None else n)

    def texture_cases(self) -> Iterator[TrainingCase]:
        for number in range(TEXTURE_PEOPLE):
            yield simulate_case(self._unseen, scanned(self.recipe), self._voxel, TEXTURE_SEED, number, augment=False)

    def ranges(self) -> tuple[Mapping[str, str], ...]:
        return training_ranges(self._seen, *self._tracers, RANGE_PEOPLE, self.recipe.training.seed, workers())

    def normal_cases(self) -> Iterator[TrainingCase]:
        from bids_petsynth.evaluation.normative import simulated_normals

        return simulated_normals(self._seen, *self._tracers, self.recipe.training.seed, NORMAL_PEOPLE)

    def data(self) -> str:
        return f"""- Anatomy: T1w scans of {len(self.names)} people of the IXI data set (https://brain-development.org/ixi-dataset/),
  licence CC BY-SA 3.0: {", ".join(self.names)}. Never seen, kept for evaluation: {", ".join(self._unseen.names)}.
- PET, blood and clinical values: simulated (`bids_petsynth.simulation`), no real ones.
- The weights derive from those scans and are shared under CC BY-SA 3.0 too."""

    def command(self, minutes: float) -> str:
        named = data_path("recipes", f"{self.recipe.name}.toml")
        own = not named.is_file() or load_recipe(named) != self.recipe
        recipe = "recipe.toml" if own else self.recipe.name
        return f"python -m bids_petsynth.training.generator ARRAYS OUT --recipe {recipe} --minutes {minutes:.0f}"

    @property
    def _voxel(self) -> float:
        return self.recipe.grid.voxel_size

    @property
    def _tracers(self) -> tuple[tuple[str, ...], float]:
        return tuple(name for name in self.recipe.tracers if is_pet(name)), self._voxel


def scanned(recipe: Recipe) -> tuple[str, ...]:
    """The tracers that simulated people are scanned with: a recipe's targets and sources that are PET."""
    return tuple(name for name in recipe.modalities if is_pet(name))


def evaluation_cases(heads: Heads, recipe: Recipe, n: int) -> list[TrainingCase]:
    """``n`` simulated people on the given heads, alternately clearly amyloid-negative and -positive, not augmented."""
    cases: list[TrainingCase] = []
    number = 0
    while len(cases) < n:
        # only the person decides, so the tracers are simulated for those that are kept
        case = simulate_case(heads, (), recipe.grid.voxel_size, EVALUATION_SEED, number, augment=False)
        load = case.truth["centiloid"]
        if (load > 50) if len(cases) % 2 else (load < 15):
            args = (heads, scanned(recipe), recipe.grid.voxel_size, EVALUATION_SEED, number)
            cases.append(simulate_case(*args, augment=False))
        number += 1
    return cases


def workers() -> int:
    """Processes that simulate people."""
    return len(os.sched_getaffinity(0))
