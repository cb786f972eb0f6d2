"""Pre-training of the painter on regional values alone: thousands of simulated people where whole scans give dozens.

What decides a scan's amyloid load is a few dozen numbers, and images teach them slowly: four scans a step show four
people. Here people are simulated at half the resolution, only their regional means are kept, and the painter learns
their expectation given the record, the tracer, the time, and the regional means of ``x_t``, which is the task that it
has inside the denoiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bids_petsynth.anatomy.regions import n_classes
from bids_petsynth.models.conditioning import record_matrix, standardise, tracer_index, withhold
from bids_petsynth.models.folder import Model
from bids_petsynth.models.process import training_times
from bids_petsynth.training.pairs import Heads, Record, draw_records


@dataclass(frozen=True)
class RegionalPeople:
    """N people: their records, and the mean SUVR ``(N, T, classes)`` of each class in T tracers (NaN where absent)."""

    records: tuple[Record, ...]
    means: Tensor


def simulate_regions(heads: Heads, tracers: Sequence[str], voxel_size: float, n: int, seed: int) -> RegionalPeople:
    """Simulate ``n`` people on the heads' labels at twice the voxel size and keep their regional means."""
    from bids_petsynth.simulation.scanner import simulate_pet

    rng = np.random.default_rng([seed, n, 7])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    people, records = draw_records(n, rng)
    count = n_classes()
    means = torch.full((n, len(tracers), count), torch.nan)
    for head in range(len(heads)):
        who = np.arange(head, n, len(heads))
        labels = torch.from_numpy(heads.classes[head][::2, ::2, ::2].astype(np.int64))
        flat = labels.flatten()
        size = torch.bincount(flat, minlength=count)[:count]
        for start in range(0, len(who), 8):
            some = who[start : start + 8]
            batch = labels[None].expand(len(some), -1, -1, -1)
            for place, tracer in enumerate(tracers):
                scans = simulate_pet(batch, people.rows(some), tracer, generator, 2 * voxel_size).flatten(1)
                sums = torch.zeros(len(some), int(flat.max()) + 1).index_add_(1, flat, scans.float())[:, :count]
                means[some, place] = torch.where(size > 5, sums / size.clamp(min=1), torch.nan)
    return RegionalPeople(records, means)


def pretrain(model: Model, people: RegionalPeople, steps: int = 3000, batch: int = 128, rate: float = 2e-3) -> float:
    """Train the record's embedding and the painter of ``model.denoiser`` in place; the mean loss of the last tenth.

    The loss is the squared error of standardised regional values; people's variables are withheld as in the main
    training.
    """
    recipe, net = model.recipe, model.denoiser
    spec, process, painter = recipe.conditioning, recipe.process, model.denoiser.painter
    rng = torch.Generator().manual_seed(recipe.training.seed)
    mean, sd = np.mean(model.latent_mean), np.mean(model.latent_sd)
    target = (people.means - float(mean)) / float(sd)
    known = target.isfinite()
    target = torch.where(known, target, 0.0)
    values, mask = standardise(record_matrix(people.records, spec.variables), model.variables)
    codes = torch.tensor([tracer_index(name) for name in recipe.tracers])
    width = painter.values.out_features // painter.channels
    classes = target.shape[2]
    parts = nn.ModuleList([net.embedding, painter.read, painter.mix, painter.values])
    optimiser = torch.optim.AdamW(parts.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    losses = []
    for _ in range(steps):
        who = torch.randint(len(people.records), (batch,), generator=rng)
        which = torch.randint(len(codes), (batch,), generator=rng)
        t = training_times(batch, process.shift, rng)
        true = target[who, which]
        noise = process.noise_common * torch.randn(batch, 1, generator=rng)
        noise = noise + process.noise_region * torch.randn(batch, width, generator=rng)
        clean = torch.nn.functional.pad(true, (0, width - classes))
        seen = (1 - t)[:, None] * clean + t[:, None] * noise
        seen = (seen / torch.sqrt((1 - t) ** 2 + t**2)[:, None]).repeat(1, painter.channels)
        kept = withhold(mask[who], spec.drop_variable, spec.drop_record, rng)
        embedding = painter.mix(net.embedding(values[who], kept, codes[which], t) + painter.read(seen))
        found = painter.values(embedding).view(batch, painter.channels, width).mean(1)[:, :classes]
        # class 0 is everything outside the labels, which is painted by the learned tissues
        weight = known[who, which].float()
        weight[:, 0] = 0
        loss = ((found - true).square() * weight).sum() / weight.sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-max(1, steps // 10) :]))
