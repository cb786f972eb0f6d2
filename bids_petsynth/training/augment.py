"""Random heads for the labelling network: shape, contrast, resolution, field of view, noise.

All functions take one head as tensors on any device and draw from a :class:`torch.Generator` on the CPU, so
that a seed gives the same heads everywhere.
"""

from __future__ import annotations

import math

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


def random_shape(
    image: Tensor, labels: Tensor, pose: Tensor, shape: tuple[int, int, int], rng: Generator
) -> tuple[Tensor, Tensor]:
    """Cut a rotated, scaled, sheared, elastically deformed, possibly mirrored patch around the head's labels.

    Parameters
    ----------
    image, labels
        ``(X, Y, Z)``, float and integer, same isotropic grid in RAS order.
    pose
        ``(3, 3)`` rotation from the scan's axes to the template's. Half of the patches are turned around the scan's
        own pose, half around the template's: heads lie in the scanner with their chin some 15° further down.
    shape
        Shape of the patch, in voxels of the same size.

    Returns
    -------
    tuple
        The patch and its labels, ``(*shape)`` each. Outside the image both are 0.
    """
    size = torch.tensor(image.shape, dtype=torch.float32)
    where = (labels > 0).nonzero().float()
    centre = where.mean(0) + torch.clamp(normal(rng, 3) * 4.0, -10, 10)
    matrix = rotation((torch.rand(3, generator=rng) * 2 - 1) * math.radians(20))
    if chance(rng, 0.5):
        matrix = pose.T @ matrix
    matrix = matrix @ torch.diag(1 + 0.08 * normal(rng, 3).clamp(-2, 2))
    matrix = matrix + 0.03 * normal(rng, 3, 3).clamp(-2, 2)
    if chance(rng, 0.5):
        matrix = matrix @ torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ matrix.T + centre
    elastic = smooth_field(rng, shape, (6, 7, 6), 3)[0].permute(1, 2, 3, 0)
    grid = grid + elastic * uniform(rng, 0.0, 1.5)
    # grid_sample wants (z, y, x) order of coordinates scaled to [-1, 1]
    scaled = (2 * grid / (size - 1) - 1).flip(-1)[None]
    patch = F.grid_sample(image[None, None], scaled, "bilinear", "zeros", align_corners=True)[0, 0]
    cut = F.grid_sample(labels[None, None].float(), scaled, "nearest", "zeros", align_corners=True)[0, 0]
    return patch, cut.round().long()


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
    pose: Tensor,
    tissue: Tensor,
    brain_classes: int,
    shape: tuple[int, int, int],
    rng: Generator,
) -> tuple[Tensor, Tensor]:
    """One training example: network input and target, ``(*shape)`` each.

    Parameters
    ----------
    image, labels
        A real head: intensity divided by its 99th percentile, and classes ``0 … brain_classes - 1`` for the
        background and the regions, higher ones for clusters of soft tissue outside the brain.
    pose
        See :func:`random_shape`.
    tissue
        Tissue code of every class, see :func:`synthetic_contrast`.
    """
    patch, classes = random_shape(image, labels, pose, shape, rng)
    target = torch.where(classes < brain_classes, classes, 0)
    if chance(rng, 0.5):
        weight = 1.0 if chance(rng, 0.3) else uniform(rng, 0.2, 1.0)
        patch = (1 - weight) * patch + weight * synthetic_contrast(classes, tissue, rng)
    if chance(rng, 0.5):
        patch = random_curve(patch, rng)
    patch = patch.clamp(min=0) ** math.exp(0.3 * normal(rng, 1).clamp(-2, 2).item())
    patch = patch * torch.exp(uniform(rng, 0.0, 0.35) * smooth_field(rng, shape, (4, 4, 4))[0, 0])
    if chance(rng, 0.3):
        patch = blur(patch, uniform(rng, 0.2, 0.9))
    if chance(rng, 0.2):
        patch = thick_slices(patch, uniform(rng, 1.2, 2.5), int(uniform(rng, 0, 3)))
    patch = patch + uniform(rng, 0.0, 0.05) * normal(rng, *shape)
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
