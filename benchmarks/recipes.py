"""The recipes and baselines beside each other on simulated people, split by head, at one compute budget.

    python benchmarks/recipes.py run ARRAYS OUT --minutes 5 --people 40 [--scale small] [--only pasta mri2pet …]
    python benchmarks/recipes.py table OUT

ARRAYS are the prepared heads (``python -m bids_petsynth.training.grid heads …``). Each variant (``recipe_variants.py``)
trains for the same time on the same people, who are simulated before, on 18 of the 21 training heads; the spread of its
draws is calibrated on the other three; then it draws AV45 for the same people on the heads that no training saw.
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
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import measure
from model_tables import without_plasma
from recipe_variants import VARIANTS, Variant, recipe_of

from bids_petsynth.anatomy.alignment import template_grid
from bids_petsynth.clinical.language import TextOptions, TextReader
from bids_petsynth.clinical.llm import Endpoint
from bids_petsynth.errors import InputError
from bids_petsynth.evaluation.image import image_figures
from bids_petsynth.evaluation.regional import correlation
from bids_petsynth.evaluation.statistics import bootstrap
from bids_petsynth.evaluation.uncertainty import auc, inside, predictive_intervals
from bids_petsynth.models.denoiser import parameters_in_millions
from bids_petsynth.models.folder import Model, load_model
from bids_petsynth.models.recipe import GridSpec, Recipe, load_recipe
from bids_petsynth.models.synthesizer import Synthesizer, reader_of
from bids_petsynth.pet.quantification import normalise, quantify
from bids_petsynth.pet.tracers import default_cutoff
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.training.augment import most_common
from bids_petsynth.training.generator import Run, train
from bids_petsynth.training.labelling import UNSEEN
from bids_petsynth.training.loop import write_atomically
from bids_petsynth.training.pairs import Heads, TrainingCase, dseg_codes, load_heads, simulate_case
from bids_petsynth.training.simulated import SimulatedGround, evaluation_cases

TRACER, PEOPLE_SEED, CALIBRATION_HEADS, CALIBRATION_PEOPLE = "AV45", 5_000_000, 3, 8
#: MMSE up to which ADNI took people as ones with dementia (Petersen 2010, doi:10.1212/WNL.0b013e3181cb3e25).
MMSE_OF_DEMENTIA = 26
KEPT = ("t1w", "classes", "measured", "labels")


@dataclass(frozen=True)
class Crowd:
    """The simulated people that every variant trains on, made once and kept as files."""

    arrays: Path
    folder: Path
    tracers: tuple[str, ...]
    seed: int
    size: int

    @cached_property
    def everyone(self) -> Heads:
        return load_heads(self.arrays, load_recipe("petsynth"))

    @cached_property
    def heads(self) -> Heads:
        names = [name for name in self.everyone.names if name not in UNSEEN]
        return self.everyone.select(lambda name: name in names[CALIBRATION_HEADS:])

    def case(self, number: int) -> TrainingCase:
        """One of them; simulated if it is not there yet."""
        path = self.folder / f"{self.seed}-{number % self.size:05d}.npz"
        if not path.is_file():
            case = simulate_case(self.heads, self.tracers, 2.0, self.seed, number % self.size)
            images = {"t1w": case.t1w.half(), "classes": case.classes.byte(), "measured": case.measured.byte()}
            images |= {"labels": (case.labels * 255).round().byte(), **{k: v.half() for k, v in case.pet.items()}}
            about = json.dumps({"head": case.head, "record": case.record, "truth": case.truth})
            arrays = {name: image.numpy() for name, image in images.items()} | {"about": np.array(about)}
            path.parent.mkdir(parents=True, exist_ok=True)

            def save(beside: Path) -> None:
                with beside.open("wb") as file:
                    np.savez(file, **arrays)

            write_atomically(path, save)
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            kept = {name: torch.from_numpy(file[name]) for name in file.files if name != "about"}
        t1w, classes, measured, labels = (kept.pop(name) for name in KEPT)
        pet = {name: scan.float() for name, scan in kept.items()}
        images = t1w.float(), classes.long(), measured.long(), labels.float() / 255
        return TrainingCase(about["head"], *images, about["record"], about["truth"], pet)


@cache
def scans_grid() -> GridSpec:
    """The grid that people are simulated on, and all images are measured on."""
    return load_recipe("petsynth").grid


def on_grid_of(recipe: Recipe, case: TrainingCase) -> TrainingCase:
    """The case on the grid of a recipe whose voxels are as large as the case's, or twice as large."""
    if case.t1w.shape[0] == recipe.grid.shape[0]:
        return case

    def pooled(image: torch.Tensor) -> torch.Tensor:
        return F.avg_pool3d(image[None], 2)[0]

    pet = {name: pooled(scan[None])[0] for name, scan in case.pet.items()}
    classes, measured = most_common(torch.stack([case.classes, case.measured]))
    images = {"t1w": pooled(case.t1w[None])[0], "labels": pooled(case.labels), "pet": pet}
    return replace(case, classes=classes, measured=measured, **images)


@dataclass(frozen=True)
class BenchGround(SimulatedGround):
    """A crowd to train on; the heads that no training sees stay for the evaluation alone."""

    crowd: Crowd

    @property
    def _heads(self) -> Heads:
        return self.crowd.everyone

    @cached_property
    def _seen(self) -> Heads:
        return self.crowd.heads

    @cached_property
    def _unseen(self) -> Heads:
        names = [name for name in self._heads.names if name not in UNSEEN][:CALIBRATION_HEADS]
        return self._heads.select(lambda name: name in names)

    @property
    def pool(self) -> tuple[int, int, int]:
        return self.crowd.size, self.crowd.size, 10**9

    def case(self, number: int) -> TrainingCase:
        return on_grid_of(self.recipe, self.crowd.case(number))

    def held_cases(self, n: int | None = None) -> list[TrainingCase]:
        fine = self.recipe.model_copy(update={"grid": scans_grid()})
        cases = evaluation_cases(self._unseen, fine, CALIBRATION_PEOPLE if n is None else n)
        return [on_grid_of(self.recipe, case) for case in cases]

    # tables for a model folder, which nobody is given
    def ranges(self) -> tuple:
        return ()

    def texture_cases(self) -> tuple:
        return ()

    def normal_cases(self) -> tuple:
        return ()


def people(arrays: Path, tracers: Sequence[str], n: int) -> list[TrainingCase]:
    """Simulated people on unseen heads, the same for every variant."""
    recipe = load_recipe("petsynth")
    heads = load_heads(arrays, recipe).select(lambda name: name in UNSEEN)
    return [simulate_case(heads, tracers, recipe.grid.voxel_size, PEOPLE_SEED, k, augment=False) for k in range(n)]


def given_to(variant: Variant, recipe: Recipe, case: TrainingCase, number: int) -> dict[str, torch.Tensor | None]:
    """Scans that the variant is given of a person, None for those that are withheld."""
    if variant.missing is None:
        return {}
    rng = np.random.default_rng([PEOPLE_SEED, number])
    sources = [name for name in recipe.conditioning.sources if name != TRACER]
    return {name: None if rng.random() < variant.missing else case.images[name] for name in sources}


def diseased(case: TrainingCase) -> bool:
    """Whether a simulated person counts as one with Alzheimer's dementia: amyloid, and a low score."""
    return case.truth["centiloid"] > default_cutoff().centiloid and case.record["mmse"] <= MMSE_OF_DEMENTIA


class Classifier:
    """Tells Alzheimer's dementia by logistic regression on regional SUVR of the training people's own scans."""

    def __init__(self, crowd: Crowd):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        cases = [crowd.case(number) for number in range(crowd.size)]
        regions = np.array([scan_regions(case) for case in cases])
        self.known = np.isfinite(regions).all(0)
        self.model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        self.model.fit(regions[:, self.known], [diseased(case) for case in cases])

    def score(self, regions: np.ndarray) -> float:
        """Log odds of the disease from regional SUVR ``(R,)``, NaN where a region is absent."""
        values = regions[self.known]
        values = np.where(np.isfinite(values), values, self.model[0].mean_)
        return float(self.model.decision_function(values[None])[0])


def scan_regions(case: TrainingCase) -> np.ndarray:
    """Regional SUVR of a person's own scan."""
    spec, fine = tracer_named(TRACER), scans_grid()
    grid = template_grid(tuple(fine.shape), fine.voxel_size)
    labels = dseg_codes(case.measured.numpy(), grid)
    return measure(normalise(case.pet[TRACER][None].numpy(), labels, grid, spec), labels, grid, spec)[0][0]


def evaluate(
    engine: Synthesizer, variant: Variant, cases: Sequence[TrainingCase], draws: int, classifier: Classifier
) -> list[dict]:
    """A row of figures and regional values for each person whose draws can be measured."""
    rows = []
    for number, case in enumerate(cases):
        try:
            row = person(engine, variant, case, number, draws)
            row |= {"diseased": diseased(case), "true_score": classifier.score(np.array(row["truth"], float))}
            rows.append(row | {"score": classifier.score(np.array(row["regions"], float).mean(0))})
        except InputError as error:  # after too little training an image may hold nothing
            print(f"person {number}: {error}", flush=True)
    return rows


def person(engine: Synthesizer, variant: Variant, case: TrainingCase, number: int, draws: int) -> dict:
    """The figures of one person."""
    recipe, spec = engine.model.recipe, tracer_named(TRACER)
    fine, shown = scans_grid(), on_grid_of(recipe, case)
    grid = template_grid(tuple(fine.shape), fine.voxel_size)
    labels = dseg_codes(case.measured.numpy(), grid)
    record = case.record if variant.plasma else without_plasma(case.record)
    n = 1 if recipe.draws_alike else draws
    given = given_to(variant, recipe, shown, number)
    made = engine.sample(shown.t1w[None], shown.labels[None], record, TRACER, n, number, given)
    if recipe.grid != fine:  # all are measured on the grid of the scans
        made = F.interpolate(torch.from_numpy(made)[:, None], fine.shape, mode="trilinear")[:, 0].numpy()
    made = engine.calibrated(normalise(made, labels, grid, spec), TRACER)
    scan = normalise(case.pet[TRACER][None].numpy(), labels, grid, spec)
    foreseen = engine.foreseen(shown.labels[None], labels, record, TRACER, n, number)
    both = [quantify(v, labels, grid, spec, foreseen=f) for v, f in ((made, foreseen), (scan, None))]
    (regions, _), ((truth,), _) = (measure(volumes, labels, grid, spec) for volumes in (made, scan))
    return (
        image_figures(made.mean(0), scan[0], labels > 0, spec.display)
        | {"head": case.head, "regions": regions.tolist(), "truth": truth.tolist()}
        | {"centiloid": both[0].centiloid.mean, "true_centiloid": both[1].centiloid.mean}
        | {"probability": both[0].probability_positive, "target": both[0].target.suvr.mean}
        | {"true_target": both[1].target.suvr.mean}
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
    crowd = Crowd(arguments.arrays, out / "crowd", tracers, arguments.seed, arguments.training)
    for number in range(crowd.size):
        crowd.case(number)
    cases = people(arguments.arrays, tracers, arguments.people)
    classifier = Classifier(crowd)
    for name in arguments.only or VARIANTS:
        variant = VARIANTS[name]
        recipe = recipe_of(name, arguments.scale, tracers, arguments.seed)
        folder = out / f"{name.replace(' ', '-').replace(',', '')}-seed{arguments.seed}"
        if (folder / "people.json").is_file():
            continue
        if recipe.conditioning.text and recipe.conditioning.text.style == "llm" and not arguments.llm:
            print(f"{name}: left out, it needs a language model (--llm URL MODEL)", flush=True)
            continue
        peak, started = Peak(arguments.device), time.monotonic()
        if variant.weights is None:
            model = trained(name, recipe, crowd, folder, arguments)
        else:
            model = replace(load_model(out / f"{variant.weights}-seed{arguments.seed}" / "model"), recipe=recipe)
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
        print(line(about), flush=True)


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


def line(found: Mapping) -> str:
    """A row of the table."""
    rows = found["people"]
    if not rows:
        return f"| {found['variant']} | no image that can be measured |" + " |" * (len(COLUMNS) - 2)
    heads = np.array([row["head"] for row in rows])

    def of(name: str) -> np.ndarray:
        return np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)

    mae = of("mae_brain")
    interval = bootstrap(lambda i: float(mae[i].mean()), heads, n=500)
    regions, truth = np.array([row["regions"] for row in rows]), np.array([row["truth"] for row in rows])
    means = regions.mean(1)
    known = np.isfinite(truth).all(0) & np.isfinite(means).all(0)
    cover = float("nan")
    if regions.shape[1] > 1 and regions.std(1)[:, known].max() > 0:
        intervals = predictive_intervals(np.moveaxis(regions[..., known], 1, -1))
        cover = float(np.nanmean(inside(truth[:, known], intervals)[..., 0]))
    ill = of("diseased") > 0
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
        f"{auc(of('score'), ill):.2f} ({auc(of('true_score'), ill):.2f})" if ill.any() else "–",
        "–" if np.isnan(cover) else f"{cover:.2f}",
        f"{found['parameters']:.1f}",
        f"{found['tflop']:.2f}",
        "–" if VARIANTS[found["variant"]].weights else f"{found['all_minutes']:.1f}",
        "–" if VARIANTS[found["variant"]].weights else f"{found['peak_gib']:.1f}",
    ]
    missed = found.get("asked", len(rows)) - len(rows)
    name = found["variant"] + (f", {found['seeds']} seeds" if found.get("seeds", 1) > 1 else "")
    name += f" ({missed} people's images cannot be measured)" if missed else ""
    return f"| {name} | " + " | ".join(cells) + " |"


def pooled(several: Sequence[Mapping]) -> dict:
    """The runs of one variant with several seeds as one: the people of all, mean time, largest memory."""
    return {
        **several[0],
        "seeds": len(several),
        "people": [row for one in several for row in one["people"]],
        "asked": sum(one.get("asked", len(one["people"])) for one in several),
        "all_minutes": float(np.mean([one["all_minutes"] for one in several])),
        "peak_gib": max(one["peak_gib"] for one in several),
    }


def table(arguments: argparse.Namespace) -> None:
    """Print what is there, in the order of the variants."""
    found = [json.loads(path.read_text()) for path in sorted(arguments.out.glob("*/people.json"))]
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in VARIANTS:
        if several := [one for one in found if one["variant"] == name]:
            print(line(pooled(several)))


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
