"""Rectified flow: the straight path between data and noise, its velocity, time sampling and solvers.

Convention: ``x_t = (1 − t) x_0 + t ε`` with data at t = 0 and standard normal noise at t = 1, so that the velocity is
``dx/dt = ε − x_0`` and sampling integrates from t = 1 down to t = 0 (Liu et al., arXiv:2209.03003).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

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


def centred(noise: Tensor) -> Tensor:
    """Standard normal noise ``(M, …)`` of M draws, moved and scaled so that its mean over the draws is 0.

    Each draw's own noise stays standard normal; two draws' have a correlation of −1/(M − 1). What a sampler makes of
    them is nearly linear in them, so the mean of a few draws comes close to that of many. One draw stays as it is.
    """
    m = len(noise)
    return noise if m < 2 else (noise - noise.mean(0)) * math.sqrt(m / (m - 1))


SOLVERS: dict[str, Callable[[Velocity, Tensor, Tensor], Tensor]] = {"euler": euler, "heun": heun}


def preconditioned(network: Callable[[Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    """Velocity at ``x_t`` for data of unit variance, by a network that corrects the exact velocity of a Gaussian.

    With D = (1 − t)² + t² the network sees x_t / √D, and v = (2t − 1) / D · x_t + F / √D: input and target have unit
    variance at every time (after Karras et al., arXiv:2206.00364).
    """
    time = t.view(-1, *[1] * (x.ndim - 1)).float()
    root = torch.sqrt((1 - time) ** 2 + time**2)
    return (2 * time - 1) / root**2 * x + network(x / root).float() / root


def flow_loss(velocity: Tensor, target: Tensor, t: Tensor) -> Tensor:
    """Mean squared error of a velocity per example ``(N,)``, weighted so that the network's error counts alike."""
    return (velocity - target).square().flatten(1).mean(1) * ((1 - t) ** 2 + t**2)


def guided(conditional: Tensor, null: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance: ``v_null + w (v_cond − v_null)`` (Ho & Salimans, arXiv:2207.12598)."""
    return null + weight * (conditional - null)
