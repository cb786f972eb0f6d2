"""Training of a generator: validated with the real sampler, calibrated, written as a model folder.

``python -m bids_petsynth.training.generator ARRAYS OUT --minutes 45`` trains on simulated people on the prepared heads;
``bids-petsynth BIDS OUT train`` on a site's own scans. Started by torchrun or srun, several processes train together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bids_petsynth.clinical.language import TextReader
from bids_petsynth.errors import UsageError
from bids_petsynth.models.autoencoder import Autoencoder, build_space
from bids_petsynth.models.conditioning import fit_standardisation, is_pet, record_matrix
from bids_petsynth.models.denoiser import build_denoiser
from bids_petsynth.models.folder import Model, build_regional, load_model, save_model
from bids_petsynth.models.recipe import Recipe, load_recipe
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.training.card import model_card, sensitivity_figures
from bids_petsynth.training.checkpoint import CHECKPOINT, write_atomically
from bids_petsynth.training.ground import Ground
from bids_petsynth.training.launch import launch
from bids_petsynth.training.loop import Loop, State
from bids_petsynth.training.objective import Objective, split
from bids_petsynth.training.pairs import Pool, ahead_on
from bids_petsynth.training.phases import choose_style, fit_autoencoder, go_on, styled
from bids_petsynth.training.regional import fit_part
from bids_petsynth.training.scaling import Spread
from bids_petsynth.training.simulated import SimulatedGround
from bids_petsynth.training.validation import (
    CARD_DRAWS,
    WATCHED_CASES,
    HeldOut,
    calibration,
    evaluate,
    evaluate_others,
    share_held_out,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Run:
    """How a training runs.

    Attributes
    ----------
    out
        Folder of checkpoints, logs and figures; the model goes into ``out/model``.
    minutes
        Time for the steps of all phases; the recipe's numbers of steps if None.
    resume
        Go on from ``out``'s checkpoints if there are any.
    validate
        Minutes between validations, 0 for none.
    start
        A model folder of the same architecture whose weights and standardisation are taken to begin with.
    vgg19
        Weights of VGG19 (safetensors), for recipes whose pre-training asks for them.
    texts
        Reads the records' texts, for recipes with a text.
    report
        Takes lines of progress.
    fabric
        The processes that train together; those of the environment if None.
    pet_window, pet_fwhm
        How the PET was prepared; models that are given PET keep it (see ``models.folder.Model.source_window``).
    """

    out: Path
    minutes: float | None = None
    resume: bool = True
    device: str = "cpu"
    validate: float = 10.0
    start: Path | None = None
    vgg19: Path | None = None
    texts: TextReader | None = None
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    fabric: Fabric | None = None
    pet_window: tuple[float, float] | None = None
    pet_fwhm: float | None = None


def build_model(recipe: Recipe, pool: Pool, ground: Ground, space: torch.nn.Module, text_encoder: str = "") -> Model:
    """An untrained model, standardised by all scans that the pool begins with: a site's own are all of them."""
    everyone = pool.numbers(0).stop
    classes = next(pool.people(everyone)).labels.shape[1]
    torch.manual_seed(recipe.training.seed)
    net, regional = build_denoiser(recipe, classes), build_regional(recipe, classes)
    spreads: dict[str, Spread] = defaultdict(Spread)
    with torch.no_grad():
        for batch in pool.people(everyone):
            latents = batch.latents
            if recipe.regional is not None:
                latents = split(net, latents, net.prepare(batch.t1w, batch.probabilities("cpu")))[0]
            for name, one in zip(batch.tracers, latents, strict=True):
                spreads[name].add(one)
            for place, name in enumerate(recipe.conditioning.sources):
                if name not in recipe.tracers and batch.there[0, place]:
                    spreads[name].add(batch.given[0, place])
    shared = Spread.together(spreads[name] for name in recipe.tracers if name in spreads).pair("standard")
    # what is drawn beside a painting is alike in all tracers; modalities of other units are not
    own = recipe.normalisation == "minmax" or bool(recipe.conditioning.sources) or "T1w" in recipe.tracers
    return Model(
        recipe=recipe,
        denoiser=net,
        regional=regional,
        space=space,
        latent_mean=shared[0],
        latent_sd=shared[1],
        variables=fit_standardisation(record_matrix(ground.records(), recipe.conditioning.variables)),
        classes=classes,
        version=date.today().isoformat(),
        heads=ground.names,
        demonstration=ground.demonstration,
        scaling={name: spread.pair(recipe.normalisation) for name, spread in spreads.items()} if own else {},
        text_encoder=text_encoder,
    )


#: How prompts are written and read, what is withheld, the sampler, how other parts than the denoiser are trained.
_NOT_BUILT_BY = {
    "conditioning": {
        "drop_variable": True,
        "drop_group": True,
        "drop_record": True,
        "drop_source": True,
        "text": {"style", "encoder"},
    },
    "process": {"solver", "sampler", "steps", "eta", "guidance"},
    "regional": {"steps", "people", "training_steps", "batch", "rate"},
    "space": {"training_steps", "rate", "batch", "kl", "adversarial"},
}


def check_start(recipe: Recipe, other: Model, folder: Path, text_encoder: str | None = None) -> None:
    """Raise UsageError if a training of ``recipe`` cannot begin with ``other``, the model in ``folder``.

    ``text_encoder`` is the identity of the encoder of texts that is trained with; None leaves it unasked.
    """
    parts = ("grid", "space", "process", "regional", "network", "conditioning", "normalisation")
    one, its = _as_built(recipe), _as_built(other.recipe)
    differ = [part for part in parts if one[part] != its[part]]
    if bool(recipe.losses.alignment) != bool(other.recipe.losses.alignment):
        differ.append("losses.alignment")
    if differ:
        raise UsageError(
            f"The model {folder} has another `{differ[0]}` than the recipe {recipe.name}; give --recipe "
            f"{folder / 'recipe.toml'}, or leave --init-from out."
        )
    if text_encoder is not None and other.text_encoder != text_encoder:
        raise UsageError(
            f"The model {folder} was trained with the text encoder {other.text_encoder or 'none'}, and this training "
            f"reads with {text_encoder or 'none'}; give the same with --text-encoder, or leave --init-from out."
        )


def _as_built(recipe: Recipe) -> dict[str, Any]:
    """The recipe's tables without what changes neither a network nor what it is asked for."""
    return recipe.model_dump(mode="json", exclude=_NOT_BUILT_BY)


def start_from(model: Model, other: Model) -> Model:
    """The model with the weights and the standardisation of another that is built alike (see :func:`check_start`)."""
    model.denoiser.load_state_dict(other.denoiser.state_dict())
    model.space.load_state_dict(other.space.state_dict())
    if model.regional is not None:
        model.regional.load_state_dict(other.regional.state_dict())
    scaling = {**model.scaling, **other.scaling}
    return replace(
        model, latent_mean=other.latent_mean, latent_sd=other.latent_sd, variables=other.variables, scaling=scaling
    )


def train(ground: Ground, recipe: Recipe, run: Run) -> Model | None:
    """Train, calibrate and write ``run.out/model``.

    Returns
    -------
    The trained model in the first of the processes that train together, None in the others.

    Raises
    ------
    UsageError
        If the recipe needs something that was not given.
    """
    out, fabric = run.out, run.fabric or launch(run.device)
    device, first = str(fabric.device), fabric.is_global_zero
    out.mkdir(parents=True, exist_ok=True)
    if recipe.conditioning.text is not None and run.texts is None:
        raise UsageError(f"The recipe {recipe.name} reads texts, and nothing was given that does.")
    text_encoder = run.texts.encoder.identity if run.texts else ""
    start = None
    if run.start is not None:
        start = load_model(run.start)
        check_start(recipe, start, run.start, text_encoder)
    style = choose_style(recipe, run.vgg19, device) if recipe.pretraining is not None and start is None else None
    space = build_space(recipe)
    minutes = _phase_minutes(recipe, run.minutes, adapted=start is not None)
    if isinstance(space, Autoencoder):
        torch.manual_seed(recipe.training.seed)
        space = build_space(recipe)
        if start is not None:
            space.load_state_dict(start.space.state_dict())
        else:
            over = run.resume and _begun(out / "pretraining", out)
            more = (run.resume, over, fabric, run.report)
            fit_autoencoder(space, recipe, ground, out / "autoencoder", minutes["autoencoder"], *more)
    modalities = recipe.tracers, recipe.conditioning.sources
    space.to(device).requires_grad_(False).eval()
    pooled, ahead = (*ground.pool, *modalities), ahead_on(device)
    pool = Pool(ground.case, on_device(space, device), *pooled, ahead)
    model = build_model(recipe, pool, ground, space, text_encoder)
    if any(map(is_pet, recipe.conditioning.sources)):
        model = replace(model, source_window=run.pet_window, source_fwhm=run.pet_fwhm)
    if start is not None:
        model = start_from(model, start)
    if model.regional is not None:
        if first:
            fit_regional(model, ground, out / "regional.safetensors", run)
        fabric.barrier()
        if not first:
            _load_regional(model, out / "regional.safetensors")
    if style is not None:
        cases = styled(ground, style)
        # VGG's style is made on the device itself, which has no room for several at once
        ahead = 0 if recipe.pretraining.style == "vgg19" else ahead
        # nothing of it stays in memory
        pretrain(model, Pool(cases, on_device(space, device), *pooled, ahead), minutes["pretraining"], run, fabric)
    objective = Objective(model, pool, device, run.texts)
    if first and objective.shared and fabric.world_size > 1:
        run.report(f"{fabric.world_size} processes share each batch, which changes {objective.shared}")
    more = (minutes["paired"], fabric, objective.critic, "paired training", objective.shared)
    loop = Loop(objective.net, objective.loss, recipe.training, out, *more)
    if run.resume:
        loop.resume()
    if first:
        _forget_after(out / "validation.jsonl", loop.state.step)
    held, stops = HeldOut([], []), recipe.training.patience if run.validate else 0
    if first and run.validate:
        # where nothing is decided by them, few are enough
        held = share_held_out(ground.held_cases(None if stops else WATCHED_CASES), stops)

    def pause(state: State) -> float | None:
        average = replace(model, denoiser=loop.ema.denoiser)
        save_model(average, out / "model")
        if not held.watched:
            return None
        figures, _ = evaluate(Synthesizer(average, device, run.texts), held.watched, 2, recipe.grid.voxel_size)
        line = {"step": state.step, "minutes": round(state.elapsed / 60, 1), "figures": figures}
        with (out / "validation.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return float(np.mean([row["mae"] for row in figures.values()]))

    loop.run(every=20, pause=pause, pause_minutes=run.validate or 10.0, report=run.report)
    if not first:
        return None
    trained = replace(model, denoiser=loop.ema.denoiser)
    generator = Synthesizer(trained, device, run.texts)
    reported = held.reported if stops else ground.held_cases()
    sensitivity, tuned = {}, {}
    if model.regional is not None:
        people = ground.held_people()
        sensitivity = sensitivity_figures(generator, people)
        tuned = calibration(generator, people, ground.texture_cases)
        generator = Synthesizer(replace(trained, texture=tuned["texture"]), device, run.texts)
    figures, spread = evaluate(generator, reported, CARD_DRAWS, recipe.grid.voxel_size)
    others = evaluate_others(generator, reported, CARD_DRAWS)
    tuned = {"spread": spread} | tuned
    trained = replace(trained, **tuned, ranges=ground.ranges(), surface=_normative(ground, recipe, run))
    given = "Each synthetic scan was made given all other scans of the person that the recipe takes."
    note = " ".join(filter(None, (held.note, given if set(recipe.conditioning.sources) - {"T1w"} else "")))
    card = model_card(
        trained, ground, figures, others, sensitivity, loop.state.elapsed / 60, loop.state.step, note, start
    )
    trained = replace(trained, card=card)
    save_model(trained, out / "model")
    (out / "figures.json").write_text(json.dumps({"figures": figures | others, **tuned}, indent=2) + "\n")
    return trained


def _begun(*phases: Path) -> bool:
    """Whether one of the folders of phases has a checkpoint."""
    return any((folder / CHECKPOINT).exists() for folder in phases)


def pretrain(model: Model, pool: Pool, minutes: float | None, run: Run, fabric: Fabric) -> None:
    """Train the model's denoiser on the pool's pairs, before it sees any PET."""
    recipe = model.recipe
    spec = recipe.training.model_copy(update={"steps": recipe.pretraining.steps, "patience": 0})
    # as published, detail is asked for where the scans are real
    losses = recipe.losses.model_copy(update={"laplacian": 0.0})
    first = replace(model, recipe=recipe.model_copy(update={"losses": losses}))
    objective = Objective(first, pool, str(fabric.device), run.texts)
    more = (minutes, fabric, objective.critic, "pre-training", objective.shared)
    loop = Loop(objective.net, objective.loss, spec, run.out / "pretraining", *more)
    if run.resume:
        loop.resume()
    go_on(loop, run.resume and _begun(run.out), run.report)
    model.denoiser.load_state_dict(loop.ema.denoiser.state_dict())


def _forget_after(lines: Path, step: int) -> None:
    """Take away lines that an earlier run wrote after the step that training goes on from."""
    if lines.exists():
        whole = [line for line in lines.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = "".join(line for line in whole if json.loads(line)["step"] <= step)
        write_atomically(lines, lambda path: path.write_text(kept))


def _normative(ground: Ground, recipe: Recipe, run: Run) -> bytes:
    """Surface projections of the ground's normal people, as the model folder keeps them; nothing if they are few."""
    from bids_petsynth.anatomy.alignment import template_grid
    from bids_petsynth.evaluation.normative import normative_from_cases, to_bytes

    grid = template_grid(tuple(recipe.grid.shape), recipe.grid.voxel_size)
    tracers = [name for name in recipe.tracers if is_pet(name)]
    try:
        sets = normative_from_cases(ground.normal_cases(), tracers, grid, ground.demonstration)
    except ValueError as error:  # the model does without it
        run.report(f"no norm of the brain's surface is stored: {error}")
        return b""
    return to_bytes(sets) if sets else b""


def on_device(space: torch.nn.Module, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The space's encoder, which is on ``device``, for volumes on the CPU."""
    return lambda volumes: space.encode(volumes.to(device)).cpu()


def _phase_minutes(recipe: Recipe, minutes: float | None, adapted: bool) -> dict[str, float | None]:
    """The time of each phase, shared by their numbers of steps; an adapted model has the last one alone."""
    steps = {"autoencoder": 0, "pretraining": 0, "paired": recipe.training.steps}
    if not adapted:
        steps["autoencoder"] = getattr(recipe.space, "training_steps", 0)
        steps["pretraining"] = recipe.pretraining.steps if recipe.pretraining else 0
    total = sum(steps.values())
    return {name: None if minutes is None else minutes * n / total for name, n in steps.items()}


def fit_regional(model: Model, ground: Ground, weights: Path, run: Run) -> None:
    """Train the regional flow, or take up what an earlier run trained."""
    from safetensors.torch import save_file

    if run.resume and weights.exists():
        _load_regional(model, weights)
        return
    people = ground.people()
    loss = fit_part(model, people, adapt=run.start is not None)
    run.report(f"regional flow on {len(people.records)} people: loss {loss:.3f}")
    write_atomically(weights, lambda path: save_file(model.regional.state_dict(), path))


def _load_regional(model: Model, weights: Path) -> None:
    from safetensors.torch import load_file

    model.regional.load_state_dict(load_file(weights))


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
    parser.add_argument("--init-from", type=Path, dest="start", help="model folder to begin with")
    args = vars(parser.parse_args(argv))
    recipe = load_recipe(args.pop("recipe"))
    train(SimulatedGround(args.pop("arrays"), recipe), recipe, Run(**args))


if __name__ == "__main__":
    main()
