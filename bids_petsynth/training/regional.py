"""Training of the flow over regional means, on thousands of simulated people where whole scans give hundreds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bids_petsynth.anatomy.alignment import template_grid
from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.errors import TrainingError
from bids_petsynth.models.conditioning import Standardisation, record_matrix, standardise, tracer_index, withhold
from bids_petsynth.models.folder import Model, build_regional
from bids_petsynth.models.process import flow_loss, interpolate, training_times
from bids_petsynth.models.recipe import ConditioningSpec, RegionalSpec
from bids_petsynth.models.regional import Condition, Geometry, RegionalFlow, log_volumes, regional_means
from bids_petsynth.pet.quantification import region_means
from bids_petsynth.training.augment import most_common
from bids_petsynth.training.pairs import Heads, Record, dseg_codes, simulate_case


@dataclass(frozen=True)
class RegionalPeople:
    """N people: their records, each class's mean SUVR ``(N, T, classes)`` in T tracers, and their heads' regions.

    Means are NaN where a person was not scanned with a tracer.
    """

    records: tuple[Record, ...]
    means: Tensor
    heads: Geometry

    def first(self, n: int) -> RegionalPeople:
        """The first ``n`` of them."""
        return RegionalPeople(self.records[:n], self.means[:n], self.heads[:n])

    def one_by_one(self) -> Iterator[tuple[Record, Geometry]]:
        """Each person's record and head."""
        return zip(self.records, self.heads.one_by_one(), strict=True)


#: People simulated at both resolutions, to take what the coarse one changes off the regional means.
PAIRED_PEOPLE = 200


def _simulate(heads: Heads, tracers: Sequence[str], voxel_size: float, seed: int, numbers: range) -> RegionalPeople:
    torch.set_num_threads(1)
    records, means, regions = [], [], []
    for number in numbers:
        case = simulate_case(heads, tracers, voxel_size, seed, number, augment=False)
        scans = torch.stack([case.pet[t] for t in tracers])
        records.append(case.record)
        coarse = scans.shape[1] // case.labels.shape[1]
        means.append(regional_means(F.avg_pool3d(scans, coarse), case.labels[None]))
        regions.append(Geometry.of(case.labels[None], voxel_size * coarse))
    return RegionalPeople(tuple(records), torch.stack(means), Geometry.together(regions))


def simulate_regions(
    heads: Heads, tracers: Sequence[str], voxel_size: float, n: int, seed: int, workers: int = 1
) -> RegionalPeople:
    """``n`` simulated people on deformed heads, of whose scans only the regional means are kept.

    Most are scanned at twice the voxel size, which takes a quarter of the time. What this changes in the mean and the
    spread of each region over people is measured on :data:`PAIRED_PEOPLE` of them and undone in all.
    """
    t1w = F.avg_pool3d(torch.from_numpy(heads.t1w).float()[:, None], 2)[:, 0].numpy()
    halved = (
        most_common(torch.from_numpy(a.astype(np.int64))).numpy().astype(np.uint8)
        for a in (heads.classes, heads.measured)
    )
    coarse = Heads(t1w, *halved, heads.probabilities, heads.names)
    pieces = [range(start, min(n, start + 100)) for start in range(0, n, 100)]
    paired = min(n, PAIRED_PEOPLE)
    jobs = [(heads, tracers, voxel_size, seed, range(k, min(paired, k + 10))) for k in range(0, paired, 10)]
    jobs += [(coarse, tracers, 2 * voxel_size, seed, piece) for piece in pieces]
    done = _everywhere(_simulate, jobs, workers)
    fine = torch.cat([d.means for d in done[: -len(pieces)]])
    done = done[-len(pieces) :]
    means, regions = torch.cat([d.means for d in done]), Geometry.together([d.heads for d in done])
    # of a region that a head lacks the transfer matrix would make a huge uptake out of any mean but 0
    means = like_fine(means, fine) * (regions.volumes > 0)[:, None]
    return RegionalPeople(tuple(r for d in done for r in d.records), means, regions)


def like_fine(means: Tensor, fine: Tensor) -> Tensor:
    """Coarse ``means (N, …)``, each region's shifted and scaled so that the first ones agree with ``fine (n, …)``.

    Agree: in their mean and, where there are at least ten people, their standard deviation.
    """
    same = means[: len(fine)]
    scale = torch.ones_like(same[0])
    if len(fine) >= 10:
        scale = fine.std(0) / same.std(0).clamp(min=1e-6)
    return fine.mean(0) + (means - same.mean(0)) * scale.clamp(0.5, 2)


def training_ranges(
    heads: Heads, tracers: Sequence[str], voxel_size: float, n: int, seed: int, workers: int = 1
) -> tuple[dict[str, str], ...]:
    """Rows of a model folder's ``regions.tsv``: SUVR of each ``dseg`` region over ``n`` simulated people."""
    jobs = [(heads, tracers, voxel_size, seed, range(k, min(n, k + 10))) for k in range(0, n, 10)]
    values = np.concatenate(_everywhere(_measure, jobs, workers))
    rows = []
    for tracer, of_tracer in zip(tracers, np.moveaxis(values, 1, 0), strict=True):
        for (_, name, _, _), column in zip(lookup(), of_tracer.T, strict=True):
            known = column[np.isfinite(column)]
            if len(known) > 1:
                figures = {"mean": known.mean(), "sd": known.std(ddof=1)}
                figures |= dict(zip(("p05", "p95"), np.quantile(known, (0.05, 0.95)), strict=True))
                rows.append({"tracer": tracer, "name": name} | {k: f"{v:.3f}" for k, v in figures.items()})
    return tuple(rows)


def _measure(heads: Heads, tracers: Sequence[str], voxel_size: float, seed: int, numbers: range) -> np.ndarray:
    """SUVR ``(N, T, R)`` of the ``dseg`` regions, NaN where absent, as ``participant`` reads it off a scan."""
    torch.set_num_threads(1)
    out = np.full((len(numbers), len(tracers), 256), np.nan)
    for row, number in zip(out, numbers, strict=True):
        case = simulate_case(heads, tracers, voxel_size, seed, number, augment=False)
        grid = template_grid(tuple(case.classes.shape), voxel_size)
        codes = dseg_codes(case.measured.numpy(), grid)
        for place, name in enumerate(tracers):
            present, means, _ = region_means(case.pet[name][None].numpy(), codes, grid)
            row[place, present] = means[0]
    return out[..., [code for code, *_ in lookup()]]


def _everywhere(work: Callable, jobs: Sequence[tuple], workers: int) -> list:
    """The work's results for each job, in ``workers`` processes."""
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            return list(pool.map(work, *zip(*jobs, strict=True)))
    threads = torch.get_num_threads()
    done = [work(*job) for job in jobs]
    torch.set_num_threads(threads)
    return done


def train_regional(
    net: RegionalFlow,
    people: RegionalPeople,
    tracers: Sequence[str],
    conditioning: ConditioningSpec,
    variables: Standardisation,
    spec: RegionalSpec,
    seed: int,
    adapt: bool = False,
) -> float:
    """Train ``net`` in place, its standardisation included; the mean loss of the last tenth of the steps.

    With ``adapt`` a trained net goes on: its standardisation stays (but of tracers that it does not know), and it moves
    at a tenth of the rate for a fifth of the steps, so that few people cannot undo what many have taught. A record's
    variables are withheld as often as the recipe says, so that any of them may be missing later.

    Raises
    ------
    TrainingError
        If the loss is not finite.
    """
    rng = torch.Generator().manual_seed(seed)
    codes = torch.tensor([tracer_index(name) for name in tracers])
    # a region that a head lacks measures 0 everywhere
    scanned = people.means.isfinite().all(2)
    means = people.heads.uptake(people.means) if net.gtm else people.means
    for place, code in enumerate(codes):
        known = means[scanned[:, place], place]
        if len(known) and not (adapt and net.mean[code].any()):
            net.mean[code], net.sd[code] = known.mean(0), _spread(known, 1e-3)
    if net.anatomy is not None and not adapt:
        logs = log_volumes(people.heads.volumes)
        net.volume_mean[:], net.volume_sd[:] = logs.mean(0), _spread(logs, 0.02)
    target = (means - net.mean[codes]) / net.sd[codes]
    values, mask = standardise(record_matrix(people.records, conditioning.variables), variables)
    scans = scanned.nonzero()
    rate, steps = spec.rate / (10 if adapt else 1), max(1, spec.training_steps // (5 if adapt else 1))
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    losses = []
    for step in range(steps):
        pick = torch.randint(len(scans), (spec.batch,), generator=rng)
        who, which = scans[pick].unbind(1)
        t = training_times(spec.batch, 1.0, rng)
        data = target[who, which]
        noise = torch.randn(data.shape, generator=rng)
        kept = withhold(mask[who], conditioning, rng)
        condition = Condition(values[who], kept, codes[which], people.heads.volumes[who])
        velocity = net(interpolate(data, noise, t), t, condition)
        loss = flow_loss(velocity, noise - data, t).mean()
        if not loss.isfinite():
            raise TrainingError(
                f"regional flow: the loss was not finite at step {step + 1} of {steps}; lower `regional.rate` in the "
                "recipe, and look through the scans for wrong intensities."
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-max(1, steps // 10) :]))


def with_fresh_regional(model: Model) -> Model:
    """The model with an untrained regional flow, as its recipe asks for, whose draws are not calibrated."""
    torch.manual_seed(model.recipe.training.seed)
    return replace(model, regional=build_regional(model.recipe, model.classes), spread={}, target_spread={})


def fit_part(model: Model, people: RegionalPeople, adapt: bool = False) -> float:
    """:func:`train_regional` on a model's regional flow, in place, as its recipe says."""
    recipe = model.recipe
    parts = (recipe.tracers, recipe.conditioning, model.variables, recipe.regional, recipe.training.seed)
    return train_regional(model.regional, people, *parts, adapt=adapt)


def _spread(values: Tensor, least: float) -> Tensor:
    """SD ``(K,)`` over the rows of ``(N, K)``, no less than ``least``; 1 where one row alone has none."""
    return values.std(0).clamp(min=least) if len(values) > 1 else torch.ones_like(values[0])
