"""Losses on a predicted image: what recipes add to the loss of their process, each with the formula of its paper.

Images are ``(N, C, X, Y, Z)`` or ``(N, C, X, Y)`` in SUVR, or in the model's own unit. A loss on images is given per
example ``(N,)``, because what a noisy input says about its image differs with its time; the caller weighs and averages.
Call them outside autocast: SSIM subtracts squares. What does not fit together raises a ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_petsynth.models.regional import regional_means

#: Constants of SSIM as shares of the data range (Wang 2004).
SSIM_K = (0.01, 0.03)
#: Error, in its own unit, below which a region's learned weight no longer grows.
ERROR_FLOOR = 1e-3


def ssim(a: Tensor, b: Tensor, data_range: float | Tensor, sigma: float = 1.5) -> Tensor:
    """Structural similarity: ``(2 μa μb + c1)(2 σab + c2) / ((μa² + μb² + c1)(σa² + σb² + c2))``, ``c = (k·range)²``.

    Means and (co)variances are in a Gaussian window cut off at 3.5 ``sigma`` voxels, of two or three dimensions as the
    images are. Only windows that lie within the image count, so that no border is made up. The result ``(N,)`` is the
    mean over windows and channels, 1 for equal images.
    Source: Wang et al., IEEE Trans. Image Process. 13 (2004) 600, eq. 13.

    Parameters
    ----------
    a, b
        Images of one shape, every extent at least as wide as the window (11 voxels for the default).
    data_range
        Width of the display window in the images' unit, or one for each example ``(N,)``.
    """
    _same_shape(a, b)
    radius = int(3.5 * sigma + 0.5)
    if min(a.shape[2:]) <= 2 * radius:
        raise ValueError(f"SSIM needs {2 * radius + 1} voxels along each axis, not {tuple(a.shape[2:])}; lower sigma")
    blurred = torch.stack([a, b, a * a, b * b, a * b])
    for axis in range(3, blurred.ndim):
        n = blurred.shape[axis]
        distance = torch.arange(n) - torch.arange(radius, n - radius)[:, None]
        window = torch.exp(-0.5 * (distance.double() / sigma) ** 2) * (distance.abs() <= radius)
        window = (window / window.sum(1, keepdim=True)).to(blurred)
        blurred = (blurred.movedim(axis, -1) @ window.T).movedim(-1, axis)
    mean_a, mean_b, square_a, square_b, product = blurred
    width = torch.as_tensor(data_range, dtype=a.dtype, device=a.device).view(-1, *[1] * (a.ndim - 1))
    c1, c2 = ((k * width) ** 2 for k in SSIM_K)
    level = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    variances = square_a - mean_a**2 + square_b - mean_b**2
    return (level * (2 * (product - mean_a * mean_b) + c2) / (variances + c2)).flatten(1).mean(1)


def laplacian_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """``levels`` images of detail, the finest first, and the coarse image that is left: ``P_l − up(down(P_l))``.

    Down is the mean over 2 voxels per axis (an odd extent is rounded up), up is linear interpolation.
    Source: Burt & Adelson, IEEE Trans. Commun. 31 (1983) 532; in this form Theodorou et al. (MRI2PET), eq. 3.
    """
    most = (min(x.shape[2:]) - 1).bit_length()
    if not 1 <= levels <= most:
        raise ValueError(f"an image of {tuple(x.shape[2:])} allows 1 to {most} pyramid levels, not {levels}")
    halve = {4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}[x.ndim]
    pyramid = []
    for _ in range(levels):
        coarse = halve(x, tuple((n + 1) // 2 for n in x.shape[2:]))
        pyramid.append(x - _enlarged(coarse, x))
        x = coarse
    return [*pyramid, x]


def reconstruct(pyramid: Sequence[Tensor]) -> Tensor:
    """The image whose :func:`laplacian_pyramid` this is."""
    x = pyramid[-1]
    for detail in reversed(pyramid[:-1]):
        x = detail + _enlarged(x, detail)
    return x


def laplacian_loss(a: Tensor, b: Tensor, levels: int = 5) -> Tensor:
    """``1/L · Σ_l MSE(detail_l(a), detail_l(b))`` per example ``(N,)``, in SUVR²; blind to what the coarse image holds.

    Source: MRI2PET, eq. 2, which takes the sum over its 5 levels: its weight of 0.25 is 1.25 here.
    """
    _same_shape(a, b)
    details = laplacian_pyramid(a - b, levels)[:-1]  # the pyramid is linear
    return torch.stack([detail.square().flatten(1).mean(1) for detail in details]).mean(0)


def clinical_consistency(
    prediction: Tensor, target: Tensor, labels: Tensor, classes: Sequence[int] | None = None
) -> Tensor:
    """``1/K · Σ_k (mean_k(prediction) − mean_k(target))²`` per example ``(N,)``: regional biomarkers must not drift.

    Of PET these are regional SUVR; of a T1w, whose ``classes`` are hippocampus and ventricles, they follow atrophy: if
    the drawn hippocampus is too small, its label's mean falls. After ACADiff (arXiv:2603.09931; without a formula).

    Parameters
    ----------
    prediction, target
        One channel, or the slices of a slab as channels, on the labels' grid or one a whole multiple finer.
    labels
        Label probabilities ``(N or 1, K, …)``. A class that a head lacks adds nothing.
    classes
        Those that count, all if None.
    """
    _same_shape(prediction, target)
    labels = labels if classes is None else labels[:, list(classes)]
    return regional_means(_on_labels(prediction - target, labels), labels).square().mean(1)


class RegionWeights(nn.Module):
    """Weights of voxels from label probabilities: fixed per class (PASTA's MetaROI: 10), learned on top if asked for.

    A weight that is learned from the very loss it multiplies goes to zero or, where the mean is held at 1, all to the
    easiest region. Therefore each class has a log-variance ``s_k`` with a likelihood of its own (:meth:`likelihood`),
    and its weight is ``fixed_k · exp(−s_k)``: a region counts less the more of its error remains. This is the
    uncertainty weighting of Kendall, Gal & Cipolla (arXiv:1705.07115). As disease makes regions hard to predict, a
    Gaussian prior holds the ``s_k`` together, and thereby the weights near the fixed ones.

    Parameters
    ----------
    classes
        Number of label classes, background included.
    fixed
        Weight of a class by index, 1 for the others.
    learnable
        Whether ``log_variance (classes,)`` is a parameter.
    prior
        Precision of the prior on ``s_k``: 0 leaves them free, a large one keeps the fixed weights.
    """

    def __init__(
        self, classes: int, fixed: Mapping[int, float] | None = None, learnable: bool = False, prior: float = 1.0
    ):
        super().__init__()
        weights = torch.ones(classes)
        for index, weight in (fixed or {}).items():
            if not (0 <= index < classes and weight > 0):
                raise ValueError(f"weight {weight} of class {index}: classes are 0 to {classes - 1}, weights above 0")
            weights[index] = weight
        self.prior = prior
        self.register_buffer("fixed", weights)
        self.log_variance = nn.Parameter(torch.zeros(classes), requires_grad=learnable)

    def forward(self, labels: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Weights ``(N, 1, …)`` of mean 1 in every example, without gradient; ``size`` is that of finer voxels."""
        per_class = self.fixed * torch.exp(-self.log_variance.detach())
        weights = torch.einsum("nk...,k->n...", labels, per_class.to(labels))[:, None]
        weights = weights / weights.mean(tuple(range(1, weights.ndim)), keepdim=True)
        return weights if size is None else F.interpolate(weights, tuple(size), mode="nearest")

    def likelihood(self, error: Tensor, labels: Tensor) -> Tensor:
        """Scalar to be added to the loss: ``Σ p_k (e_k exp(−s_k) + s_k) + prior · Σ p_k (s_k − Σ p_j s_j)²``.

        Its gradient reaches the ``s_k`` alone. ``e_k`` is the region's mean ``error (N, 1, …)`` (squared or absolute)
        plus :data:`ERROR_FLOOR`, ``p_k`` its fixed weight times its share of the volume.
        """
        flat = labels.flatten(2)
        volume = flat.sum(2).mean(0)
        summed = (flat @ _on_labels(error.detach(), labels).flatten(1)[..., None]).sum(2).mean(0)
        mean = summed / volume.clamp(min=1e-6) + ERROR_FLOOR
        p, s = self.fixed * volume, self.log_variance
        p = p / p.sum()
        return (p * (mean * torch.exp(-s) + s)).sum() + self.prior * (p * (s - (p * s).sum()) ** 2).sum()


def text_image_alignment(text: Tensor, image: Tensor, temperature: float | Tensor = 0.07) -> Tensor:
    """Mean of the cross-entropies text → image and image → text over cosine similarities / ``temperature``; a scalar.

    ``text`` and ``image`` are ``(N, D)``, row i of both of one person; the others of the batch are the wrong answers,
    so a batch of one gives 0. Source: CLIP (Radford et al., arXiv:2103.00020).
    """
    _same_shape(text, image)
    similarity = F.normalize(text, dim=1) @ F.normalize(image, dim=1).T / temperature
    own = torch.arange(len(text), device=text.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """Critic's loss by its (patch) scores: ``E max(0, 1 − real) + E max(0, 1 + fake)`` (Lim & Ye, arXiv:1705.02894)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_g(fake: Tensor) -> Tensor:
    """Generator's loss by the critic's scores of its images: ``−E fake`` (Lim & Ye, arXiv:1705.02894)."""
    return -fake.mean()


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{tuple(a.shape)} and {tuple(b.shape)} cannot be compared; give equal shapes")


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode={4: "bilinear", 5: "trilinear"}[x.ndim])


def _on_labels(x: Tensor, labels: Tensor) -> Tensor:
    """``x`` averaged to the voxels of ``labels (N, K, …)``, as ``(N, …)``; channels are slices if it lacks an axis."""
    x, grid = x[:, None] if x.ndim == labels.ndim - 1 else x, labels.shape[2:]
    if x.ndim != labels.ndim or x.shape[1] != 1 or any(n % m for n, m in zip(x.shape[2:], grid, strict=True)):
        raise ValueError(f"an image of {tuple(x.shape)} cannot be averaged to labels of {tuple(labels.shape)}")
    pool = {4: F.avg_pool2d, 5: F.avg_pool3d}[x.ndim]
    return pool(x, tuple(n // m for n, m in zip(x.shape[2:], grid, strict=True)))[:, 0]
