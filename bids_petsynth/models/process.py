"""Rectified flow: the straight path between data and noise, its velocity, time sampling and solvers.

Convention: ``x_t = (1 − t) x_0 + t ε`` with data at t = 0 and standard normal noise at t = 1, so that the velocity is
``dx/dt = ε − x_0`` and sampling integrates from t = 1 down to t = 0 (Liu et al., arXiv:2209.03003).

White noise alone settles what many voxels share (a scan's amyloid load) at times above 0.95, since the mean of
thousands of noisy voxels is hardly noisy: a few steps jump over that, and all draws come out alike. The noise therefore
has regional parts too, so that regional values and voxels are settled at the same times.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_petsynth.models.codec import fold, gaussian_kernel
from bids_petsynth.models.recipe import FlowSpec

#: Blur of painted regions in voxels of the painting grid: about what a scanner does to regions on a 4 mm grid.
BLUR = 0.8

#: Velocity field: ``(x, t)`` with ``t`` a scalar tensor → velocity of the shape of ``x``.
Velocity = Callable[[Tensor, Tensor], Tensor]


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """``x_t`` for times ``t (N,)``."""
    t = t.view(-1, *[1] * (data.ndim - 1))
    return (1 - t) * data + t * noise


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Move times towards noise (``shift`` > 1) or data (< 1): ``shift·t / (1 + (shift − 1)·t)``.

    Source: Esser et al., arXiv:2403.03206, eq. 23.
    """
    return shift * t / (1 + (shift - 1) * t)


def shifted_grid(steps: int, shift: float = 1.0) -> Tensor:
    """``steps + 1`` times from 1 down to 0 (float64)."""
    return shift_time(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


def training_times(n: int, shift: float, rng: Generator) -> Tensor:
    """``n`` stratified uniform times, shifted as the sampler's grid is."""
    t = (torch.arange(n) + torch.rand(n, generator=rng)) / n
    return shift_time(t[torch.randperm(n, generator=rng)], shift)


def euler(velocity: Velocity, x: Tensor, grid: Tensor) -> Tensor:
    """Integrate from ``grid[0]`` to ``grid[-1]`` with one evaluation per step."""
    for t, after in zip(grid[:-1], grid[1:], strict=True):
        x = x + (after - t).to(x.dtype) * velocity(x, t)
    return x


def heun(velocity: Velocity, x: Tensor, grid: Tensor) -> Tensor:
    """Integrate with the explicit trapezoidal rule: two evaluations per step, second order."""
    for t, after in zip(grid[:-1], grid[1:], strict=True):
        step = (after - t).to(x.dtype)
        first = velocity(x, t)
        x = x + step / 2 * (first + velocity(x + step * first, after))
    return x


SOLVERS: dict[str, Callable[[Velocity, Tensor, Tensor], Tensor]] = {"euler": euler, "heun": heun}


def draw_noise(spec: FlowSpec, shape: torch.Size, labels: Tensor, factor: int, rng: Generator) -> Tensor:
    """Noise of one example: white, plus what is constant in each region and blurred like a scan.

    Parameters
    ----------
    shape
        ``(C, x, y, z)`` of the latent.
    labels
        ``(K, x·factor, y·factor, z·factor)`` label probabilities.
    factor
        Fold of the latent space.
    rng
        On the CPU.
    """
    white = torch.randn(shape, generator=rng)
    channels = shape[0] // factor**3
    values = spec.noise_common * torch.randn(channels, 1, generator=rng)
    values = values + spec.noise_region * torch.randn(channels, len(labels), generator=rng)
    if spec.noise_common == spec.noise_region == 0:
        return white
    image = (values @ labels.flatten(1)).view(channels, 1, *labels.shape[1:])
    image = F.conv3d(F.pad(image, [2] * 6, mode="replicate"), gaussian_kernel(5, BLUR)[None, None])
    return white + fold(image.view(1, channels, *labels.shape[1:]), factor)[0]


def guided(conditional: Tensor, null: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance: ``v_null + w (v_cond − v_null)`` (Ho & Salimans, arXiv:2207.12598)."""
    return null + weight * (conditional - null)
