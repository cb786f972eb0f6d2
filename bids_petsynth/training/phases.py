"""Phases before the paired one: the autoencoder, and pre-training on images made from T1w scans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_petsynth.devices import fast_autocast
from bids_petsynth.errors import UsageError
from bids_petsynth.models.autoencoder import Autoencoder
from bids_petsynth.models.recipe import Recipe
from bids_petsynth.training import losses
from bids_petsynth.training.ground import Ground
from bids_petsynth.training.loop import Loop, Player, Share
from bids_petsynth.training.objective import critic_channels
from bids_petsynth.training.pairs import Pool, TrainingCase, ahead_on

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: Volumes that the scale of an autoencoder's latents is fitted to.
SCALE_PEOPLE = 8


def fit_autoencoder(
    space: Autoencoder,
    recipe: Recipe,
    ground: Ground,
    folder: Path,
    minutes: float | None,
    resume: bool,
    over: bool,
    fabric: Fabric,
    report: Callable[[str], None],
) -> None:
    """Train ``space`` in place on the recipe's modalities, then set its scale; nothing more if that is ``over``."""
    device, spec = str(fabric.device), recipe.space
    pool = Pool(ground.case, lambda volumes: volumes[:, None], *ground.pool, recipe.modalities, ahead=ahead_on(device))
    own = {"steps": spec.training_steps, "rate": spec.rate, "batch": spec.batch or recipe.training.batch, "patience": 0}
    training = recipe.training.model_copy(update=own)
    space.to(device)
    extents = [recipe.grid.shape[0] >> level for level in range(len(spec.channels))]
    critic = None
    if spec.adversarial:
        from bids_petsynth.models.networks.discriminator import PatchDiscriminator

        critic = PatchDiscriminator(critic_channels(spec.channels[0]), sources=0).to(device)

    def example(step: int, rng: Generator, share: Share) -> tuple[Tensor, Tensor]:
        noise = torch.randn(training.batch, spec.latent_channels, *recipe.latent_shape, generator=rng)
        volumes = pool.batch(step, training.batch, rng, share.of(training.batch)).latents[:, 0]
        return volumes.to(device), noise[share.of(training.batch)].to(device)

    def loss(step: int, rng: Generator, share: Share) -> Tensor:
        volumes, noise = example(step, rng, share)
        with fast_autocast(device, extents):
            decoded, divergence = space.reconstructed(volumes, noise)
        total = F.l1_loss(decoded.float(), volumes) + spec.kl * divergence
        if critic is not None:
            total = total + spec.adversarial * losses.hinge_g(critic(decoded[:, None].float()))
        return total

    def criticise(step: int, rng: Generator, share: Share) -> Tensor:
        volumes, noise = example(step, rng, share)
        with torch.no_grad(), fast_autocast(device):
            decoded = space.reconstructed(volumes, noise)[0].float()
        return losses.hinge_d(critic(volumes[:, None]), critic(decoded[:, None]))

    player = None if critic is None else Player(critic, criticise, spec.rate)
    loop = Loop(space, loss, training, folder, minutes, fabric, player, "autoencoder")
    if resume:
        loop.resume()
    go_on(loop, over, report)
    space.load_state_dict(loop.ema.state_dict())
    space.cpu().eval()
    with torch.no_grad():
        people = pool.people(min(SCALE_PEOPLE, pool.numbers(0).stop))
        space.fit_scale(torch.cat([batch.latents[:, 0] for batch in people]))


def go_on(loop: Loop, over: bool, report: Callable[[str], None]) -> None:
    """Train an early phase to its end; one that is ``over``, since a later one rests on it, stays as it is."""
    if not over:
        loop.run(every=20, report=lambda line: report(f"{loop.phase}: {line}"))
    elif loop.first:
        report(f"{loop.phase}: stays as an earlier run left it after {loop.state.step} steps")


#: Makes a PET-like image of a T1w: ``(t1w, brain, reference PET, its brain)``, each ``(X, Y, Z)`` → ``(X, Y, Z)``.
Style = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def choose_style(recipe: Recipe, vgg19: Path | None, device: str) -> Style:
    """The style transfer that a recipe's pre-training asks for.

    Raises
    ------
    UsageError
        If it needs weights that were not given, or cannot be read.
    """
    from bids_petsynth.training.style import read_vgg19, statistics_transfer, vgg_transfer

    kind = recipe.pretraining.style
    if kind == "none":
        return lambda t1w, brain, pet, its: t1w
    if kind == "statistics":
        return lambda t1w, brain, pet, its: statistics_transfer(t1w, pet, brain, its)
    if vgg19 is None:
        raise UsageError(
            f"The recipe {recipe.name} pre-trains in the style of VGG19's features; give its weights with "
            '--vgg19 FILE, or set pretraining.style = "statistics".'
        )
    net = read_vgg19(vgg19).to(device)
    return lambda t1w, brain, pet, its: vgg_transfer(t1w, pet, net, brain, its)


def styled(ground: Ground, transfer: Style) -> Callable[[int], TrainingCase]:
    """Number → case whose scans are its T1w in the style of another person's scan of the same tracer.

    Heads without any PET take part, too (``ground.unpaired``), in turn with the others, and so does, every third time,
    PET without a T1w (``ground.references``) of a tracer that the other case has, as bright as its scan.
    """

    def make(number: int) -> TrainingCase:
        alone, people = ground.unpaired, ground.pool[0]
        place = number // 2 if alone else number
        case = alone[place % len(alone)]() if alone and number % 2 else ground.case(place)
        # a turn later another partner; the next in line may be another session of the same person
        partners = (ground.case(place + 1 + place // people + more) for more in range(people))
        other = next((partner for partner in partners if partner.head != case.head), case)
        brain, its = ((c.measured > 0).numpy() for c in (case, other))
        styles = {tracer: (scan.numpy(), its) for tracer, scan in other.pet.items()}
        fitting = [(tracer, read) for tracer, read in ground.references if tracer in styles]
        if fitting and number % 3 == 2:
            tracer, read = fitting[number // 3 % len(fitting)]
            uptake, where = read()
            styles[tracer] = (uptake * styles[tracer][0][its].mean(), where)
        pet = {tracer: transfer(case.t1w.numpy(), brain, *style) for tracer, style in styles.items()}
        return replace(case, pet={name: torch.from_numpy(np.ascontiguousarray(v)).float() for name, v in pet.items()})

    return make
