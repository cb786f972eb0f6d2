"""Quality figures against the limits of ``data/quality.tsv``: what the warnings and the report tell of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bids_petsynth.tables import read_table


@dataclass(frozen=True)
class Check:
    """A figure with the limits beyond which it is unusual (None: there is none on that side)."""

    description: str
    unit: str
    value: float
    low: float | None
    high: float | None

    @property
    def unusual(self) -> bool:
        """Whether it lies outside its limits."""
        return (self.low is not None and self.value < self.low) or (self.high is not None and self.value > self.high)


def checks(quality: Mapping[str, float]) -> Iterator[Check]:
    """The figures that the table has limits for."""
    for row in read_table("quality.tsv"):
        if (value := quality.get(row["name"])) is not None:
            low, high = (float(row[key]) if row[key] else None for key in ("warn_low", "warn_high"))
            yield Check(row["description"], row["unit"], value, low, high)
