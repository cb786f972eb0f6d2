"""A volume as overlapping slabs of slices, and the volume that slabs agree on.

Volumes are ``(N, 1, X, Y, Z)``, slabs ``(N, K, slices, X, Y)``: K slabs whose slices are channels of a 2D network.
"""

from __future__ import annotations

import torch
from torch import Tensor


def starts(depth: int, slices: int, stride: int) -> list[int]:
    """First slice of each slab: every ``stride`` slices, the last slab ending with the volume.

    Raises
    ------
    ValueError
        If a slab does not fit, or slabs leave a gap.
    """
    if not 0 < slices <= depth:
        raise ValueError(f"a slab of {slices} slices does not fit a volume of {depth}; take fewer slices")
    if not 0 < stride <= slices:
        raise ValueError(f"slabs of {slices} slices every {stride} leave gaps; choose a stride of 1 to {slices}")
    last = depth - slices
    return [*range(0, last, stride), last]


def cut(volume: Tensor, slices: int, stride: int) -> Tensor:
    """Slabs ``(N, K, slices, X, Y)`` of a volume ``(N, 1, X, Y, Z)``; a volume of ``slices`` slices is one slab."""
    stack = volume[:, 0].movedim(-1, 1)
    return torch.stack([stack[:, a : a + slices] for a in starts(stack.shape[1], slices, stride)], dim=1)


def weights(depth: int, slices: int, stride: int) -> Tensor:
    """Weight of each slice of each slab ``(K, depth)``, 0 outside the slab; each column sums to 1.

    Before they are made to sum to 1, weights fall linearly from a slab's middle to its ends, where a slice has the
    least context.
    """
    ramp = torch.arange(1, slices + 1, dtype=torch.float64)
    hat = torch.minimum(ramp, ramp.flip(0))
    places = starts(depth, slices, stride)
    raw = torch.zeros(len(places), depth, dtype=torch.float64)
    for row, a in zip(raw, places, strict=True):
        row[a : a + slices] = hat
    return raw / raw.sum(0)


def join(slabs: Tensor, depth: int, stride: int) -> Tensor:
    """Volume ``(N, 1, X, Y, depth)``, the mean of slabs ``(N, K, slices, X, Y)`` by their :func:`weights`.

    Slabs that agree, as those of :func:`cut` do, give the very volume they were cut from, to the bit.
    """
    slices = slabs.shape[2]
    places = starts(depth, slices, stride)
    if slabs.shape[1] != len(places):
        raise ValueError(f"{slabs.shape[1]} slabs for a volume of {depth} slices; it needs {len(places)}")
    by_slab = weights(depth, slices, stride)
    # a running mean: where slabs agree each step adds an exact 0
    shares = (by_slab / by_slab.cumsum(0).clamp(min=1e-12)).to(slabs)
    volume = slabs.new_zeros(len(slabs), depth, *slabs.shape[3:])
    for k, a in enumerate(places):
        within = slice(a, a + slices)
        volume[:, within] = torch.lerp(volume[:, within], slabs[:, k], shares[k, within, None, None])
    return volume.movedim(1, -1)[:, None]
