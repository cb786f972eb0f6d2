"""The velocity network of the rectified flow: a latent U-Net, conditioned on images, record, tracer and time.

Plain torch: its training needs nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_petsynth.folding import fold, unfold
from bids_petsynth.models.conditioning import RecordEmbedding
from bids_petsynth.models.process import preconditioned
from bids_petsynth.models.recipe import Recipe
from bids_petsynth.models.regional import Condition, Painting


@dataclass(frozen=True)
class Sources:
    """What is taken from the images, computed once per head for all draws and steps.

    ``features`` is ``(N, channels, x, y, z)`` on the latent grid; ``painting`` paints regional means on the folded
    grid's voxels where the recipe has a regional part. N may be 1 for a batch of draws of one head.
    """

    features: Tensor
    painting: Painting | None


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


class Denoiser(nn.Module):
    """Velocity of the rectified flow in a recipe's latent space.

    In a recipe with a regional part the latent is what a painting of the regional means leaves, the painting is a
    second input, and the record is left to the regional flow.

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
        self.images, self.paints = recipe.conditioning.images, recipe.regional is not None
        self.ratio, self.fold = recipe.ratio, recipe.fold
        self.label_fold = recipe.ratio // recipe.label_pool
        # a convolution whose kernel is its stride folds space into channels and mixes them
        self.features = nn.ModuleDict()
        if "labels" in self.images:
            self.features["labels"] = nn.Conv3d(classes, width, self.label_fold, self.label_fold)
        if "t1w" in self.images:
            self.features["t1w"] = nn.Conv3d(1, width, recipe.ratio, recipe.ratio)
        variables = 0 if self.paints else len(recipe.conditioning.variables)
        self.embedding = RecordEmbedding(variables, net.embedding)
        self.stem = nn.Conv3d((2 if self.paints else 1) * latent, width, 3, padding=1)
        self.unet = UNet(net.channels, net.blocks, latent, net.embedding, net.groups)

    def prepare(self, t1w: Tensor, labels: Tensor) -> Sources:
        """Features and painting of N heads."""
        features = t1w.new_zeros(len(t1w), 1, *(n // self.ratio for n in t1w.shape[1:]))
        if "labels" in self.images:
            features = features + self.features["labels"](labels)
        if "t1w" in self.images:
            features = features + self.features["t1w"](t1w[:, None])
        return Sources(features, self.painting(labels) if self.paints else None)

    def painting(self, labels: Tensor) -> Painting:
        """How regional means are painted on heads with these label probabilities (as :meth:`prepare` takes them)."""
        with torch.no_grad(), torch.autocast(labels.device.type, enabled=False):
            # regional values are what SUVR is read from: kept in full precision
            pool = self.label_fold // self.fold
            return Painting(F.avg_pool3d(labels.float(), pool) if pool > 1 else labels)

    def paint(self, means: Tensor, sources: Sources) -> Tensor:
        """Regional means ``(N, K)`` painted in the latent space, ``(N, C, x, y, z)``."""
        return fold(sources.painting.paint(means)[:, None], self.fold)

    def measure(self, latents: Tensor, sources: Sources) -> Tensor:
        """Regional means ``(N, K)`` of latents."""
        return sources.painting.measure(unfold(latents, self.fold)[:, 0])

    def forward(
        self, x: Tensor, t: Tensor, sources: Sources, condition: Condition, painted: Tensor | None = None
    ) -> Tensor:
        """Velocity at ``x (N, C, x, y, z)`` and times ``t (N,)``; ``painted`` as :meth:`paint` gives it."""
        if self.paints:
            nothing = condition.values[:, :0]
            condition = Condition(nothing, nothing, condition.tracer)
        embedding = self.embedding(condition.values, condition.mask, condition.tracer, t)

        def network(z: Tensor) -> Tensor:
            # SUVR lies around 1
            z = torch.cat([z, painted - 1], dim=1) if self.paints else z
            return self.unet(self.stem(z) + sources.features, embedding)

        return preconditioned(network, x.float(), t)


def parameters_in_millions(net: nn.Module) -> float:
    """Number of trained parameters / 10⁶."""
    return sum(math.prod(p.shape) for p in net.parameters()) / 1e6
