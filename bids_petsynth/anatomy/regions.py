"""The label scheme: which regions exist, how they merge DLMUSE's, and what a side means.

The labelling network predicts side-less regions (so that a mirrored head is as good a training
example as the head itself); the side comes from the midplane afterwards. In a written ``dseg`` a midline
region keeps its index, its left part is ``100 + index`` and its right part ``200 + index``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from bids_petsynth.tables import read_table

LEFT, RIGHT = 100, 200


@dataclass(frozen=True)
class Region:
    """One row of ``data/regions.tsv``.

    ``tissue`` is ``gm``, ``deep`` (subcortical grey), ``wm`` or ``csf``; ``dlmuse`` are the DLMUSE labels merged
    into it; ``cut_from`` names the region that it is cut from geometrically after labelling, if it is.
    """

    index: int
    name: str
    tissue: str
    lobe: str
    sided: bool
    dlmuse: tuple[int, ...]
    cut_from: str | None


@cache
def all_regions() -> tuple[Region, ...]:
    """Every region that a ``dseg`` may hold, in the order of their index, which starts at 1."""
    table = []
    for row in read_table("regions.tsv"):
        labels = [row[side] for side in ("dlmuse_right", "dlmuse_left") if row[side]]
        table.append(
            Region(
                index=int(row["index"]),
                name=row["name"],
                tissue=row["tissue"],
                lobe=row["lobe"],
                sided=row["sided"] == "yes",
                dlmuse=tuple(int(x) for x in ",".join(labels).split(",") if x),
                cut_from=row["cut_from"] or None,
            )
        )
    return tuple(table)


@cache
def regions() -> tuple[Region, ...]:
    """The regions that the labelling network predicts: index 1 to ``n_classes() - 1`` without a gap."""
    return tuple(region for region in all_regions() if region.cut_from is None)


@cache
def region_index() -> dict[str, int]:
    """Name → index, of all regions."""
    return {region.name: region.index for region in all_regions()}


def n_classes() -> int:
    """Number of classes of the labelling network, background included."""
    return len(regions()) + 1


@cache
def lookup() -> tuple[tuple[int, str, str, Region], ...]:
    """Rows of the ``dseg`` lookup table: code, name with side, side (``L``, ``R`` or ``B`` for midline), region."""
    rows = []
    for region in all_regions():
        if region.sided:
            rows.append((LEFT + region.index, f"left_{region.name}", "L", region))
            rows.append((RIGHT + region.index, f"right_{region.name}", "R", region))
        else:
            rows.append((region.index, region.name, "B", region))
    return tuple(sorted(rows, key=lambda row: row[0]))


@cache
def codes_of(*names: str) -> tuple[int, ...]:
    """All ``dseg`` codes (both sides) of the named regions, those cut from them included.

    Raises
    ------
    KeyError
        If a name is not in ``data/regions.tsv``.
    """
    unknown = set(names) - set(region_index())
    if unknown:
        raise KeyError(f"no such region: {', '.join(sorted(unknown))}")
    return tuple(code for code, _, _, region in lookup() if region.name in names or region.cut_from in names)


def class_weights(names: Sequence[str], volumes: np.ndarray) -> np.ndarray:
    """Weights ``(classes,)``, summing to 1, that average classes over named regions by their ``volumes (classes,)``.

    A region that is cut from another counts as that one. If a head has none of them, they count the same.
    """
    index, cut = region_index(), {region.name: region.cut_from for region in all_regions()}
    weights = np.zeros(n_classes())
    chosen = sorted({index[cut[name] or name] for name in names})
    weights[chosen] = np.asarray(volumes)[chosen]
    if not weights.any():
        weights[chosen] = 1
    return weights / weights.sum()


def white_matter(labels: np.ndarray) -> np.ndarray:
    """Where sided ``dseg`` codes ``(X, Y, Z)`` are those of white matter."""
    codes = [c for r in regions() if r.tissue == "wm" for c in (r.index, LEFT + r.index, RIGHT + r.index)]
    return np.isin(labels, codes)
