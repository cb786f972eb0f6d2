"""Training of a generator: validated with the real sampler, calibrated, written as a model folder.

``python -m bids_petsynth.training.generator ARRAYS OUT --minutes 45`` trains on simulated people on the prepared heads;
``bids-petsynth BIDS OUT train`` on a site's own scans.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from torch import Generator, Tensor

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
from bids_petsynth.training.ground import Ground
from bids_petsynth.training.loop import Loop, Loss, State, write_atomically
from bids_petsynth.training.pairs import Pool
from bids_petsynth.training.regional import train_regional
from bids_petsynth.training.simulated import SimulatedGround
from bids_petsynth.training.validation import evaluate, regional_spread

#: Cases whose latents are standardised, and held-out people with whom the card's sensitivity is measured.
STANDARDISED_PEOPLE, SENSITIVITY_PEOPLE = 12, 60


def build_model(recipe: Recipe, pool: Pool, ground: Ground) -> Model:
    """An untrained model with the standardisation fitted to the first cases."""
    with torch.no_grad():
        examples = list(pool.people(min(STANDARDISED_PEOPLE, pool.numbers(0).stop)))
        classes = examples[0].labels.shape[1]
        torch.manual_seed(recipe.training.seed)
        net = Denoiser(recipe, classes)
        data = torch.cat([split(net, b.latents, net.prepare(b.t1w, b.labels))[0] for b in examples])
    return Model(
        recipe=recipe,
        denoiser=net,
        regional=build_regional(recipe, classes),
        space=build_space(recipe),
        latent_mean=tuple(data.mean((0, 2, 3, 4)).tolist()),
        latent_sd=tuple(data.std((0, 2, 3, 4)).tolist()),
        variables=fit_standardisation(record_matrix(ground.records(), recipe.conditioning.variables)),
        classes=classes,
        version=date.today().isoformat(),
        heads=ground.names,
        demonstration=ground.demonstration,
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


def train(
    ground: Ground, recipe: Recipe, out: Path, minutes: float | None, resume: bool, device: str, validate: float
) -> Model:
    """Train, calibrate and write ``out/model``; ``out`` keeps checkpoint, logs and figures.

    Parameters
    ----------
    minutes
        Time for the training steps; the recipe's number of steps if None.
    resume
        Go on from ``out``'s checkpoint if there is one.
    validate
        Minutes between validations, 0 for none.

    Raises
    ------
    UsageError
        If the recipe needs a trained autoencoder.
    """
    if isinstance(recipe.space, AutoencoderSpec):
        raise UsageError(
            f"The recipe {recipe.name} needs a trained autoencoder before its generator; use a recipe with a codec."
        )
    pool = Pool(ground.case, build_space(recipe).encode, *ground.pool)
    out.mkdir(parents=True, exist_ok=True)
    model = build_model(recipe, pool, ground)
    if model.regional is not None:
        fit_regional(model, ground, out / "regional.safetensors", resume)
    model.denoiser.to(device)
    loop = Loop(model.denoiser, pair_loss(model, pool, device), recipe.training, out, minutes)
    if resume:
        loop.resume()
    watched = ground.held_cases(2) if validate else []

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
    figures, spread = evaluate(Synthesizer(trained, device), ground.held_cases(), 4, recipe.grid.voxel_size)
    sensitivity = {}
    if model.regional is not None:
        people = ground.held_people()
        spread = regional_spread(Synthesizer(trained, device), people)
        sensitivity = sensitivity_figures(Synthesizer(trained, device), people.first(SENSITIVITY_PEOPLE))
    trained = replace(trained, spread=spread, ranges=ground.ranges())
    card = model_card(trained, ground, figures, sensitivity, loop.state.elapsed / 60, loop.state.step)
    trained = replace(trained, card=card)
    save_model(trained, out / "model")
    (out / "figures.json").write_text(json.dumps({"figures": figures, "spread": spread}, indent=2) + "\n")
    return trained


def fit_regional(model: Model, ground: Ground, weights: Path, resume: bool) -> None:
    """Train the regional flow, or take up what an earlier run trained."""
    from safetensors.torch import load_file, save_file

    recipe = model.recipe
    if resume and weights.exists():
        model.regional.load_state_dict(load_file(weights))
        return
    people = ground.people()
    loss = train_regional(
        model.regional,
        people,
        recipe.tracers,
        recipe.conditioning,
        model.variables,
        recipe.regional,
        recipe.training.seed,
    )
    print(f"regional flow on {len(people.records)} people: loss {loss:.3f}", flush=True)
    write_atomically(weights, lambda path: save_file(model.regional.state_dict(), path))


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
    recipe = load_recipe(args.pop("recipe"))
    train(SimulatedGround(args.pop("arrays"), recipe), recipe, **args)


if __name__ == "__main__":
    main()
