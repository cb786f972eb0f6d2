"""The band-limited codec: a truncated cosine transform folded into channels, a latent space that needs no training.

Clinical PET resolves 5–8 mm, so almost nothing of it lies above 0.125 cycles/mm. Keeping the cosine coefficients below
such a cutoff and transforming them back on the coarser grid loses nothing that the scanner saw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bids_petsynth.folding import fold, unfold
from bids_petsynth.models.recipe import CodecSpec, Recipe

#: Width in cycles/mm of the bands of frequency that :meth:`BandLimitedCodec.textured` has gains for.
TEXTURE_BAND = 0.01


def dct_matrix(n: int) -> Tensor:
    """Orthonormal DCT-II of length ``n`` as an ``(n, n)`` float64 matrix, one row per frequency.

    Source: Ahmed, Natarajan, Rao, IEEE Trans. Comput. C-23 (1974) 90–93.
    """
    k = torch.arange(n, dtype=torch.float64)[:, None]
    i = torch.arange(n, dtype=torch.float64)[None]
    matrix = math.sqrt(2 / n) * torch.cos(math.pi * (2 * i + 1) * k / (2 * n))
    matrix[0] /= math.sqrt(2)
    return matrix


def band_limit_matrix(n: int, k: int) -> Tensor:
    """``(k, n)`` matrix that takes ``n`` samples to the ``k`` samples of their lowest ``k`` cosine frequencies.

    A constant keeps its value. Its pseudo-inverse is its transpose times ``n / k``.
    """
    return (math.sqrt(k / n) * dct_matrix(k).T @ dct_matrix(n)[:k]).float()


def blur_matrix(n: int, sigma: float) -> Tensor:
    """Gaussian blur of ``n`` samples as an ``(n, n)`` matrix whose rows sum to 1; ``sigma`` in samples."""
    x = torch.arange(n, dtype=torch.float32)
    weight = torch.exp(-0.5 * ((x[:, None] - x) / sigma) ** 2)
    return weight / weight.sum(1, keepdim=True)


def _per_axis(x: Tensor, matrices: list[Tensor]) -> Tensor:
    a, b, c = matrices
    x = torch.einsum("nxyz,cz->nxyc", x, c)
    x = torch.einsum("nxyz,by->nxbz", x, b)
    return torch.einsum("nxyz,ax->nayz", x, a)


class BandLimitedCodec(nn.Module):
    """Linear, without trained parameters; ``decode(encode(x))`` is the orthogonal projection onto the low frequencies.

    Volumes are ``(N, X, Y, Z)``, latents ``(N, fold³, x, y, z)`` in the volume's units.
    """

    def __init__(self, recipe: Recipe):
        super().__init__()
        if not isinstance(recipe.space, CodecSpec):
            raise TypeError("the recipe's space is not a codec")
        self.fold = recipe.fold
        frequency = torch.zeros(())
        for axis, (n, k) in enumerate(zip(recipe.grid.shape, recipe.latent_shape, strict=True)):
            matrix = band_limit_matrix(n, k * self.fold)
            self.register_buffer(f"down{axis}", matrix, persistent=False)
            self.register_buffer(f"up{axis}", matrix.T.contiguous() * (n / (k * self.fold)), persistent=False)
            self.register_buffer(f"cosines{axis}", dct_matrix(k * self.fold).float(), persistent=False)
            along = torch.arange(k * self.fold) / (2 * n * recipe.grid.voxel_size)
            frequency = torch.hypot(frequency[..., None], along)
        self.register_buffer("frequency", frequency, persistent=False)

    def encode(self, volumes: Tensor) -> Tensor:
        """``(N, X, Y, Z)`` → ``(N, fold³, x, y, z)``."""
        return fold(_per_axis(volumes, [self.down0, self.down1, self.down2])[:, None], self.fold)

    def decode(self, latents: Tensor) -> Tensor:
        """``(N, fold³, x, y, z)`` → ``(N, X, Y, Z)``."""
        return _per_axis(unfold(latents, self.fold)[:, 0], [self.up0, self.up1, self.up2])

    def textured(self, latents: Tensor, gains: Sequence[float]) -> Tensor:
        """Latents whose cosine coefficients are multiplied by a gain that depends on their frequency alone.

        Parameters
        ----------
        latents
            ``(N, fold³, x, y, z)``.
        gains
            In the middle of bands of :data:`TEXTURE_BAND` from 0 on. Between them the gain is linear, beyond the last
            one constant; a constant image keeps its value.
        """
        knots = [0.0, *(TEXTURE_BAND * (band + 0.5) for band in range(len(gains)))]
        gain = np.interp(self.frequency.cpu(), knots, [1.0, *gains]).astype(np.float32)
        cosines = [self.cosines0, self.cosines1, self.cosines2]
        there = _per_axis(unfold(latents, self.fold)[:, 0], cosines) * torch.from_numpy(gain).to(latents.device)
        return fold(_per_axis(there, [matrix.T for matrix in cosines])[:, None], self.fold)
