"""A ground of tiny random heads to train on, which costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from models_small import SHAPE

from bids_petsynth.anatomy.regions import n_classes
from bids_petsynth.models.recipe import Recipe
from bids_petsynth.models.regional import Geometry, regional_means
from bids_petsynth.training.pairs import TrainingCase
from bids_petsynth.training.regional import RegionalPeople


@dataclass(frozen=True)
class SmallGround:
    """``people`` persons with every PET tracer of the recipe; ``only`` tells for some which tracers they have."""

    recipe: Recipe
    count: int = 4
    only: dict[int, tuple[str, ...]] | None = None
    tracers: tuple[str, ...] = ("AV45", "FDG")
    held: tuple[TrainingCase, ...] = ()

    demonstration = False
    names = ()
    unpaired, references = (), ()
    standing = "A test."
    figures_note = "None."

    @property
    def pool(self) -> tuple[int, int, int]:
        return self.count, 2 * self.count, 2

    def case(self, number: int) -> TrainingCase:
        rng = torch.Generator().manual_seed(number)
        n, pool = n_classes(), self.recipe.label_pool
        labels = (4 * torch.randn(1, n, *(s // pool for s in SHAPE), generator=rng)).softmax(1)
        classes = F.interpolate(labels, SHAPE).argmax(1)[0]
        record = {"age": 60.0 + number % 30, "sex": float(number % 2)}
        tracers = (self.only or {}).get(number, self.tracers)
        scans = {name: (1 + place) * torch.rand(SHAPE, generator=rng) for place, name in enumerate(tracers)}
        t1w = torch.rand(SHAPE, generator=rng)
        return TrainingCase(f"{number}", t1w, classes, classes, labels[0], record, {}, scans)

    def records(self) -> list[dict[str, float]]:
        return [dict(self.case(k).record) for k in range(self.count)]

    def _people(self, numbers: Sequence[int]) -> RegionalPeople:
        cases, pool = [self.case(k) for k in numbers], self.recipe.label_pool
        means = [
            torch.stack([regional_means(F.avg_pool3d(c.pet[t][None], pool), c.labels[None])[0] for t in self.tracers])
            for c in cases
        ]
        regions = Geometry.together([Geometry.of(c.labels[None], 4.0) for c in cases])
        return RegionalPeople(tuple(c.record for c in cases), torch.stack(means), regions)

    def people(self) -> RegionalPeople:
        return self._people(range(self.count))

    def held_people(self) -> RegionalPeople:
        return self._people(range(1000, 1002))

    def held_cases(self, n: int | None = None) -> list[TrainingCase]:
        return list(self.held[:n])

    def texture_cases(self) -> list[TrainingCase]:
        return list(self.held)

    def ranges(self) -> tuple:
        return ()

    def normal_cases(self) -> tuple:
        return ()

    def data(self) -> str:
        return "- None."

    def command(self, minutes: float) -> str:
        return "a test"
