"""Training of a generator on simulated pairs, from prepared arrays of real heads.

``python -m bids_petsynth.training.generator ARRAYS OUT --minutes 45`` trains on all heads but the unseen ones,
validates on those with the real sampler, calibrates the spread of the draws, and writes the model folder ``OUT/model``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Generator, Tensor

from bids_petsynth.anatomy.regions import regions
from bids_petsynth.devices import fast_autocast
from bids_petsynth.errors import UsageError
from bids_petsynth.models.autoencoder import build_space
from bids_petsynth.models.conditioning import (
    fit_standardisation,
    record_matrix,
    standardise,
    tracer_index,
    withhold,
)
from bids_petsynth.models.denoiser import Denoiser, Sources
from bids_petsynth.models.folder import Model, build_regional, save_model
from bids_petsynth.models.process import flow_loss, interpolate, training_times
from bids_petsynth.models.recipe import AutoencoderSpec, Recipe, load_recipe
from bids_petsynth.models.regional import Condition
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.training.card import model_card, sensitivity_figures
from bids_petsynth.training.labelling import UNSEEN
from bids_petsynth.training.loop import Loop, Loss, State, write_atomically
from bids_petsynth.training.pairs import Heads, Pool, Record, TrainingCase, draw_records, load_heads, simulate_case
from bids_petsynth.training.regional import RegionalPeople, simulate_regions, train_regional, training_ranges

#: People in the pool when training starts (they must be simulated first), and those whose latents are standardised.
FIRST_PEOPLE, STANDARDISED_PEOPLE = 16, 12
#: Composite whose SUVR is followed: cortex where amyloid and tau gather.
CORTEX_LOBES = ("frontal", "parietal", "temporal", "cingulate")
EVALUATION_SEED, CALIBRATION_PEOPLE = 1_000_000, 8
#: People on unseen heads whose regional means alone are simulated, to calibrate the spread of the draws.
REGIONAL_CALIBRATION_PEOPLE = 300
#: Of these, those with whom the card's sensitivity is measured.
SENSITIVITY_PEOPLE = 60
#: Simulated people whose regional SUVR the model folder tells as the training range.
RANGE_PEOPLE = 200


def build_model(recipe: Recipe, pool: Pool, records: Sequence[Record], classes: int, heads: Sequence[str]) -> Model:
    """An untrained model with the standardisation fitted to simulated examples."""
    torch.manual_seed(recipe.training.seed)
    net = Denoiser(recipe, classes)
    with torch.no_grad():
        examples = pool.people(STANDARDISED_PEOPLE)
        data = torch.cat([split(net, b.latents, net.prepare(b.t1w, b.labels))[0] for b in examples])
    return Model(
        recipe=recipe,
        denoiser=net,
        regional=build_regional(recipe, classes),
        space=build_space(recipe),
        latent_mean=tuple(data.mean((0, 2, 3, 4)).tolist()),
        latent_sd=tuple(data.std((0, 2, 3, 4)).tolist()),
        variables=fit_standardisation(record_matrix(records, recipe.conditioning.variables)),
        classes=classes,
        version=date.today().isoformat(),
        heads=tuple(heads),
        demonstration=True,
    )


def split(net: Denoiser, latents: Tensor, sources: Sources) -> tuple[Tensor, Tensor | None]:
    """What the denoiser is to draw, and the painting of the regional means beside it where the recipe paints."""
    if sources.painting is None:
        return latents, None
    painted = net.paint(net.measure(latents, sources), sources)
    return latents - painted, painted


def pair_loss(model: Model, pool: Pool, device: str) -> Loss:
    """Loss of a training step: the flow's velocity at random times on a batch of the pool."""
    recipe, net = model.recipe, model.denoiser
    mean = torch.tensor(model.latent_mean, device=device).view(1, -1, 1, 1, 1)
    sd = torch.tensor(model.latent_sd, device=device).view(1, -1, 1, 1, 1)
    spec = recipe.conditioning

    def loss(step: int, rng: Generator) -> Tensor:
        batch = pool.batch(step, recipe.training.batch, rng)
        values, mask = standardise(record_matrix(batch.records, spec.variables), model.variables)
        mask = withhold(mask, spec, rng)
        tracers = torch.tensor([tracer_index(name) for name in batch.tracers])
        condition = Condition(values.to(device), mask.to(device), tracers.to(device))
        noise = torch.randn(batch.latents.shape, generator=rng).to(device)
        t = training_times(len(noise), recipe.process.shift, rng).to(device)
        with fast_autocast(device):
            sources = net.prepare(batch.t1w.to(device), batch.labels.to(device))
        data, painted = split(net, batch.latents.to(device), sources)
        data = (data - mean) / sd
        with fast_autocast(device):
            velocity = net(interpolate(data, noise, t), t, sources, condition, painted)
        return flow_loss(velocity, noise - data, t).mean()

    return loss


def region_means(volumes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Mean of ``(M, X, Y, Z)`` in each class of ``(X, Y, Z)``: ``(M, classes)``, NaN where a region is absent."""
    flat, n = classes.ravel(), len(regions()) + 1
    size = np.bincount(flat, minlength=n)[:n]
    sums = np.stack([np.bincount(flat, weights=v.ravel(), minlength=n)[:n] for v in volumes])
    return np.where(size > 20, sums / np.maximum(size, 1), np.nan)


def cortex(means: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Volume-weighted mean over cortical regions of region means ``(M, classes)``."""
    index = [r.index for r in regions() if r.tissue == "gm" and r.lobe in CORTEX_LOBES]
    size = np.bincount(classes.ravel(), minlength=len(regions()) + 1)[index]
    return np.nansum(means[:, index] * size, axis=1) / size.sum()


def spread_factor(truth: np.ndarray, draws: np.ndarray) -> float:
    """Factor on the draws' deviations that makes their Student-t predictive intervals cover what they say.

    Parameters
    ----------
    truth
        ``(cases, regions)``, NaN where unknown.
    draws
        ``(cases, M, regions)``.

    Notes
    -----
    For 80 and 95 % the factor is that quantile of the error over the interval's half width (split conformal
    prediction with a normalised score: Lei et al., JASA 2018;113:1094); the two are averaged geometrically. Kept
    within a factor of 3.
    """
    m = draws.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.abs(truth - draws.mean(1)) / (draws.std(1, ddof=1) * np.sqrt(1 + 1 / m))
    score = score[np.isfinite(score)]
    factors = [np.quantile(score, level) / stats.t.ppf((1 + level) / 2, m - 1) for level in (0.8, 0.95)]
    return float(np.clip(np.sqrt(np.prod(factors)), 1 / 3, 3))


def regional_spread(synthesizer: Synthesizer, people: RegionalPeople) -> dict[str, float]:
    """Spread factor per tracer from the regional flow alone, on people whose regional means are known."""
    out = {}
    for place, tracer in enumerate(synthesizer.tracers):
        drawn = [
            synthesizer.regional_draws(record, tracer, volumes, number).numpy()
            for number, (record, volumes) in enumerate(zip(people.records, people.volumes.split(1), strict=True))
        ]
        out[tracer] = spread_factor(people.means[:, place, 1:].numpy(), np.stack(drawn)[:, :, 1:])
    return out


def evaluate(
    synthesizer: Synthesizer, cases: Sequence[TrainingCase], n_draws: int, voxel_size: float
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Figures per tracer on cases that were not trained on, and the spread factor of each tracer.

    Figures: mean absolute error and bias of regional SUVR (mean over draws), the error of the mean over all cases as a
    predictor, cortical SUVR of negative and positive cases, true and synthetic, voxel correlation in the brain. Tracers
    that no case was scanned with are left out.
    """
    from bids_petsynth.simulation.uptake import reference_mask

    figures, spread = {}, {}
    for tracer in synthesizer.tracers:
        truth, drawn, composite, correlation = [], [], [], []
        scanned = [case for case in cases if tracer in case.pet]
        if not scanned:
            continue
        for number, case in enumerate(scanned):
            volumes = synthesizer.sample(case.t1w[None], case.labels[None], case.record, tracer, n_draws, number)
            reference = reference_mask(case.measured[None], tracer, voxel_size)[0].numpy()
            # as participant does; a draw without uptake there stays as it is
            scale = volumes[:, reference].mean(1) if reference.any() else np.ones(n_draws)
            volumes = volumes / np.where(scale > 0.1, scale, 1)[:, None, None, None]
            classes, scan = case.measured.numpy(), case.pet[tracer].numpy()
            means, true = region_means(volumes, classes)[:, 1:], region_means(scan[None], classes)[:, 1:]
            truth.append(true[0])
            drawn.append(means)
            pad = [(0, 0), (1, 0)]
            composite.append([cortex(np.pad(v, pad), classes).mean() for v in (true, means)])
            brain = (classes > 0) & (classes <= len(regions()))
            correlation.append(np.corrcoef(volumes.mean(0)[brain], scan[brain])[0, 1])
        y, d, both = np.stack(truth), np.stack(drawn), np.array(composite)
        load = np.array([case.truth.get("centiloid", np.nan) for case in scanned])
        spread[tracer] = spread_factor(y, d)
        error = d.mean(1) - y
        known = np.isfinite(y).all(0)
        row = {
            "mae": float(np.nanmean(np.abs(error))),
            "bias": float(np.nanmean(error)),
            "mae_of_mean": float(np.nanmean(np.abs(y[:, known].mean(0) - y[:, known]))),
            "voxel_r": float(np.mean(correlation)),
        }
        for name, group in (("negative", load <= 50), ("positive", load > 50)):
            if group.any():
                row |= {f"true_{name}": float(both[group, 0].mean()), f"synthetic_{name}": float(both[group, 1].mean())}
        figures[tracer] = row
    return figures, spread


def evaluation_cases(heads: Heads, recipe: Recipe, n: int) -> list[TrainingCase]:
    """``n`` simulated people on the given heads, alternately clearly amyloid-negative and -positive, not augmented."""
    cases: list[TrainingCase] = []
    number = 0
    while len(cases) < n:
        # only the person decides, so the tracers are simulated for those that are kept
        case = simulate_case(heads, (), recipe.grid.voxel_size, EVALUATION_SEED, number, augment=False)
        load = case.truth["centiloid"]
        if (load > 50) if len(cases) % 2 else (load < 15):
            args = (heads, recipe.tracers, recipe.grid.voxel_size, EVALUATION_SEED, number)
            cases.append(simulate_case(*args, augment=False))
        number += 1
    return cases


def train(
    arrays: Path, out: Path, recipe: Recipe, minutes: float | None, resume: bool, device: str, validate: float
) -> None:
    """Train, calibrate and write ``out/model``; ``out`` keeps checkpoint, logs and figures."""
    if isinstance(recipe.space, AutoencoderSpec):
        raise UsageError(
            f"The recipe {recipe.name} needs a trained autoencoder before its generator; use a recipe with a codec."
        )
    heads = load_heads(arrays, recipe)
    seen, unseen = heads.select(lambda name: name not in UNSEEN), heads.select(lambda name: name in UNSEEN)
    spec = recipe.training
    space = build_space(recipe)
    pool = Pool(
        lambda number: simulate_case(seen, recipe.tracers, recipe.grid.voxel_size, spec.seed, number),
        space.encode,
        FIRST_PEOPLE,
        spec.pool,
        spec.refresh,
    )
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    model = build_model(recipe, pool, many_records(2000, spec.seed), heads.probabilities.shape[1], seen.names)
    if model.regional is not None:
        fit_regional(model, seen, out / "regional.safetensors", resume)
    model.denoiser.to(device)
    print(f"first people simulated in {time.monotonic() - start:.0f} s", flush=True)
    loop = Loop(model.denoiser, pair_loss(model, pool, device), spec, out, minutes)
    if resume:
        loop.resume()
    watched = evaluation_cases(unseen, recipe, 2) if validate else []

    def pause(state: State) -> None:
        average = replace(model, denoiser=loop.ema)
        save_model(average, out / "model")
        if watched:
            figures, _ = evaluate(Synthesizer(average, device), watched, 2, recipe.grid.voxel_size)
            line = {"step": state.step, "minutes": round(state.elapsed / 60, 1), "figures": figures}
            with (out / "validation.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    loop.run(every=20, pause=pause, pause_minutes=validate or 10.0)
    trained = replace(model, denoiser=loop.ema)
    cases = evaluation_cases(unseen, recipe, CALIBRATION_PEOPLE)
    figures, spread = evaluate(Synthesizer(trained, device), cases, 4, recipe.grid.voxel_size)
    sensitivity = {}
    if model.regional is not None:
        args = (unseen, recipe.tracers, recipe.grid.voxel_size, REGIONAL_CALIBRATION_PEOPLE, EVALUATION_SEED)
        people = simulate_regions(*args, workers())
        spread = regional_spread(Synthesizer(trained, device), people)
        sensitivity = sensitivity_figures(Synthesizer(trained, device), people.first(SENSITIVITY_PEOPLE))
    args = (seen, recipe.tracers, recipe.grid.voxel_size, RANGE_PEOPLE, spec.seed, workers())
    trained = replace(trained, spread=spread, ranges=training_ranges(*args))
    card = model_card(trained, figures, sensitivity, loop.state.elapsed / 60, loop.state.step, unseen.names)
    save_model(replace(trained, card=card), out / "model")
    (out / "figures.json").write_text(json.dumps({"figures": figures, "spread": spread}, indent=2) + "\n")


def fit_regional(model: Model, heads: Heads, weights: Path, resume: bool) -> None:
    """Train the regional flow on simulated people, or take up what an earlier run trained."""
    from safetensors.torch import load_file, save_file

    recipe, spec = model.recipe, model.recipe.regional
    if resume and weights.exists():
        model.regional.load_state_dict(load_file(weights))
        return
    args = (heads, recipe.tracers, recipe.grid.voxel_size, spec.people, recipe.training.seed, workers())
    people = simulate_regions(*args)
    loss = train_regional(
        model.regional, people, recipe.tracers, recipe.conditioning, model.variables, spec, recipe.training.seed
    )
    print(f"regional flow on {spec.people} people: loss {loss:.3f}", flush=True)
    write_atomically(weights, lambda path: save_file(model.regional.state_dict(), path))


def workers() -> int:
    """Processes that simulate people."""
    return len(os.sched_getaffinity(0))


def many_records(n: int, seed: int) -> list[Record]:
    """Records of ``n`` simulated people, for the standardisation of variables."""
    return list(draw_records(n, np.random.default_rng([seed, n]))[1])


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", default="petsynth")
    parser.add_argument("--minutes", type=float, help="time for the training steps; by default the recipe's steps")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--validate", type=float, default=10.0, help="minutes between validations, 0 for none")
    args = vars(parser.parse_args(argv))
    train(**args | {"recipe": load_recipe(args["recipe"])})


if __name__ == "__main__":
    main()
