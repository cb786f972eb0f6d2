"""Conditioning on the record: standardised values and mask, a learned null for each missing one, the tracer's code."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from bids_petsynth.errors import ModelError
from bids_petsynth.models.recipe import ConditioningSpec, VariableSpec
from bids_petsynth.tables import read_table
from bids_petsynth.types import ClinicalRecord

#: Rows of the tracer embedding; ``data/tracer_codes.tsv`` may grow up to it without changing a trained model's shape.
TRACER_SLOTS = 32


class Readable(Protocol):
    """Anything that gives a variable's value by name, None if missing (a ClinicalRecord, a dict of a row)."""

    def get(self, name: str) -> float | None: ...


@cache
def tracer_codes() -> dict[str, int]:
    """Tracer or modality → its fixed row in the embedding."""
    return {row["code"]: int(row["index"]) for row in read_table("tracer_codes.tsv")}


def is_pet(modality: str) -> bool:
    """Whether a modality of the table is a PET tracer."""
    kinds = {row["code"]: row["kind"] for row in read_table("tracer_codes.tsv")}
    return kinds.get(modality, "mri") not in ("mri", "ct")


def tracer_index(tracer: str) -> int:
    """Row of ``tracer`` in the embedding.

    Raises
    ------
    ModelError
        If the table has no such code.
    """
    try:
        return tracer_codes()[tracer]
    except KeyError:
        known = ", ".join(tracer_codes())
        raise ModelError(
            f"Tracer {tracer} is not in data/tracer_codes.tsv; use one of {known}, or add a row."
        ) from None


def taken_sources(spec: ConditioningSpec, there: Collection[str], target: str) -> tuple[str, ...]:
    """Which of the scans that a person has a recipe's network is given to draw ``target``, in the recipe's order.

    "attention" takes all of its sources; "concatenation" one: a real PET where there is one, as it tells more of
    another PET than any anatomical image, else the first of the recipe's list.
    """
    usable = [name for name in spec.sources if name in there and name != target]
    if spec.fusion == "attention":
        return tuple(usable)
    return tuple(sorted(usable, key=lambda name: not is_pet(name))[:1])


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each variable after its transform."""

    mean: tuple[float, ...]
    sd: tuple[float, ...]


def _transformed(record: Readable, spec: VariableSpec) -> float:
    value = record.get(spec.name)
    if value is None or not math.isfinite(value) or (spec.transform == "log" and value <= 0):
        return math.nan
    return math.log(value) if spec.transform == "log" else float(value)


def record_matrix(records: Sequence[Readable], variables: Sequence[VariableSpec]) -> Tensor:
    """``(N, V)`` float32 of transformed values, NaN where missing."""
    rows = [[_transformed(record, spec) for spec in variables] for record in records]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(records), len(variables))


def used_variables(record: ClinicalRecord, variables: Sequence[VariableSpec]) -> dict[str, str]:
    """Name → status (``found``, ``converted``, ``computed``, ``missing``) of the variables that a model takes."""
    known = record_matrix([record], variables)[0].isfinite().tolist()
    return {s.name: record.values[s.name].status if k else "missing" for s, k in zip(variables, known, strict=True)}


def fit_standardisation(matrix: Tensor) -> Standardisation:
    """Mean and SD of the columns of :func:`record_matrix`, missing values left out; an empty column gets 0 and 1."""
    mean, sd = [], []
    for column in matrix.T.double():
        known = column[column.isfinite()]
        mean.append(known.mean().item() if len(known) else 0.0)
        spread = known.std().item() if len(known) > 1 else 0.0
        sd.append(spread if spread > 1e-6 else 1.0)
    return Standardisation(tuple(mean), tuple(sd))


def standardise(matrix: Tensor, by: Standardisation) -> tuple[Tensor, Tensor]:
    """Values ``(N, V)`` (0 where missing, clamped to ±4 SD) and mask ``(N, V)`` (1 where known)."""
    mask = matrix.isfinite()
    scaled = (matrix - torch.tensor(by.mean)) / torch.tensor(by.sd)
    return torch.where(mask, scaled, 0.0).clamp(-4, 4), mask.float()


def withhold(mask: Tensor, spec: ConditioningSpec, rng: Generator) -> Tensor:
    """Mask ``(N, V)`` with variables, groups of them and whole rows dropped as often as the recipe says.

    Each row has a rate of its own at which its variables are dropped, ``U^(1/d - 1)`` with uniform U, whose mean is the
    recipe's ``d``: so records that lack little and records that lack nearly all both come often enough to be learned.
    """

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng)

    keep = chance(len(mask), 1) >= spec.drop_record
    if spec.drop_variable > 0:
        keep = keep & (chance(*mask.shape) >= chance(len(mask), 1) ** (1 / spec.drop_variable - 1))
    groups = [variable.group for variable in spec.variables]
    for group in sorted(set(groups) - {""}):
        there = chance(len(mask), 1) >= spec.drop_group
        keep = keep & (there | ~torch.tensor([name == group for name in groups]))
    return mask * keep


def time_features(t: Tensor, width: int) -> Tensor:
    """Sinusoids of times ``t (N,)`` in [0, 1]: ``(N, width)`` (Vaswani et al., arXiv:1706.03762)."""
    frequencies = torch.exp(torch.linspace(0, math.log(100.0), width // 2, device=t.device)) * math.pi
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class RecordEmbedding(nn.Module):
    """Values, mask, tracer and time → one vector ``(N, width)``.

    Each known variable contributes an affine token, each missing one its learned null; an MLP of their sum is added to
    the tracer's and the time's embedding.
    """

    def __init__(self, variables: int, width: int):
        super().__init__()
        self.slope = nn.Parameter(torch.randn(variables, width) / math.sqrt(max(1, variables)))
        self.offset = nn.Parameter(torch.zeros(variables, width))
        self.null = nn.Parameter(torch.randn(variables, width) * 0.1)
        self.record = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.tracer = nn.Embedding(TRACER_SLOTS, width)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.out = nn.Sequential(nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor, mask: Tensor, tracer: Tensor, t: Tensor) -> Tensor:
        known = (mask * values) @ self.slope + mask @ self.offset
        token = known + (1 - mask) @ self.null
        # each stage adds to what it is given: a plain chain of layers is slow to let the record through
        hidden = token + self.record(token) + self.tracer(tracer) + self.time(time_features(t, 64))
        return hidden + self.out(hidden)
