"""Ageing and atrophy as smooth deformations of real heads.

Each region has a target volume. A displacement ``u = grad φ`` whose divergence is the wanted local growth is solved in
Fourier space (a Poisson equation) on a grid of half the resolution, measured on the regions, and corrected a few times.
What the brain loses, the cerebrospinal fluid around it gains, so that the skull nearly stays where it is.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_petsynth.anatomy.regions import n_classes, region_index
from bids_petsynth.simulation.parameters import members, parameters
from bids_petsynth.simulation.person import People
from bids_petsynth.tables import read_table


def log_volume_factors(people: People, reference_age: float | np.ndarray | None = None) -> np.ndarray:
    """Log factor of each region's volume for each person, head size left out.

    Parameters
    ----------
    people
        ``n`` people.
    reference_age
        Age in years of the heads that are deformed, so that a head ages by the difference only; by default the mean
        age of the heads that the simulation was made with.

    Returns
    -------
    ndarray
        ``(n, classes)``; NaN for the background and the fluid around the brain, which take what is left.
    """
    parameter = parameters("sim_shape.tsv")
    since = parameter["reference_age"] if reference_age is None else reference_age
    decades = (people.age - since) / 10
    out = np.full((len(people), n_classes()), np.nan)
    for row in read_table("sim_atrophy.tsv"):
        k = region_index()[row["region"]]
        out[:, k] = (
            float(row["ageing_per_decade"]) * decades
            + float(row["neurodegeneration"]) * people.neurodegeneration
            + float(row["sd"]) * people.atrophy_pattern[:, k]
        )
    return out


def deform(
    images: Tensor,
    labels: Tensor,
    log_factors: np.ndarray | Tensor,
    generator: Generator | None = None,
    head_size: np.ndarray | Tensor | None = None,
    voxel_size: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Deform heads so that their regions reach the wanted volumes.

    Parameters
    ----------
    images
        ``(B, C, X, Y, Z)`` float: T1w and whatever belongs to it (label probabilities), interpolated linearly.
    labels
        ``(B, X, Y, Z)`` integer classes on the same grid; values above the regions lie outside the brain.
    log_factors
        ``(B, classes)`` log volume factors, NaN where free (see :func:`log_volume_factors`).
    generator
        For a smooth random change of shape on top; None for none.
    head_size
        ``(B,)`` log factor of the whole head's volume; None for none.
    voxel_size
        In mm.

    Returns
    -------
    tuple
        Deformed images (dtype kept) and labels. Outside the field of view both are 0.
    """
    grid = backward_map(labels, log_factors, generator, head_size, voxel_size)
    size = torch.tensor(labels.shape[1:], dtype=torch.float32, device=labels.device)
    moved = F.grid_sample(images.float(), grid, "bilinear", "zeros", align_corners=False).to(images.dtype)
    dithered = grid + 2 * _dither(labels.shape[1:], labels.device) / size.flip(0)
    codes = F.grid_sample(labels[:, None].float(), dithered, "nearest", "zeros", align_corners=False)[:, 0]
    return moved, codes.round().to(labels.dtype)


def backward_map(
    labels: Tensor,
    log_factors: np.ndarray | Tensor,
    generator: Generator | None = None,
    head_size: np.ndarray | Tensor | None = None,
    voxel_size: float = 2.0,
) -> Tensor:
    """Where each voxel of the deformed head comes from; parameters as in :func:`deform`.

    Returns
    -------
    Tensor
        ``(B, X, Y, Z, 3)`` coordinates in the order z, y, x, scaled to [-1, 1] between the outer faces of the grid, as
        ``torch.nn.functional.grid_sample`` with ``align_corners=False`` takes them.
    """
    device, shape = labels.device, labels.shape[1:]
    factors = torch.as_tensor(np.asarray(log_factors), dtype=torch.float32, device=device)
    field = torch.stack([_grow(one, row) for one, row in zip(labels, factors, strict=True)])
    if generator is not None:
        field = field + _random_field(field.shape, generator, voxel_size).to(device)
    field = F.interpolate(_inverse(field), size=shape, mode="trilinear", align_corners=False)
    grid = _identity(len(labels), shape, device)
    size = torch.tensor(shape, dtype=torch.float32, device=device)
    grid = grid + (2 * field.permute(0, 2, 3, 4, 1) / size).flip(-1)
    if head_size is not None:
        scale = torch.exp(torch.as_tensor(np.asarray(head_size), dtype=torch.float32, device=device) / 3)
        centre = _centre(labels)
        grid = (grid - centre) / scale.view(-1, 1, 1, 1, 1) + centre
    return grid


def _identity(batch: int, shape: torch.Size, device: torch.device) -> Tensor:
    """The map that changes nothing, see :func:`backward_map`."""
    return F.affine_grid(torch.eye(3, 4, device=device).expand(batch, 3, 4), [batch, 1, *shape], align_corners=False)


def _dither(shape: torch.Size, device: torch.device) -> Tensor:
    """Offsets in voxels, uniform between -0.5 and 0.5 and slowly varying, for nearest-neighbour sampling.

    Displacements are mostly below half a voxel, which plain nearest-neighbour sampling rounds away. With these
    offsets a share of a boundary that is the fraction of the displacement moves by a voxel, so volumes are right on
    average.
    """
    wave = torch.tensor(parameters("sim_shape.tsv")["dither_wave"], device=device)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32, device=device) for n in shape), indexing="ij")
    directions = torch.tensor([[0.29, 0.53, 0.80], [0.80, -0.29, 0.53], [-0.53, 0.80, 0.29]], device=device)
    phase = sum(axis[..., None] * directions[:, i] for i, axis in enumerate(axes)) / wave
    # a little less than half a voxel, so that an undisplaced voxel stays where it is
    return 0.98 * ((phase % 1 - 0.5).abs() * 2 - 0.5)


def _centre(labels: Tensor) -> Tensor:
    """Centre of the brain in grid_sample's coordinates, ``(B, 1, 1, 1, 3)``."""
    centres = []
    for one in labels:
        brain = (one > 0) & (one < n_classes())
        place = brain.nonzero().float().mean(0)
        size = torch.tensor(one.shape, dtype=torch.float32, device=one.device)
        centres.append(((2 * place + 1) / size - 1).flip(0))
    return torch.stack(centres).view(-1, 1, 1, 1, 3)


def _grow(labels: Tensor, log_factors: Tensor) -> Tensor:
    """Forward displacement that gives the regions their volumes, ``(3, X/2, Y/2, Z/2)`` in full-resolution voxels."""
    p = parameters("sim_shape.tsv")
    classes = n_classes()
    inside = torch.where(labels < classes, labels, 0)
    count = torch.bincount(inside.flatten(), minlength=classes).float()
    wanted = log_factors.clone()
    fluid = members("extra_axial_csf")[0]
    wanted[0] = 0
    solid = torch.nan_to_num(wanted)
    lost = (count * (1 - torch.exp(solid)))[1:].sum() / count[fluid].clamp(min=1)
    wanted[fluid] = torch.log((1 + lost).clamp(min=p["fluid_min"], max=p["fluid_max"]))
    wanted = torch.nan_to_num(wanted)
    coarse = tuple((n + 1) // 2 for n in labels.shape)
    kernel, smooth = _spectra(coarse, p["blur_voxels"] / 2, labels.device)
    source = wanted.clone()
    displacement = torch.zeros(3, *coarse, device=labels.device)
    for _ in range(int(p["iterations"])):
        growth = _halve(torch.expm1(source)[inside], coarse)
        spectrum = torch.fft.rfftn(growth) * smooth
        displacement = torch.stack([torch.fft.irfftn(k * spectrum, s=coarse) for k in kernel])
        local = _double(_jacobian(displacement), labels.shape)
        realised = torch.bincount(inside.flatten(), weights=local.flatten(), minlength=classes) / count.clamp(min=1)
        miss = torch.where(count > 0, wanted - torch.log(realised.clamp(min=0.05)), torch.zeros(()).to(wanted))
        miss[[0, fluid]] = 0
        source = (source + p["gain"] * miss).clamp(-p["source_max"], p["source_max"])
    return 2 * displacement


def _spectra(shape: tuple[int, ...], sigma: float, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Fourier multipliers from growth to each component of displacement, and of a Gaussian blur of ``sigma`` voxels."""
    axes = [torch.fft.fftfreq(n, device=device) for n in shape[:2]] + [torch.fft.rfftfreq(shape[2], device=device)]
    k = torch.meshgrid(*(2 * torch.pi * axis for axis in axes), indexing="ij")
    square = sum(component**2 for component in k)
    inverse = torch.where(square > 0, 1 / square.clamp(min=1e-12), torch.zeros(()).to(square))
    # Δφ = g and u = grad φ: û = i k φ̂ = -i k ĝ / |k|²
    return [-1j * component * inverse for component in k], torch.exp(-0.5 * sigma**2 * square)


def _halve(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    pad = [2 * n - m for n, m in zip(shape, image.shape, strict=True)]
    padded = F.pad(image[None, None], (0, pad[2], 0, pad[1], 0, pad[0]))
    return F.avg_pool3d(padded, 2)[0, 0]


def _double(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    out = image
    for axis in range(3):
        out = out.repeat_interleave(2, axis)
    return out[tuple(slice(n) for n in shape)]


def _jacobian(displacement: Tensor) -> Tensor:
    """Determinant of the Jacobian of ``x + u(x)``."""
    rows = []
    for i in range(3):
        rows.append([g + (1.0 if i == j else 0.0) for j, g in enumerate(torch.gradient(displacement[i]))])
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _inverse(field: Tensor) -> Tensor:
    """The displacement ``v`` with ``v(y) = -u(y + v(y))``, by fixed-point iteration; both in full-resolution voxels."""
    shape = field.shape[2:]
    size = 2 * torch.tensor(shape, dtype=torch.float32, device=field.device)
    grid = _identity(len(field), shape, field.device)
    inverse = -field
    for _ in range(int(parameters("sim_shape.tsv")["inverse_iterations"])):
        there = grid + (2 * inverse.permute(0, 2, 3, 4, 1) / size).flip(-1)
        inverse = -F.grid_sample(field, there, "bilinear", "border", align_corners=False)
    return inverse


def _random_field(shape: torch.Size, generator: Generator, voxel_size: float) -> Tensor:
    """Smooth random displacement in full-resolution voxels from normal numbers on a coarse grid of knots."""
    p = parameters("sim_shape.tsv")
    knots = [max(2, round(2 * n * voxel_size / p["random_knot_mm"])) for n in shape[2:]]
    coarse = (
        torch.randn(shape[0], 3, *knots, generator=generator, device=generator.device) * p["random_mm"] / voxel_size
    )
    return F.interpolate(coarse, size=shape[2:], mode="trilinear", align_corners=True)
