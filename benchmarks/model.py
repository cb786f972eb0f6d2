"""The generator beside its baselines on simulated people whose heads no training saw.

    python benchmarks/model.py run ARRAYS OUT --people 400 --draws 8 [--model FOLDER] [--tracers AV45 …]
    python benchmarks/model.py table OUT

ARRAYS are the prepared heads (``python -m bids_petsynth.training.grid heads …``). ``run`` may be stopped and started
again: every person is a small file under OUT, and only missing ones are made. What each figure means stands in
docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from model_tables import EDGES, TABULAR_PEOPLE, VARIANTS, known_columns, print_tables, vector, without_plasma

from bids_petsynth.anatomy.alignment import mean_t1w, template_grid
from bids_petsynth.anatomy.regions import lookup, n_classes
from bids_petsynth.evaluation import baselines as base
from bids_petsynth.evaluation import image
from bids_petsynth.models.folder import calibration_text
from bids_petsynth.models.recipe import Recipe
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.pet.quantification import normalise, possible, region_means
from bids_petsynth.pet.tracers import Tracer, targets
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.training.labelling import UNSEEN
from bids_petsynth.training.pairs import Heads, Record, TrainingCase, dseg_codes, load_heads, simulate_case
from bids_petsynth.types import Foreseen, Grid

#: Seeds of the baselines' training people and of the people evaluated; no training uses them.
TRAINING_SEED, PEOPLE_SEED = 2_000_000, 3_000_000
#: SUVR is compared in these ``dseg`` regions: all but fluid.
CODES = tuple(code for code, _, _, region in lookup() if region.tissue != "csf")
#: Options that the baselines choose among on their training people: neighbours, ridge strength, blur of the paint (mm).
NEIGHBOURS, ALPHAS, BLURS = (5, 10, 20, 40, 80), (0.3, 3.0, 30.0, 300.0), (4.5, 6.0, 7.5, 9.0)
#: What a training person's file holds for all tracers.
OF_PERSON = {"values", "volumes"}
#: What moves a tracer's uptake; the painted baseline is told its expectation given the record.
DRIVERS = {"amyloid": "centiloid", "tau": "tau_neocortical", "metabolism": "fdg_loss"}


@dataclass(frozen=True)
class Bench:
    """All that does not change from person to person."""

    heads: Heads
    recipe: Recipe
    tracers: tuple[str, ...]
    out: Path

    @property
    def voxel_size(self) -> float:
        return self.recipe.grid.voxel_size

    @cached_property
    def grid(self) -> Grid:
        return template_grid(tuple(self.recipe.grid.shape), self.voxel_size)

    @cached_property
    def template(self) -> np.ndarray:
        """Mean T1w of the training heads, without skull."""
        return mean_t1w()[0]

    @cached_property
    def kept(self) -> np.ndarray:
        """Template voxels that scans are kept in at full resolution: the brain and what lies close around it."""
        from scipy import ndimage

        return ndimage.binary_dilation(self.template > 0.1, iterations=4)

    def vector(self, record: Record) -> np.ndarray:
        """``(V,)`` transformed values of the variables that the model takes."""
        return vector(record, self.recipe.conditioning.variables)

    def of_head(self, name: str) -> np.ndarray:
        """Where each voxel of a head lies in the template; registered once and kept."""
        path = self.out / "maps" / f"{name}.npz"
        if not path.is_file():
            number = self.heads.names.index(name)
            classes = self.heads.classes[number]
            brain = (classes > 0) & (classes < n_classes())
            head = np.where(brain, self.heads.t1w[number].astype(np.float32), 0)
            with TemporaryDirectory() as folder:
                found = base.register(head, self.template, self.grid.affine, Path(folder))
            save(path, {"shift": base.halved(found).astype(np.float16)})
        with np.load(path) as file:
            return base.doubled(file["shift"], self.recipe.grid.shape)

    def to_template(self, case: TrainingCase) -> np.ndarray:
        """Where each voxel of a simulated person lies in the template.

        The person's own deformation is known and only the head is registered: kinder to the baselines than a
        registration of every person, and 400 times cheaper.
        """
        return base.composed(self.of_head(case.head), base.from_normalised(case.coordinates.numpy()))


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part.npz")
    np.savez_compressed(part, **arrays)
    part.replace(path)


def measure(
    volumes: np.ndarray, labels: np.ndarray, grid: Grid, spec: Tracer, foreseen: Foreseen | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Regional SUVR ``(M, R)`` (NaN where absent) and target SUVR ``(M,)`` of volumes in SUVR.

    With what the model foresaw, of as many scans as it foresaw.
    """
    region = region_means(volumes, labels, grid)
    codes, means, sizes = region if foreseen is None else possible(region, foreseen, spec)
    table = np.full((len(means), 256), np.nan)
    table[:, codes] = means
    chosen = np.isin(codes, targets()[spec.default_target].codes)
    return table[:, list(CODES)], means[:, chosen] @ sizes[chosen] / sizes[chosen].sum()


def training_person(bench: Bench, seen: Heads, number: int) -> None:
    """One of the people that the baselines learn from, as a file."""
    path = bench.out / "training" / f"{number:05d}.npz"
    if path.is_file():
        return
    case = simulate_case(seen, bench.tracers, bench.voxel_size, TRAINING_SEED, number, augment=False)
    labels = dseg_codes(case.measured.numpy(), bench.grid)
    back = base.inverse(bench.to_template(case))
    on = base.channels(case.labels.numpy(), case.t1w.numpy())
    coarse = bench.voxel_size * bench.recipe.label_pool
    brain = (labels > 0) & bench.kept
    out = {"values": bench.vector(case.record), "volumes": base.log_volumes(on)}
    scans = {}
    for tracer in bench.tracers:
        spec = tracer_named(tracer)
        scan = normalise(case.pet[tracer][None].numpy(), labels, bench.grid, spec)
        scans[tracer] = scan[0]
        figures, _ = measure(scan, labels, bench.grid, spec)
        out[f"{tracer}/regional"] = figures[0]
        carried = base.pulled(scan[0], back).astype(np.float16)
        out |= {f"{tracer}/scan": carried[bench.kept], f"{tracer}/around": carried[::2, ::2, ::2]}
    for blur in BLURS:
        painted = base.painted_values(np.stack(list(scans.values())), on, blur, coarse)
        for (tracer, scan), values in zip(scans.items(), painted, strict=True):
            volume = base.paint(np.nan_to_num(values), on, blur, coarse, scan.shape)
            out[f"{tracer}/painted{blur:g}"] = values
            out[f"{tracer}/miss{blur:g}"] = np.abs(volume - scan)[brain].mean()
    save(path, out)


class Baselines:
    """Every baseline of one tracer, fitted to the training people."""

    def __init__(self, bench: Bench, tracer: str, people: int):
        self.bench, self.tracer = bench, tracer
        files = []
        for number in range(people):
            with np.load(bench.out / "training" / f"{number:05d}.npz") as file:
                files.append({key: file[key] for key in file.files if key.partition("/")[0] in OF_PERSON | {tracer}})

        def stacked(key: str) -> np.ndarray:
            return np.stack([file[key] for file in files])

        self.scans = stacked(f"{tracer}/scan")
        # beyond the brain's surroundings the mean scan is good enough for every one of them
        around = stacked(f"{tracer}/around").mean(0, dtype=np.float32)
        self.around = base.pulled(around, np.indices(bench.grid.shape, np.float32) / 2)
        self.blur = min(BLURS, key=lambda blur: stacked(f"{tracer}/miss{blur:g}").mean())
        values, figures = stacked("values"), stacked(f"{tracer}/regional")
        self.regional_mean = np.nanmean(figures, 0)
        figures = np.where(np.isfinite(figures), figures, self.regional_mean)
        self.centre, self.sd = values.mean(0), np.maximum(values.std(0), 1e-6)
        self.values = (values - self.centre) / self.sd
        self.painted, volumes = stacked(f"{tracer}/painted{self.blur:g}"), stacked("volumes")
        self.fits = {}
        crowd, _, _ = base.tabular_people(np.zeros((1, n_classes() - 1)), TABULAR_PEOPLE, TRAINING_SEED)
        crowd_values = np.stack([bench.vector(record) for record in crowd])
        driver = np.array([record[DRIVERS[tracer_named(tracer).target_class]] for record in crowd])
        for variant in VARIANTS:
            columns = known_columns(bench.recipe.conditioning.variables, variant)
            load = base.boosted(crowd_values[:, columns], driver)
            known = self.values[:, columns]
            neighbours = [k for k in NEIGHBOURS if k < people - 1] or [max(1, people // 2)]
            features = np.column_stack([known, load.predict(values[:, columns]), volumes])
            self.fits[variant] = {
                "columns": columns,
                "k": base.choose(base.matched_weights, neighbours, known, figures),
                "alpha": base.choose(base.ridge_weights, ALPHAS, known, figures),
                "load": load,
                "painter": base.regional_regression(features, self.painted),
            }

    def predict(self, case: TrainingCase, where: np.ndarray, variant: str) -> Iterator[tuple[str, np.ndarray]]:
        """Name and volume of each baseline for one person, in SUVR up to a scale."""
        fit = self.fits[variant]
        columns = fit["columns"]
        raw = self.bench.vector(case.record)[columns]
        person, known = (raw - self.centre[columns]) / self.sd[columns], self.values[:, columns]
        weighted = {
            "mean": base.population_weights(known, person),
            "matched": base.matched_weights(known, person, fit["k"]),
            "ridge": base.ridge_weights(known, person, fit["alpha"]),
        }
        for name, weights in weighted.items():
            volume = self.around.copy()
            volume[self.bench.kept] = weights.astype(np.float32) @ self.scans
            yield name, base.pulled(volume, where)
        on = base.channels(case.labels.numpy(), case.t1w.numpy())
        features = np.concatenate([person, fit["load"].predict(raw[None]), base.log_volumes(on)])
        values = fit["painter"].predict(features[None])[0]
        coarse = self.bench.voxel_size * self.bench.recipe.label_pool
        yield "painted", base.paint(values, on, self.blur, coarse, self.bench.grid.shape)


def evaluate_person(
    bench: Bench, which: Heads, model: Synthesizer, fitted: Mapping[str, Baselines], number: int, seed: int, draws: int
) -> dict[str, np.ndarray]:
    """All figures of one person."""
    case = simulate_case(which, bench.tracers, bench.voxel_size, PEOPLE_SEED + seed, number, augment=False)
    classes = case.classes.numpy()
    labels = dseg_codes(case.measured.numpy(), bench.grid)
    brain = labels > 0
    where = bench.to_template(case) if fitted else None
    window = image.taper(brain, bench.voxel_size)
    out = {
        "head": np.array(case.head),
        "values": bench.vector(case.record),
        "volumes": base.head_log_volumes(classes),
    }
    for tracer in bench.tracers:
        spec = tracer_named(tracer)
        scan = normalise(case.pet[tracer][None].numpy(), labels, bench.grid, spec)[0]
        (true_regions,), (true_target,) = measure(scan[None], labels, bench.grid, spec)
        out |= {f"{tracer}/regional": true_regions, f"{tracer}/target": true_target}
        out[f"{tracer}/spectrum"] = image.power_spectrum(scan, window, bench.voxel_size, EDGES)
        predicted = {f"{tracer}/plasma/codec": through_codec(model, scan)}
        for variant in VARIANTS:
            record = case.record if variant == "plasma" else without_plasma(case.record)
            few = draws if variant == "plasma" else 2
            volumes = model.sample(case.t1w[None], case.labels[None], record, tracer, few, number)
            volumes = model.calibrated(normalise(volumes, labels, bench.grid, spec), tracer)
            foreseen = model.foreseen(case.labels[None], labels, record, tracer, few, number)
            regions, target = measure(volumes, labels, bench.grid, spec, foreseen)
            out |= {f"{tracer}/{variant}/draws": regions.astype(np.float32), f"{tracer}/{variant}/target_draws": target}
            predicted[f"{tracer}/{variant}/model"] = volumes.mean(0)
            if variant == "plasma":
                spectra = [image.power_spectrum(v, window, bench.voxel_size, EDGES) for v in volumes[:4]]
                out[f"{tracer}/spectrum_draws"] = np.mean(spectra, 0)
                mean = volumes.mean(0)
                out[f"{tracer}/spectrum_mean"] = image.power_spectrum(mean, window, bench.voxel_size, EDGES)
            for name, volume in fitted[tracer].predict(case, where, variant) if fitted else ():
                predicted[f"{tracer}/{variant}/{name}"] = volume
        for key, volume in predicted.items():
            volume = normalise(volume[None], labels, bench.grid, spec)
            (regions,), (target,) = measure(volume, labels, bench.grid, spec)
            figures = image.image_figures(volume[0], scan, brain, spec.display)
            out |= {f"{key}/{name}": np.array(value) for name, value in figures.items()}
            out |= {f"{key}/regional": regions, f"{key}/target": target}
    return out


@torch.inference_mode()
def through_codec(model: Synthesizer, scan: np.ndarray) -> np.ndarray:
    """The scan after encoding and decoding: what the model's latent space can show at best."""
    latent = model.space.encode(torch.from_numpy(scan)[None].to(model.device))
    return model.space.decode(latent)[0].cpu().numpy()


def run(arguments: argparse.Namespace) -> None:
    """Make what is missing under OUT."""
    torch.set_num_threads(arguments.threads)
    model = Synthesizer.load(arguments.model, arguments.device)
    recipe, out = model.model.recipe, arguments.out
    heads = load_heads(arguments.arrays, recipe)
    tracers = tuple(arguments.tracers or recipe.tracers)
    bench = Bench(heads, recipe, tracers, out)
    seen = heads.select(lambda name: name not in UNSEEN)
    which = heads.select(lambda name: name in UNSEEN) if arguments.heads == "unseen" else seen
    plan = {name: getattr(arguments, name) for name in ("draws", "seed", "heads", "training")}
    plan |= {"tracers": tracers, "variables": [spec.name for spec in recipe.conditioning.variables]}
    plan |= {"model": f"{recipe.name} {model.model.version}", "weights": model.model.weights_sha256}
    plan["calibration"] = json.loads(calibration_text(model.model))
    with arguments.arrays.open("rb") as file:
        plan["arrays"] = hashlib.file_digest(file, "sha256").hexdigest()
    out.mkdir(parents=True, exist_ok=True)
    note = out / "plan.json"
    if note.is_file() and json.loads(note.read_text()) != json.loads(json.dumps(plan)):
        raise SystemExit(
            f"{note} tells of another run (heads, model, draws, tracers …); name another folder or delete it."
        )
    note.write_text(json.dumps(plan, indent=2) + "\n")
    save(out / "heads.npz", {"volumes": np.stack([base.head_log_volumes(c) for c in seen.classes])})

    first, step = arguments.part
    # of several runs at once, each makes its own share and then looks what is still missing
    shared = sorted(range(arguments.training), key=lambda number: number % step != first - 1)
    timed(lambda number: training_person(bench, seen, number), shared, "training people")
    fitted = {tracer: Baselines(bench, tracer, arguments.training) for tracer in tracers if arguments.training}
    chosen = {
        tracer: {"blur": b.blur} | {f"{v} {key}": b.fits[v][key] for v in VARIANTS for key in ("k", "alpha")}
        for tracer, b in fitted.items()
    }
    (out / "baselines.json").write_text(json.dumps(chosen, indent=2) + "\n")
    save(out / "population.npz", {tracer: b.regional_mean for tracer, b in fitted.items()})

    def person(number: int) -> None:
        path = out / "people" / f"{number:05d}.npz"
        if not path.is_file():
            save(path, evaluate_person(bench, which, model, fitted, number, arguments.seed, arguments.draws))

    timed(person, range(first - 1, arguments.people, step), "people")


def timed(work: Callable[[int], None], numbers: Sequence[int], what: str) -> None:
    """Do the work for each number and tell how long the rest will take."""
    start, cpu, told = time.monotonic(), time.process_time(), 0.0
    for done, number in enumerate(numbers, 1):
        work(number)
        passed = time.monotonic() - start
        if passed - told > 60 or done == len(numbers):
            told, each = passed, passed / done
            left = each * (len(numbers) - done) / 60
            cpu_each = (time.process_time() - cpu) / done
            line = f"{what}: {done} of {len(numbers)}, {each:.1f} s each (CPU {cpu_each:.1f}), {left:.0f} min left"
            print(line, flush=True)


def two_or_more(text: str) -> int:
    """A number of draws that has a spread."""
    if (count := int(text)) < 2:
        raise ValueError
    return count


def part(text: str) -> tuple[int, int]:
    """``2/4`` as (2, 4)."""
    first, step = map(int, text.split("/"))
    if not 1 <= first <= step:
        raise ValueError
    return first, step


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    one = what.add_parser("run", help="evaluate people that are not evaluated yet")
    one.add_argument("arrays", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--people", type=int, default=400)
    one.add_argument("--draws", type=two_or_more, default=8, help="per person, tracer and variant; 2 or more")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--model", type=Path, help="model folder; the built-in one by default")
    one.add_argument("--tracers", nargs="+", help="all of the model's by default")
    one.add_argument("--heads", choices=["unseen", "seen"], default="unseen")
    one.add_argument("--training", type=int, default=300, help="people that the baselines learn from; 0 for none")
    one.add_argument("--part", type=part, default=(1, 1), help="K/N: every N-th person, for N runs at once")
    one.add_argument("--device", default="cpu")
    one.add_argument("--threads", type=int, default=1)
    two = what.add_parser("table", help="print the tables of what is there")
    two.add_argument("out", type=Path)
    two.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments)
    else:
        print_tables(arguments.out, Synthesizer.load(arguments.model).model.recipe)


if __name__ == "__main__":
    main()
