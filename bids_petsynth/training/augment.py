"""Random heads for the labelling network: shape, contrast, resolution, field of view, noise.

All functions take one head as tensors on any device and draw from a :class:`torch.Generator` on the CPU, so
that a seed gives the same heads everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def uniform(rng: Generator, low: float, high: float) -> float:
    """One number drawn uniformly from [low, high)."""
    return low + (high - low) * torch.rand((), generator=rng).item()


def normal(rng: Generator, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=rng)


def chance(rng: Generator, p: float) -> bool:
    """True with probability ``p``."""
    return torch.rand((), generator=rng).item() < p


def rotation(angles: Tensor) -> Tensor:
    """3 × 3 rotation matrix Rx·Ry·Rz from three angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = torch.cos(angles), torch.sin(angles)
    one, zero = torch.ones(()), torch.zeros(())
    rx = torch.stack([one, zero, zero, zero, cx, -sx, zero, sx, cx]).view(3, 3)
    ry = torch.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy]).view(3, 3)
    rz = torch.stack([cz, -sz, zero, sz, cz, zero, zero, zero, one]).view(3, 3)
    return rx @ ry @ rz


def smooth_field(rng: Generator, shape: tuple[int, ...], knots: tuple[int, int, int], channels: int = 1) -> Tensor:
    """A smooth random field ``(1, channels, *shape)`` from standard normal numbers on a coarse grid of knots."""
    coarse = normal(rng, 1, channels, *knots)
    return F.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)


@dataclass(frozen=True)
class Pose:
    """How far training heads may stand from their pose on the network's grid.

    Attributes
    ----------
    degrees, shift
        Standard deviations of the angle about each axis and of the shift along it (voxels), cut off at two of them.
    scale, shear
        Standard deviations of the relative size along each axis and of the linear map's elements.
    elastic
        Largest standard deviation of the smooth displacement, voxels.
    native
        Share of heads that stand as they lay in the scanner, their chin some 15° further down.
    """

    degrees: float
    shift: float
    scale: float
    shear: float
    elastic: float
    native: float


def _sample(image: Tensor, labels: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Image (linear) and labels (nearest) at points ``(…, 3)`` in voxels; 0 outside."""
    size = torch.tensor(image.shape, dtype=torch.float32)
    # grid_sample wants (z, y, x) order of coordinates scaled to [-1, 1]
    scaled = (2 * points / (size - 1) - 1).flip(-1)[None]
    patch = F.grid_sample(image[None, None], scaled, "bilinear", "zeros", align_corners=True)[0, 0]
    cut = F.grid_sample(labels[None, None].float(), scaled, "nearest", "zeros", align_corners=True)[0, 0]
    return patch, cut.round().long()


def on_grid(image: Tensor, labels: Tensor, to_head: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """A head and its labels on the grid whose voxels ``to_head`` (4 × 4) takes to the head's."""
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return _sample(image, labels, points @ to_head[:3, :3].T + to_head[:3, 3])


def random_shape(
    image: Tensor,
    labels: Tensor,
    to_head: Tensor,
    pose: Pose,
    shape: tuple[int, int, int],
    first: Sequence[int],
    window: tuple[int, int, int],
    rng: Generator,
) -> tuple[Tensor, Tensor]:
    """A window of the grid with the head on it turned, shifted, stretched, elastically deformed, possibly mirrored.

    Parameters
    ----------
    image, labels
        ``(X, Y, Z)``, float and integer, same isotropic grid in RAS order.
    to_head
        ``(4, 4)``, voxel of the network's grid to voxel of the head.
    shape, first, window
        Shape of the network's grid, first voxel and shape of the window.

    Returns
    -------
    tuple
        The window and its labels, ``(*window)`` each. Outside the image both are 0.
    """
    middle = (torch.tensor(shape, dtype=torch.float32) - 1) / 2
    matrix, centre = to_head[:3, :3], to_head[:3, :3] @ middle + to_head[:3, 3]
    if chance(rng, pose.native):
        matrix = torch.eye(3)
    matrix = matrix @ rotation(math.radians(pose.degrees) * normal(rng, 3).clamp(-2, 2))
    matrix = matrix @ (torch.eye(3) + torch.diag(pose.scale * normal(rng, 3).clamp(-2, 2)))
    matrix = matrix + pose.shear * normal(rng, 3, 3).clamp(-2, 2)
    if chance(rng, 0.5):
        matrix = matrix @ torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    axes = [
        f + torch.arange(n, dtype=torch.float32) - m for f, n, m in zip(first, window, middle.tolist(), strict=True)
    ]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) + pose.shift * normal(rng, 3).clamp(-2, 2)
    elastic = smooth_field(rng, window, (6, 7, 6), 3)[0].permute(1, 2, 3, 0)
    points = points @ matrix.T + centre + elastic * uniform(rng, 0.0, pose.elastic)
    return _sample(image, labels, points)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``(X, Y, Z)`` with ``sigma`` in voxels, edges repeated."""
    if sigma < 0.1:
        return image
    radius = max(1, math.ceil(3 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(image.device)
    out = image[None, None]
    for axis in range(3):
        size = [1, 1, 1]
        size[axis] = kernel.numel()
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        out = F.conv3d(F.pad(out, pad, mode="replicate"), kernel.view(1, 1, *size))
    return out[0, 0]


def synthetic_contrast(labels: Tensor, tissue: Tensor, rng: Generator) -> Tensor:
    """An image in which each class has its own random mean and texture.

    ``tissue[k]`` names class k: 0 air, 1 csf, 2 gm, 3 wm, 4 deep grey, 5 and above soft tissue outside the brain.
    """
    csf, grey, white = uniform(rng, 0.05, 0.35), uniform(rng, 0.35, 0.65), uniform(rng, 0.65, 1.0)
    if chance(rng, 0.1):
        csf, grey, white = (uniform(rng, 0.05, 1.0) for _ in range(3))
    base = torch.tensor([0.0, csf, grey, white, grey + uniform(rng, 0.1, 0.7) * (white - grey)])
    means = torch.where(tissue < 5, base[tissue.clamp(max=4)], torch.rand(len(tissue), generator=rng) * 1.2)
    means = means + 0.04 * normal(rng, len(tissue)) * (tissue > 0)
    texture = smooth_field(rng, tuple(labels.shape), (24, 28, 24))[0, 0]
    image = means[labels] * (1 + uniform(rng, 0.0, 0.15) * texture)
    return blur(image.clamp(min=0), uniform(rng, 0.3, 0.9))


def random_curve(image: Tensor, rng: Generator) -> Tensor:
    """A random monotone change of contrast of an image that lies mostly within 0–1."""
    knots = torch.cumsum(0.25 + torch.rand(6, generator=rng), 0)
    knots = torch.cat([torch.zeros(1), (knots - knots[0]) / (knots[-1] - knots[0]) + 0.02])
    position = image.clamp(0, 1) * 5
    low = position.floor().clamp(max=5).long()
    weight = position - low
    return knots[low] * (1 - weight) + knots[(low + 1).clamp(max=6)] * weight


def thick_slices(image: Tensor, factor: float, axis: int) -> Tensor:
    """Average along ``axis`` to slices ``factor`` voxels thick and interpolate back."""
    shape = list(image.shape)
    shape[axis] = max(4, round(shape[axis] / factor))
    low = F.interpolate(image[None, None], size=shape, mode="area")
    return F.interpolate(low, size=image.shape, mode="trilinear", align_corners=False)[0, 0]


def random_head(
    image: Tensor,
    labels: Tensor,
    to_head: Tensor,
    pose: Pose,
    tissue: Tensor,
    brain_classes: int,
    shape: tuple[int, int, int],
    first: Sequence[int],
    window: tuple[int, int, int],
    rng: Generator,
) -> tuple[Tensor, Tensor]:
    """One training example: network input and target, ``(*window)`` each.

    Parameters
    ----------
    image, labels
        A real head: intensity divided by its 99th percentile, and classes ``0 … brain_classes - 1`` for the
        background and the regions, higher ones for clusters of soft tissue outside the brain.
    to_head, pose, shape, first, window
        See :func:`random_shape`.
    tissue
        Tissue code of every class, see :func:`synthetic_contrast`.
    """
    patch, classes = random_shape(image, labels, to_head, pose, shape, first, window, rng)
    target = torch.where(classes < brain_classes, classes, 0)
    if chance(rng, 0.4):
        weight = 1.0 if chance(rng, 0.3) else uniform(rng, 0.2, 1.0)
        patch = (1 - weight) * patch + weight * synthetic_contrast(classes, tissue, rng)
    if chance(rng, 0.5):
        patch = random_curve(patch, rng)
    patch = patch.clamp(min=0) ** math.exp(0.3 * normal(rng, 1).clamp(-2, 2).item())
    patch = patch * torch.exp(uniform(rng, 0.0, 0.35) * smooth_field(rng, window, (4, 4, 4))[0, 0])
    if chance(rng, 0.3):
        patch = blur(patch, uniform(rng, 0.2, 0.9))
    if chance(rng, 0.2):
        patch = thick_slices(patch, uniform(rng, 1.2, 2.5), int(uniform(rng, 0, 3)))
    patch = patch + uniform(rng, 0.0, 0.05) * normal(rng, *window)
    patch = cut_view(patch, target > 0, rng)
    top = torch.quantile(patch[::2, ::2, ::2].flatten(), 0.99).clamp(min=1e-3)
    return patch.clamp(min=0) / top * uniform(rng, 0.8, 1.2), target


def cut_view(patch: Tensor, brain: Tensor, rng: Generator) -> Tensor:
    """Cut neck, face or everything outside the brain, as scans come skull-stripped, defaced or short."""
    near = F.max_pool3d(brain[None, None].float(), 5, 1, 2)[0, 0] > 0
    if chance(rng, 0.15):
        margin = int(uniform(rng, 0, 3))
        keep = brain if margin == 0 else F.max_pool3d(brain[None, None].float(), 2 * margin + 1, 1, margin)[0, 0] > 0
        return patch * keep
    z = torch.arange(patch.shape[2])
    if chance(rng, 0.3):
        bottom = int(brain.any(0).any(0).nonzero().min()) if brain.any() else 0
        patch = patch * ((z >= bottom - uniform(rng, -2, 15)) | near)
    if chance(rng, 0.15):
        # a slanted plane in front of and below the brain, as defacing tools cut
        axes = [torch.linspace(-1, 1, n) for n in patch.shape]
        _, y, zz = torch.meshgrid(*axes, indexing="ij")
        plane = y * uniform(rng, 0.5, 1.5) - zz * uniform(rng, 0.2, 1.2)
        patch = patch * ((plane < uniform(rng, 0.5, 1.0)) | near)
    return patch


def most_common(classes: Tensor) -> Tensor:
    """The commonest class of each 2 × 2 × 2 cube (the lowest where several are)."""
    best = torch.zeros(classes.shape[0], *(n // 2 for n in classes.shape[1:]))
    out = torch.zeros_like(best, dtype=torch.long)
    for value in classes.unique().tolist():
        share = F.avg_pool3d((classes == value).float()[:, None], 2)[:, 0]
        better = share > best
        out[better], best[better] = value, share[better]
    return out
