"""Training of the flow over regional means, on thousands of simulated people where whole scans give hundreds."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bids_petsynth.models.conditioning import Standardisation, record_matrix, standardise, tracer_index, withhold
from bids_petsynth.models.process import flow_loss, interpolate, training_times
from bids_petsynth.models.recipe import ConditioningSpec, RegionalSpec
from bids_petsynth.models.regional import Condition, RegionalFlow, regional_means
from bids_petsynth.training.pairs import Heads, Record, simulate_case


@dataclass(frozen=True)
class RegionalPeople:
    """N people: their records, and the mean SUVR ``(N, T, classes)`` of each class in T tracers."""

    records: tuple[Record, ...]
    means: Tensor


#: People simulated at both resolutions, to take the coarse one's bias off the regional means.
PAIRED_PEOPLE = 40


def _simulate(heads: Heads, tracers: Sequence[str], voxel_size: float, seed: int, numbers: range) -> RegionalPeople:
    torch.set_num_threads(1)
    records, means = [], []
    for number in numbers:
        case = simulate_case(heads, tracers, voxel_size, seed, number, augment=False)
        scans = torch.stack([case.pet[t] for t in tracers])
        records.append(case.record)
        means.append(regional_means(F.avg_pool3d(scans, scans.shape[1] // case.labels.shape[1]), case.labels[None]))
    return RegionalPeople(tuple(records), torch.stack(means))


def simulate_regions(
    heads: Heads, tracers: Sequence[str], voxel_size: float, n: int, seed: int, workers: int = 1
) -> RegionalPeople:
    """``n`` simulated people on deformed heads, of whose scans only the regional means are kept.

    Most are scanned at twice the voxel size, which takes a fifth of the time; what this changes in each region's mean
    is measured on :data:`PAIRED_PEOPLE` of them and taken off all.
    """
    coarse = Heads(heads.t1w[:, ::2, ::2, ::2], heads.classes[:, ::2, ::2, ::2], heads.probabilities, heads.names)
    pieces = [range(start, min(n, start + 100)) for start in range(0, n, 100)]
    jobs = [(coarse, tracers, 2 * voxel_size, seed, piece) for piece in pieces]
    paired = min(n, PAIRED_PEOPLE)
    jobs += [(heads, tracers, voxel_size, seed, range(k, min(paired, k + 10))) for k in range(0, paired, 10)]
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            done = list(pool.map(_simulate, *zip(*jobs, strict=True)))
    else:
        threads = torch.get_num_threads()
        done = [_simulate(*job) for job in jobs]
        torch.set_num_threads(threads)
    means = torch.cat([d.means for d in done[: len(pieces)]])
    fine = torch.cat([d.means for d in done[len(pieces) :]])
    records = tuple(record for d in done[: len(pieces)] for record in d.records)
    return RegionalPeople(records, means + (fine - means[:paired]).mean(0))


def train_regional(
    net: RegionalFlow,
    people: RegionalPeople,
    tracers: Sequence[str],
    conditioning: ConditioningSpec,
    variables: Standardisation,
    spec: RegionalSpec,
    seed: int,
) -> float:
    """Train ``net`` in place, its standardisation included; the mean loss of the last tenth of the steps.

    A record's variables are withheld as often as the recipe says, so that any of them may be missing later.
    """
    rng = torch.Generator().manual_seed(seed)
    codes = torch.tensor([tracer_index(name) for name in tracers])
    # a region that a head lacks measures 0 everywhere
    net.mean[codes] = people.means.mean(0)
    net.sd[codes] = people.means.std(0).clamp(min=1e-3)
    target = (people.means - net.mean[codes]) / net.sd[codes]
    values, mask = standardise(record_matrix(people.records, conditioning.variables), variables)
    optimiser = torch.optim.AdamW(net.parameters(), lr=spec.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, spec.rate, total_steps=spec.training_steps)
    losses = []
    for _ in range(spec.training_steps):
        who = torch.randint(len(target), (spec.batch,), generator=rng)
        which = torch.randint(len(codes), (spec.batch,), generator=rng)
        t = training_times(spec.batch, 1.0, rng)
        data = target[who, which]
        noise = torch.randn(data.shape, generator=rng)
        kept = withhold(mask[who], conditioning.drop_variable, conditioning.drop_record, rng)
        velocity = net(interpolate(data, noise, t), t, Condition(values[who], kept, codes[which]))
        loss = flow_loss(velocity, noise - data, t).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-max(1, spec.training_steps // 10) :]))
