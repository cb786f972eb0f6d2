"""The velocity network of the rectified flow: a painted regional mean, and a latent U-Net for what it leaves.

Most of a PET volume is settled by one number per region and the map of the regions. The network therefore first paints
a mean image ``m``: region values, computed from the record, the tracer, the time and the regional means of ``x_t``,
times the label probabilities. Around it the exact velocity of a Gaussian with standard deviation ``s`` is taken, and
the U-Net's output, scaled to unit variance at every time as in Karras et al. (arXiv:2206.00364), corrects it:

    D = (1 − t)² s² + t²,   z = (x_t − (1 − t) m) / √D
    v = −m + (t − (1 − t) s²) / √D · z + s / √D · F(z, m, image features, embedding)

Plain torch: its training needs nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_petsynth.models.codec import fold, gaussian_kernel, unfold
from bids_petsynth.models.conditioning import RecordEmbedding
from bids_petsynth.models.process import BLUR
from bids_petsynth.models.recipe import Recipe

#: Learned soft tissue classes, made from the T1w, that are painted beside the labels (soft tissue outside the brain).
TISSUES = 8


@dataclass(frozen=True)
class Sources:
    """What the network takes from the images, computed once per head for all draws and steps.

    ``features`` is ``(N, channels, x, y, z)`` on the latent grid; ``basis`` holds the ``(N, k, voxels)`` maps on the
    painting grid that are painted with one value each: label probabilities, then learned tissues (apart, since only
    those need gradients). N may be 1 for a batch of draws of one head.
    """

    features: Tensor
    basis: tuple[Tensor, ...]


@dataclass(frozen=True)
class Condition:
    """Standardised record of a batch: ``values`` and ``mask`` ``(N, V)``, ``tracer (N,)`` rows of the embedding."""

    values: Tensor
    mask: Tensor
    tracer: Tensor

    def without_record(self) -> Condition:
        """The same with every variable missing, for guidance."""
        return Condition(self.values * 0, self.mask * 0, self.tracer)


class ResidualBlock(nn.Module):
    """Two convolutions with group norm; the second norm's scale and shift come from the embedding."""

    def __init__(self, channels: int, embedding: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * channels)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        # a block starts as the identity
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding)[..., None, None, None].chunk(2, dim=1)
        out = self.conv1(F.silu(self.norm1(x)))
        out = self.norm2(out) * (1 + scale) + shift
        return x + self.conv2(F.silu(out))


class UNet(nn.Module):
    """Residual U-Net with additive skips; channels in equal the first level's width, ``outputs`` channels out."""

    def __init__(self, channels: tuple[int, ...], blocks: int, outputs: int, embedding: int, groups: int):
        super().__init__()

        def level(width: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(width, embedding, groups) for _ in range(blocks))

        steps = list(zip(channels[:-1], channels[1:], strict=True))
        self.down = nn.ModuleList(level(width) for width in channels)
        self.shrink = nn.ModuleList(nn.Conv3d(a, b, 2, 2) for a, b in steps)
        self.grow = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, 2) for a, b in steps)
        self.up = nn.ModuleList(level(width) for width in channels)
        self.norm = nn.GroupNorm(groups, channels[0])
        self.out = nn.Conv3d(channels[0], outputs, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        skips = []
        for i, level in enumerate(self.down):
            if i:
                x = self.shrink[i - 1](x)
            for block in level:
                x = block(x, embedding)
            skips.append(x)
        for i in reversed(range(len(self.up))):
            if i < len(skips) - 1:
                x = self.grow[i](x) + skips[i]
            for block in self.up[i]:
                x = block(x, embedding)
        return self.out(F.silu(self.norm(x)))


def on_painting_grid(labels: Tensor, pool: int) -> Tensor:
    """Label probabilities averaged over ``pool``³ voxels, so that a latent voxel holds ``fold``³ of them."""
    return F.avg_pool3d(labels, pool) if pool > 1 else labels


class Painter(nn.Module):
    """Region values → an image: values times label probabilities, blurred by a learned kernel.

    ``measure`` is its counterpart: the regional means of an image.
    """

    def __init__(self, basis: int, channels: int, embedding: int, fold: int):
        super().__init__()
        self.channels, self.fold = channels, fold
        self.read = nn.Sequential(nn.Linear(basis * channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.values = nn.Linear(embedding, basis * channels)
        nn.init.zeros_(self.values.weight)
        nn.init.zeros_(self.values.bias)
        kernel = gaussian_kernel(5, BLUR)
        self.kernel = nn.Parameter(kernel.expand(channels, 1, 5, 5, 5).clone())

    def measure(self, x: Tensor, basis: tuple[Tensor, ...]) -> Tensor:
        """Weighted regional means ``(N, K · channels)`` of a latent ``x``; an absent region gives 0."""
        flat = unfold(x.float(), self.fold).flatten(2)
        # one voxel's weight is added to every region, so that a region of a few voxels does not bring their noise
        means = [flat @ b.expand(len(x), -1, -1).transpose(1, 2) / (b.sum(2)[:, None] + 1.0) for b in basis]
        return torch.cat(means, dim=2).flatten(1)

    def forward(self, embedding: Tensor, basis: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
        """The painted image ``(N, channels · fold³, *shape)``."""
        values = self.values(embedding).view(len(embedding), self.channels, -1)
        parts = values.split([b.shape[1] for b in basis], dim=2)
        image = sum(v @ b.expand(len(values), -1, -1) for v, b in zip(parts, basis, strict=True))
        image = image.view(len(values), self.channels, *(n * self.fold for n in shape))
        image = F.conv3d(F.pad(image, [2] * 6, mode="replicate"), self.kernel, groups=self.channels)
        return fold(image, self.fold)


class Denoiser(nn.Module):
    """Velocity of the rectified flow in a recipe's latent space.

    Parameters
    ----------
    recipe
        Gives shapes, widths and sources.
    classes
        Classes of the label probabilities (background included).

    Notes
    -----
    ``prepare`` takes the T1w ``(N, X, Y, Z)`` (white matter median 1) and the pooled label probabilities
    ``(N, classes, X/p, Y/p, Z/p)`` with p = ``recipe.label_pool``; ``forward`` takes standardised latents.
    """

    def __init__(self, recipe: Recipe, classes: int):
        super().__init__()
        net = recipe.network
        width, latent = net.channels[0], recipe.latent_channels
        self.images = recipe.conditioning.images
        self.ratio, self.fold, self.residual_sd = recipe.ratio, recipe.fold, net.residual_sd
        self.label_fold = recipe.ratio // recipe.label_pool
        # a convolution whose kernel is its stride folds space into channels and mixes them
        self.features, basis = nn.ModuleDict(), 0
        if "labels" in self.images:
            self.features["labels"] = nn.Conv3d(classes, width, self.label_fold, self.label_fold)
            basis += classes
        if "t1w" in self.images:
            self.features["t1w"] = nn.Conv3d(1, width, recipe.ratio, recipe.ratio)
            self.tissues = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv3d(16, TISSUES, 1))
            basis += TISSUES
        basis = basis or 1
        self.painter = Painter(basis, latent // recipe.fold**3, net.embedding, recipe.fold)
        self.embedding = RecordEmbedding(len(recipe.conditioning.variables), net.embedding)
        self.stem = nn.Conv3d(2 * latent, width, 3, padding=1)
        self.unet = UNet(net.channels, net.blocks, latent, net.embedding, net.groups)

    def prepare(self, t1w: Tensor, labels: Tensor) -> Sources:
        """Features and painting basis of N heads."""
        shape = [n // self.ratio for n in t1w.shape[1:]]
        features, basis = t1w.new_zeros(len(t1w), 1, *shape), []
        if "labels" in self.images:
            features = features + self.features["labels"](labels)
            basis.append(on_painting_grid(labels, self.label_fold // self.fold).flatten(2))
        if "t1w" in self.images:
            features = features + self.features["t1w"](t1w[:, None])
            small = F.avg_pool3d(t1w[:, None], self.ratio // self.fold)
            basis.append(torch.sigmoid(self.tissues(small).float()).flatten(2))
        if not basis:
            basis.append(t1w.new_ones(len(t1w), 1, math.prod(n * self.fold for n in shape)))
        return Sources(features, tuple(basis))

    def forward(self, x: Tensor, t: Tensor, sources: Sources, condition: Condition) -> Tensor:
        """Velocity at ``x (N, C, x, y, z)`` and times ``t (N,)``."""
        s, time = self.residual_sd, t.view(-1, 1, 1, 1, 1).float()
        embedding = self.embedding(condition.values, condition.mask, condition.tracer, t)
        with torch.autocast(x.device.type, enabled=False):
            # regional values are what SUVR is read from: kept in full precision
            x = x.float()
            embedding = embedding.float()
            seen = self.painter.measure(x, sources.basis) / torch.sqrt((1 - t) ** 2 + t**2)[:, None].float()
            embedding = embedding + self.painter.read(seen)
            embedding = embedding + self.painter.mix(embedding)
            mean = self.painter(embedding, sources.basis, x.shape[2:])
            root = torch.sqrt((1 - time) ** 2 * s**2 + time**2)
            z = (x - (1 - time) * mean) / root
        hidden = self.stem(torch.cat([z, mean], dim=1)) + sources.features
        residual = self.unet(hidden, embedding).float()
        return -mean + (time - (1 - time) * s**2) / root * z + s / root * residual

    def loss_weight(self, t: Tensor) -> Tensor:
        """Weight of the squared velocity error that makes the U-Net's target unit variance at every time."""
        s = self.residual_sd
        return ((1 - t) ** 2 * s**2 + t**2) / s**2


def flow_loss(net: Denoiser, x: Tensor, t: Tensor, target: Tensor, sources: Sources, condition: Condition) -> Tensor:
    """Weighted mean squared error of the velocity, per example ``(N,)``."""
    error = (net(x, t, sources, condition) - target).square().flatten(1).mean(1)
    return error * net.loss_weight(t)


def parameters_in_millions(net: nn.Module) -> float:
    """Number of trained parameters / 10⁶."""
    return sum(math.prod(p.shape) for p in net.parameters()) / 1e6
