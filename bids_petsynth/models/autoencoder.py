"""The trained latent space: MONAI's AutoencoderKL behind the codec's interface."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bids_petsynth.models.codec import BandLimitedCodec
from bids_petsynth.models.recipe import AutoencoderSpec, CodecSpec, Recipe


class Autoencoder(nn.Module):
    """Variational autoencoder of PET volumes; latents are the posterior's mean times ``scale``.

    Volumes are ``(N, X, Y, Z)``, latents ``(N, C, x, y, z)``. The mean, not a sample,
    because sampled latents put a floor under the loss of what is trained on them.
    """

    def __init__(self, recipe: Recipe):
        from monai.networks.nets import AutoencoderKL

        super().__init__()
        spec = recipe.space
        if not isinstance(spec, AutoencoderSpec):
            raise TypeError("the recipe's space is not an autoencoder")
        self.fold = 1
        self.net = AutoencoderKL(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=spec.channels,
            num_res_blocks=spec.blocks,
            norm_num_groups=spec.groups,
            latent_channels=spec.latent_channels,
            # attention over a volume's voxels is unaffordable in 3D
            attention_levels=(False,) * len(spec.channels),
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.register_buffer("scale", torch.ones(()))

    def encode(self, volumes: Tensor) -> Tensor:
        """``(N, X, Y, Z)`` → ``(N, C, x, y, z)``."""
        return self.net.encode(volumes[:, None])[0] * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """``(N, C, x, y, z)`` → ``(N, X, Y, Z)``."""
        return self.net.decode(latents / self.scale)[:, 0]

    def reconstructed(self, volumes: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Volumes decoded from latents that ``noise`` samples, and the latents' mean Kullback–Leibler divergence.

        The divergence is from a standard normal distribution, per latent element (Kingma & Welling, arXiv:1312.6114).
        """
        mean, sd = self.net.encode(volumes[:, None])
        decoded = self.net.decode(mean + sd * noise)
        divergence = 0.5 * (mean**2 + sd**2 - 2 * sd.clamp(min=1e-6).log() - 1).mean()
        return decoded[:, 0], divergence

    @torch.no_grad()
    def fit_scale(self, volumes: Tensor) -> None:
        """Set ``scale`` so that the latents of ``volumes`` have a standard deviation of 1."""
        self.scale.fill_(1.0)
        # one at a time: a whole volume's features fill the memory
        self.scale.fill_(1 / torch.cat([self.encode(one[None]) for one in volumes]).std().item())


def build_space(recipe: Recipe) -> BandLimitedCodec | Autoencoder:
    """The recipe's latent space: a module with ``encode``, ``decode`` and ``fold``."""
    return BandLimitedCodec(recipe) if isinstance(recipe.space, CodecSpec) else Autoencoder(recipe)
