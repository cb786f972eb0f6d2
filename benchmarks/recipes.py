"""The recipes and baselines beside each other on simulated people, split by head, at one compute budget.

    python benchmarks/recipes.py run ARRAYS OUT --minutes 5 --people 40 [--scale small] [--only pasta mri2pet …]
    python benchmarks/recipes.py table OUT

ARRAYS are the prepared heads (``python -m bids_petsynth.training.grid heads …``). Each variant (``recipe_variants.py``)
trains for the same time (of the CPU, if on one) on the same people, who are simulated before, on 18 of the 21 training
heads; the spread of its draws is calibrated on the other three; then it draws AV45 for the same people on the heads
that no training saw.
``--scale small`` halves the widths and works on 4 mm voxels where a recipe works on 2 mm, which two CPU cores can
train; ``full`` leaves the recipes as they are, for a GPU. ``run`` may be stopped and started again; OUT is of one
version of the software.

Amyloid is told by the Centiloid of the drawn scan, disease (amyloid and MMSE of 26 or less) by a classifier that learnt
it from the training people's own scans; ``pasta`` is given MMSE, so it all but knows.

A ranking on simulation verifies the software and says nothing about patients.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import measure
from model_tables import without_plasma
from recipe_people import (
    PEOPLE_SEED,
    TRACER,
    BenchGround,
    Classifier,
    Crowd,
    diseased,
    on_grid_of,
    own_scan,
    people,
    scans_grid,
)
from recipe_variants import VARIANTS, Variant, recipe_of

from bids_petsynth.clinical.language import TextOptions, TextReader
from bids_petsynth.clinical.llm import Endpoint
from bids_petsynth.errors import InputError
from bids_petsynth.evaluation.image import image_figures
from bids_petsynth.evaluation.regional import correlation
from bids_petsynth.evaluation.statistics import bootstrap
from bids_petsynth.evaluation.uncertainty import auc, inside, predictive_intervals
from bids_petsynth.models.denoiser import parameters_in_millions
from bids_petsynth.models.folder import Model, load_model
from bids_petsynth.models.recipe import Recipe
from bids_petsynth.models.synthesizer import Synthesizer, reader_of
from bids_petsynth.pet.quantification import normalise, quantify
from bids_petsynth.pet.tracers import default_cutoff
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.training import loop
from bids_petsynth.training.generator import Run, train
from bids_petsynth.training.pairs import TrainingCase


def given_to(variant: Variant, recipe: Recipe, case: TrainingCase, number: int) -> dict[str, torch.Tensor | None]:
    """Scans that the variant is given of a person, None for those that are withheld."""
    if variant.missing is None:
        return {}
    rng = np.random.default_rng([PEOPLE_SEED, number])
    sources = [name for name in recipe.conditioning.sources if name != TRACER]
    return {name: None if rng.random() < variant.missing else case.images[name] for name in sources}


def evaluate(
    engine: Synthesizer, variant: Variant, cases: Sequence[TrainingCase], draws: int, classifier: Classifier
) -> list[dict]:
    """A row of figures and regional values for each person whose draws can be measured."""
    rows = []
    for number, case in enumerate(cases):
        try:
            rows.append(person(engine, variant, case, number, draws, classifier))
        except InputError as error:  # after too little training an image may hold nothing
            print(f"person {number}: {error}", flush=True)
    return rows


def person(
    engine: Synthesizer, variant: Variant, case: TrainingCase, number: int, draws: int, classifier: Classifier
) -> dict:
    """The figures of one person."""
    recipe, spec = engine.model.recipe, tracer_named(TRACER)
    fine, shown = scans_grid(), on_grid_of(recipe, case)
    scan, labels, grid = own_scan(case)
    record = case.record if variant.plasma else without_plasma(case.record)
    n = 1 if recipe.draws_alike else draws
    given = given_to(variant, recipe, shown, number)
    made = engine.sample(shown.t1w[None], shown.labels[None], record, TRACER, n, number, given)
    if recipe.grid != fine:  # all are measured on the grid of the scans
        made = F.interpolate(torch.from_numpy(made)[:, None], fine.shape, mode="trilinear")[:, 0].numpy()
    made = engine.calibrated(normalise(made, labels, grid, spec), TRACER)
    foreseen = engine.foreseen(shown.labels[None], labels, record, TRACER, n, number)
    both = [quantify(v, labels, grid, spec, foreseen=f) for v, f in ((made, foreseen), (scan, None))]
    (regions, _), ((truth,), _) = (measure(volumes, labels, grid, spec) for volumes in (made, scan))
    return (
        image_figures(made.mean(0), scan[0], labels > 0, spec.display)
        | {"head": case.head, "regions": regions.tolist(), "truth": truth.tolist()}
        | {"centiloid": both[0].centiloid.mean, "true_centiloid": both[1].centiloid.mean}
        | {"probability": both[0].probability_positive, "target": both[0].target.suvr.mean}
        | {"true_target": both[1].target.suvr.mean, "diseased": diseased(case)}
        | {"score": classifier.score(regions.mean(0)), "true_score": classifier.score(truth)}
    )


def operations(engine: Synthesizer, case: TrainingCase) -> float:
    """TFLOP of 8 draws."""
    from torch.utils.flop_counter import FlopCounterMode

    case = on_grid_of(engine.model.recipe, case)
    with FlopCounterMode(display=False) as counter:
        engine.sample(case.t1w[None], case.labels[None], case.record, TRACER, 1, 0)
    return 8 * counter.get_total_flops() / 1e12


class Peak:
    """The most memory that was held since this was made, in GiB: of the GPU, else of the process (Linux)."""

    def __init__(self, device: str):
        self.cuda = device.startswith("cuda")
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            # proc(5): 5 resets the peak resident set
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> float:
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 2**30
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def trained(variant: str, recipe: Recipe, crowd: Crowd, folder: Path, arguments: argparse.Namespace) -> Model:
    """The variant's model after its training."""
    print(f"{variant}: training for {arguments.minutes:g} minutes", flush=True)
    if arguments.device == "cpu":
        # whatever else the machine does
        loop.clock = time.process_time
    texts = None
    if recipe.conditioning.text is not None:
        names = [variable.name for variable in recipe.conditioning.variables]
        texts = TextReader(recipe.conditioning.text, names, text_options(arguments), arguments.device)
    how = Run(folder, arguments.minutes, device=arguments.device, validate=0, texts=texts)
    return train(BenchGround(arguments.arrays, recipe, crowd), recipe, how)


def text_options(arguments: argparse.Namespace) -> TextOptions:
    """How texts are written and read."""
    endpoint = Endpoint(*arguments.llm) if arguments.llm else None
    return TextOptions(encoder=arguments.encoder, endpoint=endpoint, cache=arguments.out / "texts")


def run(arguments: argparse.Namespace) -> None:
    """Train and measure every variant that has no figures yet."""
    torch.set_num_threads(arguments.threads)
    tracers, out = tuple(arguments.tracers), arguments.out
    folders = {name: out / f"{name.replace(' ', '-').replace(',', '')}-seed{arguments.seed}" for name in VARIANTS}
    left = [name for name in arguments.only or VARIANTS if not (folders[name] / "people.json").is_file()]
    if not left:
        return
    crowd = Crowd(arguments.arrays, out / "crowd", tracers, arguments.seed, arguments.training)
    for number in range(crowd.size):
        crowd.case(number)
    cases = people(arguments.arrays, tracers, arguments.people)
    classifier = Classifier(crowd)
    for name in left:
        variant, folder = VARIANTS[name], folders[name]
        recipe = recipe_of(name, arguments.scale, tracers, arguments.seed)
        if recipe.conditioning.text and recipe.conditioning.text.style == "llm" and not arguments.llm:
            print(f"{name}: left out, it needs a language model (--llm URL MODEL)", flush=True)
            continue
        peak, started = Peak(arguments.device), time.monotonic()
        if variant.weights is None:
            model = trained(name, recipe, crowd, folder, arguments)
        else:
            model = replace(load_model(folders[variant.weights] / "model"), recipe=recipe)
        minutes, held = (time.monotonic() - started) / 60, peak.read()
        engine = Synthesizer(model, arguments.device, reader_of(model, text_options(arguments), arguments.device))
        about = {
            "variant": name,
            "scale": arguments.scale,
            "minutes": arguments.minutes,
            "all_minutes": minutes,
            "parameters": parameters_in_millions(model.denoiser),
            "tflop": operations(engine, cases[0]),
            "peak_gib": held,
        }
        about["people"], about["asked"] = evaluate(engine, variant, cases, arguments.draws, classifier), len(cases)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "people.json").write_text(json.dumps(about))
        print(line([about]), flush=True)


COLUMNS = (
    "variant",
    "MAE brain [95 %]",
    "MSE",
    "PSNR",
    "SSIM",
    "regional MAE",
    "regional r",
    "target r",
    "Centiloid MAE",
    "AUC amyloid",
    "AUC disease (own scan)",
    "80 % covers",
    "M parameters",
    "TFLOP, 8 draws",
    "minutes in all",
    "peak GiB",
)


def figures(rows: Sequence[Mapping]) -> list[float]:
    """What the columns from MSE to coverage say of one run's people; NaN where it cannot be said."""

    def of(name: str) -> np.ndarray:
        return column(rows, name)

    regions, truth = np.array([row["regions"] for row in rows]), np.array([row["truth"] for row in rows])
    means = regions.mean(1)
    known = np.isfinite(truth).all(0) & np.isfinite(means).all(0)
    cover = float("nan")
    if regions.shape[1] > 1 and regions.std(1)[:, known].max() > 0:
        intervals = predictive_intervals(np.moveaxis(regions[..., known], 1, -1))
        cover = float(np.nanmean(inside(truth[:, known], intervals)[..., 0]))
    ill = of("diseased") > 0
    return [
        of("mse_brain").mean(),
        of("psnr_brain").mean(),
        of("ssim_brain").mean(),
        float(np.nanmean(np.abs(means - truth))),
        float(np.nanmedian(correlation(means[:, known], truth[:, known]))),
        np.corrcoef(of("target"), of("true_target"))[0, 1],
        float(np.nanmean(np.abs(of("centiloid") - of("true_centiloid")))),
        auc(of("centiloid"), of("true_centiloid") > default_cutoff().centiloid),
        auc(of("score"), ill),
        auc(of("true_score"), ill),
        cover,
    ]


def column(rows: Sequence[Mapping], name: str) -> np.ndarray:
    """A figure of each person, NaN where there is none."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)


def line(several: Sequence[Mapping]) -> str:
    """A row of the table from the runs of one variant, a run per seed: means over the runs, the largest memory."""
    first = several[0]
    several = [one for one in several if one["people"]]
    if not several:
        return f"| {first['variant']} | no image that can be measured |" + " |" * (len(COLUMNS) - 2)
    rows = [row for one in several for row in one["people"]]
    mae = column(rows, "mae_brain")
    interval = bootstrap(lambda i: float(mae[i].mean()), np.array([row["head"] for row in rows]), n=500)
    found = [float(np.mean(values)) for values in zip(*(figures(one["people"]) for one in several), strict=True)]
    mse, psnr, ssim, regional, r, target, centiloid, amyloid, disease, own, cover = found
    trains = VARIANTS[first["variant"]].weights is None
    cells = [
        f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]",
        f"{mse:.4f}",
        f"{psnr:.1f}",
        f"{ssim:.3f}",
        f"{regional:.3f}",
        f"{r:.2f}",
        f"{target:.2f}",
        f"{centiloid:.1f}",
        f"{amyloid:.2f}",
        "–" if np.isnan(disease) else f"{disease:.2f} ({own:.2f})",
        "–" if np.isnan(cover) else f"{cover:.2f}",
        f"{first['parameters']:.1f}",
        f"{first['tflop']:.2f}",
        f"{np.mean([one['all_minutes'] for one in several]):.1f}" if trains else "–",
        f"{max(one['peak_gib'] for one in several):.1f}" if trains else "–",
    ]
    missed = sum(one["asked"] for one in several) - len(rows)
    name = first["variant"] + (f", {len(several)} seeds" if len(several) > 1 else "")
    name += f" ({missed} people's images cannot be measured)" if missed else ""
    return f"| {name} | " + " | ".join(cells) + " |"


def table(arguments: argparse.Namespace) -> None:
    """Print what is there, in the order of the variants."""
    found = [json.loads(path.read_text()) for path in sorted(arguments.out.glob("*/people.json"))]
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in VARIANTS:
        if several := [one for one in found if one["variant"] == name]:
            print(line(several))


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
    one.add_argument("--training", type=int, default=120, help="people to train on")
    one.add_argument("--tracers", nargs="+", default=[TRACER, "FDG"], help="PET of the simulated people")
    one.add_argument("--only", nargs="+", choices=list(VARIANTS), metavar="VARIANT")
    one.add_argument("--encoder", default="hashed", help="text encoder (hashed, minilm or a folder)")
    one.add_argument("--llm", nargs=2, metavar=("URL", "MODEL"), help="OpenAI-compatible endpoint that writes prompts")
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
