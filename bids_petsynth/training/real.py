"""Real pairs of T1w and PET as training cases: prepared once, kept on disk, varied while training.

A site's scans come as ``bids.pets.Pair``; what a scan costs (labelling the head, registering the PET) is paid once and
kept in a work folder under a name that changes with the scan, so that a run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_petsynth.bids.sink import write_atomically
from bids_petsynth.models.regional import Geometry, regional_means
from bids_petsynth.pet.tracers import default_cutoff
from bids_petsynth.training.augment import chance
from bids_petsynth.training.pairs import (
    Record,
    TrainingCase,
    identity_coordinates,
    jitter,
    pull,
    vary_intensity,
)
from bids_petsynth.training.regional import RegionalPeople
from bids_petsynth.types import Anatomy


@dataclass(frozen=True)
class Stored:
    """One head with all its prepared scans on disk.

    Attributes
    ----------
    participant
        Label; people are split by it.
    head
        File that :func:`store_head` wrote.
    scans
        Tracer → file that :func:`store_scan` wrote.
    record
        Known variables of the person at that time.
    centiloid
        Measured on the amyloid scan, if there is one.
    others
        T2w, FLAIR and CT → file that :func:`store_scan` wrote.
    site
        Where the person was seen, if the dataset tells.
    """

    participant: str
    head: Path
    scans: Mapping[str, Path]
    record: Record
    centiloid: float | None = None
    others: Mapping[str, Path] = field(default_factory=dict)
    site: str = ""

    @property
    def identity(self) -> list[object]:
        """What it holds, wherever its folder lies: names of files change with what they are made from."""
        scans = {name: path.name for name, path in {**self.scans, **self.others}.items()}
        return [self.participant, self.head.name, scans, self.record, self.centiloid]


def store_head(anatomy: Anatomy, label_pool: int, path: Path) -> None:
    """Write what training needs of a head on the model grid: T1w, pooled label probabilities, side-less classes."""
    from bids_petsynth.models.synthesizer import pool_labels
    from bids_petsynth.simulation.uptake import classes_of

    _write(
        path,
        t1w=anatomy.t1w.astype(np.float16),
        labels=(pool_labels(anatomy.probabilities, label_pool)[0] * 255).round().byte().numpy(),
        measured=classes_of(torch.from_numpy(np.asarray(anatomy.labels))).numpy().astype(np.uint8),
        codes=anatomy.labels.astype(np.uint8),
        affine=anatomy.grid.affine,
    )


def store_scan(scan: np.ndarray, path: Path) -> None:
    """Write a scan on the model grid, PET in SUVR."""
    _write(path, suvr=scan.astype(np.float16))


def load_scan(path: Path) -> Tensor:
    """What :func:`store_scan` wrote, ``(X, Y, Z)``."""
    with np.load(path, allow_pickle=False) as file:
        return torch.from_numpy(file["suvr"].astype(np.float32))


def store_alone(uptake: np.ndarray, brain: np.ndarray, path: Path) -> None:
    """Write a scan without T1w on the model grid, its mean over ``brain`` being 1."""
    _write(path, uptake=uptake.astype(np.float16), brain=brain)


def load_alone(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`store_alone` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return file["uptake"].astype(np.float32), file["brain"]


def _write(path: Path, **arrays: np.ndarray) -> None:
    """Whole or not at all."""
    write_atomically(path, lambda file: np.savez(file, **arrays))


def load_case(stored: Stored) -> TrainingCase:
    """The case as it was scanned."""
    with np.load(stored.head, allow_pickle=False) as file:
        t1w, labels, measured = file["t1w"], file["labels"], file["measured"]
    classes = torch.from_numpy(measured.astype(np.int64))
    truth = {} if stored.centiloid is None else {"centiloid": stored.centiloid}
    return TrainingCase(
        stored.participant,
        torch.from_numpy(t1w.astype(np.float32)),
        classes,
        classes,
        torch.from_numpy(labels.astype(np.float32) / 255),
        stored.record,
        truth,
        {tracer: load_scan(path) for tracer, path in stored.scans.items()},
        others={modality: load_scan(path) for modality, path in stored.others.items()},
    )


@dataclass(frozen=True)
class OnDisk(Sequence[TrainingCase]):
    """Cases that are loaded each time they are asked for: hundreds would fill the memory."""

    stored: Sequence[Stored]

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, place):
        return OnDisk(self.stored[place]) if isinstance(place, slice) else load_case(self.stored[place])


def varied(case: TrainingCase, rng: Generator) -> TrainingCase:
    """The case as another scan of it might look: turned, shifted or mirrored, with another contrast of the T1w.

    Half of the time only mirrored or left in place, because turning an image blurs it a little.
    """
    identity = identity_coordinates(case.t1w.shape)
    where = jitter(identity, rng) if chance(rng, 0.5) else identity
    if where is identity and chance(rng, 0.5):
        where = identity.flip(1)
    coarse = F.avg_pool3d(where[None], case.t1w.shape[0] // case.labels.shape[1])[0]
    labels = pull(case.labels, coarse)
    labels[0] = (1 - labels[1:].sum(0)).clamp(min=0)
    measured = pull(case.measured[None], where, "nearest")[0].round().long()
    return TrainingCase(
        case.head,
        vary_intensity(pull(case.t1w[None], where)[0], rng),
        measured,
        measured,
        labels,
        case.record,
        case.truth,
        {tracer: pull(scan[None], where)[0] for tracer, scan in case.pet.items()},
        others={name: vary_intensity(pull(image[None], where)[0], rng) for name, image in case.others.items()},
    )


def case_maker(people: Sequence[Stored], seed: int) -> Callable[[int], TrainingCase]:
    """Number → case for ``training.pairs.Pool``: everyone as they are, then everyone varied, again and again."""

    def make(number: int) -> TrainingCase:
        turn, place = divmod(number, len(people))
        case = load_case(people[place])
        return case if turn == 0 else varied(case, Generator().manual_seed(seed * 1_000_003 + number))

    return make


def regional_people(people: Sequence[Stored], tracers: Sequence[str], voxel_size: float) -> RegionalPeople:
    """Regional means and volumes of real people as the regional flow is trained on them."""
    records, means, regions = [], [], []
    for case in map(load_case, people):
        factor = case.t1w.shape[0] // case.labels.shape[1]
        row = torch.full((len(tracers), len(case.labels)), torch.nan)
        for place, tracer in enumerate(tracers):
            if tracer in case.pet:
                row[place] = _means(case.pet[tracer], case.labels, factor)
        records.append(case.record)
        means.append(row)
        regions.append(Geometry.of(case.labels[None], voxel_size * factor))
    return RegionalPeople(tuple(records), torch.stack(means), Geometry.together(regions))


def _means(scan: Tensor, labels: Tensor, factor: int) -> Tensor:
    return regional_means(F.avg_pool3d(scan[None], factor), labels[None])[0]


def split_people(people: Sequence[Stored], share: float, seed: int) -> tuple[list[Stored], list[Stored]]:
    """Training and validation cases, split by participant, stratified by site, tracers and amyloid status.

    At least one participant is kept for validation, however few there are. Those of a stratum are taken in the order of
    their labels' hashes, so that who is held out mostly stays so when people are added: a model that is adapted with
    ``--init-from`` is then hardly measured on people that it was trained on.

    Raises
    ------
    ValueError
        If there are fewer than two participants.
    """
    strata: dict[tuple[object, ...], list[str]] = {}
    of_person: dict[str, list[Stored]] = {}
    for stored in people:
        of_person.setdefault(stored.participant, []).append(stored)
    if len(of_person) < 2:
        raise ValueError("one participant cannot be split into training and validation")
    for name, cases in sorted(of_person.items()):
        loads = [case.centiloid for case in cases if case.centiloid is not None]
        tracers = tuple(sorted({tracer for case in cases for tracer in case.scans}))
        key = cases[0].site, tracers, max(loads) > default_cutoff().centiloid if loads else None
        strata.setdefault(key, []).append(name)
    # one place after the other over all strata: shares come out right over small strata too
    places = [key for key in sorted(strata, key=str) for _ in strata[key]]
    count = max(1, round(share * len(places)))
    wanted = Counter(places[int(place)] for place in (np.arange(count) + 0.5) * len(places) / count)

    def order(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}".encode()).digest()

    held = {name for key, names in strata.items() for name in sorted(names, key=order)[: wanted[key]]}
    return (
        [case for case in people if case.participant not in held],
        [case for case in people if case.participant in held],
    )
