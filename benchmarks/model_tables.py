"""The tables of ``benchmarks/model.py`` and ``regional.py``, from figures of their people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_petsynth.clinical.variables import variables
from bids_petsynth.evaluation import baselines as base
from bids_petsynth.evaluation import image, regional, uncertainty
from bids_petsynth.evaluation.statistics import Interval, bootstrap
from bids_petsynth.models.conditioning import record_matrix
from bids_petsynth.models.recipe import Recipe, VariableSpec
from bids_petsynth.pet.intervals import probability_above
from bids_petsynth.pet.tracers import centiloid_equation, default_cutoff
from bids_petsynth.training.pairs import Record

VARIANTS = ("plasma", "no_plasma")
METHODS = ("model", "mean", "matched", "ridge", "painted", "codec")
#: Bands of the power spectrum in cycles/mm; the bar is set up to LIMIT.
EDGES, LIMIT = np.linspace(0.0, 0.25, 26), 0.1
#: People without images from whom the oracle and the painted baseline learn what blood tells of uptake.
TABULAR_PEOPLE, ORACLE_SEED = 20_000, 4_000_000


def without_plasma(record: Record) -> Record:
    """The record with every plasma value missing."""
    return {name: value for name, value in record.items() if variables()[name].kind != "plasma"}


def vector(record: Record, specs: Sequence[VariableSpec]) -> np.ndarray:
    """``(V,)`` transformed values of a record."""
    return record_matrix([record], specs)[0].double().numpy()


def known_columns(specs: Sequence[VariableSpec], variant: str) -> list[int]:
    """Columns of :func:`vector` that a variant knows."""
    return [i for i, spec in enumerate(specs) if variant == "plasma" or variables()[spec.name].kind != "plasma"]


@dataclass(frozen=True)
class Results:
    """Figures of people by name, each with people first, and the head of each person."""

    heads: np.ndarray
    figures: Mapping[str, np.ndarray]

    @classmethod
    def stored(cls, out: Path) -> Results:
        """Those of the people's files under ``out``."""
        files = [dict(np.load(path)) for path in sorted((out / "people").glob("[0-9]*[0-9].npz"))]
        if not files:
            raise SystemExit(f"{out} holds no evaluated people; run `run` first.")
        heads = np.array([str(file.pop("head")) for file in files])
        return cls(heads, {key: np.stack([file[key] for file in files]) for key in files[0]})

    def __getitem__(self, key: str) -> np.ndarray:
        return self.figures[key].astype(float)

    def interval(self, statistic) -> Interval:
        return bootstrap(statistic, self.heads)


def row(name: str, found: Interval, bar: str, low: float = -np.inf, high: float = np.inf) -> str:
    """A row of the table of bars, with a verdict on the estimate and whether the interval agrees."""
    verdict = "met" if low <= found.estimate <= high else "missed"
    if bar and not (low <= found.low and found.high <= high) and not (found.high < low or found.low > high):
        verdict += ", interval crosses"
    return f"| {name} | {bar} | {found} | {verdict if bar else ''} |"


def oracle(heads: np.ndarray, results: Results, specs: Sequence[VariableSpec], tracer: str) -> dict:
    """Expected target SUVR and probability of positivity by gradient boosting on the simulator's variables.

    ``heads (H, C - 1)`` are log volumes of the regions of the heads of training, as ``volumes`` of the results are.
    """
    equation = centiloid_equation(tracer)
    records, volumes, centiloid = base.tabular_people(heads, TABULAR_PEOPLE, ORACLE_SEED)
    crowd = np.stack([vector(record, specs) for record in records])
    suvr = (centiloid - equation.intercept) / equation.slope
    found = {}
    for variant in VARIANTS:
        known = known_columns(specs, variant)
        train = np.column_stack([crowd[:, known], volumes])
        test = np.column_stack([results["values"][:, known], results["volumes"]])
        positive = base.boosted(train, centiloid > default_cutoff().centiloid, classify=True)
        found[variant] = (base.boosted(train, suvr).predict(test), positive.predict_proba(test)[:, 1])
    return found


def print_tables(out: Path, recipe: Recipe) -> None:
    """Print the tables."""
    plan = json.loads((out / "plan.json").read_text())
    results = Results.stored(out)
    people, heads = len(results.heads), len(set(results.heads))
    with np.load(out / "heads.npz") as file:
        volumes = file["volumes"]
    print(f"{people} simulated people on {heads} {plan['heads']} heads, {plan['draws']} draws, model {plan['model']}.")
    print("Figures on simulated data verify the software; they say nothing about patients.")
    for tracer in plan["tracers"]:
        specs = recipe.conditioning.variables
        found = oracle(volumes, results, specs, tracer) if centiloid_equation(tracer) else None
        print(heading(tracer))
        for line in (*prediction_rows(results, tracer, found), *error_rows(results, tracer)):
            print(line)
        for line in (*texture_rows(results, tracer), *uncertainty_rows(results, tracer, found)):
            print(line)
        print(
            "\n| method | record | MAE brain | MAE field | PSNR brain | SSIM brain | PSNR, SSIM (min–max convention) |"
            " regional MAE | bias | median r | median ICC(2,1) | residual r |\n|" + "---|" * 12
        )
        with np.load(out / "population.npz") as file:
            population = file.get(tracer)
        for method in METHODS:
            for variant in VARIANTS:
                if f"{tracer}/{variant}/{method}/regional" in results.figures:
                    print(method_row(results, tracer, variant, method, population))


def heading(tracer: str) -> str:
    """Title and head of a tracer's table of bars."""
    return f"\n## {tracer}\n\n| figure | bar | value, 95 % interval by head | verdict |\n|---|---|---|---|"


def prediction_rows(results: Results, tracer: str, found: dict | None) -> Iterator[str]:
    """Target SUVR across people beside the oracle's, and regions beside the mean of these people themselves."""
    true, r = results[f"{tracer}/target"], regional.correlation
    regions = results[f"{tracer}/regional"]
    of_mean = np.nanmean(np.abs(regions - np.nanmean(regions, 0)), 1)
    for variant in VARIANTS:
        ours = results[f"{tracer}/{variant}/target_draws"].mean(1)
        error = np.nanmean(np.abs(results[f"{tracer}/{variant}/draws"].mean(1) - regions), 1)
        yield row(f"regional MAE, {variant}", results.interval(lambda i, e=error: e[i].mean()), "")
        ratio = results.interval(lambda i, e=error: e[i].mean() / of_mean[i].mean())
        bar = "< 1" if variant == "plasma" else ""
        yield row(f"regional MAE over that of their own mean, {variant}", ratio, bar, high=np.nextafter(1, 0))
        yield row(f"target r, {variant}", results.interval(lambda i, o=ours: r(o[i], true[i])), "")
        if found is None:
            continue
        best = found[variant][0]
        yield row(f"oracle's r, {variant}", results.interval(lambda i, b=best: r(b[i], true[i])), "")
        if variant == "plasma":
            ratio = results.interval(lambda i, o=ours, b=best: r(o[i], true[i]) / r(b[i], true[i]))
            yield row("r over the oracle's, plasma", ratio, "≥ .95", 0.95)
        else:
            surplus = results.interval(lambda i, o=ours, b=best: r(o[i], true[i]) - r(b[i], true[i]))
            yield row("r minus the oracle's, no_plasma", surplus, "≤ 0", high=0.0)


def error_rows(results: Results, tracer: str) -> Iterator[str]:
    """Ratio of the model's error to each baseline's, voxelwise and regional, from the same people."""
    true = results[f"{tracer}/regional"]

    def error(method: str, figure: str) -> np.ndarray:
        if figure == "MAE brain":
            return results[f"{tracer}/plasma/{method}/mae_brain"]
        return np.nanmean(np.abs(results[f"{tracer}/plasma/{method}/regional"] - true), 1)

    for figure in ("MAE brain", "regional MAE"):
        ours = error("model", figure)
        for method in ("mean", "matched", "ridge", "painted"):
            if f"{tracer}/plasma/{method}/regional" not in results.figures:
                continue  # without baselines
            theirs = error(method, figure)
            bar, most = ("≤ 1.02", 1.02) if method == "painted" else ("< 1", np.nextafter(1, 0))
            ratio = results.interval(lambda i, o=ours, t=theirs: o[i].mean() / t[i].mean())
            yield row(f"{figure} over that of {method}", ratio, bar, high=most)


def texture_rows(results: Results, tracer: str) -> Iterator[str]:
    """Power of draws over power of scans: the band that is farthest from 1, and bands as a list."""
    scans, draws = results[f"{tracer}/spectrum"], results[f"{tracer}/spectrum_draws"]
    mean = results[f"{tracer}/spectrum_mean"]
    ratio = image.spectrum_ratio(draws, scans)
    low = EDGES[1:] <= LIMIT + 1e-9
    worst = int(np.argmax(np.abs(ratio[low] - 1)))
    found = results.interval(lambda i: image.spectrum_ratio(draws[i], scans[i])[worst])
    name = f"power of a draw over a scan's, worst band ({EDGES[worst]:.2f}–{EDGES[worst + 1]:.2f} cycles/mm)"
    yield row(name, found, ".90–1.10", 0.9, 1.1)
    of_mean = image.spectrum_ratio(mean, scans)
    for kind, values in (("a draw", ratio), ("the mean of the draws", of_mean)):
        listed = " ".join(f"{v:.2f}" for v in values[low])
        yield f"| power of {kind} by bands of .01 cycles/mm | | {listed} | |"


def uncertainty_rows(results: Results, tracer: str, found: dict | None) -> Iterator[str]:
    """Coverage, widths, probabilistic scores, probability of positivity."""
    equation = centiloid_equation(tracer)
    unit, scale = ("Centiloid", equation) if equation else ("target SUVR", lambda v: v)
    goal, true = scale(results[f"{tracer}/target"]), results[f"{tracer}/regional"]
    widths = {}
    for variant in VARIANTS:
        drawn = scale(results[f"{tracer}/{variant}/target_draws"])
        parts = np.moveaxis(results[f"{tracer}/{variant}/draws"], 1, 2)
        intervals = {
            unit: uncertainty.predictive_intervals(drawn),
            "regional SUVR": uncertainty.predictive_intervals(parts),
        }
        for name, bounds in intervals.items():
            truth = goal if name == unit else true
            inside = uncertainty.inside(truth, bounds).reshape(len(truth), -1, 2)
            for which, (label, low, high) in enumerate((("80 %", 0.77, 0.83), ("95 %", 0.93, 0.97))):
                share = results.interval(lambda i, c=inside[..., which]: np.nanmean(c[i]))
                bar = f"{low:.2f}–{high:.2f}" if variant == "plasma" else ""
                yield row(f"{name}: {label} covers, {variant}", share, bar, low, high)
            width = np.diff(bounds[..., 0, :], axis=-1)[..., 0].reshape(len(truth), -1)
            widths[name, variant] = np.nanmean(width, 1)
        crps = uncertainty.crps_fair(goal, drawn)
        yield row(f"{unit}: fair CRPS, {variant}", results.interval(lambda i, c=crps: c[i].mean()), "")
        for name, t, d in ((unit, goal, drawn), ("regional SUVR", true, parts)):
            spread, missed = uncertainty.spread_and_error(t, d)
            skill = results.interval(lambda i, s=spread, m=missed: np.sqrt(np.nanmean(s[i]) / np.nanmean(m[i])))
            yield row(f"{name}: spread over error, {variant}", skill, "")
    for name in (unit, "regional SUVR"):
        wider, usual = widths[name, "no_plasma"], widths[name, "plasma"]
        ratio = results.interval(lambda i, w=wider, u=usual: w[i].mean() / u[i].mean())
        yield row(f"{name}: width without plasma over width with", ratio, "> 1", np.nextafter(1, 2))
    if equation is None:
        return
    cutoff = default_cutoff().centiloid
    outcome = goal > cutoff
    for variant in VARIANTS:
        drawn = equation(results[f"{tracer}/{variant}/target_draws"])
        probability = np.array([probability_above(d, cutoff) for d in drawn])
        error = results.interval(lambda i, p=probability: uncertainty.calibration_error(p[i], outcome[i]))
        floor = uncertainty.calibration_floor(probability)
        yield row(f"positivity: ECE, {variant} (if exactly right: {floor:.3f})", error, "≤ .05", high=0.05)
        ours, best = probability, found[variant][1]
        yield row(
            f"positivity: AUC, {variant}", results.interval(lambda i, o=ours: uncertainty.auc(o[i], outcome[i])), ""
        )
        gap = results.interval(
            lambda i, o=ours, b=best: uncertainty.auc(o[i], outcome[i]) - uncertainty.auc(b[i], outcome[i])
        )
        yield row(f"positivity: AUC minus the oracle's, {variant}", gap, "≥ −.01", -0.01)
        agreement = regional.bland_altman(drawn.mean(1), goal)
        low, high = agreement.limits
        listed = f"{agreement.mean:+.1f}, {low:.1f} to {high:.1f}"
        yield f"| Centiloid: Bland–Altman mean and limits, {variant} | | {listed} | |"


def method_row(results: Results, tracer: str, variant: str, method: str, population: np.ndarray | None) -> str:
    """Image and regional figures of one method, means over people; ``population`` are the regions of the baselines'."""
    key = f"{tracer}/{variant}/{method}"
    true, ours = results[f"{tracer}/regional"], results[f"{key}/regional"]
    names = ("mae_brain", "mae_fov", "psnr_brain", "ssim_brain", "psnr_minmax", "ssim_minmax")
    m = {name: float(results[f"{key}/{name}"].mean()) for name in names}
    icc = [regional.icc21(np.column_stack(pair)).icc for pair in zip(ours.T, true.T, strict=True)]
    figures = [
        f"{m['mae_brain']:.4f}",
        f"{m['mae_fov']:.4f}",
        f"{m['psnr_brain']:.1f}",
        f"{m['ssim_brain']:.3f}",
        f"{m['psnr_minmax']:.1f}, {m['ssim_minmax']:.3f}",
        f"{np.nanmean(regional.mean_absolute_error(ours, true)):.4f}",
        f"{np.nanmean(regional.bias(ours, true)):+.4f}",
        f"{np.nanmedian(regional.correlation(ours, true)):.3f}",
        f"{np.nanmedian(icc):.3f}",
        "–" if population is None else f"{regional.residual_correlation(ours, true, population):.3f}",
    ]
    return f"| {method} | {variant} | " + " | ".join(figures) + " |"
