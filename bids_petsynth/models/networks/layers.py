"""Layers in two or three dimensions, and the initial state in which a residual branch adds nothing."""

from __future__ import annotations

from torch import nn

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters at 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
