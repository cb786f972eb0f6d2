"""The labelling network: a 3D U-Net in plain torch, so that it trains wherever torch is."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )


class LabellingNet(nn.Module):
    """U-Net from a T1w patch to class logits.

    Parameters
    ----------
    classes
        Number of classes, background included.
    channels
        Width of each level; each level after the first halves the resolution.

    Notes
    -----
    Input ``(N, 1, X, Y, Z)`` at 2 mm in RAS order, divided by its 99th percentile; every extent must be a
    multiple of ``2 ** (len(channels) - 1)``. Output ``(N, classes, X, Y, Z)``.
    """

    def __init__(self, classes: int, channels: tuple[int, ...] = (16, 32, 64, 128, 192)):
        super().__init__()
        self.channels = tuple(channels)
        self.stem = _block(1, channels[0])
        self.down = nn.ModuleList(
            nn.Sequential(_block(a, b, 2), _block(b, b)) for a, b in zip(channels[:-1], channels[1:], strict=True)
        )
        pairs = list(zip(channels[:-1], channels[1:], strict=True))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, 2) for a, b in pairs)
        self.merge = nn.ModuleList(_block(2 * a, a) for a, _ in pairs)
        self.head = nn.Conv3d(channels[0], classes, 1)

    @property
    def multiple(self) -> int:
        """Every spatial extent must be divisible by this."""
        return 2 ** (len(self.channels) - 1)

    def forward(self, image: Tensor) -> Tensor:
        skips = [self.stem(image)]
        for down in self.down:
            skips.append(down(skips[-1]))
        out = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            out = merge(torch.cat([up(out), skips.pop()], dim=1))
        return self.head(out)
