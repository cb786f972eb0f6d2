"""The recipes and baselines beside each other on simulated people, split by head, at one compute budget.

    python benchmarks/recipes.py run ARRAYS OUT --minutes 5 --people 40 [--scale small] [--only pasta mri2pet …]
    python benchmarks/recipes.py table OUT

ARRAYS are the prepared heads (``python -m bids_petsynth.training.grid heads …``). Every variant is a recipe with a few
fields changed (``VARIANTS``); it is trained for the same time on the training heads, then draws AV45 for the same
people on heads that no training saw. ``--scale small`` halves the widths and works on 4 mm voxels where a recipe works
on 2 mm, which two CPU cores can train; ``full`` leaves the recipes as they are, for a GPU. ``run`` may be stopped and
started again.

A ranking on simulation verifies the software and says nothing about patients.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from bids_petsynth.anatomy.alignment import template_grid
from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.clinical.language import TextOptions
from bids_petsynth.evaluation.image import image_figures
from bids_petsynth.evaluation.regional import correlation
from bids_petsynth.evaluation.statistics import bootstrap
from bids_petsynth.evaluation.uncertainty import auc, inside, predictive_intervals
from bids_petsynth.models.conditioning import is_pet
from bids_petsynth.models.denoiser import parameters_in_millions
from bids_petsynth.models.folder import load_model
from bids_petsynth.models.recipe import Recipe, load_recipe
from bids_petsynth.models.synthesizer import Synthesizer, reader_of
from bids_petsynth.pet.quantification import normalise, quantify, region_means
from bids_petsynth.pet.tracers import default_cutoff
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.training.generator import Run, train
from bids_petsynth.training.labelling import UNSEEN
from bids_petsynth.training.pairs import TrainingCase, dseg_codes, load_heads, simulate_case
from bids_petsynth.training.simulated import SimulatedGround

TRACER, PEOPLE_SEED = "AV45", 5_000_000
#: Variant → recipe, then changed fields as ``part.field``.
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "petsynth": ("petsynth", {}),
    "petsynth, 2 steps": ("petsynth", {"process.steps": 2}),
    "petsynth, 8 steps": ("petsynth", {"process.steps": 8}),
    "petsynth, 16 steps": ("petsynth", {"process.steps": 16}),
    "petsynth, guidance 2": ("petsynth", {"process.guidance": 2.0}),
    "language": ("language", {}),
    "language, numbers as text": ("language", {"conditioning.text.style": "numbers"}),
    "language, text alone": ("language", {"conditioning.numeric": False}),
    "language, numeric alone": ("language", {"conditioning.text": None, "losses.alignment": 0.0}),
    "pasta": ("pasta", {}),
    "pasta without cycle": ("pasta", {"losses.cycle": 0.0}),
    "pasta without region weights": ("pasta", {"losses.regions": "none"}),
    "pasta without clinical": ("pasta", {"conditioning.numeric": False}),
    "mri2pet": ("mri2pet", {}),
    "mri2pet without pre-training": ("mri2pet", {"pretraining": None}),
    "mri2pet without style": ("mri2pet", {"pretraining.style": "none"}),
    "mri2pet without pyramid": ("mri2pet", {"losses.laplacian": 0.0}),
    "acadiff": ("acadiff", {}),
    "cldm": ("cldm", {}),
    "regression": ("regression", {}),
    "attention-unet": ("attention-unet", {}),
    "gan": ("gan", {}),
    "ddpm3d": ("ddpm3d", {}),
}
#: Variants that sample another model's weights in another way.
SAMPLED = {name: "petsynth" for name in VARIANTS if name.startswith("petsynth, ")}


def changed(data: dict, fields: Mapping[str, object]) -> dict:
    """Recipe fields replaced by their dotted names."""
    for name, value in fields.items():
        *path, last = name.split(".")
        part = data
        for step in path:
            part = part[step]
        part[last] = value
    return data


def recipe_of(variant: str, scale: str, tracers: list[str]) -> Recipe:
    """The variant's recipe at a scale; ``small`` for two CPU cores."""
    base, fields = VARIANTS[variant]
    data = load_recipe(base).model_dump(mode="json")
    data["tracers"] = [name for name in data["tracers"] if name in tracers or name == "T1w"]
    if scale == "small":
        net, space = data["network"], data["space"]
        if space["kind"] == "codec" and space["fold"] == 1:
            space["cutoff"] = 0.125
            net |= {"slices": 12, "stride": 6}
        if space["kind"] == "autoencoder":
            space |= {"channels": [max(8, c // 2) for c in space["channels"]], "adversarial": 0.0}
        net["channels"] = [max(16, c // 2) for c in net["channels"]]
        net["blocks"], net["groups"] = 1, 8
        data["training"] |= {"batch": 4, "rate": 1e-3, "warmup": 20, "ema": 0.98, "pool": 60, "refresh": 10}
        data["process"]["steps"] = min(data["process"]["steps"], 25)
        if data["pretraining"]:
            data["pretraining"]["steps"] = data["training"]["steps"] // 2
        if data["regional"]:
            data["regional"] |= {"people": 600, "training_steps": 3000}
    return Recipe.model_validate(changed(data, fields))


@cache
def training_case(arrays: Path, tracers: tuple[str, ...], seed: int, number: int) -> TrainingCase:
    """A training person, simulated once for all variants."""
    ground = SimulatedGround(arrays, base_recipe(tracers, seed))
    case = ground.case(number)
    return replace(case, coordinates=None, classes=case.classes.byte(), labels=case.labels.half())


@cache
def base_recipe(tracers: tuple[str, ...], seed: int) -> Recipe:
    """What the people depend on."""
    recipe = load_recipe("petsynth")
    training = recipe.training.model_copy(update={"seed": seed})
    return recipe.model_copy(update={"tracers": tracers, "training": training})


class Bench(SimulatedGround):
    """The same people for every variant; no tables for a model folder, which nobody is given."""

    def case(self, number: int) -> TrainingCase:
        tracers = tuple(name for name in self.recipe.tracers if is_pet(name))
        case = training_case(self.arrays, tracers, self.recipe.training.seed, number)
        return replace(case, labels=case.labels.float())

    def ranges(self) -> tuple:
        return ()

    def normal_cases(self) -> tuple:
        return ()


@cache
def people(arrays: Path, n: int) -> list[TrainingCase]:
    """Simulated people on unseen heads, the same for every variant."""
    recipe = load_recipe("petsynth")
    heads = load_heads(arrays, recipe).select(lambda name: name in UNSEEN)
    size = recipe.grid.voxel_size
    return [simulate_case(heads, [TRACER], size, PEOPLE_SEED, k, augment=False) for k in range(n)]


def evaluate(engine: Synthesizer, cases: list[TrainingCase], draws: int) -> list[dict]:
    """A row of figures and regional values for each person."""
    spec, size = tracer_named(TRACER), engine.model.recipe.grid.voxel_size
    grid = template_grid(tuple(engine.model.recipe.grid.shape), size)
    codes = [code for code, _, _, region in lookup() if region.tissue != "csf"]
    rows = []
    for number, case in enumerate(cases):
        labels = dseg_codes(case.measured.numpy(), grid)
        made = engine.sample(case.t1w[None], case.labels[None], case.record, TRACER, draws, number)
        made = engine.calibrated(normalise(made, labels, grid, spec), TRACER)
        scan = normalise(case.pet[TRACER][None].numpy(), labels, grid, spec)
        foreseen = engine.foreseen(case.labels[None], labels, case.record, TRACER, draws, number)
        both = [quantify(v, labels, grid, spec, foreseen=f) for v, f in ((made, foreseen), (scan, None))]
        values = []
        for volumes in (made, scan):
            present, means, _ = region_means(volumes, labels, grid)
            row = np.full((len(volumes), 256), np.nan)
            row[:, present] = means
            values.append(row[:, codes])
        rows.append(
            image_figures(made.mean(0), scan[0], labels > 0, spec.display)
            | {"head": case.head, "regions": values[0].tolist(), "truth": values[1][0].tolist()}
            | {"centiloid": both[0].centiloid.mean, "true_centiloid": both[1].centiloid.mean}
            | {"probability": both[0].probability_positive, "target": both[0].target.suvr.mean}
            | {"true_target": both[1].target.suvr.mean}
        )
    return rows


def operations(engine: Synthesizer, case: TrainingCase) -> float:
    """TFLOP of 8 draws."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        engine.sample(case.t1w[None], case.labels[None], case.record, TRACER, 1, 0)
    return 8 * counter.get_total_flops() / 1e12


def run(arguments: argparse.Namespace) -> None:
    """Train and measure every variant that has no figures yet."""
    torch.set_num_threads(arguments.threads)
    options = TextOptions(encoder=arguments.encoder, cache=arguments.out / "texts")
    for variant in arguments.only or VARIANTS:
        folder = arguments.out / f"{variant.replace(' ', '-').replace(',', '')}-seed{arguments.seed}"
        if (folder / "people.json").is_file():
            continue
        recipe = recipe_of(variant, arguments.scale, arguments.tracers)
        training = recipe.training.model_copy(update={"seed": arguments.seed})
        recipe = recipe.model_copy(update={"training": training})
        started = time.monotonic()
        if variant in SAMPLED:
            trained = load_model(arguments.out / f"{SAMPLED[variant]}-seed{arguments.seed}" / "model")
            model = replace(trained, recipe=recipe)
        else:
            print(f"{variant}: training for {arguments.minutes:g} minutes", flush=True)
            texts = None
            if recipe.conditioning.text is not None:
                from bids_petsynth.clinical.language import TextReader

                names = [variable.name for variable in recipe.conditioning.variables]
                texts = TextReader(recipe.conditioning.text, names, options, arguments.device)
            ground = Bench(arguments.arrays, recipe)
            how = Run(folder, arguments.minutes, device=arguments.device, validate=0, texts=texts)
            model = train(ground, recipe, how)
        engine = Synthesizer(model, arguments.device, reader_of(model, options, arguments.device))
        cases = people(arguments.arrays, arguments.people)
        rows = evaluate(engine, cases, arguments.draws)
        about = {
            "variant": variant,
            "scale": arguments.scale,
            "minutes": arguments.minutes,
            "all_minutes": (time.monotonic() - started) / 60,
            "parameters": parameters_in_millions(model.denoiser),
            "tflop": operations(engine, cases[0]),
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "people.json").write_text(json.dumps(about | {"people": rows}))
        print(line(about | {"people": rows}), flush=True)


HEADER = (
    "| variant | MAE brain [95 %] | MSE | PSNR | SSIM | regional MAE | regional r | target r | Centiloid MAE | AUC | "
    "80 % covers | M parameters | TFLOP, 8 draws |\n|" + "---|" * 13
)


def line(found: Mapping) -> str:
    """A row of the table."""
    rows = found["people"]
    heads = np.array([row["head"] for row in rows])

    def of(name: str) -> np.ndarray:
        return np.array([np.nan if row[name] is None else row[name] for row in rows], float)

    mae = of("mae_brain")
    interval = bootstrap(lambda i: float(mae[i].mean()), heads, n=500)
    regions, truth = np.array([row["regions"] for row in rows]), np.array([row["truth"] for row in rows])
    means = regions.mean(1)
    known = np.isfinite(truth).all(0) & np.isfinite(means).all(0)
    cover = float("nan")
    if regions.shape[1] > 1 and regions.std(1)[:, known].max() > 0:
        intervals = predictive_intervals(np.moveaxis(regions[..., known], 1, -1))
        cover = float(np.nanmean(inside(truth[:, known], intervals)[..., 0]))
    positive = of("true_centiloid") > default_cutoff().centiloid
    cells = [
        f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]",
        f"{of('mse_brain').mean():.4f}",
        f"{of('psnr_brain').mean():.1f}",
        f"{of('ssim_brain').mean():.3f}",
        f"{np.nanmean(np.abs(means - truth)):.3f}",
        f"{np.nanmedian(correlation(means[:, known], truth[:, known])):.2f}",
        f"{np.corrcoef(of('target'), of('true_target'))[0, 1]:.2f}",
        f"{np.nanmean(np.abs(of('centiloid') - of('true_centiloid'))):.1f}",
        f"{auc(of('centiloid'), positive):.2f}",
        "–" if np.isnan(cover) else f"{cover:.2f}",
        f"{found['parameters']:.1f}",
        f"{found['tflop']:.2f}",
    ]
    return f"| {found['variant']} | " + " | ".join(cells) + " |"


def table(arguments: argparse.Namespace) -> None:
    """Print what is there, in the order of the variants."""
    order = list(VARIANTS)
    found = [json.loads(path.read_text()) for path in arguments.out.glob("*/people.json")]
    print(HEADER)
    for one in sorted(found, key=lambda one: order.index(one["variant"])):
        print(line(one))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("run")
    one.add_argument("arrays", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--minutes", type=float, default=5.0, help="training time of each")
    one.add_argument("--people", type=int, default=40)
    one.add_argument("--draws", type=int, default=4)
    one.add_argument("--scale", choices=("small", "full"), default="small")
    one.add_argument("--tracers", nargs="+", default=[TRACER])
    one.add_argument("--only", nargs="+", choices=list(VARIANTS), metavar="VARIANT")
    one.add_argument("--encoder", default="hashed", help="text encoder (hashed, minilm or a folder)")
    one.add_argument("--device", default="cpu")
    one.add_argument("--threads", type=int, default=2)
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(do=run)
    two = verbs.add_parser("table")
    two.add_argument("out", type=Path)
    two.set_defaults(do=table)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
