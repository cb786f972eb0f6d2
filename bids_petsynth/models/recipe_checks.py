"""What of a recipe does not fit together, told when it is loaded and not hours into a training."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING

from bids_petsynth.clinical.variables import variables
from bids_petsynth.tables import read_table

if TYPE_CHECKING:
    from bids_petsynth.models.recipe import Recipe

#: Heads of every attention, between which the widths at which it acts are shared.
HEADS = 4
#: Voxels along each axis that SSIM's window takes.
SSIM_WINDOW = 11


def misfits(recipe: Recipe) -> Iterator[str]:
    """Sentences on a recipe, each with the field and the remedy; none for one that holds together."""
    yield from _names(recipe)
    yield from _shapes(recipe)
    yield from _inputs(recipe)
    if recipe.regional:
        yield from _regional(recipe)
    if recipe.network.kind == "dual-arm":
        yield from _dual_arm(recipe)
    yield from _widths(recipe)
    yield from _losses(recipe)


def unheeded(recipe: Recipe) -> Iterator[str]:
    """Sentences as :func:`misfits`, on choices that a training would not heed or could not learn by.

    Models that were trained so can be used, so only a recipe that is to be trained is asked.
    """
    losses, spec = recipe.losses, recipe.conditioning
    dual = recipe.network.kind == "dual-arm"
    learns, learns_first = (
        weights.process or weights.of_image or (dual and weights.translation)
        for weights in (losses, losses.model_copy(update={"laplacian": 0.0}))
    )
    if not learns:
        yield "losses: every weight is 0, so nothing would be learned; set process or another one above 0"
    elif recipe.pretraining and not learns_first:
        yield "losses.laplacian is of pairs alone, so nothing would be learned in pretraining; set process above 0"
    if losses.regions != "none" and not (losses.l1 or losses.mse):
        yield 'losses.regions weighs voxels of l1 and mse, which are 0; set one of them above 0 or regions to "none"'
    if losses.image_every > 1 and not losses.of_image:
        yield "losses.image_every chooses examples for losses on images, which are 0; set it to 1"
    if losses.alignment and recipe.training.batch == 1:
        yield "losses.alignment compares examples of a batch; set training.batch to 2 or more, or the loss to 0"
    if dual and spec.images:
        yield 'conditioning.images: network.kind "dual-arm" is shown its source alone; set it to []'
    if spec.drop_source and (dual or not spec.sources or spec.fusion == "concatenation"):
        yield 'conditioning.drop_source withholds sources from fusion "attention" in network.kind "unet"; set it to 0'
    if recipe.process.kind == "ddpm" and recipe.process.sampler == "ddpm" and recipe.process.eta:
        yield 'process.eta belongs to sampler "ddim"; set it to 0'


def _names(recipe: Recipe) -> Iterator[str]:
    """Of variables, targets and sources."""
    modalities = [row["code"] for row in read_table("tracer_codes.tsv")]
    asked = {
        "conditioning.variables": ([spec.name for spec in recipe.conditioning.variables], list(variables())),
        "tracers": (recipe.tracers, modalities),
        "conditioning.sources": (recipe.conditioning.sources, modalities),
    }
    for field, (names, known) in asked.items():
        for name in names:
            if name not in known:
                near = get_close_matches(name, known, 1)
                remedy = f"did you mean {near[0]}?" if near else f"use some of {', '.join(known)}"
                yield f"{field}: there is no {name}; {remedy}"
    if len(set(recipe.tracers)) < len(recipe.tracers):
        yield "tracers: one is listed twice; list each one once"


def _shapes(recipe: Recipe) -> Iterator[str]:
    """Of the grid and the latent."""
    space = recipe.space
    if space.kind == "codec":
        exact = space.fold / (2 * space.cutoff * recipe.grid.voxel_size)
        if abs(exact - round(exact)) > 1e-6 or round(exact) < space.fold:
            yield "space.cutoff: fold / (2 · cutoff · voxel_size) must be a whole number ≥ fold; change cutoff"
    multiple = recipe.ratio * 2 ** (len(recipe.network.channels) - 1)
    # a 2.5D network halves within slices alone
    if any(n % multiple for n in recipe.grid.shape[: 2 if recipe.network.kind == "dual-arm" else 3]):
        yield (
            f"grid.shape: every extent must be a multiple of {multiple} for this space and network; change it, or use "
            "fewer network.channels"
        )
    if any(n % recipe.label_pool for n in recipe.grid.shape):
        yield f"grid.shape: every extent must be a multiple of {recipe.label_pool}; change it"


def _inputs(recipe: Recipe) -> Iterator[str]:
    """Of what the network is shown."""
    spec = recipe.conditioning
    if blind := [name for name in recipe.tracers if not spec.images and not set(spec.sources) - {name}]:
        yield (
            f"conditioning: nothing of the person is shown to a network that draws {blind[0]}; list some as images "
            '("t1w", "labels") or sources ("T1w" …)'
        )
    if "T1w" in recipe.tracers and spec.images:
        yield (
            f'conditioning.images: "{spec.images[0]}" gives away the T1w that is to be drawn; put "T1w" into '
            "conditioning.sources in its place, or take it out of tracers"
        )


def _regional(recipe: Recipe) -> Iterator[str]:
    if recipe.space.kind != "codec" or "labels" not in recipe.conditioning.images:
        yield 'regional: painted regions need a codec and "labels" among conditioning.images; add them'
    label_fold = recipe.ratio // recipe.label_pool
    if recipe.ratio % recipe.label_pool or recipe.fold < 2 or label_fold % recipe.fold:
        yield (
            "space: labels pooled to half the latent's voxels do not fit its fold; choose cutoff and fold so that "
            "fold / (2 · cutoff · voxel_size) is 4, 8 … with fold 2"
        )
    if recipe.process.kind != "rectified-flow":
        yield "process: a recipe with a regional part is a rectified flow; change one of them"


def _dual_arm(recipe: Recipe) -> Iterator[str]:
    net, depth = recipe.network, recipe.latent_shape[2]
    spec = recipe.conditioning
    if recipe.space.kind != "codec" or recipe.fold != 1 or spec.sources != ("T1w",) or spec.text is not None:
        yield 'network.kind "dual-arm" takes a codec with fold 1, the one source "T1w", and no text'
    if net.attention != "none" or net.gates:
        yield 'network: the kind "dual-arm" has neither attention nor gates; leave them out'
    if net.slices > depth:
        yield f"network.slices: the volume has {depth}; lower it"
    if net.stride > net.slices:
        yield f"network.stride: slabs of {net.slices} slices would leave gaps; use {net.slices} or fewer"
    if recipe.losses.ssim and net.slices < SSIM_WINDOW:
        yield f"network.slices: losses.ssim needs {SSIM_WINDOW}; use more slices or set the loss to 0"
    if recipe.losses.adversarial:
        yield 'losses.adversarial: network.kind "dual-arm" has no critic; set it to 0'


def _widths(recipe: Recipe) -> Iterator[str]:
    """Of the network's levels."""
    net, spec = recipe.network, recipe.conditioning
    if any(c % net.groups for c in net.channels):
        yield "network.channels: each must be a multiple of network.groups; change one of them"
    if net.kind == "dual-arm":
        return
    attending = {}
    if net.attention != "none":
        attending["network.attention"] = net.channels[-1:]
    if spec.text is not None:
        attending["conditioning.text"] = net.channels[-2:]
    if spec.sources and spec.fusion == "attention":
        attending["conditioning.fusion"] = net.channels[:1]
    for field, widths in attending.items():
        if any(c % HEADS for c in widths):
            yield f"network.channels: {field} needs multiples of {HEADS}; change {' and '.join(map(str, widths))}"


def _losses(recipe: Recipe) -> Iterator[str]:
    losses = recipe.losses
    if recipe.network.kind != "dual-arm" and (losses.translation or losses.cycle):
        yield 'losses: translation and cycle belong to network.kind "dual-arm"; set them to 0'
    if losses.alignment and recipe.conditioning.text is None:
        yield "losses.alignment needs conditioning.text; add it or set the loss to 0"
    if losses.image_every > 1 and (losses.alignment or losses.adversarial or recipe.network.kind == "dual-arm"):
        yield (
            'losses.image_every: alignment, adversarial and network.kind "dual-arm" look at every example; leave it out'
        )
    # an autoencoder's losses look at its decoded volumes
    image = recipe.grid.shape if recipe.space.kind == "autoencoder" else [n * recipe.fold for n in recipe.latent_shape]
    if losses.ssim and min(image) < SSIM_WINDOW:
        yield f"losses.ssim needs images of {SSIM_WINDOW} voxels along each axis; set it to 0"
