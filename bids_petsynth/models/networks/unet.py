"""Residual U-Net in two or three dimensions with everything a recipe may add to it: each addition starts as nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bids_petsynth.models.networks.attention import AttentionGate, CrossAttention, LinearAttention, SelfAttention
from bids_petsynth.models.networks.layers import CONVOLUTION, TRANSPOSED, zeroed
from bids_petsynth.models.recipe_checks import HEADS

#: Levels, counted from the coarsest, at which a text is read.
READING_LEVELS = 2


def modulated(
    h: Tensor, scale: Tensor, shift: Tensor, channelwise: Tensor | None = None, voxelwise: Tensor | None = None
) -> Tensor:
    """``(h · (1 + scale) + shift) · (1 + channelwise) · (1 + voxelwise)``: what follows a norm in an adaptive one.

    Scale and shift come from the time, the channelwise scale from the record and the voxelwise one from an image; each
    is of a shape that broadcasts to ``h (N, C, …)``. With all at 0 ``h`` stays as it is.
    Source: Dhariwal & Nichol, arXiv:2105.05233; with record and image PASTA (Li et al., arXiv:2405.16942).
    """
    h = h * (1 + scale) + shift
    if channelwise is not None:
        h = h * (1 + channelwise)
    return h if voxelwise is None else h * (1 + voxelwise)


class ResidualBlock(nn.Module):
    """Two convolutions with group norm, the second norm adaptive (see :func:`modulated`).

    ``spatial``: features of an image give the voxelwise scale; ``clinical``: width of the vector that gives the
    channelwise one. Both come by linear layers without bias that start at 0.
    """

    def __init__(
        self, channels: int, embedding: int, groups: int, *, dims: int = 3, spatial: bool = False, clinical: int = 0
    ):
        super().__init__()
        conv = CONVOLUTION[dims]
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = conv(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * channels)
        self.norm2 = nn.GroupNorm(groups, channels)
        # a block starts as the identity
        self.conv2 = zeroed(conv(channels, channels, 3, padding=1))
        self.voxelwise = zeroed(conv(channels, channels, 1, bias=False)) if spatial else None
        self.channelwise = zeroed(nn.Linear(clinical, channels, bias=False)) if clinical else None

    def forward(
        self, x: Tensor, embedding: Tensor, spatial: Tensor | None = None, clinical: Tensor | None = None
    ) -> Tensor:
        """``x`` and ``spatial (N, C, …)``, ``embedding (N, embedding)``, ``clinical (N, clinical)`` → as ``x``."""

        def on_voxels(vector: Tensor) -> Tensor:
            return vector.view(*vector.shape, *[1] * (x.ndim - 2))

        scale, shift = on_voxels(self.modulate(embedding)).chunk(2, dim=1)
        channelwise = None if clinical is None else on_voxels(self.channelwise(clinical))
        voxelwise = None if spatial is None else self.voxelwise(spatial)
        out = self.norm2(self.conv1(F.silu(self.norm1(x))))
        return x + self.conv2(F.silu(modulated(out, scale, shift, channelwise, voxelwise)))


class UNet(nn.Module):
    """Residual U-Net with additive skips; channels in equal the first level's width, ``outputs`` channels out.

    Parameters
    ----------
    channels, blocks, groups
        Width of each level (each halves the grid), residual blocks per level and direction, groups of a norm.
    embedding
        Width of the vector that modulates every block.
    dims
        2 or 3 spatial axes.
    attention
        Attention of the coarsest level to itself: of all voxels on all, or in time linear in them.
    context
        Width of a text's tokens, read at the two coarsest levels in both directions; 0 for no text.
    gates
        Attention gates on the skips.
    spatial
        Every block takes features of an image for its voxelwise scale.
    clinical
        Width of a vector for every block's channelwise scale; 0 for none.
    heads
        Heads of every attention; a divisor of the widths at which it acts.
    """

    def __init__(
        self,
        channels: Sequence[int],
        blocks: int,
        outputs: int,
        embedding: int,
        groups: int,
        *,
        dims: int = 3,
        attention: Literal["linear", "full"] | None = None,
        context: int = 0,
        gates: bool = False,
        spatial: bool = False,
        clinical: int = 0,
        heads: int = HEADS,
    ):
        super().__init__()
        conv, transposed = CONVOLUTION[dims], TRANSPOSED[dims]

        def block(width: int) -> ResidualBlock:
            return ResidualBlock(width, embedding, groups, dims=dims, spatial=spatial, clinical=clinical)

        def level(width: int) -> nn.ModuleList:
            return nn.ModuleList(block(width) for _ in range(blocks))

        def readers() -> nn.ModuleDict:
            first = max(0, len(channels) - READING_LEVELS) if context else len(channels)
            return nn.ModuleDict(
                {str(i): CrossAttention(channels[i], context, heads) for i in range(first, len(channels))}
            )

        steps = list(zip(channels[:-1], channels[1:], strict=True))
        self.down = nn.ModuleList(level(width) for width in channels)
        self.shrink = nn.ModuleList(conv(a, b, 2, 2) for a, b in steps)
        self.grow = nn.ModuleList(transposed(b, a, 2, 2) for a, b in steps)
        self.up = nn.ModuleList(level(width) for width in channels)
        self.norm = nn.GroupNorm(groups, channels[0])
        self.out = zeroed(conv(channels[0], outputs, 3, padding=1))
        kinds = {"linear": LinearAttention, "full": SelfAttention}
        self.attention = kinds[attention](channels[-1], heads) if attention else None
        self.read_down, self.read_up = readers(), readers()
        self.gates = nn.ModuleList(AttentionGate(width, dims) for width in channels[:-1]) if gates else None
        self.adapts = {"context": bool(context), "spatial": spatial, "clinical": bool(clinical)}

    def trunk(
        self,
        x: Tensor,
        embedding: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        spatial: Sequence[Tensor] | None = None,
        clinical: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """What the last layer is given ``(N, channels[0], …)``, and the features of every block in order.

        Arguments are those of :meth:`forward`. The features fit ``spatial`` of a U-Net of the same widths.
        """
        for name, given in (("context", context), ("spatial", spatial), ("clinical", clinical)):
            if given is not None and not self.adapts[name]:
                raise ValueError(f"this U-Net takes no {name}; build it with {name}, or leave it out")
        features: list[Tensor] = []
        total = sum(len(level) for level in [*self.down, *self.up])
        if spatial is not None and len(spatial) != total:
            raise ValueError(f"{len(spatial)} feature maps for {total} blocks; give one for each block")

        def run(level: nn.ModuleList, x: Tensor) -> Tensor:
            for block in level:
                x = block(x, embedding, None if spatial is None else spatial[len(features)], clinical)
                features.append(x)
            return x

        def read(readers: nn.ModuleDict, i: int, x: Tensor) -> Tensor:
            return readers[str(i)](x, context, context_mask) if str(i) in readers else x

        skips = []
        for i, level in enumerate(self.down):
            if i:
                x = self.shrink[i - 1](x)
            x = read(self.read_down, i, run(level, x))
            skips.append(x)
        if self.attention is not None:
            x = self.attention(x)
        for i in reversed(range(len(self.up))):
            if i < len(skips) - 1:
                x = self.grow[i](x)
                x = x + (skips[i] if self.gates is None else self.gates[i](skips[i], x))
            x = read(self.read_up, i, run(self.up[i], x))
        return x, features

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        spatial: Sequence[Tensor] | None = None,
        clinical: Tensor | None = None,
    ) -> Tensor:
        """Output ``(N, outputs, …)``.

        Parameters
        ----------
        x
            Features ``(N, channels[0], …)``, every extent a multiple of 2^(levels − 1).
        embedding
            ``(N or 1, embedding)``.
        context, context_mask
            Tokens ``(N or 1, T, context)`` and where they are there ``(N or 1, T)``; without them only null tokens are.
        spatial
            One feature map per block, in the order of :meth:`trunk`, each of its block's shape; None as zeros.
        clinical
            ``(N or 1, clinical)``; None as zeros.
        """
        x, _ = self.trunk(x, embedding, context, context_mask, spatial, clinical)
        return self.out(F.silu(self.norm(x)))
