"""Regional uptake: a small rectified flow over one number per region, and painting such numbers as an image.

Most of what a record says about a PET scan is one number per region. A flow over those few dozen numbers costs nothing,
so it is trained on thousands of people, sampled in many steps, and its draws spread as the people do. The image network
then draws scans *with* given regional means; it neither needs the record nor can it change what the record says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from bids_petsynth.models.codec import blur_matrix
from bids_petsynth.models.conditioning import TRACER_SLOTS, RecordEmbedding
from bids_petsynth.models.process import guided, heun, preconditioned, shifted_grid
from bids_petsynth.models.recipe import RegionalSpec

#: Blur of painted regions in voxels of 4 mm; with the softness of the labels about what a scanner does.
BLUR = 0.6
#: Weight added to every region, so that a region of a few voxels is not measured by their noise alone.
FLOOR = 1.0


@dataclass(frozen=True)
class Condition:
    """What a draw is conditioned on besides images.

    Standardised record ``(N, V)`` with mask, tracer ``(N,)``, for a regional flow the heads' ``volumes`` and
    ``transfer`` (see :class:`Geometry`), and for recipes with a text its tokens ``(N, T, D)`` with the mask ``(N, T)``
    of those that are there.
    """

    values: Tensor
    mask: Tensor
    tracer: Tensor
    volumes: Tensor | None = None
    transfer: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Condition(**{name: None if part is None else change(part) for name, part in parts.items()})

    def repeated(self, n: int) -> Condition:
        """One person's row for each of ``n`` draws."""
        return self._each(lambda part: part.expand(n, *part.shape[1:]))

    def to(self, device: str) -> Condition:
        """The same on another device."""
        return self._each(lambda part: part.to(device))

    def without_record(self) -> Condition:
        """The same with every variable missing and no text, for guidance."""
        text_mask = None if self.text_mask is None else torch.zeros_like(self.text_mask)
        return replace(self, values=self.values * 0, mask=self.mask * 0, text_mask=text_mask)


def log_volumes(volumes: Tensor) -> Tensor:
    """Logarithms of volumes in ml; of nearly absent regions as if they had a tenth of a millilitre."""
    return volumes.clamp(min=0.1).log()


def label_volumes(labels: Tensor, voxel_size: float) -> Tensor:
    """Volumes ``(N, K)`` in ml of label probabilities ``(N, K, X, Y, Z)`` on voxels of ``voxel_size`` mm."""
    return labels.float().flatten(2).sum(2) * (voxel_size**3 / 1000)


def regional_means(volumes: Tensor, labels: Tensor) -> Tensor:
    """Means ``(N, K)`` of ``volumes (N, X, Y, Z)`` weighted by label probabilities ``(N or 1, K, X, Y, Z)``."""
    flat = labels.flatten(2)
    return (flat @ volumes.flatten(1)[..., None]).squeeze(2) / (flat.sum(2) + FLOOR)


class Painting:
    """Regional values → an image with exactly these regional means, for N heads.

    Each region is painted as its blurred label probability. Blurred regions overlap, so the values that are painted
    solve the small linear system that makes the measured means come out.

    Parameters
    ----------
    labels
        Label probabilities ``(N, K, X, Y, Z)``. N may be 1 for several draws of one head.
    """

    def __init__(self, labels: Tensor):
        labels = labels.float()
        n, k, *self.shape = labels.shape
        self.labels = labels
        x, y, z = (blur_matrix(size, BLUR).to(labels.device) for size in self.shape)
        self.maps = (x @ (y @ (labels @ z.T)).flatten(3)).view(n, k, -1)
        flat = labels.flatten(2)
        overlap = flat @ self.maps.transpose(1, 2) / (flat.sum(2, keepdim=True) + FLOOR)
        # a region that a head lacks has an empty row and column
        self.system = overlap + 1e-3 * torch.eye(k, device=labels.device)

    def measure(self, volumes: Tensor) -> Tensor:
        """Regional means ``(M, K)`` of ``(M, X, Y, Z)``; M is N, or any where N is 1."""
        return regional_means(volumes.float(), self.labels)

    def paint(self, means: Tensor) -> Tensor:
        """``(M, X, Y, Z)`` whose regional means are ``means (M, K)``."""
        values = torch.linalg.solve(self.system.expand(len(means), -1, -1), means.float()[..., None])
        return (self.maps.transpose(1, 2) @ values).view(len(means), *self.shape)

    def read(self, means: Tensor, masks: Tensor) -> Tensor:
        """Means ``(N, R)`` in ``masks (R, X, Y, Z)``, of any weights, of one head painted with ``means (N, K)``."""
        flat = masks.float().flatten(1)
        maps = self.maps[0] @ flat.T / flat.sum(1)
        return torch.linalg.solve(self.system[0], means.float().T).T @ maps

    def without_means(self, volumes: Tensor) -> Tensor:
        """``volumes`` less the painting of their regional means: what is left has none."""
        return volumes - self.paint(self.measure(volumes))


@dataclass(frozen=True)
class Geometry:
    """What of N heads' regions shapes the regional means of a scan.

    ``volumes (N, K)`` are in ml. ``transfer (N, K, K)`` is the geometric transfer matrix (Rousset et al., J Nucl Med
    1998;39:904): the regional means of a scan whose regions hold uptakes ``u`` and are blurred are ``transfer @ u``. It
    is the system of :class:`Painting`, so that those uptakes are what is painted.
    """

    volumes: Tensor
    transfer: Tensor

    @classmethod
    def of(cls, labels: Tensor, voxel_size: float, painting: Painting | None = None) -> Geometry:
        """That of label probabilities ``(N, K, X, Y, Z)`` on voxels of ``voxel_size`` mm; ``painting`` is theirs."""
        return cls(label_volumes(labels, voxel_size), (painting or Painting(labels)).system)

    @classmethod
    def together(cls, parts: Sequence[Geometry]) -> Geometry:
        """That of the heads of all parts."""
        return cls(torch.cat([part.volumes for part in parts]), torch.cat([part.transfer for part in parts]))

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, which: slice | Tensor) -> Geometry:
        return Geometry(self.volumes[which], self.transfer[which])

    def one_by_one(self) -> Iterator[Geometry]:
        """That of each head."""
        return (self[i : i + 1] for i in range(len(self)))

    def uptake(self, means: Tensor) -> Tensor:
        """Uptakes ``(N, T, K)`` before they spill over, of regional means ``(N, T, K)``."""
        return torch.linalg.solve(self.transfer, means.transpose(1, 2)).transpose(1, 2)


class RegionalFlow(nn.Module):
    """Rectified flow over the regional means of a scan, given the record and the tracer.

    Parameters
    ----------
    variables, classes
        Number of the record's variables and of regions.

    Notes
    -----
    It works on means, with ``spec.gtm`` on the uptakes behind them (see :class:`Geometry`), standardised per tracer and
    region by the buffers ``mean`` and ``sd`` ``(tracer slots, classes)``; logarithms of volumes are by ``volume_mean``
    and ``volume_sd`` ``(classes,)``.
    """

    def __init__(self, variables: int, classes: int, spec: RegionalSpec):
        super().__init__()
        self.steps, self.gtm = spec.steps, spec.gtm
        self.embedding = RecordEmbedding(variables, spec.width)
        self.stem = nn.Linear(classes, spec.width)
        self.blocks = nn.ModuleList(_Block(spec.width) for _ in range(spec.blocks))
        self.norm = nn.LayerNorm(spec.width)
        self.out = nn.Linear(spec.width, classes)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("mean", torch.zeros(TRACER_SLOTS, classes))
        self.register_buffer("sd", torch.ones(TRACER_SLOTS, classes))
        self.anatomy = nn.Linear(classes, spec.width) if spec.volumes else None
        if spec.volumes:
            self.register_buffer("volume_mean", torch.zeros(classes))
            self.register_buffer("volume_sd", torch.ones(classes))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Velocity at standardised ``x (N, K)`` and times ``t (N,)``."""

        def network(z: Tensor) -> Tensor:
            embedding = self.embedding(condition.values, condition.mask, condition.tracer, t)
            if self.anatomy is not None:
                embedding = embedding + self.anatomy(self.standardised(condition.volumes))
            hidden = self.stem(z) + embedding
            for block in self.blocks:
                hidden = block(hidden, embedding)
            return self.out(self.norm(hidden))

        return preconditioned(network, x, t)

    def standardised(self, volumes: Tensor) -> Tensor:
        """Logarithms of volumes in ml, 0 and 1 over training people; a head unlike all of theirs is held at 3 SD."""
        return ((log_volumes(volumes) - self.volume_mean) / self.volume_sd).clamp(-3, 3)

    @torch.no_grad()
    def sample(self, n: int, condition: Condition, guidance: float, rng: Generator) -> Tensor:
        """``n`` draws ``(n, K)`` of regional means in SUVR for one record; ``rng`` on the CPU."""
        wide = condition.repeated(n)
        x = torch.randn(n, self.out.out_features, generator=rng).to(self.mean.device)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            times = t.float().to(x.device).expand(n)
            v = self(x, times, wide)
            return v if guidance == 1.0 else guided(v, self(x, times, wide.without_record()), guidance)

        x = heun(velocity, x, shifted_grid(self.steps))
        x = x * self.sd[condition.tracer] + self.mean[condition.tracer]
        return x @ condition.transfer[0].T if self.gtm else x


class _Block(nn.Module):
    """Residual two-layer perceptron whose normalised input is scaled and shifted by the embedding."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulate = nn.Linear(width, 2 * width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(F.silu(embedding)).chunk(2, dim=1)
        return x + self.outer(F.silu(self.inner(self.norm(x) * (1 + scale) + shift)))


def along(draws: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations ``(N, K)`` of draws from their mean: what goes with a weighted mean of the regions, and the rest.

    What goes with it is each region's least-squares line on that mean, ``draws @ weights`` with ``weights (K,)``, over
    the N draws. So the weighted mean of the rest is 0 in every draw.
    """
    deviations = draws - draws.mean(0)
    whole = (deviations @ weights)[:, None]
    common = whole * ((whole * deviations).sum(0) / whole.square().sum().clamp(min=1e-12))
    return common, deviations - common


def representative(draws: Tensor, n: int) -> Tensor:
    """``n`` of many draws ``(N, K)``, shifted and scaled together so that their mean and spread are those of all.

    A mean over eight draws alone would miss the expectation by a third of their spread. The spread is that about this
    known mean: the sum of squared deviations over ``n``.
    """
    few, mean = draws[:n], draws.mean(0)
    if n == 1:
        return few
    centred = few - few.mean(0)
    of_all, of_few = (part.square().mean(0).sum() for part in (draws - mean, centred))
    return mean + centred * torch.sqrt(of_all / of_few.clamp(min=1e-12))
