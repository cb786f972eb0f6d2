"""DDPM: noise schedules, what a network may predict, and the samplers that turn predictions into draws.

Convention: ``x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε`` with standard normal ε at timesteps t = 0 … T − 1, 0 the least noisy
(Ho et al., arXiv:2006.11239, who count from 1). A schedule is the tensor of its ᾱ, ``(T,)`` float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Generator, Tensor

#: What a network is trained to return.
Target = Literal["epsilon", "x0", "velocity"]
#: Prediction of the clean data: ``(x, t)`` with ``t`` a scalar integer tensor → x_0 of the shape of ``x``.
PredictX0 = Callable[[Tensor, Tensor], Tensor]


def linear_alphas(steps: int, first: float, last: float) -> Tensor:
    """ᾱ of variances β that rise linearly from ``first`` to ``last`` (Ho et al., arXiv:2006.11239)."""
    return torch.cumprod(1 - torch.linspace(first, last, steps, dtype=torch.float64), 0)


def scaled_linear_alphas(steps: int, first: float, last: float) -> Tensor:
    """ᾱ of variances β whose square root rises linearly (Rombach et al., arXiv:2112.10752, their published code)."""
    return torch.cumprod(1 - torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2, 0)


def cosine_alphas(steps: int, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """ᾱ that falls as a squared cosine, no β above ``max_beta`` (Nichol & Dhariwal, arXiv:2102.09672, eq. 17)."""
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    curve = torch.cos((time + s) / (1 + s) * math.pi / 2) ** 2
    return torch.cumprod(1 - (1 - curve[1:] / curve[:-1]).clamp(max=max_beta), 0)


def spaced(steps: int, count: int) -> Tensor:
    """``count`` of ``steps`` timesteps ``(count,)``, descending and even, the last one (most noise) included.

    Known as "trailing" (Lin et al., arXiv:2305.08891, table 2): other spacings start sampling from noise of a step that
    still holds some data.

    Raises
    ------
    ValueError
        If there are not that many.
    """
    if not 1 <= count <= steps:
        raise ValueError(f"count must lie between 1 and the schedule's {steps} steps, got {count}")
    return torch.linspace(steps, steps / count, count, dtype=torch.float64).round().long() - 1


def _scales(t: Tensor, alphas: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ_t and √(1 − ᾱ_t) of timesteps ``t`` (``(N,)`` or scalar), to multiply ``like`` in at least float32."""
    alpha = alphas[t.cpu()].view(-1, *[1] * (like.ndim - 1))
    kind = torch.promote_types(like.dtype, torch.float32)
    return alpha.sqrt().to(like.device, kind), (1 - alpha).sqrt().to(like.device, kind)


def add_noise(data: Tensor, noise: Tensor, t: Tensor, alphas: Tensor) -> Tensor:
    """``x_t`` for timesteps ``t (N,)``."""
    signal, sigma = _scales(t, alphas, data)
    return signal * data + sigma * noise


def target_of(kind: Target, data: Tensor, noise: Tensor, t: Tensor, alphas: Tensor) -> Tensor:
    """What the network should return at timesteps ``t (N,)``: ε, x_0, or the velocity ``√ᾱ ε − √(1 − ᾱ) x_0``.

    Source of the velocity: Salimans & Ho, arXiv:2202.00512, appendix D.
    """
    signal, sigma = _scales(t, alphas, data)
    match kind:
        case "epsilon":
            return noise
        case "x0":
            return data
        case "velocity":
            return signal * noise - sigma * data
    raise _unknown(kind)


def to_x0(kind: Target, output: Tensor, noisy: Tensor, t: Tensor, alphas: Tensor) -> Tensor:
    """The clean data that a network's ``output`` implies at ``noisy`` and timesteps ``t`` (``(N,)`` or scalar).

    An error of ε is multiplied by √((1 − ᾱ) / ᾱ), at the last of 1000 cosine steps by 20,000: clamp x_0 there, or
    predict something else. Nothing is divided for the other two.

    Raises
    ------
    ValueError
        If ε is predicted where ᾱ = 0: it then says nothing about the data.
    """
    signal, sigma = _scales(t, alphas, noisy)
    match kind:
        case "epsilon":
            if (alphas[t.cpu()] == 0).any():
                raise ValueError("ε does not tell the data where ᾱ = 0; predict x0 or velocity with this schedule")
            return (noisy - sigma * output) / signal
        case "x0":
            return output.to(signal.dtype)
        case "velocity":
            return signal * noisy - sigma * output
    raise _unknown(kind)


def to_epsilon(kind: Target, output: Tensor, noisy: Tensor, t: Tensor, alphas: Tensor) -> Tensor:
    """The noise that a network's ``output`` implies; arguments as in :func:`to_x0`, defined at every timestep."""
    signal, sigma = _scales(t, alphas, noisy)
    match kind:
        case "epsilon":
            return output.to(signal.dtype)
        case "x0":
            return (noisy - signal * output) / sigma
        case "velocity":
            return sigma * noisy + signal * output
    raise _unknown(kind)


def _unknown(kind: str) -> ValueError:
    return ValueError(f"unknown target {kind}; use epsilon, x0 or velocity")


def _stretches(alphas: Tensor, timesteps: Tensor) -> Iterator[tuple[Tensor, float, float]]:
    """Each timestep with ᾱ there and at the next, less noisy one; clean data (ᾱ = 1) follow the last."""
    here = alphas[timesteps].tolist()
    return zip(timesteps, here, [*here[1:], 1.0], strict=True)


def _noise(x: Tensor, rng: Generator) -> Tensor:
    return torch.randn(x.shape, generator=rng).to(x)


def ddim(
    predict_x0: PredictX0,
    x: Tensor,
    alphas: Tensor,
    timesteps: Tensor,
    rng: Generator,
    eta: float = 0.0,
    clamp: tuple[float, float] | None = None,
) -> Tensor:
    """From noise ``x`` to a draw with one prediction per step (Song et al., arXiv:2010.02502, eq. 12 and 16).

    Parameters
    ----------
    predict_x0
        Guidance, if any, is inside.
    timesteps
        Descending, see :func:`spaced`.
    rng
        On the CPU; not used if ``eta`` is 0.
    eta
        From 0, where the draw is a function of ``x``, to 1, the same as :func:`ddpm`.
    clamp
        Range to which x_0 is clamped, in the units of ``x``; the ε of a step then follows the clamped x_0.
    """
    for t, now, after in _stretches(alphas, timesteps):
        x0 = predict_x0(x, t)
        x0 = x0 if clamp is None else x0.clamp(*clamp)
        epsilon = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
        variance = eta**2 * (1 - after) / (1 - now) * (1 - now / after)
        x = math.sqrt(after) * x0 + math.sqrt(max(0.0, 1 - after - variance)) * epsilon
        if variance > 0:
            x = x + math.sqrt(variance) * _noise(x, rng)
    return x


def ddpm(
    predict_x0: PredictX0,
    x: Tensor,
    alphas: Tensor,
    timesteps: Tensor,
    rng: Generator,
    clamp: tuple[float, float] | None = None,
) -> Tensor:
    """From noise ``x`` to a draw by ancestral sampling; arguments as in :func:`ddim`.

    Each step draws from the posterior q(x_s | x_t, x_0) of the next timestep s for the predicted x_0 (Ho et al.,
    arXiv:2006.11239, eq. 6 and 7); where timesteps are skipped, β is that of the whole stretch from t to s.
    """
    for t, now, after in _stretches(alphas, timesteps):
        x0 = predict_x0(x, t)
        x0 = x0 if clamp is None else x0.clamp(*clamp)
        beta = 1 - now / after
        x = (math.sqrt(after) * beta * x0 + math.sqrt(now / after) * (1 - after) * x) / (1 - now)
        if after < 1:
            x = x + math.sqrt(beta * (1 - after) / (1 - now)) * _noise(x, rng)
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {"ddim": ddim, "ddpm": ddpm}
