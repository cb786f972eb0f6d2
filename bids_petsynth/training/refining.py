"""Training of the network that sharpens labels, on heads as ``participant`` sees them.

``python -m bids_petsynth.training.refining GRID OUT`` trains on the heads that ``training.grid heads`` prepared, with
the installed labelling network. What lies between the labelling network and this one (averaging, the model grid) is as
in use, and images keep a real contrast: contrasts made from labels would have borders where the labels have them, not
where a scan shows them.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from bids_petsynth.anatomy.network import UNet, refining_net
from bids_petsynth.anatomy.regions import n_classes
from bids_petsynth.anatomy.segmentation import PLACEMENTS, averaged, load_network, normalised, usual_contrast
from bids_petsynth.devices import fast_autocast
from bids_petsynth.training.augment import chance, normal, smooth_field, uniform
from bids_petsynth.training.labelling import (
    UNSEEN,
    Plan,
    class_weight,
    evaluate,
    fit,
    loss_and_gradient,
    plan_options,
    take_plan,
)

#: The window of the grid that one step sees; a brain fits in.
WINDOW = (72, 92, 72)
#: Readings of each head by the labelling network, the first of the image as it is.
READINGS = 2
#: SD of the smooth noise on the labelling network's logits, and the voxels between its knots: that network knows the
#: heads of training better than those it will meet. With this noise its Dice on them is that on unseen ones.
NOISE, KNOTS = 1.2, 6
#: SD of the logarithm of the power that images are raised to: how far the usual contrast may be off.
CONTRAST = 0.08


@dataclass(frozen=True)
class Reading:
    """A head in :data:`WINDOW`: T1w in the usual contrast ``(X, Y, Z)``, logits ``(C, X, Y, Z)``, true classes."""

    image: Tensor
    logits: Tensor
    classes: Tensor


def varied(image: Tensor, rng: Generator) -> Tensor:
    """An image with another contrast, bias field and noise."""
    image = image.clamp(min=0) ** math.exp(CONTRAST * normal(rng, 1).clamp(-2, 2).item())
    image = image * torch.exp(uniform(rng, 0.0, 0.06) * smooth_field(rng, tuple(image.shape), (4, 4, 4))[0, 0])
    noisy = image * uniform(rng, 0.95, 1.05) + uniform(rng, 0.0, 0.03) * normal(rng, *image.shape)
    return noisy.clamp(min=0)


@torch.inference_mode()
def read(net: UNet, image: Tensor, classes: Tensor, device: str) -> Reading:
    """What the labelling network says of a head on the whole grid, cut to the window around the brain."""
    image = torch.from_numpy(normalised(image.numpy()))
    logits = averaged(net, image.to(device), PLACEMENTS).cpu()
    image = usual_contrast(image, logits.softmax(0))
    classes = torch.where(classes < n_classes(), classes, 0)
    where = (classes > 0).nonzero()
    middle = (where.amin(0) + where.amax(0)) // 2
    cut = []
    for n, m, w in zip(classes.shape, middle.tolist(), WINDOW, strict=True):
        first = min(max(0, m - w // 2), max(0, n - w))
        cut.append(slice(first, first + w))
    own = tuple(cut)
    return Reading(image[own].half(), logits[(slice(None), *own)].half().clone(), classes[own].clone())


def train(arrays: Path, out: Path, plan: Plan, device: str = "cpu") -> None:
    """Train the ``refining`` network (see :func:`bids_petsynth.training.labelling.fit`)."""
    torch.manual_seed(plan.seed)
    labelling, net = load_network("labelling", device=device), refining_net(n_classes()).to(device)
    seen: list[list[Reading]] = []
    held: list[Reading] = []
    with np.load(arrays, allow_pickle=False) as data:
        heads = zip(data["names"].tolist(), data["t1w"], data["classes"], strict=True)
        for number, (name, t1w, classes) in enumerate(heads):
            image, truth = torch.from_numpy(t1w).float(), torch.from_numpy(classes).long()
            rng = torch.Generator().manual_seed(plan.seed * 1_000_003 - 1 - number)
            if name in UNSEEN:
                held.append(read(labelling, image, truth, device))
            else:
                images = [image, *(varied(image, rng) for _ in range(READINGS - 1))]
                seen.append([read(labelling, one, truth, device) for one in images])
    weight = class_weight(torch.stack([readings[0].classes for readings in seen]), device)

    def example(step: int) -> Reading:
        rng = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        readings = seen[int(torch.randint(len(seen), (1,), generator=rng))]
        one = readings[int(torch.randint(len(readings), (1,), generator=rng))]
        knots = tuple(n // KNOTS for n in one.classes.shape)
        logits = one.logits.float() + NOISE * smooth_field(rng, tuple(one.classes.shape), knots, n_classes())[0]
        axes = (0,) if chance(rng, 0.5) else ()
        image = varied(one.image.float(), rng)
        return Reading(image.flip(axes), logits.flip([a + 1 for a in axes]), one.classes.flip(axes))

    def refined(net: nn.Module, one: Reading) -> Tensor:
        with fast_autocast(device):
            return net(one.image.float()[None, None].to(device), one.logits.float()[None].to(device))[0]

    def learn(one: Reading, done: float) -> float:
        logits = refined(net, one)
        target = one.classes.flatten().to(device)
        value, gradient = loss_and_gradient(logits.view(n_classes(), -1), target, weight(done))
        logits.backward(gradient.view_as(logits))
        return value.item()

    @torch.inference_mode()
    def judge(ema: nn.Module) -> tuple[float, float, float]:
        return evaluate([refined(ema, one).argmax(0).cpu() for one in held], [one.classes for one in held])

    fit("refining", net, out, plan, example, learn, judge)


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("out", type=Path)
    plan_options(parser, steps=4000, rate=3e-3)
    args = vars(parser.parse_args(argv))
    train(plan=take_plan(args), **args)


if __name__ == "__main__":
    main()
