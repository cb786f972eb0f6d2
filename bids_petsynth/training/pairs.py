"""Fresh pairs for the generator: real heads, deformed and turned, with simulated people's PET, made while training.

Every simulated person is made from ``(seed, number)`` alone, so a resumed run sees the same ones.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_petsynth.errors import UsageError
from bids_petsynth.models.recipe import Recipe
from bids_petsynth.resources import available_cores
from bids_petsynth.training.augment import chance, normal, random_curve, rotation, smooth_field, uniform
from bids_petsynth.types import Grid

if TYPE_CHECKING:
    from bids_petsynth.simulation.person import People

Record = Mapping[str, float]


@dataclass(frozen=True)
class Heads:
    """Prepared heads on the model grid.

    Attributes
    ----------
    t1w
        ``(H, X, Y, Z)`` float16, white matter median 1.
    classes
        ``(H, X, Y, Z)`` uint8: the labels that PET is simulated from; values above the regions lie outside the brain.
    measured
        ``(H, X, Y, Z)`` uint8: the labelling network's classes, in which PET is measured. That they are others than
        those it is made from lets the network's errors show.
    probabilities
        ``(H, C, X/p, Y/p, Z/p)`` uint8: the labelling network's probabilities × 255, averaged over ``p``³ voxels.
    names
        Name of each head.
    """

    t1w: np.ndarray
    classes: np.ndarray
    measured: np.ndarray
    probabilities: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def select(self, keep: Callable[[str], bool]) -> Heads:
        """The heads whose name ``keep`` accepts."""
        which = [i for i, name in enumerate(self.names) if keep(name)]
        names = tuple(self.names[i] for i in which)
        return Heads(self.t1w[which], self.classes[which], self.measured[which], self.probabilities[which], names)


def load_heads(path: Path, recipe: Recipe) -> Heads:
    """Read prepared arrays (npz with ``t1w``, ``classes``, ``measured``, ``probabilities``, ``names``).

    Raises
    ------
    UsageError
        If an array is missing or does not fit the recipe's grid.
    """
    with np.load(path, allow_pickle=False) as file:
        missing = {"t1w", "classes", "measured", "probabilities", "names"} - set(file.files)
        if missing:
            raise UsageError(f"{path} lacks the array {min(missing)}; prepare the heads again.")
        names = tuple(map(str, file["names"]))
        heads = Heads(file["t1w"], file["classes"], file["measured"], file["probabilities"], names)
    pooled = tuple(n // recipe.label_pool for n in recipe.grid.shape)
    if heads.t1w.shape[1:] != tuple(recipe.grid.shape) or heads.probabilities.shape[2:] != pooled:
        raise UsageError(
            f"{path} holds heads of {heads.t1w.shape[1:]} and probabilities of {heads.probabilities.shape[2:]} voxels "
            f"where the recipe {recipe.name} asks for {tuple(recipe.grid.shape)} and {pooled}; prepare the heads for "
            "this recipe."
        )
    return heads


@dataclass(frozen=True)
class TrainingCase:
    """One person on one head, simulated or real: inputs, record and true scans.

    ``classes`` are the labels that simulated scans are made from, ``measured`` those in which scans are measured.
    ``pet`` maps tracers to ``(X, Y, Z)`` SUVR; ``truth`` holds traits that no model sees (``centiloid`` …);
    ``coordinates (3, X, Y, Z)`` tells where each voxel comes from in the head as it was (see :func:`pull`).
    ``others`` are further modalities of the head (T2w, FLAIR, CT), in the unit that recipes take the T1w in.
    """

    head: str
    t1w: Tensor
    classes: Tensor
    measured: Tensor
    labels: Tensor
    record: Record
    truth: Record
    pet: Mapping[str, Tensor]
    coordinates: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def images(self) -> dict[str, Tensor]:
        """All of them by modality, the T1w first."""
        return {"T1w": self.t1w, **self.others, **self.pet}


def draw_records(n: int, rng: np.random.Generator) -> tuple[People, tuple[Record, ...]]:
    """``n`` simulated people, and for each all traits with the plasma values as one record."""
    from bids_petsynth.simulation.person import draw_people
    from bids_petsynth.simulation.plasma import draw_plasma

    people = draw_people(n, rng)
    plasma = draw_plasma(people, rng)
    return people, tuple(people.row(i) | {name: float(v[i]) for name, v in plasma.items()} for i in range(n))


def _shape_and_person(
    classes: Tensor, coordinates: Tensor, voxel_size: float, rng: np.random.Generator, generator: Generator
) -> tuple[object, Record, Record, Tensor]:
    """A simulated person, their record and traits, and the head's coordinates deformed to their anatomy."""
    from bids_petsynth.simulation.anatomy import deform, log_volume_factors

    people, (all_of_them,) = draw_records(1, rng)
    truth = people.row(0)
    known = ("age", "sex", "education", "apoe4", "mmse")
    record = {name: value for name, value in all_of_them.items() if name in known or name not in truth}
    marked = torch.cat([coordinates, torch.ones(1, *classes.shape)])[None]
    moved, _ = deform(marked, classes[None], log_volume_factors(people), generator, people.head_size, voxel_size)
    return people, record, truth, _divided(moved[0])


def _scan(
    classes: Tensor, measured: Tensor, people: object, tracer: str, generator: Generator, voxel_size: float
) -> Tensor:
    """A simulated scan in SUVR: the one place that calls the simulation's scanner."""
    from bids_petsynth.simulation.scanner import simulate_pet

    labels = classes[None].long()
    return simulate_pet(labels, people, tracer, generator, voxel_size, measured=measured[None].long())[0].float()


def identity_coordinates(shape: Sequence[int]) -> Tensor:
    """``(3, X, Y, Z)`` coordinates z, y, x in [-1, 1] as grid_sample takes them (``align_corners=False``)."""
    return F.affine_grid(torch.eye(3, 4)[None], [1, 1, *shape], align_corners=False)[0].permute(3, 0, 1, 2)


def jitter(coordinates: Tensor, rng: Generator) -> Tensor:
    """The map after a small turn (SD 2.5°), shift (SD 1.5 % of the field of view) and, half the time, mirrored."""
    shape = coordinates.shape[1:]
    turn = rotation(normal(rng, 3).clamp(-2, 2) * math.radians(2.5))
    mirror = torch.tensor([1.0, 1.0, -1.0 if chance(rng, 0.5) else 1.0])
    extent = torch.tensor(shape[::-1], dtype=torch.float32)
    # angles hold in voxels, grid_sample's coordinates are shares of each extent
    matrix = (turn * mirror) * extent[None] / extent[:, None]
    affine = torch.cat([matrix, (0.03 * normal(rng, 3, 1)).clamp(-0.06, 0.06)], dim=1)
    grid = F.affine_grid(affine[None], [1, 1, *shape], align_corners=False)
    marked = torch.cat([coordinates, torch.ones(1, *shape)])[None]
    return _divided(F.grid_sample(marked, grid, "bilinear", "zeros", align_corners=False)[0])


def _divided(marked: Tensor) -> Tensor:
    """Coordinates interpolated with zeros outside, with a channel of ones that tells where that was: far away there."""
    return torch.where(marked[3:] > 0.5, marked[:3] / marked[3:].clamp(min=0.5), 2.0)


def pull(image: Tensor, coordinates: Tensor, mode: str = "bilinear") -> Tensor:
    """``image (C, X, Y, Z)`` read at ``coordinates (3, x, y, z)``; 0 outside."""
    grid = coordinates.permute(1, 2, 3, 0)[None]
    return F.grid_sample(image[None].float(), grid, mode, "zeros", align_corners=False)[0]


def vary_intensity(t1w: Tensor, rng: Generator) -> Tensor:
    """Another scanner's contrast: sometimes another curve, a little gamma, bias, noise; white matter stays near 1."""
    if chance(rng, 0.3):
        curve = random_curve(torch.cat([t1w.flatten() / 1.6, torch.tensor([1 / 1.6])]), rng)
        curved = (curve[:-1] / curve[-1].clamp(min=0.2)).view_as(t1w)
        t1w = 0.5 * t1w + 0.5 * curved
    t1w = t1w.clamp(min=0) ** math.exp(0.12 * normal(rng, 1).clamp(-2, 2).item())
    t1w = t1w * torch.exp(uniform(rng, 0.0, 0.08) * smooth_field(rng, tuple(t1w.shape), (4, 4, 4))[0, 0])
    return t1w * uniform(rng, 0.96, 1.04) + uniform(rng, 0.0, 0.03) * normal(rng, *t1w.shape)


def head_of(heads: int, seed: int, number: int) -> int:
    """Which of the heads the ``number``-th person of a seed has: every head once before any comes again."""
    turn, place = divmod(number, heads)
    return int(np.random.default_rng([seed, turn]).permutation(heads)[place])


def simulate_case(
    heads: Heads, tracers: Sequence[str], voxel_size: float, seed: int, number: int, augment: bool = True
) -> TrainingCase:
    """The ``number``-th simulated person of a seed, on one of the heads, scanned with every tracer."""
    rng = np.random.default_rng([seed, number])
    generator = Generator().manual_seed(int(rng.integers(2**62)))
    pick = head_of(len(heads), seed, number)
    classes = torch.from_numpy(heads.classes[pick].astype(np.int64))
    identity = identity_coordinates(classes.shape)
    people, record, truth, coordinates = _shape_and_person(classes, identity, voxel_size, rng, generator)
    if augment:
        coordinates = jitter(coordinates, generator)
    t1w = pull(torch.from_numpy(heads.t1w[pick])[None], coordinates)[0]
    measured = torch.from_numpy(heads.measured[pick].astype(np.int64))
    both = pull(torch.stack([classes, measured]), coordinates, "nearest").round().long()
    probabilities = torch.from_numpy(heads.probabilities[pick]).float() / 255
    coarse = F.avg_pool3d(coordinates[None], classes.shape[0] // probabilities.shape[1])[0]
    labels = pull(probabilities, coarse)
    labels[0] = (1 - labels[1:].sum(0)).clamp(min=0)
    if augment:
        t1w = vary_intensity(t1w, generator)
    pet = {tracer: _scan(*both, people, tracer, generator, voxel_size) for tracer in tracers}
    return TrainingCase(heads.names[pick], t1w, *both, labels, record, truth, pet, coordinates)


def dseg_codes(classes: np.ndarray, grid: Grid) -> np.ndarray:
    """``dseg`` codes of a simulated person's classes on a model grid, which stands in template pose."""
    from bids_petsynth.anatomy.regions import n_classes
    from bids_petsynth.anatomy.segmentation import sided_codes

    axes = [grid.affine[a, a] * np.arange(n) + grid.affine[a, 3] for a, n in enumerate(classes.shape)]
    x, _, z = np.meshgrid(*axes, indexing="ij")
    return sided_codes(np.where(classes < n_classes(), classes, 0), x, z, 1.0)


#: People that a :class:`Pool` keeps in memory; each takes about 12 MB. Others are made anew when they are drawn.
MOST_KEPT = 500


@dataclass(frozen=True)
class Batch:
    """N examples: ``t1w (N, X, Y, Z)``, ``labels (N, C, …)``, ``latents (N, c, x, y, z)``, records and targets' names.

    Labels are bytes, 255 for certain: a quarter of what :meth:`probabilities` are, which are made where they are used.
    ``given (N, S, c, x, y, z)`` are the latents of the sources that were asked for and ``there (N, S)`` tells which of
    them a person has, the target left out. One T1w with its labels may stand for all examples.
    """

    t1w: Tensor
    labels: Tensor
    latents: Tensor
    records: tuple[Record, ...]
    tracers: tuple[str, ...]
    given: Tensor | None = None
    there: Tensor | None = None

    def probabilities(self, device: str) -> Tensor:
        """Label probabilities ``(N, C, …)`` float32 on a device."""
        return self.labels.to(device).float() / 255


@dataclass(frozen=True)
class _Stored:
    t1w: Tensor
    labels: Tensor
    latents: Mapping[str, Tensor]
    record: Record

    def targets(self, wanted: Sequence[str]) -> list[str]:
        return [name for name in wanted if name in self.latents]


def ahead_on(device: str) -> int:
    """How many people a :class:`Pool` makes before their step comes, where steps are done on ``device``."""
    return 8 if device.startswith("cuda") else 0


class Pool:
    """The simulated people that training draws from; it moves on by one person every ``refresh`` steps.

    Parameters
    ----------
    make
        Number → case.
    encode
        ``(N, X, Y, Z)`` images → latents; done once per person.
    start, size, refresh
        People at the first step, at most, and steps per new person.
    targets
        Modalities that may be drawn, those of each person that has them.
    sources
        Modalities that a drawing may be given.
    ahead
        People that are made in threads before their step comes. Steps of a GPU are shorter than it takes to make a
        person; on a CPU the threads would only be in the way of the step's own.
    """

    def __init__(
        self,
        make: Callable[[int], TrainingCase],
        encode: Callable[[Tensor], Tensor],
        start: int,
        size: int,
        refresh: int,
        targets: Sequence[str],
        sources: Sequence[str] = (),
        ahead: int = 0,
    ):
        self._make, self._encode, self._targets, self._sources = make, encode, tuple(targets), tuple(sources)
        self._start, self._size, self._refresh = min(start, size), size, refresh
        self._kept: OrderedDict[int, _Stored] = OrderedDict()
        self._ahead, self._coming = ahead, dict[int, Future[_Stored]]()
        at_once = max(1, min(ahead, available_cores() - 1))
        # each with one core, for together they have them all
        self._threads = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,))

    def numbers(self, step: int) -> range:
        """Numbers of the people in the pool at ``step``."""
        end = self._start + step // self._refresh
        return range(max(0, end - self._size), end)

    def _case(self, number: int) -> _Stored:
        if number not in self._kept:
            coming = self._coming.pop(number, None)
            self._kept[number] = self._made(number) if coming is None else coming.result()
        self._kept.move_to_end(number)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return self._kept[number]

    @torch.no_grad()
    def _made(self, number: int) -> _Stored:
        case = self._make(number)
        wanted = {k: v for k, v in case.images.items() if k in self._targets or k in self._sources}
        latents = self._encode(torch.stack(list(wanted.values()))).half()
        labels = (case.labels * 255).round().byte()
        return _Stored(case.t1w.half(), labels, dict(zip(wanted, latents, strict=True)), case.record)

    def people(self, n: int) -> Iterator[Batch]:
        """The first ``n`` people, each with every target on their one head."""
        for case in map(self._case, range(n)):
            names = case.targets(self._targets)
            if names:
                yield self._batch([case] * len(names), names, one_head=True)

    def batch(self, step: int, n: int, rng: Generator, some: slice = slice(None)) -> Batch:
        """``some`` of ``n`` random examples at ``step``, the pool's newest person among the ``n`` when just come."""
        numbers = self.numbers(step)
        for kept in (self._kept, self._coming):
            for old in [k for k in kept if k < numbers.start]:
                del kept[old]
        for number in range(numbers.stop, numbers.stop + self._ahead):
            if number not in self._coming:
                self._coming[number] = self._threads.submit(self._made, number)
        picks = [numbers[int(torch.randint(len(numbers), (), generator=rng))] for _ in range(n)]
        which = torch.rand(n, generator=rng)
        if step % self._refresh == 0:
            picks[0] = numbers[-1]
        people = [self._case(k) for k in picks[some]]
        names = [p.targets(self._targets) for p in people]
        return self._batch(people, [own[int(u * len(own))] for own, u in zip(names, which[some].tolist(), strict=True)])

    def _batch(self, people: Sequence[_Stored], names: Sequence[str], one_head: bool = False) -> Batch:
        heads = people[:1] if one_head else people
        given = there = None
        latents = torch.stack([p.latents[name].float() for p, name in zip(people, names, strict=True)])
        if self._sources:
            given = torch.zeros(len(people), len(self._sources), *latents.shape[1:])
            there = torch.zeros(len(people), len(self._sources), dtype=torch.bool)
            for row, (person, target) in enumerate(zip(people, names, strict=True)):
                for place, source in enumerate(self._sources):
                    if source in person.latents and source != target:
                        given[row, place], there[row, place] = person.latents[source].float(), True
        return Batch(
            torch.stack([p.t1w.float() for p in heads]),
            torch.stack([p.labels for p in heads]),
            latents,
            tuple(p.record for p in people),
            tuple(names),
            given,
            there,
        )
