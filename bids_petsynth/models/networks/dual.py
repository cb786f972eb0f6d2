"""Two symmetric arms: one translates a source image and thereby conditions the other, which denoises the target.

Source: PASTA (Li et al., arXiv:2405.16942). The volume is worked on in slabs, its slices as channels (2.5D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from bids_petsynth.models.networks.layers import CONVOLUTION
from bids_petsynth.models.networks.slab import cut, join
from bids_petsynth.models.networks.unet import UNet


class Arm(nn.Module):
    """A 2D U-Net over the slices of one modality, which can denoise that modality or translate it into the other.

    The two tasks share all but their last layer. Time, record and the other arm's features are given to denoising only:
    a clean image's translation depends on nothing else and is computed once for all steps.
    """

    def __init__(
        self, slices: int, channels: Sequence[int], blocks: int, embedding: int, clinical: int, groups: int, **options
    ):
        super().__init__()
        conv = CONVOLUTION[2]
        self.embedding = embedding
        self.stem = conv(slices, channels[0], 3, padding=1)
        self.unet = UNet(
            channels, blocks, slices, embedding, groups, dims=2, spatial=True, clinical=clinical, **options
        )
        self.norm = nn.GroupNorm(groups, channels[0])
        self.translation = conv(channels[0], slices, 3, padding=1)

    def translate(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The other modality ``(N, slices, X, Y)``, and the features of every block."""
        last, features = self.unet.trunk(self.stem(x), x.new_zeros(1, self.embedding))
        return self.translation(F.silu(self.norm(last))), features

    def denoise(self, x: Tensor, time: Tensor, clinical: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Prediction for noisy slices ``(N, slices, X, Y)``, given the other arm's features."""
        return self.unet(self.stem(x), time, spatial=features, clinical=clinical)


@dataclass(frozen=True)
class Conditioning:
    """What the conditioner arm makes of a source, computed once for all steps of a sampler.

    ``translation (N, 1, X, Y, Z)`` is its own guess of the target, ``features`` those of every block, slab by slab.
    """

    translation: Tensor
    features: list[Tensor]

    def repeated(self, draws: int) -> Conditioning:
        """For ``draws`` draws of each person, a person's draws beside each other."""
        if draws == 1:
            return self
        people = len(self.translation)

        def repeat(x: Tensor) -> Tensor:
            return x.unflatten(0, (people, -1)).repeat_interleave(draws, 0).flatten(0, 1)

        return Conditioning(self.translation.repeat_interleave(draws, 0), [repeat(f) for f in self.features])


class DualArm(nn.Module):
    """A conditioner and a denoiser arm that can exchange their roles.

    The conditioner's task is source → target; every block's features give the voxelwise scale of the same block of the
    denoiser, by adaptive group norm beside time (scale and shift) and record (channel scale). ``arms[0]`` is at home in
    the source's modality (T1w) and ``arms[1]`` in the target's (PET). Swapped, ``arms[1]`` translates a PET and
    ``arms[0]`` denoises a T1w, with the same parameters: so a cycle can be closed.

    Parameters
    ----------
    slices
        Slices of a slab; PASTA's is 15.
    channels, blocks, groups
        As for a :class:`UNet`.
    embedding, clinical
        Width of the time's and of the record's vector.
    stride
        Slices from slab to slab in a deeper volume; half a slab if None.
    options
        Others of :class:`UNet`: ``attention``, ``gates``, ``heads``.
    """

    def __init__(
        self,
        slices: int,
        channels: Sequence[int],
        blocks: int,
        embedding: int,
        clinical: int,
        groups: int,
        *,
        stride: int | None = None,
        **options,
    ):
        super().__init__()
        self.slices = slices
        self.stride = max(1, slices // 2) if stride is None else stride
        self.arms = nn.ModuleList(
            Arm(slices, channels, blocks, embedding, clinical, groups, **options) for _ in range(2)
        )

    def condition(self, source: Tensor, swapped: bool = False) -> Conditioning:
        """What the arm of the source's modality gives the other; ``source (N, 1, X, Y, Z)``, free of noise."""
        slabs = cut(source, self.slices, self.stride)
        translation, features = self.arms[1 if swapped else 0].translate(slabs.flatten(0, 1))
        joined = join(translation.view_as(slabs), source.shape[-1], self.stride)
        return Conditioning(joined, features)

    def denoise(
        self, noisy: Tensor, conditioning: Conditioning, time: Tensor, clinical: Tensor, swapped: bool = False
    ) -> Tensor:
        """Prediction ``(N, 1, X, Y, Z)``; arguments as for :meth:`forward`."""
        slabs = cut(noisy, self.slices, self.stride)

        def per_slab(vector: Tensor) -> Tensor:
            return vector.expand(len(noisy), -1).repeat_interleave(slabs.shape[1], 0)

        arm = self.arms[0 if swapped else 1]
        predicted = arm.denoise(slabs.flatten(0, 1), per_slab(time), per_slab(clinical), conditioning.features)
        return join(predicted.view_as(slabs), noisy.shape[-1], self.stride)

    def forward(
        self,
        noisy: Tensor,
        source: Tensor,
        time_embedding: Tensor,
        clinical_embedding: Tensor,
        swapped: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Prediction for the noisy target, and the conditioner's own translation of the source.

        Parameters
        ----------
        noisy, source
            ``(N, 1, X, Y, Z)``; X and Y are multiples of 2^(levels − 1), Z is at least ``slices``.
        time_embedding, clinical_embedding
            ``(N or 1, embedding)`` and ``(N or 1, clinical)``; zeros for a record that is withheld.
        swapped
            The source is a PET and the noisy image a T1w.
        """
        conditioning = self.condition(source, swapped)
        prediction = self.denoise(noisy, conditioning, time_embedding, clinical_embedding, swapped)
        return prediction, conditioning.translation
