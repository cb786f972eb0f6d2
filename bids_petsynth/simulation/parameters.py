"""Numbers of the simulation, read from the ``sim_*.tsv`` tables under ``data/``."""

from __future__ import annotations

from functools import cache

import numpy as np

from bids_petsynth.anatomy.regions import n_classes, regions
from bids_petsynth.tables import read_table

#: Classes outside the brain that a label map may hold after the regions, from dark to bright in a T1w.
SOFT_TISSUE = ("soft_tissue_1", "soft_tissue_2", "soft_tissue_3", "soft_tissue_4")


@cache
def parameters(table: str) -> dict[str, float]:
    """Name → value of a table with the columns ``name`` and ``value``."""
    return {row["name"]: float(row["value"]) for row in read_table(table)}


@cache
def class_names() -> tuple[str, ...]:
    """Names of the classes that uptake is given for: background, the regions, soft tissue, choroid plexus."""
    return ("background", *(region.name for region in regions()), *SOFT_TISSUE, "choroid_plexus")


def members(cell: str) -> list[int]:
    """Class indices named in a table's cell, separated by commas."""
    names = class_names()
    return [names.index(name) for name in cell.split(",")]


def mixing(groups: list[str], rng: np.random.Generator, n: int, share: float) -> np.ndarray:
    """Standard normal numbers ``(n, len(groups))`` that correlate by ``share`` within a group.

    The background, the first column, has none.
    """
    names = sorted(set(groups))
    common = rng.standard_normal((n, len(names)))[:, [names.index(group) for group in groups]]
    own = rng.standard_normal((n, len(groups)))
    return np.sqrt(share) * common + np.sqrt(1 - share) * own


@cache
def lobes() -> tuple[str, ...]:
    """Lobe of every class of the labelling network, the background first."""
    found = ("background", *(region.lobe for region in regions()))
    assert len(found) == n_classes()
    return found
