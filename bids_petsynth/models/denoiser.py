"""The networks that processes ask: conditioned on images, other scans, record, text, tracer and time.

Plain torch: their training needs nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_petsynth.folding import fold, unfold
from bids_petsynth.models.conditioning import TRACER_SLOTS, RecordEmbedding, time_features, tracer_index
from bids_petsynth.models.networks.dual import Conditioning, DualArm
from bids_petsynth.models.networks.fusion import SourceFusion
from bids_petsynth.models.networks.unet import UNet
from bids_petsynth.models.recipe import Recipe
from bids_petsynth.models.regional import Condition, Painting, regional_means


@dataclass(frozen=True)
class Sources:
    """What is taken from the images, computed once per head for all draws and steps.

    ``features`` is ``(N, channels, x, y, z)`` on the latent grid; ``painting`` paints regional means on the folded
    grid's voxels where the recipe has a regional part. ``given (N, S, C, x, y, z)`` are the recipe's sources in
    standardised latents and ``there (N, S)`` tells which of them are there; ``code (N, E)`` names the one source where
    only one is taken. ``conditioning`` is what PASTA's conditioner arm makes of the source, where it was asked already.
    N may be 1 for a batch of draws of one head.
    """

    features: Tensor
    painting: Painting | None = None
    given: Tensor | None = None
    there: Tensor | None = None
    code: Tensor | None = None
    conditioning: Conditioning | None = None


class Denoiser(nn.Module):
    """A U-Net in a recipe's latent space; what it returns is the process's matter (``models.processes``).

    In a recipe with a regional part the latent is what a painting of the regional means leaves, the painting is a
    second input, and the record is left to the regional flow.

    Parameters
    ----------
    recipe
        Gives shapes, widths and sources.
    classes
        Classes of the label probabilities (background included).

    Notes
    -----
    ``prepare`` takes the T1w ``(N, X, Y, Z)`` (white matter median 1) and the pooled label probabilities
    ``(N, classes, X/p, Y/p, Z/p)`` with p = ``recipe.label_pool``, and of recipes with ``conditioning.sources`` these,
    see :class:`Sources`; ``forward`` takes standardised latents.
    """

    def __init__(self, recipe: Recipe, classes: int):
        super().__init__()
        net, spec = recipe.network, recipe.conditioning
        width, latent = net.channels[0], recipe.latent_channels
        self.images, self.paints = spec.images, recipe.regional is not None
        self.ratio, self.fold = recipe.ratio, recipe.fold
        self.label_fold = max(1, recipe.ratio // recipe.label_pool)
        # a convolution whose kernel is its stride folds space into channels and mixes them
        self.features = nn.ModuleDict()
        if "labels" in self.images:
            self.features["labels"] = nn.Conv3d(classes, width, self.label_fold, self.label_fold)
        if "t1w" in self.images:
            self.features["t1w"] = nn.Conv3d(1, width, recipe.ratio, recipe.ratio)
        self.numeric = spec.numeric and not self.paints
        self.embedding = RecordEmbedding(len(spec.variables) if self.numeric else 0, net.embedding)
        self.stem = nn.Conv3d((2 if self.paints else 1) * latent, width, 3, padding=1)
        context = net.embedding if spec.text else 0
        attention = None if net.attention == "none" else net.attention
        more = {"attention": attention, "context": context, "gates": net.gates}
        self.unet = UNet(net.channels, net.blocks, latent, net.embedding, net.groups, **more)
        self.text = nn.Linear(spec.text.width, context) if spec.text else None
        codes = torch.tensor([tracer_index(name) for name in spec.sources], dtype=torch.long)
        self.register_buffer("codes", codes, persistent=False)
        self.fusion = self.source = None
        if spec.sources and spec.fusion == "attention":
            self.fusion = SourceFusion(len(spec.sources), latent, width, net.embedding)
        elif spec.sources:
            self.source = nn.Conv3d(latent, width, 3, padding=1)
            self.source_code = nn.Embedding(TRACER_SLOTS, net.embedding)
        if recipe.losses.alignment:
            self.align_text = nn.Linear(spec.text.width, net.embedding)
            self.align_image = nn.Linear(classes, net.embedding)

    def prepare(self, t1w: Tensor, labels: Tensor, given: Tensor | None = None, there: Tensor | None = None) -> Sources:
        """Features and painting of N heads."""
        features = t1w.new_zeros(len(t1w), 1, *(n // self.ratio for n in t1w.shape[1:]))
        if "labels" in self.images:
            mixed = self.features["labels"](labels)
            if mixed.shape[2:] != features.shape[2:]:
                mixed = F.interpolate(mixed, features.shape[2:], mode="trilinear")
            features = features + mixed
        if "t1w" in self.images:
            features = features + self.features["t1w"](t1w[:, None])
        sources = Sources(features, self.painting(labels) if self.paints else None, given, there)
        return sources if self.source is None else self._with_one(sources)

    def _with_one(self, sources: Sources) -> Sources:
        """The source that is there, mixed into the features, and its code; nothing where none is."""
        first = sources.there.int().argmax(1)
        rows = torch.arange(len(first), device=first.device)
        any_there = sources.there.any(1)
        image = torch.nan_to_num(sources.given[rows, first])
        mixed = self.source(image) * any_there.view(-1, 1, 1, 1, 1)
        code = self.source_code(self.codes[first]) * any_there[:, None]
        return replace(sources, features=sources.features + mixed, code=code, given=None)

    def settled(self, sources: Sources) -> Sources:
        """The sources with all that no step of a sampler changes; :meth:`prepare` has it already."""
        return sources

    def painting(self, labels: Tensor) -> Painting:
        """How regional means are painted on heads with these label probabilities (as :meth:`prepare` takes them)."""
        with torch.no_grad(), torch.autocast(labels.device.type, enabled=False):
            # regional values are what SUVR is read from: kept in full precision
            pool = self.label_fold // self.fold
            return Painting(F.avg_pool3d(labels.float(), pool) if pool > 1 else labels)

    def paint(self, means: Tensor, sources: Sources) -> Tensor:
        """Regional means ``(N, K)`` painted in the latent space, ``(N, C, x, y, z)``."""
        return fold(sources.painting.paint(means)[:, None], self.fold)

    def measure(self, latents: Tensor, sources: Sources) -> Tensor:
        """Regional means ``(N, K)`` of latents."""
        return sources.painting.measure(unfold(latents, self.fold)[:, 0])

    def forward(
        self, x: Tensor, t: Tensor, sources: Sources, condition: Condition, painted: Tensor | None = None
    ) -> Tensor:
        """Output at ``x (N, C, x, y, z)`` and times ``t (N,)``; ``painted`` as :meth:`paint` gives it."""
        embedding = self.embedding(*_record(condition, self.numeric), condition.tracer, t)
        if sources.code is not None:
            embedding = embedding + sources.code
        # SUVR lies around 1
        x = torch.cat([x, painted - 1], dim=1) if self.paints else x
        hidden = self.stem(x) + sources.features
        if self.fusion is not None:
            # draws of one head share its sources, each with the embedding of its own time
            n = len(x)
            given = sources.given.expand(n, *sources.given.shape[1:])
            hidden = hidden + self.fusion(given, sources.there.expand(n, -1), embedding)
        context = None if self.text is None else self.text(condition.text)
        return self.unet(hidden, embedding, context=context, context_mask=condition.text_mask)

    def aligned(self, images: Tensor, labels: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Vectors ``(N, E)`` of text and image (its regional means) for the alignment loss."""
        # the first token is the whole text's
        return self.align_text(condition.text[:, 0]), self.align_image(regional_means(images, labels))


def _record(condition: Condition, numeric: bool) -> tuple[Tensor, Tensor]:
    nothing = condition.values[:, :0]
    return (condition.values, condition.mask) if numeric else (nothing, nothing)


class DualDenoiser(nn.Module):
    """PASTA's two arms behind the interface of :class:`Denoiser`; its one source is the T1w.

    A volume as deep as ``network.slices`` is one slab: training gives it such, synthesis whole volumes.
    """

    paints = False

    def __init__(self, recipe: Recipe, classes: int):
        super().__init__()
        net = recipe.network
        self.numeric = recipe.conditioning.numeric
        self.time = nn.Sequential(nn.Linear(64, net.embedding), nn.SiLU(), nn.Linear(net.embedding, net.embedding))
        self.record = RecordEmbedding(len(recipe.conditioning.variables) if self.numeric else 0, net.embedding)
        self.arms = DualArm(
            net.slices, net.channels, net.blocks, net.embedding, net.embedding, net.groups, stride=net.stride
        )

    def prepare(self, t1w: Tensor, labels: Tensor, given: Tensor | None = None, there: Tensor | None = None) -> Sources:
        """The source of N heads; the labels are not used."""
        return Sources(given[:, 0], None, given, there)

    def both(
        self, x: Tensor, t: Tensor, source: Tensor, condition: Condition, swapped: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Output at ``x``, and the conditioner arm's own translation of ``source``; ``swapped`` the other way round."""
        return self.arms(x, source, *self._vectors(t, condition), swapped=swapped)

    def settled(self, sources: Sources) -> Sources:
        """The sources with the conditioner arm's features, so that a sampler's steps ask the other arm alone."""
        return replace(sources, conditioning=self.arms.condition(sources.features))

    def _vectors(self, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Embeddings of time and record."""
        clinical = self.record(*_record(condition, self.numeric), condition.tracer, torch.zeros_like(t))
        return self.time(time_features(t, 64)), clinical

    def forward(
        self, x: Tensor, t: Tensor, sources: Sources, condition: Condition, painted: Tensor | None = None
    ) -> Tensor:
        """Output at ``x (N, 1, x, y, z)`` and times ``t (N,)``."""
        conditioning = sources.conditioning or self.arms.condition(sources.features)
        # draws of one head share its conditioning
        conditioning = conditioning.repeated(len(x) // len(conditioning.translation))
        return self.arms.denoise(x, conditioning, *self._vectors(t, condition))


def build_denoiser(recipe: Recipe, classes: int) -> Denoiser | DualDenoiser:
    """The network that a recipe names."""
    return (DualDenoiser if recipe.network.kind == "dual-arm" else Denoiser)(recipe, classes)


def parameters_in_millions(net: nn.Module) -> float:
    """Number of trained parameters / 10⁶."""
    return sum(math.prod(p.shape) for p in net.parameters()) / 1e6
