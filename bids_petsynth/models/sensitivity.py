"""How much each variable of a record moves the expected SUVR of a target region, by the regional flow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bids_petsynth.clinical.variables import ALL_BLOOD, variables
from bids_petsynth.models.regional import Geometry
from bids_petsynth.models.synthesizer import Synthesizer


@dataclass(frozen=True)
class Moved:
    """What one variable does to the target SUVR of one person.

    ``change`` is the SUVR with its value minus without it, all other values kept; ``per_sd`` the change when its value
    (or the logarithm, as the recipe says) rises by one standard deviation of the training people, NaN for
    ``ALL_BLOOD``, whose values do not rise together.
    """

    change: float
    per_sd: float


def moved_by(
    generator: Synthesizer,
    known: Mapping[str, float],
    tracer: str,
    geometry: Geometry,
    target: np.ndarray,
    reference: np.ndarray,
    seed: int,
    n: int = 64,
) -> dict[str, Moved]:
    """For each known variable that the model takes, what it does to the target SUVR.

    Blood values go along with one another: each alone is nearly told by the others and so moves little. Where two or
    more are known, ``ALL_BLOOD`` says what they do together.

    Parameters
    ----------
    known
        Values of one person by variable; nothing else is known.
    geometry
        As ``Synthesizer.regional_draws`` takes them.
    target, reference
        Weights ``(classes,)`` that average classes over the target and the reference region.
    seed, n
        All are means over the same ``n`` draws, so that differences are not noise.
    """

    def suvr(values: Mapping[str, float]) -> float:
        means = generator.regional_draws(values, tracer, geometry, seed, n).numpy()
        return float(((means @ target) / (means @ reference)).mean())

    model = generator.model
    full, found = suvr(known), {}
    for variable, sd in zip(model.recipe.conditioning.variables, model.variables.sd, strict=True):
        name = variable.name
        if name in known:
            value = known[name]
            more = value * math.exp(sd) if variable.transform == "log" else value + sd
            without = {other: v for other, v in known.items() if other != name}
            found[name] = Moved(full - suvr(without), suvr({**known, name: more}) - full)
    blood = {name for name in found if variables()[name].kind == "plasma"}
    if len(blood) > 1:
        without = {other: v for other, v in known.items() if other not in blood}
        found[ALL_BLOOD] = Moved(full - suvr(without), math.nan)
    return found
