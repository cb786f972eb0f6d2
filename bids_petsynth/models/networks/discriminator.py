"""The critic of a conditional GAN: is this patch of an image real, given the source it is said to belong to?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from bids_petsynth.models.networks.layers import CONVOLUTION

#: Slope of the leaky rectifier below 0 (Isola et al., arXiv:1611.07004).
SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """Scores of overlapping patches of an image beside its source, every layer of spectral norm 1.

    Each width halves the grid (kernel 4, stride 2); a last convolution of kernel 3 gives one score per place. Patches
    after Isola et al. (arXiv:1611.07004), spectral norm after Miyato et al. (arXiv:1802.05957): it bounds how fast a
    score may change, so that no other norm is needed and a batch of one will do.

    Parameters
    ----------
    channels
        Width of each level.
    images, sources
        Channels of the image and of the source; 0 sources for none.
    dims
        2 or 3 spatial axes.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128), images: int = 1, sources: int = 1, dims: int = 3):
        super().__init__()
        conv, widths = CONVOLUTION[dims], [images + sources, *channels]
        self.sources = sources
        self.levels = nn.ModuleList(
            spectral_norm(conv(a, b, 4, 2, padding=1)) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.out = spectral_norm(conv(widths[-1], 1, 3, padding=1))

    @property
    def patch(self) -> int:
        """Voxels of a patch along each axis."""
        # from the last layer back: 3, then each level makes p to 2 (p − 1) + 4
        return 5 * 2 ** len(self.levels) - 2

    def forward(self, image: Tensor, source: Tensor | None = None) -> Tensor:
        """Scores ``(N, 1, …)``, one per 2^levels voxels and axis; ``source`` lies on the image's grid."""
        given = 0 if source is None else source.shape[1]
        if given != self.sources:
            raise ValueError(f"a source of {given} channels for a discriminator that takes {self.sources}")
        x = image if source is None else torch.cat([image, source], dim=1)
        for level in self.levels:
            x = F.leaky_relu(level(x), SLOPE)
        return self.out(x)
