"""What latents are standardised by, found over any number of scans one after the other."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

#: Smallest SD or half width: a channel that is the same everywhere is left as it is.
LEAST = 1e-4


class Spread:
    """Each channel's mean, SD and range over all latents that were added, in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = self.squares = torch.zeros((), dtype=torch.float64)
        self.low, self.high = torch.tensor(torch.inf), torch.tensor(-torch.inf)

    def add(self, latents: Tensor) -> None:
        """Take account of ``(C, x, y, z)``."""
        flat = latents.detach().cpu().double().flatten(1)
        self.count += flat.shape[1]
        self.sum, self.squares = self.sum + flat.sum(1), self.squares + flat.square().sum(1)
        self.low, self.high = torch.minimum(self.low, flat.amin(1)), torch.maximum(self.high, flat.amax(1))

    @classmethod
    def together(cls, parts: Iterable[Spread]) -> Spread:
        """That over everything that was added to any of ``parts``."""
        out = cls()
        for part in parts:
            out.count += part.count
            out.sum, out.squares = out.sum + part.sum, out.squares + part.squares
            out.low, out.high = torch.minimum(out.low, part.low), torch.maximum(out.high, part.high)
        return out

    def pair(self, normalisation: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per channel mean and SD, or of "minmax" middle and half width, so that everything lies in [-1, 1]."""
        if normalisation == "minmax":
            centre, width = (self.low + self.high) / 2, (self.high - self.low) / 2
        else:
            centre = self.sum / self.count
            width = ((self.squares - self.count * centre**2) / (self.count - 1)).clamp(min=0).sqrt()
        return tuple(centre.tolist()), tuple(width.clamp(min=LEAST).tolist())
