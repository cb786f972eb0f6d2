"""Voxels to channels and back: both kinds of networks work on cubes of voxels. Plain torch."""

from __future__ import annotations

from torch import Tensor


def fold(x: Tensor, factor: int) -> Tensor:
    """Space to depth: ``(N, C, X, Y, Z)`` → ``(N, C·factor³, X/factor, Y/factor, Z/factor)``."""
    n, c, *shape = x.shape
    a, b, d = (s // factor for s in shape)
    x = x.reshape(n, c, a, factor, b, factor, d, factor)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, c * factor**3, a, b, d)


def unfold(x: Tensor, factor: int) -> Tensor:
    """Inverse of :func:`fold`."""
    n, c, a, b, d = x.shape
    c //= factor**3
    x = x.reshape(n, c, factor, factor, factor, a, b, d)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(n, c, a * factor, b * factor, d * factor)
