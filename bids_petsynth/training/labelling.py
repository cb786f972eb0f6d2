"""Training of the networks that find and label a head, on prepared arrays with torch alone.

``python -m bids_petsynth.training.labelling prepare DATASET ARRAYS`` reads a BIDS dataset whose
``derivatives/dlmuse`` holds DLMUSE segmentations; ``… train locating ARRAYS OUT`` and ``… train labelling ARRAYS OUT``
train and need only numpy, torch and safetensors, so that they run on a machine without the rest of the project's
dependencies.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_petsynth.anatomy.network import LABEL_SHAPE, LABEL_SPACING, UNet, labelling_net, locating_net
from bids_petsynth.anatomy.regions import n_classes, regions
from bids_petsynth.folding import fold
from bids_petsynth.training.augment import Pose, most_common, on_grid, random_head
from bids_petsynth.training.checkpoint import load_checkpoint, store_checkpoint

#: Heads that no training here ever sees: two men and three women from 52 to 74 years.
UNSEEN = ("IXI212", "IXI274", "IXI353", "IXI481", "IXI603")
CLUSTERS = 4
_TISSUE = {"csf": 1, "gm": 2, "wm": 3, "deep": 4}


def tissue_codes() -> Tensor:
    """Tissue code of every class, clusters outside the brain included (see ``augment.synthetic_contrast``)."""
    codes = [0] + [_TISSUE[r.tissue] for r in regions()] + [5] * CLUSTERS
    return torch.tensor(codes)


def merge_dlmuse(labels: np.ndarray) -> np.ndarray:
    """DLMUSE labels → this project's classes; two unnamed labels take the nearest named one's class."""
    from scipy.ndimage import distance_transform_edt

    table = np.zeros(256, np.uint8)
    for region in regions():
        table[list(region.dlmuse)] = region.index
    merged = table[labels]
    unnamed = (labels > 0) & (merged == 0)
    if unnamed.any():
        nearest = distance_transform_edt(merged == 0, return_distances=False, return_indices=True)
        merged[unnamed] = merged[tuple(axis[unnamed] for axis in nearest)]
    return merged


def prepare(dataset: Path, arrays: Path) -> None:
    """Write ``arrays`` (npz): images (uint8), classes with clusters outside the brain, names, maps; RAS, 2 mm.

    ``maps`` ``(N, 4, 4)`` take voxels of the model grid to voxels of the head.
    """
    import nibabel as nib
    from sklearn.cluster import KMeans

    from bids_petsynth.anatomy.alignment import align_centroids

    images, classes, names, maps = [], [], [], []
    for path in sorted(dataset.glob("sub-*/anat/*_T1w.nii.gz")):
        name = path.name.split("_")[0].removeprefix("sub-")
        found = sorted((dataset / "derivatives" / "dlmuse" / f"sub-{name}" / "anat").glob("*_dseg.nii.gz"))
        scan = nib.as_closest_canonical(nib.load(path))
        merged = merge_dlmuse(np.asarray(nib.as_closest_canonical(nib.load(found[0])).dataobj).astype(np.uint8))
        data = scan.get_fdata(dtype=np.float32)
        data = np.clip(data / np.percentile(data, 99), 0, 1.5)
        outside = (merged == 0) & (data > 0.06)
        cluster = KMeans(CLUSTERS, n_init=2, random_state=0).fit(data[outside][:, None])
        order = np.argsort(np.argsort(cluster.cluster_centers_[:, 0]))
        merged[outside] = n_classes() + order[cluster.labels_]
        images.append((data / 1.5 * 255).round().astype(np.uint8))
        classes.append(merged)
        names.append(name)
        aligned = align_centroids(np.where(merged < n_classes(), merged, 0), scan.affine)
        maps.append(np.linalg.inv(scan.affine) @ aligned.grid(LABEL_SHAPE, LABEL_SPACING).affine)
    np.savez_compressed(
        arrays, images=np.stack(images), classes=np.stack(classes), names=np.array(names), maps=np.stack(maps)
    )


def loss_and_gradient(logits: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy plus 1 − mean soft Dice over the classes that occur, and its gradient in closed form.

    One softmax serves both: by automatic differentiation this loss costs as much as the network.

    Parameters
    ----------
    logits, target
        ``(C, N)`` and ``(N,)`` int64.
    weight
        ``(C,)`` weight of each class in the cross-entropy.
    """
    p = torch.softmax(logits.detach().float(), 0)
    own = p.gather(0, target[None])[0]
    w = weight[target]
    w = w / w.sum()
    size = torch.bincount(target, minlength=len(p)).float()
    overlap = torch.zeros_like(size).scatter_add(0, target, own)
    over, under = 2 * overlap + 1, p.sum(1) + size + 1
    there = (size > 0) / (size > 0).sum()
    value = 1 - (w * own.clamp(min=1e-12).log()).sum() - (there * over / under).sum()
    rise, gain = there * over / under**2, 2 * there / under
    pull = own * gain[target]
    gradient = p * (w + pull - rise @ p)
    gradient.addcmul_(p, rise[:, None])
    gradient.scatter_add_(0, target[None], -(w + pull)[None])
    return value, gradient.to(logits.dtype)


@torch.no_grad()
def predict(net: UNet, image: Tensor) -> Tensor:
    """Classes of a whole head ``(X, Y, Z)``, padded to what the network takes."""
    pad = [(-n) % net.multiple for n in image.shape]
    padded = F.pad(image, (0, pad[2], 0, pad[1], 0, pad[0]))
    with torch.autocast(image.device.type, torch.bfloat16):
        out = net(padded[None, None])[0].argmax(0)
    return out[tuple(slice(n) for n in image.shape)]


def dice_by_class(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Dice of every class but the background; NaN where neither has it."""
    same = torch.bincount(target[predicted == target], minlength=classes)
    total = torch.bincount(predicted.flatten(), minlength=classes) + torch.bincount(target.flatten(), minlength=classes)
    return (2 * same / total)[1:]


def evaluate(found: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[float, float, float]:
    """Mean and worst brain Dice, and the mean over classes, of whole heads' classes against their true ones."""
    brain, classes = [], []
    for one, truth in zip(found, labels, strict=True):
        classes.append(dice_by_class(one, truth, n_classes()))
        a, b = one > 0, truth > 0
        brain.append((2 * (a & b).sum() / (a.sum() + b.sum())).item())
    return float(np.mean(brain)), min(brain), torch.stack(classes).nanmean(0).nanmean().item()


@dataclass(frozen=True)
class Task:
    """What the locating or the labelling network is trained on.

    Attributes
    ----------
    images, classes, maps
        The heads, their classes with clusters of soft tissue, and the maps from the network's grid.
    shape, window
        The network's grid, and the window of it that one step sees.
    pose
        How far a training head may stand from its pose on the grid.
    """

    net: UNet
    images: Tensor
    classes: Tensor
    maps: Tensor
    shape: tuple[int, int, int]
    window: tuple[int, int, int]
    pose: Pose


def make_task(network: str, data: dict[str, np.ndarray]) -> Task:
    """``locating``: half the resolution and any pose. ``labelling``: nearly aligned, in windows that hold the brain."""
    images = torch.from_numpy(data["images"]).float() * (1.5 / 255)
    classes = torch.from_numpy(data["classes"]).long()
    maps = torch.from_numpy(data["maps"]).float()
    if network == "labelling":
        pose = Pose(degrees=5, shift=2, scale=0.06, shear=0.03, elastic=1.5, native=0.0)
        return Task(labelling_net(n_classes()), images, classes, maps, LABEL_SHAPE, (80, 96, 80), pose)
    # voxel i of the coarse head is centred between voxels 2i and 2i + 1
    coarse = torch.diag(torch.tensor([2.0, 2, 2, 1]))
    coarse[:3, 3] = 0.5
    maps = torch.linalg.inv(coarse) @ maps @ coarse
    images = F.avg_pool3d(images[:, None], 2)[:, 0]
    pose = Pose(degrees=14, shift=3, scale=0.08, shear=0.04, elastic=0.8, native=0.5)
    shape = tuple(n // 2 for n in LABEL_SHAPE)
    return Task(locating_net(n_classes()), images, most_common(classes), maps, shape, shape, pose)


@dataclass(frozen=True)
class Plan:
    """How a network that reads a head is trained.

    Attributes
    ----------
    rate
        Learning rate after a warm-up of 100 steps; it falls to 0 as a cosine.
    decay
        Of the moving average of the weights, which is what is kept.
    every
        Steps between looks at the unseen heads, each of which stores weights and a checkpoint.
    """

    steps: int
    seed: int
    rate: float
    decay: float
    resume: bool = False
    every: int = 200


def fit(
    name: str,
    net: nn.Module,
    out: Path,
    plan: Plan,
    example: Callable[[int], Any],
    learn: Callable[[Any, float], float],
    judge: Callable[[nn.Module], tuple[float, ...]],
) -> None:
    """Train ``net`` and write ``out/NAME.safetensors`` (EMA weights, float16), ``log.csv`` and ``config.json``.

    Parameters
    ----------
    example
        Makes the example of a step, in a thread of its own and one step ahead. It must depend on the seed and the step
        alone: then a resumed run equals an uninterrupted one.
    learn
        Adds the gradient of an example, given the share of the steps that are done; returns the loss.
    judge
        Figures of the averaged network for the log.
    """
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    ema = copy.deepcopy(net).eval()
    optimiser = torch.optim.AdamW(net.parameters(), lr=plan.rate, weight_decay=1e-4)
    start = 0
    if plan.resume:
        state = load_checkpoint(out, net, ema, optimiser)
        if state is None:
            raise FileNotFoundError(f"{out} holds no checkpoint to resume from")
        start = int(state["step"])
    config = {"network": name, "unseen": UNSEEN} | {k: getattr(plan, k) for k in ("steps", "seed", "rate", "decay")}
    (out / "config.json").write_text(json.dumps(config))
    began, losses = time.time(), []
    with (out / "log.csv").open("a", newline="") as file, ThreadPoolExecutor(1) as ahead:
        log = csv.writer(file)
        waiting = ahead.submit(example, start)
        for step in range(start, plan.steps):
            done = step / plan.steps
            for group in optimiser.param_groups:
                group["lr"] = plan.rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
            made = waiting.result()
            waiting = ahead.submit(example, step + 1)
            optimiser.zero_grad(set_to_none=True)
            losses.append(learn(made, done))
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
            keep = min(plan.decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for a, b in zip(ema.parameters(), net.parameters(), strict=True):
                    a.lerp_(b, 1 - keep)
            if (step + 1) % plan.every == 0 or step + 1 == plan.steps:
                row = [step + 1, np.mean(losses), *judge(ema), time.time() - began]
                log.writerow([f"{x:.4f}" if isinstance(x, float) else x for x in row])
                file.flush()
                losses.clear()
                half = {k: v.half().contiguous() for k, v in ema.state_dict().items()}
                save_file(half, out / f"{name}.safetensors")
                store_checkpoint(out, net, ema, optimiser, {"step": step + 1})


def class_weight(classes: Tensor, device: str) -> Callable[[float], Tensor]:
    """Weights of the classes in the cross-entropy, given the share of the steps that are done.

    Rare classes are learned first; by the end every voxel counts the same, for an unbiased brain border.
    """
    share = torch.bincount(classes.flatten(), minlength=n_classes())[: n_classes()].float()
    share = (share / share.sum()).clamp(min=1e-5).to(device)
    return lambda done: share ** (-0.5 * (1 - done))


def train(network: str, arrays: Path, out: Path, plan: Plan, device: str = "cpu") -> None:
    """Train the ``locating`` or the ``labelling`` network on prepared heads (see :func:`fit`)."""
    data = dict(np.load(arrays))
    torch.manual_seed(plan.seed)
    task = make_task(network, data)
    unseen = torch.tensor([name in UNSEEN for name in data["names"].tolist()])
    net = task.net.to(device)
    held = [
        on_grid(image, classes, grid_map, task.shape)
        for image, classes, grid_map in zip(task.images[unseen], task.classes[unseen], task.maps[unseen], strict=True)
    ]
    held_images = [(image / image[::2, ::2, ::2].quantile(0.99)).to(device) for image, _ in held]
    held_classes = [torch.where(classes < n_classes(), classes, 0).to(device) for _, classes in held]
    seen_images, seen_classes, seen_maps = task.images[~unseen], task.classes[~unseen], task.maps[~unseen]
    weight, tissue = class_weight(seen_classes, device), tissue_codes()

    def example(step: int) -> tuple[Tensor, Tensor, list[int]]:
        rng = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        pick = int(torch.randint(len(seen_images), (1,), generator=rng))
        room = [(n - w) // net.multiple for n, w in zip(task.shape, task.window, strict=True)]
        first = [net.multiple * int(torch.randint(r + 1, (1,), generator=rng)) for r in room]
        head = seen_images[pick], seen_classes[pick], seen_maps[pick]
        image, target = random_head(*head, task.pose, tissue, n_classes(), task.shape, first, task.window, rng)
        return image, target, first

    def learn(made: tuple[Tensor, Tensor, list[int]], done: float) -> float:
        image, target, first = made
        with torch.autocast(device, torch.bfloat16):
            logits = net.folded(image[None, None].to(device), first)
        value, gradient = loss_and_gradient(
            logits.view(n_classes(), -1), fold(target[None, None], 2).flatten().to(device), weight(done)
        )
        logits.backward(gradient.view_as(logits))
        return value.item()

    def judge(ema: nn.Module) -> tuple[float, float, float]:
        return evaluate([predict(ema, image) for image in held_images], held_classes)

    fit(network, net, out, plan, example, learn, judge)


def plan_options(parser: argparse.ArgumentParser, steps: int, rate: float) -> None:
    """Options of a :class:`Plan`, and the device."""
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--decay", type=float, default=0.995)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true")


def take_plan(args: dict[str, Any]) -> Plan:
    """Take the options of a plan out of the parsed ones."""
    return Plan(**{name: args.pop(name) for name in ("steps", "seed", "rate", "decay", "resume")})


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("prepare")
    one.add_argument("dataset", type=Path)
    one.add_argument("arrays", type=Path)
    two = verbs.add_parser("train")
    two.add_argument("network", choices=("locating", "labelling"))
    two.add_argument("arrays", type=Path)
    two.add_argument("out", type=Path)
    plan_options(two, steps=6000, rate=8e-3)
    args = vars(parser.parse_args(argv))
    if args.pop("verb") == "prepare":
        prepare(**args)
    else:
        train(plan=take_plan(args), **args)


if __name__ == "__main__":
    main()
