"""A recipe's process as one object: how data are corrupted, what the network is asked for, how a draw is made.

``network`` is a function of ``x (N, …)`` and times ``t (N,)`` in [0, 1], 1 being pure noise, to a tensor like ``x``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Generator, Tensor

from bids_petsynth.models import diffusion
from bids_petsynth.models.process import (
    SOLVERS,
    flow_loss,
    interpolate,
    preconditioned,
    shifted_grid,
    training_times,
)
from bids_petsynth.models.recipe import DiffusionSpec, DirectSpec, FlowSpec, Recipe

#: ``(x, t)`` → the network's output.
Network = Callable[[Tensor, Tensor], Tensor]


class Process(Protocol):
    """What a training step and a sampler need to know; all tensors are in standardised units."""

    def times(self, n: int, rng: Generator) -> Tensor:
        """``n`` times in [0, 1] at which to train."""

    def corrupt(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network sees at times ``t (N,)``."""

    def output(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        """What the process makes of a plain network's output: a velocity, ε, x₀ …"""

    def error(self, output: Tensor, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Squared error of the output per example ``(N,)``."""

    def data(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The clean data that an output implies."""

    def trust(self, t: Tensor) -> Tensor:
        """How much the implied data may be judged at times ``t (N,)``: 1, or less where an error is blown up."""

    def draw(self, output: Network, noise: Tensor, rng: Generator) -> Tensor:
        """A draw from noise; ``output`` is a function of ``x`` and a scalar time, guidance included."""


class Flow:
    """Rectified flow (``models.process``)."""

    def __init__(self, spec: FlowSpec):
        self.spec = spec

    def times(self, n: int, rng: Generator) -> Tensor:
        return training_times(n, self.spec.shift, rng)

    def corrupt(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return interpolate(data, noise, t)

    def output(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        return preconditioned(lambda z: network(z, t), x.float(), t)

    def error(self, output: Tensor, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return flow_loss(output, noise - data, t)

    def data(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return x - _wide(t, x) * output

    def trust(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def draw(self, output: Network, noise: Tensor, rng: Generator) -> Tensor:
        return SOLVERS[self.spec.solver](output, noise, shifted_grid(self.spec.steps, self.spec.shift))


class Diffusion:
    """DDPM (``models.diffusion``); the time of step k of T is (k + 1) / T."""

    def __init__(self, spec: DiffusionSpec):
        self.spec = spec
        match spec.schedule:
            case "cosine":
                self.alphas = diffusion.cosine_alphas(spec.timesteps)
            case "linear":
                self.alphas = diffusion.linear_alphas(spec.timesteps, *spec.beta)
            case "scaled-linear":
                self.alphas = diffusion.scaled_linear_alphas(spec.timesteps, *spec.beta)

    def times(self, n: int, rng: Generator) -> Tensor:
        return (torch.randint(self.spec.timesteps, (n,), generator=rng) + 1) / self.spec.timesteps

    def _step(self, t: Tensor) -> Tensor:
        return (t.double().cpu() * self.spec.timesteps).round().long() - 1

    def corrupt(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return diffusion.add_noise(data, noise, self._step(t), self.alphas)

    def output(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        made = network(x, t).float()
        if not self.spec.preconditioned:
            return made
        # an error of the velocity reaches x₀ times √(1 − ᾱ), one of a bare ε times √((1 − ᾱ) / ᾱ)
        return diffusion.to_epsilon("velocity", made, x, self._step(t), self.alphas)

    def error(self, output: Tensor, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        target = diffusion.target_of(self.spec.target, data, noise, self._step(t), self.alphas)
        return (output - target).square().flatten(1).mean(1)

    def data(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return diffusion.to_x0(self.spec.target, output, x, self._step(t), self.alphas)

    def trust(self, t: Tensor) -> Tensor:
        # the squared error of x₀ is that of a bare ε times (1 − ᾱ) / ᾱ
        bare = self.spec.target == "epsilon" and not self.spec.preconditioned
        return self.alphas[self._step(t)].to(t) if bare else torch.ones_like(t)

    def draw(self, output: Network, noise: Tensor, rng: Generator) -> Tensor:
        spec = self.spec

        def predict(x: Tensor, step: Tensor) -> Tensor:
            t = (step + 1) / spec.timesteps
            return diffusion.to_x0(spec.target, output(x, t), x, step, self.alphas)

        more = {"eta": spec.eta} if spec.sampler == "ddim" else {}
        clamp = None if spec.clamp is None else (-spec.clamp, spec.clamp)
        timesteps = diffusion.spaced(spec.timesteps, spec.steps)
        return diffusion.SAMPLERS[spec.sampler](predict, noise, self.alphas, timesteps, rng, clamp=clamp, **more)


class Direct:
    """One pass: the data are what the network returns, given nothing or, for an adversarial generator, noise."""

    def __init__(self, spec: DirectSpec):
        self.spec = spec

    def times(self, n: int, rng: Generator) -> Tensor:
        return torch.ones(n)

    def corrupt(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise if self.spec.noise else torch.zeros_like(noise)

    def output(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        return network(x, t).float()

    def error(self, output: Tensor, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return (output - data).square().flatten(1).mean(1)

    def data(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return output

    def trust(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def draw(self, output: Network, noise: Tensor, rng: Generator) -> Tensor:
        return output(self.corrupt(noise, noise, noise), torch.ones(()))


def _wide(t: Tensor, x: Tensor) -> Tensor:
    return t.to(x).view(-1, *[1] * (x.ndim - 1))


def build_process(recipe: Recipe) -> Process:
    """The process that a recipe names."""
    match recipe.process:
        case FlowSpec():
            return Flow(recipe.process)
        case DiffusionSpec():
            return Diffusion(recipe.process)
        case _:
            return Direct(recipe.process)
