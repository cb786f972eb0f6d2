"""The simulated people of ``benchmarks/recipes.py``: to train on, to draw, and what their own scans tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import measure

from bids_petsynth.anatomy.alignment import template_grid
from bids_petsynth.models.recipe import GridSpec, Recipe, load_recipe
from bids_petsynth.pet.quantification import normalise
from bids_petsynth.pet.tracers import default_cutoff
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.training.augment import most_common
from bids_petsynth.training.labelling import UNSEEN
from bids_petsynth.training.loop import write_atomically
from bids_petsynth.training.pairs import Heads, TrainingCase, dseg_codes, load_heads, simulate_case
from bids_petsynth.training.simulated import SimulatedGround, evaluation_cases
from bids_petsynth.types import Grid

TRACER, PEOPLE_SEED, CALIBRATION_HEADS, CALIBRATION_PEOPLE = "AV45", 5_000_000, 3, 8
#: MMSE up to which ADNI took people as ones with dementia (Petersen 2010, doi:10.1212/WNL.0b013e3181cb3e25).
MMSE_OF_DEMENTIA = 26
KEPT = ("t1w", "classes", "measured", "labels")


@dataclass(frozen=True)
class Crowd:
    """The simulated people that every variant trains on, made once and kept as files."""

    arrays: Path
    folder: Path
    tracers: tuple[str, ...]
    seed: int
    size: int

    @cached_property
    def everyone(self) -> Heads:
        return load_heads(self.arrays, load_recipe("petsynth"))

    @cached_property
    def heads(self) -> Heads:
        names = [name for name in self.everyone.names if name not in UNSEEN]
        return self.everyone.select(lambda name: name in names[CALIBRATION_HEADS:])

    def case(self, number: int) -> TrainingCase:
        """One of them; simulated if it is not there yet."""
        path = self.folder / f"{self.seed}-{number % self.size:05d}.npz"
        if not path.is_file():
            case = simulate_case(self.heads, self.tracers, 2.0, self.seed, number % self.size)
            images = {"t1w": case.t1w.half(), "classes": case.classes.byte(), "measured": case.measured.byte()}
            images |= {"labels": (case.labels * 255).round().byte(), **{k: v.half() for k, v in case.pet.items()}}
            about = json.dumps({"head": case.head, "record": case.record, "truth": case.truth})
            arrays = {name: image.numpy() for name, image in images.items()} | {"about": np.array(about)}
            path.parent.mkdir(parents=True, exist_ok=True)

            def save(beside: Path) -> None:
                with beside.open("wb") as file:
                    np.savez(file, **arrays)

            write_atomically(path, save)
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            kept = {name: torch.from_numpy(file[name]) for name in file.files if name != "about"}
        t1w, classes, measured, labels = (kept.pop(name) for name in KEPT)
        pet = {name: scan.float() for name, scan in kept.items()}
        images = t1w.float(), classes.long(), measured.long(), labels.float() / 255
        return TrainingCase(about["head"], *images, about["record"], about["truth"], pet)


@cache
def scans_grid() -> GridSpec:
    """The grid that people are simulated on, and all images are measured on."""
    return load_recipe("petsynth").grid


def on_grid_of(recipe: Recipe, case: TrainingCase) -> TrainingCase:
    """The case on the grid of a recipe whose voxels are as large as the case's, or twice as large."""
    if case.t1w.shape[0] == recipe.grid.shape[0]:
        return case

    def pooled(image: torch.Tensor) -> torch.Tensor:
        return F.avg_pool3d(image[None], 2)[0]

    pet = {name: pooled(scan[None])[0] for name, scan in case.pet.items()}
    classes, measured = most_common(torch.stack([case.classes, case.measured]))
    images = {"t1w": pooled(case.t1w[None])[0], "labels": pooled(case.labels), "pet": pet}
    return replace(case, classes=classes, measured=measured, **images)


@dataclass(frozen=True)
class BenchGround(SimulatedGround):
    """A crowd to train on; the heads that no training sees stay for the evaluation alone."""

    crowd: Crowd

    @property
    def _heads(self) -> Heads:
        return self.crowd.everyone

    @cached_property
    def _seen(self) -> Heads:
        return self.crowd.heads

    @cached_property
    def _unseen(self) -> Heads:
        names = [name for name in self._heads.names if name not in UNSEEN][:CALIBRATION_HEADS]
        return self._heads.select(lambda name: name in names)

    @property
    def pool(self) -> tuple[int, int, int]:
        return self.crowd.size, self.crowd.size, 10**9

    def case(self, number: int) -> TrainingCase:
        return on_grid_of(self.recipe, self.crowd.case(number))

    def held_cases(self, n: int | None = None) -> list[TrainingCase]:
        fine = self.recipe.model_copy(update={"grid": scans_grid()})
        cases = evaluation_cases(self._unseen, fine, CALIBRATION_PEOPLE if n is None else n)
        return [on_grid_of(self.recipe, case) for case in cases]

    # tables for a model folder, which nobody is given
    def ranges(self) -> tuple:
        return ()

    def texture_cases(self) -> tuple:
        return ()

    def normal_cases(self) -> tuple:
        return ()


def people(arrays: Path, tracers: Sequence[str], n: int) -> list[TrainingCase]:
    """Simulated people on unseen heads, the same for every variant."""
    recipe = load_recipe("petsynth")
    heads = load_heads(arrays, recipe).select(lambda name: name in UNSEEN)
    return [simulate_case(heads, tracers, recipe.grid.voxel_size, PEOPLE_SEED, k, augment=False) for k in range(n)]


def diseased(case: TrainingCase) -> bool:
    """Whether a simulated person counts as one with Alzheimer's dementia: amyloid, and a low score."""
    return case.truth["centiloid"] > default_cutoff().centiloid and case.record["mmse"] <= MMSE_OF_DEMENTIA


class Classifier:
    """Tells Alzheimer's dementia by logistic regression on regional SUVR of the training people's own scans."""

    def __init__(self, crowd: Crowd):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        regions, ill = [], []
        for case in map(crowd.case, range(crowd.size)):  # one by one: each takes 100 MB
            regions.append(measure(*own_scan(case), tracer_named(TRACER))[0][0])
            ill.append(diseased(case))
        regions = np.array(regions)
        self.known = np.isfinite(regions).all(0)
        self.model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        self.model.fit(regions[:, self.known], ill)

    def score(self, regions: np.ndarray) -> float:
        """Log odds of the disease from regional SUVR ``(R,)``, NaN where a region is absent."""
        values = regions[self.known]
        values = np.where(np.isfinite(values), values, self.model[0].mean_)
        return float(self.model.decision_function(values[None])[0])


def own_scan(case: TrainingCase) -> tuple[np.ndarray, np.ndarray, Grid]:
    """A person's own scan in SUVR ``(1, X, Y, Z)``, the ``dseg`` codes that it is measured in, and their grid."""
    fine = scans_grid()
    grid = template_grid(tuple(fine.shape), fine.voxel_size)
    labels = dseg_codes(case.measured.numpy(), grid)
    return normalise(case.pet[TRACER][None].numpy(), labels, grid, tracer_named(TRACER)), labels, grid
