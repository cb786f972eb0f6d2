"""Simulated plasma biomarkers of simulated people (``data/sim_plasma.tsv``)."""

from __future__ import annotations

from functools import cache

import numpy as np

from bids_petsynth.simulation.parameters import parameters
from bids_petsynth.simulation.person import People, draw_people
from bids_petsynth.tables import read_table


def draw_plasma(people: People, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Plasma values by canonical variable name: pg/mL, ratios without unit.

    The logarithm of an analyte has a median for amyloid-negative and -positive people; within each group it moves with
    the Centiloid, the tau, the age and the neurodegeneration of the person as far as the table says (loadings
    are correlations within the group), and the rest is the person's own. The total spread is the table's sigma.

    Returns
    -------
    dict
        ``(n,)`` arrays. Aβ42 is the product of Aβ40 and the ratio, so the three agree.
    """
    positive = people.positive
    expected = _expectations()
    traits = {}
    for name, trait in _traits(people).items():
        mean, sd = expected[name]
        traits[name] = (trait - mean[positive.astype(int)]) / sd[positive.astype(int)]
    values = {}
    for row in read_table("sim_plasma.tsv"):
        loadings = {name: float(row[name]) for name in traits}
        shared = sum(loading * traits[name] for name, loading in loadings.items())
        own = np.sqrt(max(0.0, 1 - sum(loading**2 for loading in loadings.values())))
        median = np.where(positive, float(row["median_positive"]), float(row["median_negative"]))
        z = shared + own * rng.standard_normal(len(people))
        values[row["variable"]] = np.exp(np.log(median) + float(row["sigma"]) * z)
    values["ab42_lumipulse"] = values["ab40_lumipulse"] * values["ab42_40_lumipulse"]
    return values


def drop_some(values: dict[str, np.ndarray], rng: np.random.Generator, probability: float) -> dict[str, np.ndarray]:
    """The same values with each one missing (NaN) with ``probability``, as in a site that measured some of them.

    A sum or ratio that no longer has its parts stays: it may have been reported alone.
    """
    return {name: np.where(rng.random(len(column)) < probability, np.nan, column) for name, column in values.items()}


def _traits(people: People) -> dict[str, np.ndarray]:
    """The traits that move plasma within an amyloid group."""
    return {
        "centiloid": people.centiloid,
        "tau": (people.tau_medial + people.tau_neocortical) / 2,
        "age": people.age,
        "neurodegeneration": people.neurodegeneration,
    }


@cache
def _expectations() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of each trait in amyloid-negative and -positive people.

    From a large crowd of its own, so that one person alone is drawn as in company.
    """
    parameter = parameters("sim_person.tsv")
    crowd = draw_people(int(parameter["expectation_people"]), np.random.default_rng(0))
    groups = [~crowd.positive, crowd.positive]
    return {
        name: (np.array([trait[g].mean() for g in groups]), np.array([trait[g].std() for g in groups]))
        for name, trait in _traits(crowd).items()
    }
