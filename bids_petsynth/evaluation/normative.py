"""Normative sets of surface projections: mean and standard deviation per point over people, and z against them.

They lie as ``surface.safetensors`` in a model's folder, made at its training from people with a normal scan.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_petsynth.errors import ModelError
from bids_petsynth.evaluation.surface import Projection, project_person, setting
from bids_petsynth.models.folder import optional_file, put_files
from bids_petsynth.types import Grid

if TYPE_CHECKING:
    from bids_petsynth.training.pairs import Heads, Record, TrainingCase

#: Its name in a model folder.
FILE = "surface.safetensors"
_ARRAYS = ("mean", "sd", "count")


@dataclass(frozen=True)
class Normative:
    """A normative set of one tracer.

    Attributes
    ----------
    mean, sd, count
        ``(P,)`` over people; NaN where a point is known in fewer than two of them.
    people
        Number of people.
    simulated
        True if their scans are simulated.
    tracer, statistic, depth, surface, fwhm
        What was projected, and how (see :class:`Projection`).
    grid
        Shape and voxel size of the model grid that the scans lay on, ``96x112x96@2``; empty if on none.
    """

    mean: np.ndarray
    sd: np.ndarray
    count: np.ndarray
    people: int
    simulated: bool
    tracer: str
    statistic: str
    depth: float
    surface: str
    fwhm: float
    grid: str = ""

    @property
    def described(self) -> str:
        """Whom a person is compared with, for captions."""
        return f"{self.people} {'simulated ' if self.simulated else ''}people with a normal {self.tracer} scan"


def grid_name(shape: Sequence[int], voxel_size: float) -> str:
    """How a normative set names its model's grid."""
    return "x".join(map(str, shape)) + f"@{voxel_size:g}"


def normative_of(
    projections: Iterable[Projection], tracer: str = "", simulated: bool = False, grid: str = ""
) -> Normative:
    """The normative set of people's projections, which are read one after the other.

    Raises
    ------
    ValueError
        With fewer than two people, or projections that were made in different ways.
    """
    count = mean = squares = first = None
    people = 0
    for projection in projections:
        if first is None:
            first = projection
            count, mean, squares = (np.zeros(len(projection.values)) for _ in range(3))
        if _way(projection) != _way(first):
            raise ValueError("the projections of a normative set must share surface, statistic, depth and smoothing")
        known = np.isfinite(projection.values)
        people += 1
        # Welford 1962 (Technometrics 4:419), per point
        count += known
        off = np.where(known, projection.values - mean, 0)
        mean += off / np.maximum(count, 1)
        squares += off * np.where(known, projection.values - mean, 0)
    if people < 2:
        raise ValueError(f"a normative set needs two people or more, not {people}")
    told = count > 1
    sd = np.sqrt(squares / np.maximum(count - 1, 1))
    return Normative(
        np.where(told, mean, np.nan).astype(np.float32),
        np.where(told, sd, np.nan).astype(np.float32),
        count.astype(np.int32),
        people,
        simulated,
        tracer,
        first.statistic,
        first.depth,
        first.surface,
        first.fwhm,
        grid,
    )


def _way(made: Projection | Normative) -> tuple[str, float, float, str]:
    return made.statistic, round(made.depth, 3), round(made.fwhm, 3), made.surface


def z_scores(projection: Projection, normative: Normative) -> np.ndarray:
    """``(P,)`` z of a person against a normative set, positive where there is more uptake.

    A person who belongs to the normal population has a standard normal z at each point however few people the set has:
    ``(x - mean) / (sd √(1 + 1/n))`` follows Student's t with n - 1 degrees of freedom (Crawford & Howell 1998, Clin
    Neuropsychol 12:482), and its quantile is turned into that of the normal distribution. NaN where either is unknown
    or all people of the set are the same.

    Raises
    ------
    ValueError
        If projection and normative set were made in different ways.
    """
    from scipy.stats import norm, t

    if _way(projection) != _way(normative):
        raise ValueError(
            f"the projection ({projection.statistic}, {projection.depth:g} mm) and the normative set "
            f"({normative.statistic}, {normative.depth:g} mm) were made in different ways or on different surfaces"
        )
    n = normative.count.astype(float)
    told = np.isfinite(projection.values) & (n > 1) & (np.nan_to_num(normative.sd) > 0)
    out = np.full(len(n), np.nan)
    n = n[told]
    student = (projection.values[told] - normative.mean[told]) / (normative.sd[told] * np.sqrt(1 + 1 / n))
    # through the log of the tail, which does not underflow for a far value
    tail = t.logsf(np.abs(student), n - 1)
    out[told] = np.sign(student) * -norm.ppf(np.exp(np.maximum(tail, -700)))
    return out


def is_normal(record: Record, truth: Record) -> bool:
    """Whether a training person belongs to the normative set.

    Amyloid below the default cut-off and no cognitive impairment, as far as either is known; someone of whom neither
    is known does not belong.
    """
    from bids_petsynth.pet.tracers import default_cutoff

    load, mmse = truth.get("centiloid", np.nan), record.get("mmse", np.nan)
    tests = [load < default_cutoff().centiloid] if np.isfinite(load) else []
    tests += [mmse >= float(setting("normative_mmse"))] if np.isfinite(mmse) else []
    return bool(tests) and all(tests)


def normative_from_cases(
    cases: Iterable[TrainingCase], tracers: Sequence[str], grid: Grid, simulated: bool = False
) -> tuple[Normative, ...]:
    """Normative sets from training people (not augmented), who are read one after the other.

    Parameters
    ----------
    cases
        On the model grid; those who are not normal (:func:`is_normal`) are passed over.
    grid
        The model grid in template pose (``anatomy.alignment.template_grid``).
    simulated
        Whether their PET is.

    Returns
    -------
    A set per tracer that has as many people as a useful one needs (``data/surface.tsv``).
    """
    from bids_petsynth.training.pairs import dseg_codes

    kept: dict[str, list[Projection]] = {tracer: [] for tracer in tracers}
    for case in cases:
        if not is_normal(case.record, case.truth):
            continue
        codes = dseg_codes(case.measured.numpy(), grid)
        for tracer in kept.keys() & case.pet.keys():
            kept[tracer].append(project_person(case.pet[tracer].numpy(), codes, grid.affine, tracer))
    name = grid_name(grid.shape, grid.affine[0, 0])
    least = int(setting("normative_least"))
    return tuple(normative_of(some, tracer, simulated, name) for tracer, some in kept.items() if len(some) >= least)


def simulated_normals(
    heads: Heads, tracers: Sequence[str], voxel_size: float, seed: int, people: int
) -> Iterator[TrainingCase]:
    """Simulated people with a normal scan, not augmented, on the given heads in turn."""
    from bids_petsynth.training.pairs import simulate_case

    found = number = 0
    while found < people:
        # only the person decides, so the tracers are simulated for those that are kept
        case = simulate_case(heads, (), voxel_size, seed, number, augment=False)
        if is_normal(case.record, case.truth):
            found += 1
            yield simulate_case(heads, tracers, voxel_size, seed, number, augment=False)
        number += 1


def to_bytes(sets: Sequence[Normative]) -> bytes:
    """Normative sets as the content of a safetensors file; the same sets give the same bytes."""
    from safetensors.numpy import save

    tensors = {f"{one.tracer}.{name}": np.ascontiguousarray(getattr(one, name)) for one in sets for name in _ARRAYS}
    about = {one.tracer: {k: v for k, v in asdict(one).items() if k not in _ARRAYS} for one in sets}
    return save(tensors, {"normative": json.dumps(about, sort_keys=True)})


def load_normative(path: Path) -> dict[str, Normative]:
    """Normative sets by tracer.

    Raises
    ------
    ModelError
        If the file is missing, damaged, or does not hold what it should.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["normative"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        sets = {
            tracer: Normative(**{name: arrays[f"{tracer}.{name}"] for name in _ARRAYS}, **fields)
            for tracer, fields in about.items()
        }
        if any(array.shape != one.mean.shape for one in sets.values() for array in (one.sd, one.count)):
            raise ValueError("arrays of different lengths")
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(f"{path} holds no normative set ({error}); copy the model folder again.") from None
    return sets


def model_normative(folder: Path, weights_sha256: str, grid: str = "") -> Mapping[str, Normative]:
    """Normative sets of a model folder by tracer; empty if it has none or holds another model.

    Parameters
    ----------
    weights_sha256
        Of the model whose set is asked for.
    grid
        Name of the model's grid (:func:`grid_name`); sets of another are left out. Not looked at if empty.

    Raises
    ------
    ModelError
        If the folder has a set but is incomplete or damaged.
    """
    path = optional_file(Path(folder), FILE, weights_sha256)
    sets = load_normative(path) if path else {}
    return {name: one for name, one in sets.items() if not grid or one.grid == grid}


def add_to_model(folder: Path, sets: Sequence[Normative]) -> None:
    """Put normative sets into a model folder, in place of those that it has, and their checksum into ``model.json``.

    Raises
    ------
    ModelError
        If the folder is incomplete or damaged.
    """
    put_files(Path(folder), {FILE: to_bytes(sets)})


def main(argv: list[str] | None = None) -> None:
    """``python -m bids_petsynth.evaluation.normative ARRAYS MODEL``: simulated people on the model's heads."""
    from bids_petsynth.anatomy.alignment import template_grid
    from bids_petsynth.models.conditioning import is_pet
    from bids_petsynth.models.folder import load_model
    from bids_petsynth.training.pairs import load_heads

    parser = argparse.ArgumentParser(description="Add a simulated normative set to a demonstration model's folder.")
    parser.add_argument("arrays", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    recipe, names = (model := load_model(args.model)).recipe, set(model.heads)
    heads = load_heads(args.arrays, recipe).select(lambda name: name in names)
    grid = template_grid(tuple(recipe.grid.shape), recipe.grid.voxel_size)
    tracers = [name for name in recipe.tracers if is_pet(name)]
    cases = simulated_normals(heads, tracers, recipe.grid.voxel_size, args.seed, args.people)
    sets = normative_from_cases(cases, tracers, grid, simulated=True)
    if not sets:
        parser.error(f"--people {args.people} is too few: a useful set has {setting('normative_least')} or more")
    add_to_model(args.model, sets)
    print("; ".join(one.described for one in sets))


if __name__ == "__main__":
    main()
