"""Fusion of whatever images a person has: attention over the sources, voxel by voxel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bids_petsynth.models.networks.layers import CONVOLUTION
from bids_petsynth.models.recipe_checks import HEADS


class SourceFusion(nn.Module):
    """Any subset of the sources → one feature map: ``Σ_s softmax_s(q · k_s / √d) v_s`` in each voxel and head.

    Keys ``k_s`` and values ``v_s`` are affine in the features of source s, each source with its own coefficients; the
    query ``q`` comes from the embedding, so that time, record and target steer which source counts. What a missing
    source holds never counts, not even NaN; with none there the result is a learned null feature. After ACADiff
    (arXiv:2603.09931; published without a formula).

    Parameters
    ----------
    sources, channels
        Number of sources and of features of each.
    width
        Features of the result.
    embedding
        Width of the vector that steers.
    dims
        2 or 3 spatial axes.
    heads
        A divisor of ``width``.
    """

    def __init__(self, sources: int, channels: int, width: int, embedding: int, *, dims: int = 3, heads: int = HEADS):
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"a width of {width} cannot be shared by {heads} heads; choose a divisor")
        self.heads, self.sources = heads, sources
        # one group for each source: none sees the features of another
        self.key = CONVOLUTION[dims](sources * channels, sources * width, 1, groups=sources)
        self.value = CONVOLUTION[dims](sources * channels, sources * width, 1, groups=sources)
        self.query = nn.Linear(embedding, width)
        self.null = nn.Parameter(torch.randn(width) * 0.1)

    def attend(self, features: Tensor, mask: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, and the weight of each source ``(N, S, …)``: its mean over the heads, 0 if missing."""
        there = mask > 0
        ones = [1] * (features.ndim - 3)
        there_voxels = there.view(*there.shape, 1, *ones)
        features = torch.where(there_voxels, features, 0)  # not a product: 0 · NaN is NaN

        def heads(layer: nn.Module) -> Tensor:
            """``(N, S, heads, width / heads, …)``."""
            return layer(features.flatten(1, 2)).unflatten(1, (self.sources, self.heads, -1))

        keys, values = heads(self.key), heads(self.value)
        query = self.query(embedding).view(len(embedding), 1, self.heads, -1, *ones)
        logits = (query * keys).sum(3) / math.sqrt(keys.shape[3])
        logits = logits.masked_fill(~there_voxels, -math.inf)
        # the null feature stands in only where there is nothing else
        nothing = torch.where(there.any(1), -math.inf, 0.0).to(logits).view(-1, 1, 1, *ones)
        logits = torch.cat([logits, nothing.expand(len(logits), 1, *logits.shape[2:])], dim=1)
        weights = logits.softmax(1)
        null = self.null.to(values).view(self.heads, -1, *ones)
        fused = (weights[:, :-1, :, None] * values).sum(1) + weights[:, -1, :, None] * null
        return fused.flatten(1, 2), weights[:, :-1].mean(2)

    def forward(self, features: Tensor, mask: Tensor, embedding: Tensor) -> Tensor:
        """Fused features ``(N, width, …)``.

        Parameters
        ----------
        features
            ``(N, S, channels, …)`` of all sources on one grid; anything where a source is missing.
        mask
            ``(N, S)``, true or above 0 where a source is there.
        embedding
            ``(N or 1, embedding)``.
        """
        return self.attend(features, mask, embedding)[0]
