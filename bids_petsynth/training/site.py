"""A site's own pairs of T1w and PET as ground to train on, and what the card tells of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from bids_petsynth.models.recipe import Recipe
from bids_petsynth.pet.quantification import quantify, suvr_rows
from bids_petsynth.pet.tracers import default_cutoff
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.training.pairs import MOST_KEPT, Record, TrainingCase
from bids_petsynth.training.real import OnDisk, Stored, case_maker, load_alone, load_case, regional_people
from bids_petsynth.training.regional import RegionalPeople
from bids_petsynth.types import Grid

STANDING = """\
This model was trained on a site's own scans. Whoever shares it must be allowed to: weights can hold traces of the
people they were trained on. It knows the scanners, tracers, assays and people below and no others. Research only; not
a medical device."""
#: People of a group below which the card tells their number alone: sexes and loads would be those of persons.
LEAST_TOLD = 5
FIGURES_NOTE = "Held-out people are of the same site: figures elsewhere may be worse."


@dataclass(frozen=True)
class SiteGround:
    """A site's people, some of them held out (see ``training.ground``)."""

    people_in: Sequence[Stored]
    people_out: Sequence[Stored]
    recipe: Recipe
    about: str
    run: str
    heads_alone: Sequence[Path] = ()
    scans_alone: Sequence[tuple[str, Path]] = ()

    demonstration = False
    standing = STANDING
    figures_note = FIGURES_NOTE

    @property
    def names(self) -> tuple[str, ...]:
        # participants' labels stay at the site
        return ()

    @property
    def pool(self) -> tuple[int, int, int]:
        people = len(self.people_in)
        # of many people another varied copy of each would hardly teach more, and be read from disk again and again
        return people, max(people, min(2 * people, MOST_KEPT)), self.recipe.training.refresh

    @cached_property
    def _maker(self) -> Callable[[int], TrainingCase]:
        return case_maker(self.people_in, self.recipe.training.seed)

    def case(self, number: int) -> TrainingCase:
        return self._maker(number)

    @property
    def unpaired(self) -> Sequence[Callable[[], TrainingCase]]:
        return [partial(load_case, Stored("", head, {}, {})) for head in self.heads_alone]

    @property
    def references(self) -> Sequence[tuple[str, Callable[[], tuple[np.ndarray, np.ndarray]]]]:
        return [(tracer, partial(load_alone, path)) for tracer, path in self.scans_alone]

    def records(self) -> Sequence[Record]:
        return [stored.record for stored in self.people_in]

    def people(self) -> RegionalPeople:
        return regional_people(self.people_in, self.recipe.tracers, self.recipe.grid.voxel_size)

    def held_people(self) -> RegionalPeople:
        return regional_people(self.people_out, self.recipe.tracers, self.recipe.grid.voxel_size)

    def held_cases(self, n: int | None = None) -> Sequence[TrainingCase]:
        return OnDisk(self.people_out[:n])

    def texture_cases(self) -> Iterator[TrainingCase]:
        return map(load_case, self.people_out)

    def ranges(self) -> tuple[Mapping[str, str], ...]:
        """5th to 95th percentile of each region's SUVR over the people trained on."""
        values: dict[tuple[str, str], list[float]] = {}
        for stored in self.people_in:
            with np.load(stored.head, allow_pickle=False) as file:
                codes, grid = file["codes"], Grid(file["codes"].shape, file["affine"])
            for tracer, path in stored.scans.items():
                with np.load(path, allow_pickle=False) as file:
                    suvr = file["suvr"].astype(np.float32)
                for row in suvr_rows(quantify(suvr[None], codes, grid, tracer_named(tracer))):
                    if row["index"] is not None and row["suvr"] is not None:
                        values.setdefault((tracer, row["name"]), []).append(row["suvr"])
        return tuple(
            {"tracer": tracer, "name": name, "mean": f"{np.mean(v):.3f}", "sd": f"{np.std(v, ddof=1):.3f}"}
            | {f"p{p:02d}": f"{np.quantile(v, p / 100):.3f}" for p in (5, 95)}
            for (tracer, name), v in values.items()
            if len(v) > 1
        )

    def normal_cases(self) -> Iterator[TrainingCase]:
        return map(load_case, self.people_in)

    def data(self) -> str:
        return self.about

    def command(self, minutes: float) -> str:
        return self.run


def describe(
    people_in: Sequence[Stored],
    people_out: Sequence[Stored],
    recipe: Recipe,
    licence: str,
    heads_alone: int = 0,
    scans_alone: int = 0,
) -> str:
    """The card's list of whom the model knows; counts and means only, no participant's value.

    ``heads_alone`` T1w without PET and ``scans_alone`` PET scans without a T1w took part in pre-training.
    """
    cutoff = default_cutoff()

    def crowd(people: Sequence[Stored]) -> str:
        count = len({stored.participant for stored in people})
        counted = [name for name in recipe.modalities if name != "T1w" or name in recipe.tracers]
        there = [{"T1w", *stored.scans, *stored.others} for stored in people]
        scans = {name: sum(name in one for one in there) for name in counted}
        scans = {name: n for name, n in scans.items() if n or name in recipe.tracers}
        parts = [f"{count} people", ", ".join(f"{n} {tracer} scans" for tracer, n in scans.items())]
        if count < LEAST_TOLD:
            return "; ".join((*parts, "of fewer than five people no more is told"))
        ages = [stored.record["age"] for stored in people if "age" in stored.record]
        sexes = [stored.record["sex"] for stored in people if "sex" in stored.record]
        loads = [stored.centiloid for stored in people if stored.centiloid is not None]
        if len(ages) > 1:
            parts.append(f"age {np.mean(ages):.0f} ± {np.std(ages, ddof=1):.0f} years")
        if sexes:
            parts.append(f"{sum(sex == 0 for sex in sexes)} women, {sum(sex == 1 for sex in sexes)} men")
        if loads:
            above = sum(load > cutoff.centiloid for load in loads)
            parts.append(f"{above} of {len(loads)} above {cutoff.centiloid:g} Centiloid (approximate)")
        return "; ".join(parts)

    known = [
        f"{spec.name} {np.mean([spec.name in stored.record for stored in people_in]):.0%}"
        for spec in recipe.conditioning.variables
    ]
    alone = [
        f"{n} {what}" for n, what in ((heads_alone, "T1w without PET"), (scans_alone, "PET scans without T1w")) if n
    ]
    return (
        f"- Trained on {crowd(people_in)}.\n"
        + (f"- In pre-training besides: {' and '.join(alone)}.\n" if alone else "")
        + f"- Held out, by participant: {crowd(people_out)}.\n"
        f"- Variables known: {', '.join(known) or 'none asked for'}.\n- Licence of the data: {licence}."
    )
