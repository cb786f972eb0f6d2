"""What a generator is trained on: simulated people, or a site's own scans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from bids_petsynth.training.pairs import Record, TrainingCase
from bids_petsynth.training.regional import RegionalPeople


class Ground(Protocol):
    """Training cases, held-out cases of other people, and what the model card tells of them.

    Attributes
    ----------
    demonstration
        True if its PET is simulated.
    names
        Heads or participants trained on.
    pool
        Cases at the start, cases kept at most, and steps per new one (see ``training.pairs.Pool``).
    standing, figures_note
        Paragraphs of the card: what the model is, and what its figures mean.
    """

    demonstration: bool
    names: tuple[str, ...]
    pool: tuple[int, int, int]
    standing: str
    figures_note: str

    def case(self, number: int) -> TrainingCase:
        """The ``number``-th case, the same whenever it is asked for."""

    @property
    def unpaired(self) -> Sequence[Callable[[], TrainingCase]]:
        """Heads without PET, read when called, for pre-training."""

    @property
    def references(self) -> Sequence[tuple[str, Callable[[], tuple[np.ndarray, np.ndarray]]]]:
        """PET without a T1w for pre-training: tracer and, when called, uptake (mean of the brain 1) and brain."""

    def records(self) -> Sequence[Record]:
        """Records that variables are standardised by."""

    def people(self) -> RegionalPeople:
        """Regional means that the regional flow is trained on."""

    def held_people(self) -> RegionalPeople:
        """Regional means of held-out people, to calibrate the spread."""

    def held_cases(self, n: int | None = None) -> Sequence[TrainingCase]:
        """Held-out cases for figures, ``n`` of them at most."""

    def texture_cases(self) -> Iterable[TrainingCase]:
        """Held-out cases, one by one and the same at every call, to calibrate the texture of draws."""

    def ranges(self) -> tuple[Mapping[str, str], ...]:
        """Rows of the model folder's ``regions.tsv``."""

    def normal_cases(self) -> Iterable[TrainingCase]:
        """People of whom surface projections are kept as the norm, not augmented."""

    def data(self) -> str:
        """List for the card: whose data, under which licence."""

    def command(self, minutes: float) -> str:
        """What was run."""
