"""What a training step minimises: the error of the recipe's process and the losses that the recipe adds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from bids_petsynth.anatomy.regions import n_classes, region_index
from bids_petsynth.clinical.language import TextReader
from bids_petsynth.devices import fast_autocast
from bids_petsynth.folding import unfold
from bids_petsynth.models.codec import BandLimitedCodec
from bids_petsynth.models.conditioning import is_pet, record_matrix, standardise, tracer_index, withhold
from bids_petsynth.models.denoiser import Denoiser, DualDenoiser, Sources
from bids_petsynth.models.folder import Model
from bids_petsynth.models.processes import build_process
from bids_petsynth.models.regional import Condition
from bids_petsynth.pet.tracers import target_weights
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.training import losses
from bids_petsynth.training.loop import Player, Share
from bids_petsynth.training.pairs import Batch, Pool
from bids_petsynth.training.scaling import Spread

#: Display window of what is no PET, in units of white matter's median: as wide as intensities of the head spread.
OTHER_WINDOW = 2.0
#: Regions that tell atrophy: the mean of a T1w over their labels falls where the one is drawn too small, and rises
#: where the other is.
ATROPHY = ("hippocampus", "lateral_ventricle")
#: People whose decoded scans tell the unit of losses on images.
UNIT_PEOPLE = 8
#: What a batch in parts changes in recipes with that loss.
ALIGNMENT_SHARED = (
    "the alignment of text and image, which compares each example with the others of its part (with none where a part "
    "is a single example)"
)


class Trained(nn.Module):
    """All that a generator's training moves: the network, and the weights of regions where the recipe learns them."""

    def __init__(self, model: Model):
        super().__init__()
        recipe = model.recipe
        self.denoiser = model.denoiser
        self.regions = nn.ModuleDict()
        if recipe.losses.regions != "none":
            learned = recipe.losses.regions == "learned"
            for name in recipe.tracers:
                fixed = dict.fromkeys(target_classes(name), recipe.losses.region_weight)
                self.regions[name] = losses.RegionWeights(model.classes, fixed, learned)


def target_classes(modality: str) -> list[int]:
    """Classes of the composite that sums up a tracer's scan; none for other modalities."""
    if not is_pet(modality):
        return []
    return np.flatnonzero(target_weights(tracer_named(modality), np.ones(n_classes()))).tolist()


def marker_classes(modality: str) -> list[int]:
    """Classes whose means must not drift: every region of a PET scan, what follows :data:`ATROPHY` of others."""
    return list(range(1, n_classes())) if is_pet(modality) else [region_index()[name] for name in ATROPHY]


def split(net: Denoiser | DualDenoiser, latents: Tensor, sources: Sources) -> tuple[Tensor, Tensor | None]:
    """What the denoiser is to draw, and the painting of the regional means beside it where the recipe paints."""
    if sources.painting is None:
        return latents, None
    painted = net.paint(net.measure(latents, sources), sources)
    return latents - painted, painted


@dataclass(frozen=True)
class Example:
    """A share of a batch on the device, ready for the network; ``noise`` and ``t`` are those of its examples.

    ``imaged`` are the examples whose losses on images count in this step (``losses.image_every``).
    """

    batch: Batch
    data: Tensor
    noise: Tensor
    t: Tensor
    sources: Sources
    condition: Condition
    painted: Tensor | None
    mean: Tensor
    sd: Tensor
    labels: Tensor
    imaged: tuple[int, ...]


class Objective:
    """Loss of a training step (see ``training.loop``) of a model on a pool of people.

    Parameters
    ----------
    model
        Its denoiser and space on ``device``.
    texts
        Reads the records' texts, in recipes with a text.

    Notes
    -----
    All losses are means over examples but the alignment of text and image, which compares each example with the others
    of its share (:attr:`shared`).
    """

    def __init__(self, model: Model, pool: Pool, device: str, texts: TextReader | None = None):
        self.model, self.pool, self.device, self.texts = model, pool, device, texts
        self.recipe, self.weights = model.recipe, model.recipe.losses
        self.process = build_process(model.recipe)
        self.net = Trained(model).to(device)
        levels = len(model.recipe.network.channels)
        self._extents = [model.recipe.latent_shape[0] >> level for level in range(levels)]
        self._units: dict[str, float] = {}
        #: What depends on how a batch is shared, see ``training.loop.Loop``.
        self.shared = ALIGNMENT_SHARED if self.weights.alignment else ""
        self.critic: Player | None = None
        if self.weights.adversarial:
            from bids_petsynth.models.networks.discriminator import PatchDiscriminator

            critic = PatchDiscriminator(critic_channels(model.recipe.network.channels[0])).to(device)
            self.critic = Player(critic, self.criticise, model.recipe.training.rate)

    def loss(self, step: int, rng: Generator, share: Share) -> Tensor:
        """Mean over the share's examples."""
        example = self.example(step, rng, share)
        if isinstance(self.net.denoiser, DualDenoiser):
            return self._exchange(example)
        x = self.process.corrupt(example.data, example.noise, example.t)
        output = self._output(x, example)
        total = self.weights.process * self.process.error(output, example.data, example.noise, example.t).mean()
        if self.weights.of_image or len(self.net.regions):
            drawn = self.process.data(output, x, example.t)
            total = total + self._sampled_losses(drawn, example)
        return total

    def criticise(self, step: int, rng: Generator, share: Share) -> Tensor:
        """Loss of the critic on the same share."""
        example = self.example(step, rng, share)
        with torch.no_grad():
            x = self.process.corrupt(example.data, example.noise, example.t)
            drawn = self.process.data(self._output(x, example), x, example.t)
            fake, real = self._image(drawn, example), self._image(example.data, example)
            seen = self._seen(example, real)
        return losses.hinge_d(self.critic.net(real, seen), self.critic.net(fake, seen))

    def example(self, step: int, rng: Generator, share: Share) -> Example:
        """What the share's examples are, the randomness of the whole batch drawn first."""
        recipe, spec, device = self.recipe, self.recipe.conditioning, self.device
        n = recipe.training.batch
        mine = share.of(n)
        # one column where there are no variables: it tells whether the notes are withheld
        kept = withhold(torch.ones(n, max(1, len(spec.variables))), spec, rng)[mine]
        favour = torch.rand(n, max(1, len(spec.sources)), generator=rng)[mine]
        t = self.process.times(n, rng)[mine].to(device)
        noise = torch.randn((n, recipe.latent_channels, *recipe.latent_shape), generator=rng)[mine].to(device)
        starts = torch.rand(n, generator=rng)[mine]
        imaged = tuple(range(share.count(n)))
        if (every := self.weights.image_every) > 1:
            turns = (torch.randperm(n, generator=rng) + torch.randint(every, (), generator=rng)) % every
            imaged = tuple(torch.nonzero(turns[mine] == 0).flatten().tolist())
        batch = self.pool.batch(step, n, rng, mine)
        mean, sd = self.model.scale(batch.tracers, device)
        latents, labels, given, there = batch.latents.to(device), batch.probabilities(device), None, None
        if batch.given is not None:
            there = self._offered(batch.there, favour).to(device)
            source_mean, source_sd = self.model.scale(spec.sources, device)
            given = (batch.given.to(device) - source_mean) / source_sd
        if recipe.network.kind == "dual-arm":
            latents, noise, given, labels = self._slabs(starts, latents, noise, given, labels)
        with fast_autocast(device):
            sources = self.net.denoiser.prepare(batch.t1w.to(device), labels, given, there)
        data, painted = split(self.net.denoiser, latents, sources)
        condition = self._condition(batch, kept)
        return Example(batch, (data - mean) / sd, noise, t, sources, condition, painted, mean, sd, labels, imaged)

    def _offered(self, there: Tensor, favour: Tensor) -> Tensor:
        """Which sources a training example may use: those left by dropping, or a single one of those that are there."""
        spec = self.recipe.conditioning
        if spec.fusion == "concatenation":
            best = torch.where(there, favour, -1.0).argmax(1, keepdim=True)
            return there & torch.zeros_like(there).scatter(1, best, True)
        return there & (favour >= spec.drop_source)

    def _slabs(self, starts: Tensor, *images: Tensor) -> list[Tensor]:
        """The same slab of slices of each example's images; labels on other voxels are interpolated first."""
        slices, depth = self.recipe.network.slices, self.recipe.latent_shape[2]
        first = (starts * (depth - slices + 1)).long().tolist()
        out = []
        for image in images:
            if image.shape[-1] != depth:
                image = F.interpolate(image, self.recipe.latent_shape, mode="trilinear")
            out.append(torch.stack([one[..., k : k + slices] for one, k in zip(image, first, strict=True)]))
        return out

    def _condition(self, batch: Batch, kept: Tensor) -> Condition:
        spec = self.recipe.conditioning
        matrix = record_matrix(batch.records, spec.variables)
        values, mask = standardise(matrix, self.model.variables)
        mask = mask * kept[:, : mask.shape[1]]
        tracers = torch.tensor([tracer_index(name) for name in batch.tracers])
        text = text_mask = None
        if self.texts is not None:
            names = [variable.name for variable in spec.variables]
            # what is withheld from the numbers is withheld from the text; a language model is asked once per person
            told = [
                {k: v for k, v in record.items() if k not in names or row[names.index(k)] or self.texts.style == "llm"}
                for record, row in zip(batch.records, mask.bool().tolist(), strict=True)
            ]
            notes = [str(record.get("notes", "")) for record in batch.records]
            text, text_mask = map(torch.from_numpy, self.texts(told, notes))
            # as in sampling, notes are read where no variable is known; a whole record is withheld with its notes
            noted = torch.tensor([bool(text) for text in notes])[:, None] & kept.any(1, keepdim=True)
            text_mask = text_mask & (mask.any(1, keepdim=True) | noted)
        return Condition(values, mask, tracers, text=text, text_mask=text_mask).to(self.device)

    def _output(self, x: Tensor, example: Example) -> Tensor:
        def network(z: Tensor, t: Tensor) -> Tensor:
            with fast_autocast(self.device, self._extents):
                return self.net.denoiser(z, t, example.sources, example.condition, example.painted)

        return self.process.output(network, x, example.t)

    def _image(self, drawn: Tensor, example: Example) -> Tensor:
        """What standardised latents show ``(N, 1, …)``, in SUVR or the modality's own unit."""
        latents = drawn * example.sd + example.mean
        if example.painted is not None:
            latents = latents + example.painted
        space = self.model.space
        if isinstance(space, BandLimitedCodec):
            return unfold(latents, space.fold)
        with fast_autocast(self.device):
            return space.decode(latents)[:, None].float()

    def _seen(self, example: Example, image: Tensor) -> Tensor:
        """The T1w on the image's voxels, for the critic."""
        return F.interpolate(example.batch.t1w.to(self.device)[:, None], image.shape[2:], mode="area")

    def _unit(self, example: Example) -> Tensor:
        """What errors of images are divided by ``(N, 1, …)``, one number for each modality.

        The SD of the latents where these are an image's voxels, else that of the voxels that they are decoded to, over
        the first people that have the modality.
        """
        if isinstance(self.model.space, BandLimitedCodec):
            return example.sd.mean(1, keepdim=True)
        units = [self._decoded_sd(name) for name in example.batch.tracers]
        return torch.tensor(units, device=self.device).view(-1, *[1] * (example.sd.ndim - 1))

    @torch.no_grad()
    def _decoded_sd(self, modality: str) -> float:
        if modality not in self._units:
            spread = Spread()
            having = (b for b in self.pool.people(self.pool.numbers(0).stop) if modality in b.tracers)
            for batch in islice(having, UNIT_PEOPLE):
                latents = batch.latents[batch.tracers.index(modality)][None]
                spread.add(self.model.space.decode(latents.to(self.device)))
            self._units[modality] = spread.pair("standard")[1][0]
        return self._units[modality]

    def _sampled_losses(self, drawn: Tensor, example: Example) -> Tensor:
        """The share's losses on images from its ``imaged`` examples alone: those of all, on average over steps."""
        if self.weights.image_every == 1:
            return self._image_losses(drawn, example)
        if not example.imaged:
            return drawn.new_zeros(())
        rows = list(example.imaged)
        some = replace(
            example,
            batch=replace(example.batch, tracers=tuple(example.batch.tracers[row] for row in rows)),
            painted=None if example.painted is None else example.painted[rows],
            **{name: getattr(example, name)[rows] for name in ("data", "t", "mean", "sd", "labels")},
        )
        return self._image_losses(drawn[rows], some) * (self.weights.image_every * len(rows) / len(drawn))

    def _image_losses(self, drawn: Tensor, example: Example) -> Tensor:
        """Weighted sum of the losses on images, in units of the modality's SD."""
        w, image = self.weights, self._image(drawn, example)
        with torch.no_grad():
            truth, unit = self._image(example.data, example), self._unit(example)
        a, b = image / unit, truth / unit
        per_example = torch.zeros(len(a), device=self.device)
        extra = torch.zeros((), device=self.device)
        weights: Tensor | float = 1.0
        if len(self.net.regions):
            parts = []
            for row, name in enumerate(example.batch.tracers):
                one = slice(row, row + 1)
                own = _pooled_alike(example.labels[one], a[one])
                of_tracer = self.net.regions[name]
                parts.append(of_tracer(own, a.shape[2:]))
                if of_tracer.log_variance.requires_grad and (w.of_image or w.process):
                    extra = extra + of_tracer.likelihood((a[one] - b[one]).abs(), own) / len(a)
            weights = torch.cat(parts)
        if w.l1:
            per_example = per_example + w.l1 * ((a - b).abs() * weights).flatten(1).mean(1)
        if w.mse:
            per_example = per_example + w.mse * ((a - b).square() * weights).flatten(1).mean(1)
        if w.ssim:
            width = torch.tensor([window(name) for name in example.batch.tracers], device=self.device)
            per_example = per_example + w.ssim * (1 - losses.ssim(image, truth, width))
        if w.laplacian:
            levels = min(5, (min(a.shape[2:]) - 1).bit_length())
            per_example = per_example + w.laplacian * losses.laplacian_loss(a, b, levels)
        if w.clinical:
            labels = _pooled_alike(example.labels, image)
            drifts = [
                losses.clinical_consistency(image[k : k + 1], truth[k : k + 1], labels[k : k + 1], marker_classes(name))
                for k, name in enumerate(example.batch.tracers)
            ]
            per_example = per_example + w.clinical * torch.cat(drifts)
        if w.alignment:
            labels = _pooled_alike(example.labels, image)
            on_labels = F.interpolate(image, labels.shape[2:], mode="area")[:, 0]
            text, seen = self.net.denoiser.aligned(on_labels, labels, example.condition)
            extra = extra + w.alignment * losses.text_image_alignment(text, seen)
        if w.adversarial:
            extra = extra + w.adversarial * losses.hinge_g(self.critic.net(image, self._seen(example, image)))
        return (per_example * self.process.trust(example.t)).mean() + extra

    def _exchange(self, example: Example) -> Tensor:
        """PASTA's losses: each arm draws the other's modality, from the real one and from what the other has drawn."""
        w, net, t = self.weights, self.net.denoiser, example.t
        pet, t1w = example.data, example.sources.features
        other = _other_noise(example.noise)

        def draw(data: Tensor, noise: Tensor, source: Tensor, swapped: bool) -> tuple[Tensor, Tensor]:
            x = self.process.corrupt(data, noise, t)
            translated: list[Tensor] = []

            def network(z: Tensor, times: Tensor) -> Tensor:
                with fast_autocast(self.device):
                    out, translation = net.both(z, times, source, example.condition, swapped)
                translated.append(translation.float())
                return out

            output = self.process.output(network, x, t)
            drawn = self.process.data(output, x, t)
            loss = w.process * self.process.error(output, data, noise, t).mean()
            if not swapped:
                loss = loss + self._image_losses(drawn, example)
            elif w.l1 or w.ssim:
                loss = loss + w.l1 * (drawn - data).abs().mean()
                if w.ssim:
                    width = data.flatten(1).amax(1) - data.flatten(1).amin(1)
                    loss = loss + w.ssim * (1 - losses.ssim(drawn, data, width.clamp(min=1e-3))).mean()
            return loss + w.translation * (translated[0] - data).abs().mean(), drawn

        loss, drawn_pet = draw(pet, example.noise, t1w, False)
        if w.cycle:
            back, drawn_t1w = draw(t1w, other, pet, True)
            exchanged = draw(t1w, other, drawn_pet, True)[0] + draw(pet, example.noise, drawn_t1w, False)[0]
            loss = loss + w.cycle * (back + exchanged)
        return loss


def _other_noise(noise: Tensor) -> Tensor:
    """Noise ``(N, C, X, Y, Z)`` that is nowhere the given one, drawn with it.

    It is moved by half of the field of view: mirrored along an axis of odd length, its middle would stay in place.
    """
    return noise.roll(noise.shape[2] // 2, 2)


def critic_channels(width: int) -> tuple[int, int, int]:
    """Widths of a patch discriminator beside a network that begins with ``width`` channels."""
    return width, 2 * width, 4 * width


def window(modality: str) -> float:
    """Width of a modality's display window, in its unit."""
    if not is_pet(modality):
        return OTHER_WINDOW
    low, high = tracer_named(modality).display
    return high - low


def _pooled_alike(labels: Tensor, image: Tensor) -> Tensor:
    """Labels on voxels that the image's are a whole multiple of, or that are coarser by one."""
    if all(n % m == 0 for n, m in zip(image.shape[2:], labels.shape[2:], strict=True)):
        return labels
    return F.interpolate(labels, image.shape[2:], mode="area")
