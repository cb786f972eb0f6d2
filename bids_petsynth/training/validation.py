"""Figures of a generator on people it was not trained on, and the calibration of its spread and texture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from scipy.optimize import brentq

from bids_petsynth.anatomy.regions import regions
from bids_petsynth.evaluation.image import errors, power_spectrum, spectrum_ratio, ssim, taper
from bids_petsynth.models.codec import TEXTURE_BAND
from bids_petsynth.models.conditioning import is_pet
from bids_petsynth.models.regional import along
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.pet.tracers import target_weights
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.training.objective import OTHER_WINDOW
from bids_petsynth.training.pairs import TrainingCase
from bids_petsynth.training.regional import RegionalPeople

#: Composite whose SUVR is followed: cortex where amyloid and tau gather.
CORTEX_LOBES = ("frontal", "parietal", "temporal", "cingulate")
#: Bounds of a factor on the draws' deviations.
FACTORS = (1 / 3, 3.0)
#: With fewer scans of a tracer, the spread of its draws stays as it is.
LEAST_SCANS = 8
#: With fewer, the target has no factor of its own: it would rest on one error a scan.
LEAST_TARGETS = 40
#: Bands of frequency that texture is calibrated in: up to .1 cycles/mm, beyond which PET holds little but noise.
TEXTURE_BANDS = 10
#: Bounds of a texture gain.
GAINS = (0.5, 2.0)
#: With fewer held-out people, those who stop a training early are among those whose figures are reported.
LEAST_TO_SHARE = 8
#: People who stop a training early, at most: all of them are drawn at every validation.
STOPPING_PEOPLE = 8
#: Cases that are watched where nothing is decided by them.
WATCHED_CASES = 2
#: Draws of each person for the figures of the card.
CARD_DRAWS = 4


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


def enough_scans(truth: np.ndarray) -> bool:
    """Whether ``(cases, regions)``, NaN where unknown, are :data:`LEAST_SCANS` or more to measure a spread on."""
    return np.isfinite(truth).any(1).sum() >= LEAST_SCANS


def spread_factor(truth: np.ndarray, draws: np.ndarray) -> float:
    """Factor on the draws' deviations that makes their Student-t predictive intervals cover what they say.

    Parameters
    ----------
    truth
        ``(cases, regions)``, NaN where unknown.
    draws
        ``(cases, M, regions)``.

    Returns
    -------
    float
        Between 1/3 and 3; 1 where there are not :func:`enough_scans`.

    Notes
    -----
    For 80 and 95 % the factor is that quantile of the error over the interval's half width (split conformal
    prediction with a normalised score: Lei et al., JASA 2018;113:1094); the two are averaged geometrically.
    """
    if not enough_scans(truth):
        return 1.0
    return _factor(truth - draws.mean(1), draws.std(1, ddof=1), draws.shape[1])


def _factor(error: np.ndarray, sd: np.ndarray, m: int) -> float:
    """See :func:`spread_factor`: from errors of the mean of ``m`` draws and the draws' SD, of the same shape."""
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.abs(error) / (sd * np.sqrt(1 + 1 / m))
    score = score[np.isfinite(score)]
    if not len(score):  # draws that are all alike have no spread to be scaled
        return 1.0
    # "weibull" is split conformal prediction's (n + 1)-th: the quantile of few scores is too small
    factors = [
        np.quantile(score, level, method="weibull") / stats.t.ppf((1 + level) / 2, m - 1) for level in (0.8, 0.95)
    ]
    return float(np.clip(np.sqrt(np.prod(factors)), *FACTORS))


def target_and_rest(truth: np.ndarray, draws: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Factors on what goes with the target's mean in the draws' deviations, and on the rest of them.

    With the first, intervals of the target cover what they say; with both, those of single regions (as well as the
    second alone can make them). Of fewer than :data:`LEAST_TARGETS` scans both are :func:`spread_factor`.

    Parameters
    ----------
    truth
        ``(cases, regions)``, NaN where unknown.
    draws
        ``(cases, M, regions)``.
    weights
        ``(cases, regions)``: the target is this mean of the regions.
    """
    if np.isfinite(truth).any(1).sum() < LEAST_TARGETS:
        both = spread_factor(truth, draws)
        return both, both
    m, error = draws.shape[1], truth - draws.mean(1)
    if not draws.std(1).any():  # draws that are all alike have no spread to be scaled
        return 1.0, 1.0
    parts = (along(torch.from_numpy(d), torch.from_numpy(w)) for d, w in zip(draws, weights, strict=True))
    common, rest = np.array([[part.var(0).numpy() for part in pair] for pair in parts]).swapaxes(0, 1)
    sd_target = np.sqrt(np.einsum("nmk,nk->nm", draws, weights).var(1, ddof=1))
    # what is unknown outside the target is no matter of the target's
    target = _factor(np.where(weights > 0, error * weights, 0).sum(1), sd_target, m)

    def missing(log_factor: float) -> float:
        return np.log(_factor(error, np.sqrt(target**2 * common + np.exp(2 * log_factor) * rest), m))

    low, high = np.log(FACTORS)
    if missing(low) <= 0 or missing(high) >= 0:  # the common part alone is too wide, or nothing is wide enough
        return target, FACTORS[0] if missing(low) <= 0 else FACTORS[1]
    return target, float(np.exp(brentq(missing, low, high, xtol=1e-3)))


def regional_spread(synthesizer: Synthesizer, people: RegionalPeople) -> tuple[dict[str, float], dict[str, float]]:
    """``spread`` and ``target_spread`` of a model from its regional flow alone, on people with known regional means.

    Tracers of too few scans have none.
    """
    plain = Synthesizer(replace(synthesizer.model, spread={}), synthesizer.device, synthesizer.texts)
    spread, of_target = {}, {}
    for place, tracer in enumerate(plain.tracers):
        truth = people.means[:, place].double().numpy()
        if not enough_scans(truth[:, 1:]):
            continue
        drawn = [
            plain.regional_draws(record, tracer, head, number).numpy()
            for number, (record, head) in enumerate(people.one_by_one())
        ]
        spec = tracer_named(tracer)
        weights = np.stack([target_weights(spec, volumes) for volumes in people.heads.volumes.numpy()])
        draws = np.stack(drawn).astype(float)
        of_target[tracer], spread[tracer] = target_and_rest(truth[:, 1:], draws[:, :, 1:], weights[:, 1:])
    return spread, of_target


def texture_gains(
    synthesizer: Synthesizer, cases: Callable[[], Iterable[TrainingCase]]
) -> dict[str, tuple[float, ...]]:
    """``texture`` of a model with a regional part, on cases that were not trained on (the same at every call).

    The logarithm of the power of draws over the power of scans, a parabola of the squared frequency as a Gaussian blur
    has a line, is undone; twice, because placing the regional means again brings a part of it back. Tracers with fewer
    than :data:`LEAST_TARGETS` scans have none: one person's scanner may well resolve half as much again as another's.
    """
    model, gains = synthesizer.model, {}
    edges = TEXTURE_BAND * np.arange(TEXTURE_BANDS + 1)
    squared = ((edges[1:] + edges[:-1]) / (2 * edges[-1])) ** 2
    for _ in range(2):
        engine = Synthesizer(replace(model, texture=gains), synthesizer.device, synthesizer.texts)
        spectra = _spectra(engine, cases(), edges)
        for tracer, (drawn, scans) in spectra.items():
            known = np.isfinite(drawn).all(1) & np.isfinite(scans).all(1)
            if known.sum() < LEAST_TARGETS:
                continue
            drawn, scans = drawn[known], scans[known]
            # the lowest band of a small grid holds nothing, and draws nothing beyond the codec's cutoff
            told = (scans.mean(0) > 1e-6 * scans.mean(0).max()) & (drawn.mean(0) > 0)
            told &= edges[1:] <= model.recipe.space.cutoff + 1e-9
            if told.sum() < TEXTURE_BANDS // 2:
                continue
            ratio = spectrum_ratio(drawn, scans)
            fit = np.polyfit(squared[told], np.log(ratio[told]), 2)
            excess = np.polyval(fit, squared.clip(max=squared[told].max()))
            found = np.array(gains.get(tracer, np.ones(TEXTURE_BANDS))) * np.exp(-excess / 2)
            gains = gains | {tracer: tuple(np.clip(found, *GAINS).tolist())}
        if not gains:
            break
    return gains


def _spectra(
    engine: Synthesizer, cases: Iterable[TrainingCase], edges: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Power spectra ``(cases, bands)`` of draws and of scans in the brain, by tracer."""
    size = engine.model.recipe.grid.voxel_size
    found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    for number, case in enumerate(cases):
        window = taper(in_brain(case.measured.numpy()), size)
        for tracer in engine.tracers:
            if tracer in case.pet:
                drawn, scans = found.setdefault(tracer, ([], []))
                volumes = in_suvr(engine.sample(*asked(case, tracer, 2, number)), case, tracer, size)
                drawn.append(np.mean([power_spectrum(v, window, size, edges) for v in volumes], 0))
                scans.append(power_spectrum(case.pet[tracer].numpy(), window, size, edges))
    return {tracer: (np.stack(drawn), np.stack(scans)) for tracer, (drawn, scans) in found.items()}


def calibration(
    synthesizer: Synthesizer, people: RegionalPeople | None, cases: Callable[[], Iterable[TrainingCase]] | None
) -> dict[str, Mapping]:
    """Fields of :class:`bids_petsynth.models.folder.Model` that calibrate one with a regional part.

    ``people`` are for the spread, ``cases`` for the texture of the draws that have it; what is None is left out.
    """
    fields: dict[str, Mapping] = {}
    if people is not None:
        fields["spread"], fields["target_spread"] = regional_spread(synthesizer, people)
    if cases is not None:
        engine = Synthesizer(replace(synthesizer.model, **fields), synthesizer.device, synthesizer.texts)
        fields["texture"] = texture_gains(engine, cases)
    return fields


def asked(case: TrainingCase, tracer: str, n: int, seed: int) -> tuple:
    """Arguments of :meth:`Synthesizer.sample` for a case; recipes with sources are given all its other scans."""
    return case.t1w[None], case.labels[None], case.record, tracer, n, seed, case.images


def in_brain(classes: np.ndarray) -> np.ndarray:
    """Where classes are regions, not air or soft tissue."""
    return (classes > 0) & (classes <= len(regions()))


def in_suvr(volumes: np.ndarray, case: TrainingCase, tracer: str, voxel_size: float) -> np.ndarray:
    """Draws ``(M, X, Y, Z)`` over their own reference region, as ``participant`` does.

    A draw without uptake there stays as it is.
    """
    from bids_petsynth.simulation.uptake import reference_mask

    reference = reference_mask(case.measured[None], tracer, voxel_size)[0].numpy()
    scale = volumes[:, reference].mean(1) if reference.any() else np.ones(len(volumes))
    return volumes / np.where(scale > 0.1, scale, 1)[:, None, None, None]


@dataclass(frozen=True)
class HeldOut:
    """Held-out cases by what they are for.

    Attributes
    ----------
    watched
        Validated on while training.
    reported
        Of whom the card's figures are.
    note
        What the card says of the two.
    """

    watched: Sequence[TrainingCase]
    reported: Sequence[TrainingCase]
    note: str = ""


@dataclass(frozen=True)
class _Chosen(Sequence[TrainingCase]):
    """Some of the cases, which may be loaded each time."""

    cases: Sequence[TrainingCase]
    places: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place):
        return self.cases[self.places[place]]


def share_held_out(cases: Sequence[TrainingCase], patience: int) -> HeldOut:
    """Who is validated on, and whose figures are reported.

    Where ``patience`` lets validation decide when training stops, these are different people if there are enough
    (:data:`LEAST_TO_SHARE`): figures of those whom the weights were chosen by are too good. People, or heads that
    simulated people share, stay whole.
    """
    heads = [case.head for case in cases]
    people = list(dict.fromkeys(heads))
    if not patience:
        return HeldOut(cases[:WATCHED_CASES], cases)
    if len(people) < LEAST_TO_SHARE:
        note = (
            f"When training stopped was decided by these same {len(people)} people, too few to be shared, so the "
            "figures are a little too good."
        )
        # every one is drawn at each validation
        return HeldOut(cases[:: -(-len(cases) // STOPPING_PEOPLE) or 1], cases, note)
    stopping = set(people[1 :: max(2, -(-len(people) // STOPPING_PEOPLE))])
    watched = [case for case, head in zip(cases, heads, strict=True) if head in stopping]
    reported = _Chosen(cases, tuple(place for place, head in enumerate(heads) if head not in stopping))
    note = (
        f"They are of {len(people) - len(stopping)} people; {len(stopping)} other held-out people decided when "
        "training stopped."
    )
    return HeldOut(watched, reported, note)


def evaluate_others(
    synthesizer: Synthesizer, cases: Sequence[TrainingCase], n_draws: int
) -> dict[str, dict[str, float]]:
    """Figures in the brain of what else a model draws, a T1w: of the mean over draws, white matter at 1.

    People who lack every scan that it is drawn from are left out, as ``participant`` does.
    """
    model, figures = synthesizer.model, {}
    for target in (name for name in model.recipe.tracers if not is_pet(name)):
        rows = []
        for number, case in enumerate(cases):
            if target in case.images and model.taken(case.images, target):
                drawn = synthesizer.sample(*asked(case, target, n_draws, number)).mean(0)
                scan, brain = case.images[target].numpy(), in_brain(case.measured.numpy())
                row = errors(drawn, scan, (0, OTHER_WINDOW), brain)
                rows.append((row["mae"], row["psnr"], ssim(drawn, scan, OTHER_WINDOW, brain)))
        if rows:
            means = np.mean(rows, 0).tolist()
            figures[target] = {"people": len(rows), **dict(zip(("mae", "psnr", "ssim"), means, strict=True))}
    return figures


def _error_of_others_mean(suvr: np.ndarray) -> float:
    """Mean absolute error of the other people's mean as a predictor of ``(N, R)``."""
    n = len(suvr)
    # what one is off the mean of all n is (n - 1) / n of what one is off that of the others
    return float(np.abs(suvr - suvr.mean(0)).mean() * n / (n - 1))


def evaluate(
    synthesizer: Synthesizer, cases: Sequence[TrainingCase], n_draws: int, voxel_size: float
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Figures per tracer on cases that were not trained on, and the spread factor of each tracer.

    Figures: mean absolute error and bias of regional SUVR (mean over draws), the error of the mean over the other
    cases as a predictor, cortical SUVR of several negative and positive cases, true and synthetic, voxel correlation in
    the brain. Tracers that no case was scanned with are left out.
    """
    figures, spread = {}, {}
    for tracer in synthesizer.tracers:
        truth, drawn, composite, correlation, loads = [], [], [], [], []
        for number, case in enumerate(case for case in cases if tracer in case.pet):
            volumes = in_suvr(synthesizer.sample(*asked(case, tracer, n_draws, number)), case, tracer, voxel_size)
            classes, scan = case.measured.numpy(), case.pet[tracer].numpy()
            means, true = region_means(volumes, classes)[:, 1:], region_means(scan[None], classes)[:, 1:]
            truth.append(true[0])
            drawn.append(means)
            pad = [(0, 0), (1, 0)]
            composite.append([cortex(np.pad(v, pad), classes).mean() for v in (true, means)])
            brain = in_brain(classes)
            correlation.append(np.corrcoef(volumes.mean(0)[brain], scan[brain])[0, 1])
            loads.append(case.truth.get("centiloid", np.nan))
        if not truth:
            continue
        y, d, both, load = np.stack(truth), np.stack(drawn), np.array(composite), np.array(loads)
        if enough_scans(y):
            spread[tracer] = spread_factor(y, d)
        error = d.mean(1) - y
        known = np.isfinite(y).all(0)
        row = {
            "people": len(y),
            "mae": float(np.nanmean(np.abs(error))),
            "bias": float(np.nanmean(error)),
            "voxel_r": float(np.mean(correlation)),
        }
        if len(y) > 1:
            row["mae_of_mean"] = _error_of_others_mean(y[:, known])
        for name, group in (("negative", load <= 50), ("positive", load > 50)):
            if group.sum() > 1:  # a single person's value would be no mean
                row |= {f"true_{name}": float(both[group, 0].mean()), f"synthetic_{name}": float(both[group, 1].mean())}
        figures[tracer] = row
    return figures, spread
