"""Labelling a T1w with the built-in networks: classes, probabilities, brain mask, sides and geometric cuts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from bids_petsynth.anatomy.network import Refiner, UNet, labelling_net, locating_net, refining_net
from bids_petsynth.anatomy.regions import LEFT, RIGHT, all_regions, n_classes, region_index, regions
from bids_petsynth.devices import fast_autocast
from bids_petsynth.errors import ModelError
from bids_petsynth.tables import data_path, read_table

#: The networks that read a head, by the name of their weights.
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "locating": locating_net,
    "labelling": labelling_net,
    "refining": refining_net,
}
#: Moves (voxels) of the head under which the labelling network reads it: it works at half the resolution, and where its
#: cubes of voxels fall must not matter.
PLACEMENTS = ((0, 0, 0), (1, 1, 1))
#: Grey matter's share of white matter's intensity in the heads of training.
GREY = 0.72


def weights_path(name: str) -> Path:
    """Weights of one of :data:`NETWORKS`."""
    return data_path("models", "labelling", f"{name}.safetensors")


@lru_cache(maxsize=1)
def weights_hash() -> str:
    """SHA-256 of the weights of all :data:`NETWORKS`: results depend on them."""
    found = hashlib.sha256()
    for name in NETWORKS:
        found.update(weights_path(name).read_bytes())
    return found.hexdigest()


@lru_cache(maxsize=4)
def load_network(name: str, path: Path | None = None, device: str = "cpu") -> nn.Module:
    """One of :data:`NETWORKS` with its weights (kept for the life of the process).

    Raises
    ------
    ModelError
        If the weights are missing or do not fit the network.
    """
    from safetensors.torch import load_file

    path = path or weights_path(name)
    if not path.is_file():
        raise ModelError(f"The {name} network's weights are missing ({path}); install the package again.")
    net = NETWORKS[name](n_classes())
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    expected = {name: tensor.shape for name, tensor in net.state_dict().items()}
    if {name: tensor.shape for name, tensor in state.items()} != expected:
        raise ModelError(f"{path} does not fit this version's {name} network; install the package again.")
    net.load_state_dict(state)
    return net.eval().requires_grad_(False).to(device)


def normalised(data: np.ndarray) -> np.ndarray:
    """The network's input: intensities from zero, divided by their 99th percentile."""
    data = data - min(0.0, float(data.min()))
    top = float(np.percentile(data[::2, ::2, ::2], 99))
    return np.clip(data / max(top, 1e-6), 0, 4).astype(np.float32)


def averaged(net: UNet, image: Tensor, moves: Sequence[tuple[int, int, int]] = ((0, 0, 0),)) -> Tensor:
    """Logits ``(C, X, Y, Z)`` of an image ``(X, Y, Z)``, averaged over moves of the head and its mirror image.

    The classes are side-less, so a mirrored head has the same ones.
    """
    pad = [(-n) % net.multiple for n in image.shape]
    padded = F.pad(image, (0, pad[2], 0, pad[1], 0, pad[0]))[None, None]
    logits = torch.zeros((), device=image.device)
    with fast_autocast(image.device.type):
        for move in moves:
            moved = padded.roll(move, (2, 3, 4))
            found = net(moved)[0].float() + net(moved.flip(2))[0].float().flip(1)
            logits = logits + found.roll([-step for step in move], (1, 2, 3)) / (2 * len(moves))
    nx, ny, nz = image.shape
    return logits[:, :nx, :ny, :nz]


def usual_contrast(image: Tensor, probabilities: Tensor) -> Tensor:
    """An image ``(X, Y, Z)`` with white matter at 1 and, by a power, grey matter at :data:`GREY`.

    Levels are medians where the probabilities ``(C, X, Y, Z)`` say that the tissue is likely; what is not found is left
    as it is. The power is .5 to 2. Scanners and sequences then look alike to the refining network.
    """

    def level(tissue: str) -> float:
        inside = probabilities[[region.index for region in regions() if region.tissue == tissue]].sum(0) > 0.5
        return image[inside].median().item() if inside.any() else 0.0

    white, grey = level("wm"), level("gm")
    if white <= 0:
        return image
    share = min(max(grey / white, GREY**2), GREY**0.5) if grey > 0 else GREY
    return (image / white).clamp(0, 4) ** (math.log(GREY) / math.log(share))


def sharpened(net: Refiner, image: Tensor, logits: Tensor) -> Tensor:
    """The labelling network's logits ``(C, X, Y, Z)`` as the refining network leaves them, the mirrored head alike."""
    image, logits = usual_contrast(image, logits.softmax(0))[None, None], logits[None]
    with fast_autocast(image.device.type):
        return (net(image, logits)[0] + net(image.flip(2), logits.flip(2))[0].flip(1)) / 2


@torch.inference_mode()
def class_probabilities(data: np.ndarray, network: str, device: str = "cpu") -> np.ndarray:
    """Probabilities of the classes, averaged with those of the left–right mirrored head.

    On the model grid also with those of the head moved by a voxel, and sharpened.

    Parameters
    ----------
    data
        T1w ``(X, Y, Z)``, any intensity scale: in RAS order at ``LOCATE_SPACING`` for the ``locating`` network, on the
        grid of ``LABEL_SHAPE`` for the ``labelling`` network.

    Returns
    -------
    numpy.ndarray
        ``(C, X, Y, Z)`` float16.
    """
    net = load_network(network, device=device)
    image = torch.from_numpy(normalised(data)).to(device)
    if network == "locating":
        logits = averaged(net, image)
    else:
        logits = sharpened(load_network("refining", device=device), image, averaged(net, image, PLACEMENTS))
    return logits.softmax(0).half().cpu().numpy()


def brain_mask(classes: np.ndarray) -> np.ndarray:
    """The largest connected part of all labels, holes filled."""
    inside = classes > 0
    parts, count = ndimage.label(ndimage.binary_opening(inside, iterations=1))
    if count == 0:
        return inside
    sizes = np.bincount(parts.ravel())[1:]
    core = parts == 1 + int(sizes.argmax())
    # opening shaved the surface off: give it back, but not the islands
    return ndimage.binary_fill_holes(ndimage.binary_dilation(core, iterations=1) & inside | core)


def cut_planes(classes: np.ndarray, xyz_z: np.ndarray, scale: float) -> dict[str, tuple[float, float]]:
    """Template heights between which a region is cut from its parent, from ``data/cuts.tsv``.

    Heights in the table are relative to the fourth ventricle's centre in the template; a head that is smaller than
    the template by ``scale`` has them closer together.
    """
    index = region_index()
    anchor = classes == index["fourth_ventricle"]
    if anchor.sum() < 5:
        anchor = classes == index["vermis"]
    if not anchor.any():
        return {}
    centre = float(xyz_z[anchor].mean())
    return {
        row["name"]: (centre + float(row["from_mm"]) / scale, centre + float(row["to_mm"]) / scale)
        for row in read_table("cuts.tsv")
    }


def sided_codes(classes: np.ndarray, x: np.ndarray, z: np.ndarray, scale: float) -> np.ndarray:
    """``dseg`` codes from side-less classes.

    Parameters
    ----------
    classes
        Any shape, integer.
    x, z
        Template coordinates of the same voxels in mm (left is negative x), same shape.
    scale
        Size of the template relative to this head.

    Returns
    -------
    numpy.ndarray
        uint8, same shape: regions cut from their parents, sides added.
    """
    out = classes.astype(np.uint8)
    planes = cut_planes(classes, z, scale)
    index = region_index()
    sided = np.zeros(256, bool)
    for region in all_regions():
        sided[region.index] = region.sided
        if region.cut_from and region.name in planes:
            low, high = planes[region.name]
            out[(classes == index[region.cut_from]) & (z >= low) & (z < high)] = region.index
    return out + np.where(sided[out], np.where(x < 0, LEFT, RIGHT), 0).astype(np.uint8)
