"""The simulated scanner: from tissue values to a PET scan in SUVR, batched, on CPU or GPU."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_petsynth.anatomy.regions import n_classes
from bids_petsynth.errors import UsageError
from bids_petsynth.pet.tracers import tracer as tracer_of
from bids_petsynth.simulation.parameters import parameters
from bids_petsynth.simulation.person import People
from bids_petsynth.simulation.uptake import (
    grey,
    reference_mask,
    side_of,
    target_mask,
    tissue_values,
    with_choroid_plexus,
)
from bids_petsynth.tables import read_table

FWHM = 2 * math.sqrt(2 * math.log(2))


def simulate_pet(
    labels: Tensor,
    people: People,
    tracer: str,
    generator: Generator,
    voxel_size: float = 2.0,
    noise: bool = True,
    measured: Tensor | None = None,
) -> Tensor:
    """Simulated PET of people whose anatomy the labels are.

    Parameters
    ----------
    labels
        ``(B, X, Y, Z)`` int64 classes of the labelling network in RAS order; four further ones may tell soft tissue
        outside the brain apart. The grid should stand upright within some 20°, because pons and inferior cerebellum
        are cut by height.
    people
        The ``B`` people, one per label map.
    tracer
        ``AV45``, ``FBB``, ``FDG``, ``AV1451`` or a synonym.
    generator
        Source of all randomness; draws are made on its device, so that a CPU generator gives the same scans everywhere.
    voxel_size
        In mm, isotropic.
    noise
        False leaves out counting noise, misregistration and the site's error: uptake and resolution only.
    measured
        Labels of the same heads, same shape, in which the reference and target regions are measured, if others than
        those that the scan is made from.

    Returns
    -------
    Tensor
        ``(B, X, Y, Z)`` float32 SUVR: the measured mean of the tracer's reference region is 1.

    Raises
    ------
    UsageError
        If the tracer cannot be simulated.
    ValueError
        If the numbers of label maps and people differ, or a label map lacks the reference region.

    Notes
    -----
    For an amyloid tracer the deposit is scaled so that the ratio of the target to the reference region, measured on the
    blurred scan, equals the person's Centiloid put through the tracer's own inverted equation.
    """
    if len(labels) != len(people):
        raise ValueError(f"{len(labels)} label maps for {len(people)} people")
    p = parameters("sim_scanner.tsv")
    device, batch = labels.device, len(labels)
    uptake = tissue_values(people, tracer)
    base, change = uptake.base.to(device), uptake.change.to(device)
    measured = labels if measured is None else measured
    reference = reference_mask(measured, tracer, voxel_size)
    if not bool(reference.flatten(1).any(1).all()):
        raise ValueError(f"a label map lacks the reference region of {tracer}")
    painted = with_choroid_plexus(labels, voxel_size) if tracer_of(tracer).target_class == "tau" else labels
    texture = _texture(painted, generator, voxel_size)
    code = side_of(labels) * base.shape[-1] + painted
    volumes = [_paint(values.flatten(1), code) * texture for values in (base, change)]

    low, high = p["fwhm_min"], p["fwhm_max"]
    fwhm = low + (high - low) * torch.rand(batch, generator=generator, device=generator.device)
    shift = p["misregistration_sd"] * torch.randn(batch, 3, generator=generator, device=generator.device)
    shift = shift * (p["misregistration_max"] / shift.norm(dim=1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
    if not noise:
        fwhm, shift = torch.full_like(fwhm, (low + high) / 2), torch.zeros_like(shift)
    sigma = (fwhm / FWHM / voxel_size).to(device)
    shift = (shift / voxel_size).to(device)
    still, moved = (gaussian_blur(volume, sigma, shift) for volume in volumes)

    if uptake.target_ratio is not None:
        scale = _scale_to_ratio(
            still, moved, target_mask(measured, tracer, voxel_size), reference, uptake.target_ratio.to(device)
        )
        moved = moved * scale[:, None, None, None]
    pet = (still + moved).clamp(min=0)
    if noise:
        pet = pet * _site_error(people.site, pet.shape, voxel_size).to(device)
        pet = _with_counting_noise(pet / _mean(pet, reference), generator, voxel_size)
    return pet / _mean(pet, reference)


def dynamic_series(
    labels: Tensor,
    people: People,
    tracer: str,
    generator: Generator,
    starts: Tensor,
    durations: Tensor,
    voxel_size: float = 2.0,
) -> Tensor:
    """Frames from injection on, decay-corrected, ``(B, T, X, Y, Z)`` in units of the late reference region.

    A frame at time t holds ``g(t) · [e^(-t/τ) · early + (1 - e^(-t/τ)) · late]``: delivery by blood flow, high in grey
    matter, gives way to the late scan (:func:`simulate_pet` without noise) with the time constant τ, and the whole
    rises and clears by g, which is 1 amid the tracer's usual window (``data/sim_kinetics.tsv``).

    Parameters
    ----------
    labels, people, tracer, generator, voxel_size
        As in :func:`simulate_pet`.
    starts, durations
        ``(T,)`` seconds after injection and seconds. A shorter frame is noisier.
    """
    row = next((r for r in read_table("sim_kinetics.tsv") if r["tracer"] == tracer_of(tracer).name), None)
    if row is None:
        raise UsageError(f"No kinetics of {tracer} in data/sim_kinetics.tsv; simulate a static scan instead.")
    rise, clear, exchange = (60 * float(row[key]) for key in ("rise_min", "clearance_min", "exchange_min"))
    late = simulate_pet(labels, people, tracer, generator, voxel_size, noise=False)
    flow = torch.where(torch.as_tensor(grey()), float(row["early_grey"]), float(row["early_white"]))
    flow[[0, *range(n_classes(), len(flow))]] = float(row["early_outside"])
    p = parameters("sim_scanner.tsv")
    sigma = torch.full((len(labels),), (p["fwhm_min"] + p["fwhm_max"]) / 2 / FWHM / voxel_size, device=labels.device)
    early = gaussian_blur(flow.to(labels.device)[labels], sigma)
    low, high = (60 * minutes for minutes in tracer_of(tracer).window_min)

    def gain(time: float) -> float:
        return (1 - math.exp(-time / rise)) * math.exp(-time / clear)

    frames = []
    for start, duration in zip(starts.tolist(), durations.tolist(), strict=True):
        time = start + duration / 2
        share = math.exp(-time / exchange)
        clean = gain(time) / gain((low + high) / 2) * (share * early + (1 - share) * late)
        frames.append(_with_counting_noise(clean, generator, voxel_size, math.sqrt((high - low) / duration)))
    return torch.stack(frames, 1)


def gaussian_matrix(n: int, sigma: Tensor, shift: Tensor) -> Tensor:
    """Blur along an axis of ``n`` voxels as matrices ``(B, n, n)``.

    Rows sum to 1, so edges are repeated rather than darkened; ``shift`` (voxels) moves the image by exact
    interpolation.
    """
    place = torch.arange(n, device=sigma.device, dtype=torch.float32)
    distance = place[:, None] - place[None, :] - shift[:, None, None]
    weight = torch.exp(-0.5 * (distance / sigma[:, None, None]) ** 2)
    return weight / weight.sum(-1, keepdim=True)


def gaussian_blur(volume: Tensor, sigma: Tensor, shift: Tensor | None = None) -> Tensor:
    """Gaussian blur of ``(B, X, Y, Z)`` by ``sigma`` ``(B,)`` voxels, moved by ``shift`` ``(B, 3)`` voxels."""
    shift = torch.zeros(len(volume), 3, device=volume.device) if shift is None else shift
    x, y, z = (gaussian_matrix(n, sigma, shift[:, axis]) for axis, n in enumerate(volume.shape[1:]))
    out = torch.matmul(volume, z.transpose(1, 2)[:, None])
    out = torch.matmul(y[:, None], out)
    return torch.matmul(x, out.flatten(2)).view(volume.shape)


def _paint(values: Tensor, code: Tensor) -> Tensor:
    """Look up ``values`` ``(B, K)`` at ``code`` ``(B, X, Y, Z)``."""
    return values.gather(1, code.flatten(1)).view(code.shape)


def _mean(volume: Tensor, mask: Tensor) -> Tensor:
    """Mean within the mask, ``(B, 1, 1, 1)``."""
    return ((volume * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)))[:, None, None, None]


def _scale_to_ratio(still: Tensor, moved: Tensor, target: Tensor, reference: Tensor, ratio: Tensor) -> Tensor:
    """Factor ``s`` of ``moved`` for which (target mean) / (reference mean) of ``still + s · moved`` is ``ratio``."""
    t0, t1, r0, r1 = (_mean(v, m).flatten() for m in (target, reference) for v in (still, moved))
    return (ratio * r0 - t0) / (t1 - ratio * r1)


def _texture(labels: Tensor, generator: Generator, voxel_size: float) -> Tensor:
    """Smooth variation within grey matter, a factor around 1."""
    p = parameters("sim_scanner.tsv")
    shape = labels.shape[1:]
    knots = [max(2, round(n * voxel_size / p["texture_mm"])) for n in shape]
    coarse = torch.randn(len(labels), 1, *knots, generator=generator, device=generator.device).to(labels.device)
    field = F.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[:, 0]
    amplitude = np.where(grey(), p["texture_grey"], p["texture_other"])
    return 1 + torch.as_tensor(amplitude, dtype=torch.float32, device=labels.device)[labels] * field


def _site_error(site: np.ndarray, shape: torch.Size, voxel_size: float) -> Tensor:
    """A site's error of scale, ``(B, 1, 1, Z)``.

    A factor common to the whole scan cancels in an SUVR. What is left is its change from the cerebellum to the
    vertex, as attenuation and scatter correction leave it.
    """
    p = parameters("sim_scanner.tsv")
    rng = np.random.default_rng(int(p["site_seed"]))
    slope = p["site_sd"] * rng.standard_normal(int(parameters("sim_person.tsv")["sites"]))
    height = (torch.arange(shape[-1]) - (shape[-1] - 1) / 2) * voxel_size / p["site_length_mm"]
    tilt = torch.as_tensor(slope[np.asarray(site, int)], dtype=torch.float32)
    return 1 + tilt[:, None, None, None] * height.clamp(-1, 1)


def _with_counting_noise(pet: Tensor, generator: Generator, voxel_size: float, factor: float = 1.0) -> Tensor:
    """Noise whose variance is proportional to the activity, correlated by the reconstruction's post-filter.

    ``factor`` multiplies the level of a scan of the usual duration.
    """
    p = parameters("sim_scanner.tsv")
    batch = len(pet)
    low, high = p["postfilter_min"], p["postfilter_max"]
    fwhm = low + (high - low) * torch.rand(batch, generator=generator, device=generator.device)
    level = (
        factor
        * p["noise"]
        * torch.exp(p["noise_spread"] * torch.randn(batch, generator=generator, device=generator.device))
    )
    sigma = (fwhm / FWHM / voxel_size).to(pet.device)
    white = torch.randn(pet.shape, generator=generator, device=generator.device).to(pet.device)
    # the filter leaves the sum of the squares of its kernel of the variance, along each of three axes
    middle = gaussian_matrix(33, sigma, torch.zeros_like(sigma))[:, 16]
    left = middle.square().sum(-1) ** 1.5
    amplitude = (level.to(pet.device) / left)[:, None, None, None]
    return pet + amplitude * gaussian_blur(pet.clamp(min=0).sqrt() * white, sigma)
