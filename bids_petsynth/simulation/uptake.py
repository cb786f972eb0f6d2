"""Uptake of each tracer by tissue for each person, and where the reference and target regions lie.

Values are those of tissue, before the scanner blurs them (``data/sim_uptake.tsv``, solved by
``simulation.calibrate`` so that measured regional means come out as published). Each class has a ``low`` value and a
``high`` one; what moves it between the two, its ``driver``, is amyloid, tau, or loss of metabolism.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bids_petsynth.anatomy.regions import all_regions, lookup, n_classes, regions
from bids_petsynth.errors import UsageError
from bids_petsynth.pet.tracers import centiloid_equation, targets, tracer
from bids_petsynth.simulation.parameters import class_names, members, parameters
from bids_petsynth.simulation.person import People
from bids_petsynth.tables import read_table


@dataclass(frozen=True)
class Uptake:
    """Tissue values of ``n`` people, ``(n, 2, classes)`` each; the second axis is the side, left then right.

    ``base`` is what is there without the target, ``change`` what the person's disease adds. ``target_ratio``
    ``(n,)`` is the ratio of target to reference region that the scan shall show, to which ``change`` is scaled on
    the scan; None where it is added as it stands.
    """

    base: Tensor
    change: Tensor
    target_ratio: Tensor | None


@cache
def simulated_tracers() -> tuple[str, ...]:
    """Names of the tracers that can be simulated."""
    return tuple(dict.fromkeys(row["tracer"] for row in read_table("sim_uptake.tsv")))


@cache
def _table(name: str) -> dict[str, np.ndarray]:
    """Columns ``low``, ``high``, ``onset`` and ``driver`` of a tracer, one entry per class."""
    rows = {row["region"]: row for row in read_table("sim_uptake.tsv") if row["tracer"] == name}
    ordered = [rows.get(region) for region in class_names()]
    columns = {
        column: np.array([float(row[column]) if row else 0.0 for row in ordered]) for column in ("low", "high", "onset")
    }
    return columns | {"driver": np.array([row["driver"] if row else "none" for row in ordered])}


def tissue_values(people: People, name: str) -> Uptake:
    """Tissue values of each person for a tracer.

    Parameters
    ----------
    people
        ``n`` people.
    name
        One of :func:`simulated_tracers`, or a synonym of it.

    Raises
    ------
    UsageError
        If the tracer cannot be simulated.
    """
    which = tracer(name)
    if which.name not in simulated_tracers():
        raise UsageError(f"The tracer {name} cannot be simulated; choose among {', '.join(simulated_tracers())}.")
    table, p = _table(which.name), parameters("sim_variation.tsv")
    low, high = table["low"], table["high"]
    pattern = _extend(people.uptake_pattern, len(low))
    side = _extend(people.asymmetry, len(low))
    asymmetry = 1 + p["asymmetry_sd"] * np.stack([side, -side], 1)
    own = np.exp(p["region_sd"] * pattern)
    white = np.array([tissue == "wm" for tissue in _tissues()])
    own = np.where(white, own ** p["white_pattern_share"], own)
    if which.target_class == "amyloid":
        own = own * np.where(white, people.white_matter[:, None], 1.0)
    base = (low * own)[:, None] * asymmetry
    amount = _amount(people, table)
    varied = amount * (high - low) * np.clip(1 + p["change_sd"] * pattern, p["change_min"], None)
    change = varied[:, None] * (1 + p["change_asymmetry_sd"] * np.stack([side, -side], 1))
    ratio = None
    if which.target_class == "amyloid":
        equation = centiloid_equation(which.name, _pipeline(which.name))
        ratio = torch.as_tensor((people.centiloid - equation.intercept) / equation.slope, dtype=torch.float32)
    return Uptake(torch.as_tensor(base, dtype=torch.float32), torch.as_tensor(change, dtype=torch.float32), ratio)


def _pipeline(name: str) -> str:
    """Pipeline whose Centiloid equation is inverted for a tracer."""
    return next(row["pipeline"] for row in read_table("sim_centiloid.tsv") if row["tracer"] == name)


def _amount(people: People, table: dict[str, np.ndarray]) -> np.ndarray:
    """How far from ``low`` to ``high`` each class of each person stands, ``(n, classes)``."""
    out = np.zeros((len(people), len(table["low"])))
    for driver in np.unique(table["driver"]):
        here = table["driver"] == driver
        if driver == "amyloid":
            out[:, here] = 1.0
        elif driver != "none":
            onset = table["onset"][here]
            out[:, here] = np.clip((getattr(people, driver)[:, None] - onset) / (1 - onset), 0, None)
    return out


def _extend(pattern: np.ndarray, classes: int) -> np.ndarray:
    """The pattern with zeros for the classes outside the brain."""
    return np.pad(pattern, [(0, 0), (0, classes - pattern.shape[1])])


@cache
def _tissues() -> tuple[str, ...]:
    """Tissue of every class: that of ``regions.tsv``, or ``outside``."""
    inside = [region.tissue for region in regions()]
    return ("outside", *inside, *(["outside"] * (len(class_names()) - 1 - len(inside))))


@cache
def grey() -> np.ndarray:
    """``(classes,)`` True for cortex and deep grey matter."""
    return np.array([tissue in ("gm", "deep") for tissue in _tissues()])


def region_mask(labels: Tensor, names: tuple[str, ...], voxel_size: float) -> Tensor:
    """Where the named regions lie in label maps of classes.

    A region that is cut from another (pons, inferior cerebellar grey) is cut by its height over the centre of the
    fourth ventricle, as ``data/cuts.tsv`` says.

    Parameters
    ----------
    labels
        ``(B, X, Y, Z)`` classes, RAS order.
    names
        Names in ``data/regions.tsv``.
    voxel_size
        In mm.

    Returns
    -------
    Tensor
        ``(B, X, Y, Z)`` bool. A cut that comes out empty is the whole region that it would be cut from.
    """
    index = {region.name: region for region in all_regions()}
    mask = torch.zeros_like(labels, dtype=torch.bool)
    for name in names:
        region = index[name]
        if region.cut_from is None:
            mask |= labels == region.index
            continue
        whole = labels == index[region.cut_from].index
        low, high = next((float(r["from_mm"]), float(r["to_mm"])) for r in read_table("cuts.tsv") if r["name"] == name)
        height = torch.arange(labels.shape[-1], device=labels.device, dtype=torch.float32)
        ventricle = (labels == index["fourth_ventricle"].index).sum((1, 2)).float()
        centre = (ventricle * height).sum(-1) / ventricle.sum(-1).clamp(min=1)
        above = (height - centre[:, None]) * voxel_size
        cut = whole & ((above >= low) & (above <= high))[:, None, None, :]
        empty = ~cut.flatten(1).any(1)
        mask |= torch.where(empty[:, None, None, None], whole, cut)
    return mask


def reference_mask(labels: Tensor, name: str, voxel_size: float) -> Tensor:
    """Reference region of a tracer, ``(B, X, Y, Z)`` bool."""
    return region_mask(labels, tracer(name).reference_regions, voxel_size)


def target_mask(labels: Tensor, name: str, voxel_size: float) -> Tensor:
    """Target region of a tracer, ``(B, X, Y, Z)`` bool."""
    return region_mask(labels, targets()[tracer(name).default_target].regions, voxel_size)


def with_choroid_plexus(labels: Tensor, voxel_size: float) -> Tensor:
    """The labels with a choroid plexus on the floor of each lateral ventricle, behind its middle.

    Its place is a geometric approximation and its volume is that of an adult (``data/sim_variation.tsv``), however
    wide the ventricles are.
    """
    p = parameters("sim_variation.tsv")
    out = labels.clone()
    code, ventricle = members("choroid_plexus")[0], members("lateral_ventricle")[0]
    size = max(1, round(p["choroid_ml"] * 1000 / voxel_size**3))
    for one, side in zip(out, side_of(labels), strict=True):
        for half in (0, 1):
            where = ((one == ventricle) & (side == half)).nonzero()
            if len(where) == 0:
                continue
            y = where[:, 1].float()
            part = where[(y >= torch.quantile(y, p["choroid_back"])) & (y <= torch.quantile(y, p["choroid_front"]))]
            part = part[torch.argsort(part[:, 2], stable=True)[:size]]
            one[part[:, 0], part[:, 1], part[:, 2]] = code
    return out


def with_soft_tissue(labels: Tensor, t1w: Tensor) -> Tensor:
    """Classes of a head whose soft tissue outside the brain is told apart by its T1w intensity.

    Parameters
    ----------
    labels
        ``(B, X, Y, Z)`` classes, 0 outside the brain.
    t1w
        Same shape, divided by the median of white matter. Where it is dark, as in a skull-stripped scan, the class
        stays 0.
    """
    p = parameters("sim_variation.tsv")
    edges = torch.tensor([p[f"soft_tissue_{i}"] for i in range(1, 5)], device=labels.device)
    level = torch.bucketize(t1w.contiguous(), edges)
    return torch.where((labels == 0) & (level > 0), n_classes() - 1 + level, labels)


def classes_of(codes: Tensor) -> Tensor:
    """``dseg`` codes with sides and cuts back to classes of the labelling network."""
    index = {region.name: region.index for region in all_regions()}
    table = torch.zeros(256, dtype=torch.long, device=codes.device)
    for code, _, _, region in lookup():
        table[code] = index[region.cut_from] if region.cut_from else region.index
    return table[codes.long()]


def side_of(labels: Tensor) -> Tensor:
    """0 left and 1 right of the brain's middle, ``(B, X, 1, 1)``, in RAS order."""
    brain = ((labels > 0) & (labels < n_classes())).sum((2, 3)).float()
    x = torch.arange(labels.shape[1], device=labels.device, dtype=torch.float32)
    middle = (brain * x).sum(-1, keepdim=True) / brain.sum(-1, keepdim=True).clamp(min=1)
    return (x > middle).long()[:, :, None, None]
