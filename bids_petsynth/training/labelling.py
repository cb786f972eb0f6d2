"""Training of the labelling network, on prepared arrays with torch alone.

``python -m bids_petsynth.training.labelling prepare DATASET ARRAYS`` reads a BIDS dataset whose
``derivatives/dlmuse`` holds DLMUSE segmentations; ``… train ARRAYS OUT`` trains and needs only numpy, torch and
safetensors, so that it runs on a machine without the rest of the project's dependencies.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_petsynth.anatomy.network import LabellingNet
from bids_petsynth.anatomy.regions import n_classes, regions
from bids_petsynth.training.augment import random_head

#: Heads that no training here ever sees: two men and three women from 52 to 74 years.
UNSEEN = ("IXI212", "IXI274", "IXI353", "IXI481", "IXI603")
PATCH = (96, 112, 96)
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
    """Write ``arrays`` (npz): images (uint8), classes with clusters outside the brain, names, poses; RAS, 2 mm."""
    import nibabel as nib
    from sklearn.cluster import KMeans

    from bids_petsynth.anatomy.alignment import align_centroids

    images, classes, names, poses = [], [], [], []
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
        poses.append(align_centroids(np.where(merged < n_classes(), merged, 0), scan.affine).to_template[:3, :3])
    np.savez_compressed(
        arrays, images=np.stack(images), classes=np.stack(classes), names=np.array(names), poses=np.stack(poses)
    )


def dice_and_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy (with class weights) plus 1 − mean soft Dice over the classes that occur in the target."""
    log_p = F.log_softmax(logits.float(), dim=1)
    loss = F.nll_loss(log_p, target, weight)
    p = log_p.exp().flatten(2)[0]
    flat = target.flatten()
    size = torch.bincount(flat, minlength=p.shape[0]).float()
    overlap = torch.zeros_like(size).scatter_add(0, flat, p.gather(0, flat[None])[0])
    dice = (2 * overlap + 1) / (p.sum(1) + size + 1)
    return loss + 1 - dice[size > 0].mean()


@torch.no_grad()
def predict(net: nn.Module, image: Tensor) -> Tensor:
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


def evaluate(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float, Tensor]:
    """Mean and worst brain Dice, and mean Dice per class, over whole heads."""
    brain, classes = [], []
    for image, truth in zip(images, labels, strict=True):
        found = predict(net, image)
        classes.append(dice_by_class(found, truth, n_classes()))
        a, b = found > 0, truth > 0
        brain.append((2 * (a & b).sum() / (a.sum() + b.sum())).item())
    return float(np.mean(brain)), min(brain), torch.stack(classes).nanmean(0)


def train(
    arrays: Path, out: Path, steps: int, seed: int, rate: float, device: str, batch: int, resume: bool, decay: float
) -> None:
    """Train and write ``out/labelling.safetensors`` (EMA weights, float16), ``log.csv`` and ``config.json``."""
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True, exist_ok=True)
    data = np.load(arrays)
    images = torch.from_numpy(data["images"]).float() * (1.5 / 255)
    classes = torch.from_numpy(data["classes"]).long()
    unseen = torch.tensor([name in UNSEEN for name in data["names"].tolist()])
    held = classes[unseen]
    held = torch.where(held < n_classes(), held, 0).to(device)
    torch.manual_seed(seed)
    net = LabellingNet(n_classes()).to(device)
    start = 0
    if resume:
        net.load_state_dict({k: v.float() for k, v in load_file(out / "checkpoint.safetensors").items()})
        start = json.loads((out / "checkpoint.json").read_text())["step"]
    ema = copy.deepcopy(net).eval()
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-4)
    rng = torch.Generator().manual_seed(seed + start)
    tissue = tissue_codes()
    share = torch.bincount(classes[~unseen].flatten(), minlength=n_classes())[: n_classes()].float()
    share = (share / share.sum()).clamp(min=1e-5).to(device)
    seen_images, seen_classes = images[~unseen], classes[~unseen]
    poses = torch.from_numpy(data["poses"]).float()[~unseen]
    (out / "config.json").write_text(
        json.dumps({"steps": steps, "seed": seed, "rate": rate, "batch": batch, "unseen": UNSEEN, "decay": decay})
    )
    began, losses = time.time(), []
    with (out / "log.csv").open("a", newline="") as file:
        log = csv.writer(file)
        for step in range(start, steps):
            warm = min(1.0, (step + 1) / 60)
            for group in optimiser.param_groups:
                group["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            # rare classes are learned first; by the end every voxel counts the same, for an unbiased brain border
            weight = share ** (-0.5 * (1 - step / steps))
            for _ in range(batch):
                pick = int(torch.randint(len(seen_images), (1,), generator=rng))
                image, target = random_head(
                    seen_images[pick], seen_classes[pick], poses[pick], tissue, n_classes(), PATCH, rng
                )
                with torch.autocast(device, torch.bfloat16):
                    logits = net(image[None, None].to(device))
                loss = dice_and_cross_entropy(logits, target[None].to(device), weight) / batch
                loss.backward()
                losses.append(loss.item() * batch)
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            keep = min(decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for a, b in zip(ema.parameters(), net.parameters(), strict=True):
                    a.lerp_(b, 1 - keep)
            if (step + 1) % 100 == 0 or step + 1 == steps:
                brain, worst, per_class = evaluate(ema, images[unseen].to(device), held)
                row = [step + 1, np.mean(losses), brain, worst, per_class.nanmean().item(), time.time() - began]
                log.writerow([f"{x:.4f}" if isinstance(x, float) else x for x in row])
                file.flush()
                losses.clear()
                half = {k: v.half().contiguous() for k, v in ema.state_dict().items()}
                save_file(half, out / "labelling.safetensors")
                save_file(dict(net.state_dict()), out / "checkpoint.safetensors")
                (out / "checkpoint.json").write_text(json.dumps({"step": step + 1, "dice": per_class.tolist()}))


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("prepare")
    one.add_argument("dataset", type=Path)
    one.add_argument("arrays", type=Path)
    two = verbs.add_parser("train")
    two.add_argument("arrays", type=Path)
    two.add_argument("out", type=Path)
    two.add_argument("--steps", type=int, default=2200)
    two.add_argument("--seed", type=int, default=1)
    two.add_argument("--rate", type=float, default=8e-3)
    two.add_argument("--batch", type=int, default=1)
    two.add_argument("--decay", type=float, default=0.995)
    two.add_argument("--device", default="cpu")
    two.add_argument("--resume", action="store_true")
    args = vars(parser.parse_args(argv))
    if args.pop("verb") == "prepare":
        prepare(**args)
    else:
        train(**args)


if __name__ == "__main__":
    main()
