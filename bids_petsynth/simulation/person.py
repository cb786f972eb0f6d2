"""The simulated person: everything else (anatomy, uptake, plasma) is drawn from it.

The order is the order of causes: age, sex and amyloid first, then tau, neurodegeneration, cognition. Amyloid and
anatomy meet only through age, tau and neurodegeneration, so that a T1w tells little of the amyloid status.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from bids_petsynth.simulation.parameters import lobes, mixing, parameters

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class People:
    """``n`` simulated people, an array of length ``n`` per trait.

    Attributes
    ----------
    age, education
        Years.
    sex
        0 female, 1 male.
    apoe4
        Number of ε4 alleles, 0–2.
    centiloid
        True amyloid load in Centiloid.
    tau_medial, tau_neocortical
        Tau burden from 0 to 1 of the medial temporal lobe and of the neocortex; the latter only with amyloid.
    neurodegeneration
        Loss of tissue beyond ageing: 0 is the average of people without tau, about 1 that of Alzheimer's dementia.
    fdg_loss
        Severity of hypometabolism, 0–1.
    mmse
        Mini-Mental State Examination, 0–30.
    head_size
        Log factor of the intracranial volume.
    white_matter
        Factor of the non-specific tracer binding of white matter.
    site
        Index of the site whose scanner was used.
    uptake_pattern, asymmetry, atrophy_pattern
        ``(n, classes)`` standard normal numbers per region, correlated within a lobe: how this person's uptake, its
        left–right difference and the volumes deviate from the average of people like them.
    """

    age: np.ndarray
    sex: np.ndarray
    education: np.ndarray
    apoe4: np.ndarray
    centiloid: np.ndarray
    tau_medial: np.ndarray
    tau_neocortical: np.ndarray
    neurodegeneration: np.ndarray
    fdg_loss: np.ndarray
    mmse: np.ndarray
    head_size: np.ndarray
    white_matter: np.ndarray
    site: np.ndarray
    uptake_pattern: np.ndarray
    asymmetry: np.ndarray
    atrophy_pattern: np.ndarray

    def __len__(self) -> int:
        return len(self.age)

    @property
    def positive(self) -> np.ndarray:
        """Amyloid status: Centiloid above the cut-off of the biomarker figures."""
        return self.centiloid > parameters("sim_person.tsv")["positive_centiloid"]

    def rows(self, which: object) -> People:
        """The people selected by indices, a slice or a mask."""
        return People(*(getattr(self, field.name)[which] for field in fields(self)))

    def row(self, i: int) -> dict[str, float]:
        """All scalar traits of one person."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(column[i]) for name, column in columns.items() if column.ndim == 1}

    def to_frame(self) -> pd.DataFrame:
        """One row per person with the scalar traits."""
        import pandas as pd

        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return pd.DataFrame({name: column for name, column in columns.items() if column.ndim == 1})


def draw_people(
    n: int,
    rng: np.random.Generator,
    ages: np.ndarray | None = None,
    sexes: np.ndarray | None = None,
    positive_share: float | None = None,
) -> People:
    """Draw ``n`` simulated people.

    Parameters
    ----------
    n
        How many.
    rng
        Source of all randomness: the same state gives the same people.
    ages, sexes
        ``(n,)`` years and 0/1, where they are given by the heads used; drawn where None or NaN.
    positive_share
        Probability of the amyloid component, the same for everyone, in place of the one that rises with age; for
        balanced training sets.

    Returns
    -------
    People
        With figures from ``data/sim_person.tsv``.
    """
    p = parameters("sim_person.tsv")

    def normal() -> np.ndarray:
        return rng.standard_normal(n)

    age = np.clip(p["age_mean"] + p["age_sd"] * normal(), p["age_min"], p["age_max"])
    age = age if ages is None else np.where(np.isfinite(ages), ages, age)
    sex = (rng.random(n) < p["male_share"]).astype(float)
    sex = sex if sexes is None else np.where(np.isfinite(sexes), sexes, sex)
    education = np.clip(np.round(p["education_mean"] + p["education_sd"] * normal()), 6, 22)
    decade = (age - p["age_mean"]) / 10

    chance = 1 / (1 + np.exp(-(p["amyloid_logit"] + p["amyloid_logit_per_decade"] * decade)))
    amyloid = rng.random(n) < (chance if positive_share is None else positive_share)
    low = (
        p["negative_centiloid_mean"]
        + p["negative_centiloid_per_decade"] * decade
        + p["negative_centiloid_sd"] * normal()
    )
    high = p["positive_centiloid_min"] + rng.gamma(p["positive_centiloid_shape"], p["positive_centiloid_scale"], n)
    centiloid = np.where(amyloid, np.minimum(high, p["positive_centiloid_max"]), low)
    carrier = rng.random(n) < np.where(amyloid, p["apoe4_positive"], p["apoe4_negative"])
    apoe4 = carrier * (1 + (rng.random(n) < p["apoe4_homozygous"]))

    load = np.clip(centiloid, 0, None) / 100
    medial = p["tau_medial_mean"] + p["tau_medial_per_decade"] * decade + p["tau_medial_per_amyloid"] * load
    tau_medial = np.clip(medial + p["tau_medial_sd"] * normal(), 0, 1)
    spread = p["tau_neocortical_per_amyloid"] * load + p["tau_neocortical_per_medial"] * (
        tau_medial - p["tau_neocortical_threshold"]
    )
    tau_neocortical = np.clip(spread + p["tau_neocortical_sd"] * normal(), 0, 1)
    tau_neocortical = np.where(centiloid > p["positive_centiloid"], tau_neocortical, 0.0)
    neurodegeneration = (
        p["neurodegeneration_per_medial"] * (tau_medial - p["tau_medial_mean"])
        + p["neurodegeneration_per_neocortical"] * tau_neocortical
        + p["neurodegeneration_sd"] * normal()
    )
    fdg_loss = np.clip(
        p["fdg_per_tau"] * tau_neocortical
        + p["fdg_per_neurodegeneration"] * neurodegeneration
        + p["fdg_sd"] * normal(),
        0,
        1,
    )
    mmse = (
        p["mmse_healthy"]
        + p["mmse_per_education"] * (education - p["education_mean"])
        - p["mmse_per_fdg_loss"] * fdg_loss
        - p["mmse_per_neurodegeneration"] * np.clip(neurodegeneration, 0, None)
        + p["mmse_sd"] * normal()
    )
    groups = list(lobes())
    share = p["lobe_share"]
    return People(
        age=age,
        sex=sex,
        education=education,
        apoe4=apoe4.astype(float),
        centiloid=centiloid,
        tau_medial=tau_medial,
        tau_neocortical=tau_neocortical,
        neurodegeneration=neurodegeneration,
        fdg_loss=fdg_loss,
        mmse=np.clip(np.round(mmse), 0, 30),
        head_size=p["head_size_per_male"] * (sex - 0.5) + p["head_size_sd"] * normal(),
        white_matter=np.exp(p["white_matter_sd"] * normal()),
        site=rng.integers(0, int(p["sites"]), n),
        uptake_pattern=mixing(groups, rng, n, share),
        asymmetry=mixing(groups, rng, n, share),
        atrophy_pattern=mixing(groups, rng, n, share),
    )
