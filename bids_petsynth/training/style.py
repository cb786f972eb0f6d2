"""PET-like images made of T1w: pairs for pre-training where a T1w has no PET (MRI2PET, Theodorou et al.).

Two ways, both from a T1w and the PET of someone else: :func:`statistics_transfer` gives the T1w the PET's spectrum and
the histogram of each slice; :func:`vgg_transfer` is the style transfer of Gatys et al. (CVPR 2016, arXiv:1508.06576) by
the features of a VGG19 whose weights the user has. What comes out is no PET: it teaches a network textures and
correspondence, not uptake.

Volumes are ``(X, Y, Z)`` on grids of one voxel size, 0 outside the head. Slices are cut along the last axis; the first
to last slice of the T1w's mask go with the first to last of the PET's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_petsynth.errors import UsageError

#: Shells of spatial frequency between 0 and 0.5 cycles per voxel.
SHELLS = 24
#: Voxels over which an image fades out at the edge of its mask before its spectrum is taken.
TAPER = 5.0
#: Mean and standard deviation of the colours that VGG19 was trained on (torchvision's published weights).
COLOUR_MEAN, COLOUR_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Convolutions of each of VGG19's five stages, and their width (Simonyan & Zisserman, arXiv:1409.1556, column E).
STAGES = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
#: Layers of Gatys et al.: content conv4_2, style conv1_1 to conv5_1.
CONTENT, STYLES = "conv4_2", ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")
#: Style per content, as in PyTorch's tutorial on neural transfer, whose normalisation of both this is.
STYLE_WEIGHT = 1e6
#: Percentile of a volume within its mask that becomes white.
WHITE = 99.5


def match_histogram(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """``values (n,)`` with the distribution of ``reference (m,)``: their order stays, equal values stay equal.

    The value of rank i gets the reference's quantile ``(i − ½) / n``, by Hazen's definition of quantiles.
    """
    from scipy.stats import rankdata

    levels = (np.arange(len(reference)) + 0.5) / len(reference)
    return np.interp((rankdata(values) - 0.5) / len(values), levels, np.sort(reference))


def statistics_transfer(
    t1w: np.ndarray,
    pet: np.ndarray,
    t1w_mask: np.ndarray | None = None,
    pet_mask: np.ndarray | None = None,
    rounds: int = 3,
) -> np.ndarray:
    """The T1w with the PET's radial spectrum and, slice by slice, its histogram: ``(X, Y, Z)``, 0 outside the mask.

    Both are imposed in turn, ``rounds`` times, the histogram last, which therefore is met (Heeger & Bergen, SIGGRAPH
    1995). The spectrum is changed in amplitude alone: phases, and with them edges, are the T1w's.

    Parameters
    ----------
    t1w, pet
        Of two people, in any unit; the result is in the PET's.
    t1w_mask, pet_mask
        Where they count; where they are above 0 if None.

    Raises
    ------
    ValueError
        If a mask is empty or of another shape.
    """
    t1w_mask, pet_mask = _mask(t1w, t1w_mask), _mask(pet, pet_mask)
    partners = _partners(t1w_mask, pet_mask)
    window, target = _window(t1w_mask), _radial_power(pet, _window(pet_mask))
    out = t1w.astype(np.float64)
    for _ in range(rounds):
        out = _with_power(out, t1w_mask, window, target)
        for z, partner in partners.items():
            inside = t1w_mask[..., z]
            out[inside, z] = match_histogram(out[inside, z], pet[pet_mask[..., partner], partner])
    return np.where(t1w_mask, out, 0).astype(np.float32)


def _mask(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    mask = image > 0 if mask is None else np.asarray(mask, dtype=bool)
    if mask.shape != image.shape or not mask.any():
        raise ValueError(f"a mask of {mask.shape} with {mask.sum()} voxels for an image of {image.shape}")
    return mask


def _partners(t1w_mask: np.ndarray, pet_mask: np.ndarray) -> dict[int, int]:
    """The PET's slice for each slice of the T1w, both within their masks."""
    ours, theirs = (np.flatnonzero(mask.any((0, 1))) for mask in (t1w_mask, pet_mask))
    places = (ours - ours[0]) / max(1, ours[-1] - ours[0]) * (theirs[-1] - theirs[0]) + theirs[0]
    return {int(z): int(theirs[np.abs(theirs - place).argmin()]) for z, place in zip(ours, places, strict=True)}


def _window(mask: np.ndarray) -> np.ndarray:
    """0 at the mask's edge, 1 from :data:`TAPER` voxels within on: cut off sharply, any image has a sharp spectrum."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1] - 0.5
    return np.sin(np.pi / 2 * np.clip(depth / TAPER, 0, 1)) ** 2


def _frequencies(shape: Sequence[int]) -> np.ndarray:
    """Cycles per voxel of each term of a real Fourier transform."""
    *full, last = shape
    axes = np.meshgrid(*(np.fft.fftfreq(n) for n in full), np.fft.rfftfreq(last), indexing="ij", sparse=True)
    return np.sqrt(sum(axis**2 for axis in axes))


def _radial_power(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Mean power per voxel of the window in each shell; the corners above 0.5 cycles per voxel count to the last one.

    The constant term is left out; a shell that is empty on a small grid lies between its neighbours.
    """
    from scipy.fft import rfftn

    centred = window * (image - np.average(image, weights=window))
    power = np.abs(rfftn(centred)).ravel()[1:] ** 2 / (window**2).sum()
    shell = np.minimum((_frequencies(image.shape) * 2 * SHELLS).astype(int), SHELLS - 1).ravel()[1:]
    counts, sums = np.bincount(shell, minlength=SHELLS), np.bincount(shell, power, SHELLS)
    filled = np.flatnonzero(counts)
    return np.interp(np.arange(SHELLS), filled, sums[filled] / counts[filled])


def _with_power(image: np.ndarray, mask: np.ndarray, window: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The image with the radial power ``target``; outside the mask it is taken to be its mean."""
    from scipy.fft import irfftn, rfftn

    mean = image[mask].mean()
    own = _radial_power(image, window)
    # what is flat but for rounding stays flat
    textured = own > 1e-20 * mean**2
    gain = np.sqrt(np.divide(target, own, where=textured, out=np.ones(SHELLS)))
    centres = (np.arange(SHELLS) + 0.5) / (2 * SHELLS)
    smooth = np.interp(_frequencies(image.shape), centres, gain)
    return irfftn(rfftn(np.where(mask, image - mean, 0.0)) * smooth, image.shape) + mean


class VGG19(nn.Module):
    """The convolutions of VGG19, named as in torchvision (``features.N``), without the classifier.

    ``forward`` takes grey slices ``(N, 1, X, Y)`` in [0, 1], at least 16 wide, and gives the rectified activations of
    the layers asked for by name (``conv4_2``).
    """

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        self.places: dict[str, int] = {}
        width = 3
        for stage, (convolutions, channels) in enumerate(STAGES, start=1):
            for i in range(1, convolutions + 1):
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
                self.places[f"conv{stage}_{i}"] = len(layers) - 1
                width = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(COLOUR_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("sd", torch.tensor(COLOUR_SD).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Activations ``(N, C, x, y)`` by name."""
        x = (x - self.mean) / self.sd
        wanted = {self.places[name]: name for name in names}
        found: dict[str, Tensor] = {}
        for i, layer in enumerate(self.features[: max(wanted) + 1]):
            x = layer(x)
            if i in wanted:
                found[wanted[i]] = x
        return found


def read_vgg19(path: str | Path) -> VGG19:
    """VGG19 with the weights of a safetensors file, whose tensors are named as in torchvision's ``vgg19``.

    Raises
    ------
    UsageError
        If it cannot be read, or is another network's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    remedy = 'save the state_dict of torchvision\'s vgg19(weights="IMAGENET1K_V1") with safetensors.torch.save_file'
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"The VGG19 weights {path} cannot be read ({error}); {remedy}.") from None
    net = VGG19()
    for name, parameter in net.state_dict().items():
        if name not in tensors or tensors[name].shape != parameter.shape:
            found = f"is {tuple(tensors[name].shape)}" if name in tensors else "is missing"
            raise UsageError(f"{path} is not a VGG19: {name} {found}, not {tuple(parameter.shape)}; {remedy}.")
    net.load_state_dict({name: tensors[name].float() for name in net.state_dict()})
    return net.requires_grad_(False).eval()


def gram(features: Tensor) -> Tensor:
    """``1/(C P) Σ_p f_i(p) f_j(p)`` of features ``(N, C, …)`` at P places: ``(N, C, C)``, blind to where things are."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


@dataclass(frozen=True)
class StyleLoss:
    """``mean (F − F_content)² + w Σ_layers mean (G − G_style)²`` per slice: F at :data:`CONTENT`, Gram matrices G.

    Source: Gatys et al., eqs 1, 4 and 5, each sum divided by its number of terms, so that ``weight`` holds for slices
    of any size.
    """

    net: VGG19
    content: Tensor
    styles: tuple[Tensor, ...]
    weight: float

    @classmethod
    def between(cls, net: VGG19, content: Tensor, style: Tensor, weight: float = STYLE_WEIGHT) -> StyleLoss:
        """For content and style slices ``(N, 1, X, Y)`` in [0, 1]; the style's X and Y may differ."""
        with torch.no_grad():
            styles = net(style, STYLES)
            return cls(net, net(content, (CONTENT,))[CONTENT], tuple(gram(styles[name]) for name in STYLES), weight)

    def __call__(self, image: Tensor) -> Tensor:
        """Loss ``(N,)`` of slices ``(N, 1, X, Y)``."""
        found = self.net(image, (*STYLES, CONTENT))
        style = sum(
            (gram(found[name]) - target).square().flatten(1).mean(1)
            for name, target in zip(STYLES, self.styles, strict=True)
        )
        return F.mse_loss(found[CONTENT], self.content, reduction="none").flatten(1).mean(1) + self.weight * style


def restyle(
    net: VGG19,
    content: Tensor,
    style: Tensor,
    steps: int,
    optimiser: Literal["adam", "lbfgs"] = "adam",
    rate: float = 0.02,
    weight: float = STYLE_WEIGHT,
) -> Tensor:
    """Slices ``(N, 1, X, Y)`` that lower :class:`StyleLoss`, from the content slices on.

    Adam treats the slices of a batch as if each were alone; L-BFGS, with a line search, takes them one by one.
    """
    if optimiser == "lbfgs" and len(content) > 1:
        each = [
            restyle(net, c[None], s[None], steps, optimiser, rate, weight) for c, s in zip(content, style, strict=True)
        ]
        return torch.cat(each)
    loss = StyleLoss.between(net, content, style, weight)
    image = content.clone().requires_grad_()

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss(image).sum()
        value.backward()
        return value

    if optimiser == "adam":
        solver = torch.optim.Adam([image], lr=rate)
        for _ in range(steps):
            solver.step(closure)
    else:
        solver = torch.optim.LBFGS([image], max_iter=steps, line_search_fn="strong_wolfe")
        solver.step(closure)
    return image.detach()


def vgg_transfer(
    t1w: np.ndarray,
    pet: np.ndarray,
    net: VGG19,
    t1w_mask: np.ndarray | None = None,
    pet_mask: np.ndarray | None = None,
    *,
    steps: int = 100,
    optimiser: Literal["adam", "lbfgs"] = "adam",
    batch: int = 8,
    weight: float = STYLE_WEIGHT,
) -> np.ndarray:
    """Content of the T1w in the style of the PET, slice by slice: ``(X, Y, Z)`` in the PET's unit, 0 outside the mask.

    Parameters
    ----------
    t1w, pet, t1w_mask, pet_mask
        As for :func:`statistics_transfer`; slices at least 16 voxels wide.
    net
        As :func:`read_vgg19` gives it, on the device that is to do the work.
    steps, optimiser, weight
        Iterations, of which kind, and what style weighs per content.
    batch
        Slices at once.
    """
    if min(*t1w.shape[:2], *pet.shape[:2]) < 16:
        raise ValueError(f"VGG19 needs slices 16 voxels wide, not {t1w.shape[:2]} and {pet.shape[:2]}")
    t1w_mask, pet_mask = _mask(t1w, t1w_mask), _mask(pet, pet_mask)
    whites = [float(np.percentile(image[mask], WHITE)) for image, mask in ((t1w, t1w_mask), (pet, pet_mask))]

    def slices(image: np.ndarray, mask: np.ndarray, white: float, places: Sequence[int]) -> Tensor:
        grey = np.clip(np.where(mask, image, 0)[..., places] / white, 0, 1).astype(np.float32)
        return torch.from_numpy(np.moveaxis(grey, -1, 0).copy())[:, None].to(net.mean.device)

    out = np.zeros(t1w.shape, np.float32)
    pairs = list(_partners(t1w_mask, pet_mask).items())
    for start in range(0, len(pairs), batch):
        ours, theirs = (list(places) for places in zip(*pairs[start : start + batch], strict=True))
        content, style = slices(t1w, t1w_mask, whites[0], ours), slices(pet, pet_mask, whites[1], theirs)
        styled = restyle(net, content, style, steps, optimiser, weight=weight)[:, 0].clamp(0, 1)
        out[..., ours] = np.moveaxis(styled.cpu().numpy(), 0, -1) * whites[1]
    return np.where(t1w_mask, out, 0)
