"""How much each variable moved the result, against a regional flow whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models_small import small_model

from bids_petsynth.anatomy.regions import class_weights, n_classes, region_index
from bids_petsynth.api import sensitivity
from bids_petsynth.models.regional import Geometry
from bids_petsynth.training.card import sensitivity_section
from bids_petsynth.types import ClinicalRecord, Value

INDEX = region_index()


class Known:
    """Target regions at 1 + .1 · log p-tau217 + .02 · (age − 70); the reference at 2."""

    model = small_model()

    def geometry(self, anatomy):
        """Of the same volume for all regions but the rest of the target's, which are absent."""
        sizes = torch.zeros(1, n_classes())
        sizes[0, [INDEX[name] for name in ("precuneus", "middle_frontal", "cerebellar_grey")]] = 3
        return Geometry(sizes, torch.eye(n_classes())[None])

    def regional_draws(self, values, tracer, geometry, seed, n):
        # two blood values that stand in for each other: the load is that of whichever is known
        blood = values.get("ptau217_lumipulse", values.get("gfap_simoa", 1.0))
        load = 1 + 0.1 * math.log(blood) + 0.02 * (values.get("age", 70.0) - 70)
        means = np.full((n, n_classes()), 9.0)
        means[:, [INDEX["precuneus"], INDEX["middle_frontal"]]] = [load, load + 0.3]
        means[:, INDEX["cerebellar_grey"]] = 2
        return torch.from_numpy(means + np.linspace(-0.01, 0.01, n)[:, None] * (means < 2))


def test_change_and_step_of_each_variable():
    Known.model = type(Known.model)(**{**vars(Known.model), "classes": n_classes()})
    values = {"age": 75.0, "ptau217_lumipulse": math.e}
    record = ClinicalRecord({k: Value(k, v, "converted" if k == "age" else "found") for k, v in values.items()})
    rows = {row["variable"]: row for row in sensitivity(Known(), None, record, "AV45", seed=0)}
    assert set(rows) == {spec.name for spec in Known.model.recipe.conditioning.variables}
    sd = dict(zip(rows, Known.model.variables.sd, strict=True))
    # a sum of two effects, halved by the reference
    assert rows["age"]["change"] == pytest.approx(0.02 * 5 / 2)
    assert rows["age"]["per_sd"] == pytest.approx(0.02 * sd["age"] / 2)
    assert rows["age"]["status"] == "converted" and rows["age"]["unit"] == "years"
    assert rows["ptau217_lumipulse"]["change"] == pytest.approx(0.1 / 2)
    assert rows["ptau217_lumipulse"]["per_sd"] == pytest.approx(0.1 * sd["ptau217_lumipulse"] / 2)
    assert rows["sex"]["status"] == "missing" and rows["sex"]["change"] is None and rows["sex"]["per_sd"] is None


def test_blood_values_that_stand_in_for_each_other_are_told_together():
    Known.model = type(Known.model)(**{**vars(Known.model), "classes": n_classes()})

    def rows(**values: float) -> dict[str, dict]:
        record = ClinicalRecord({k: Value(k, v, "found") for k, v in values.items()})
        return {row["variable"]: row for row in sensitivity(Known(), None, record, "AV45", seed=0)}

    both = rows(age=75.0, ptau217_lumipulse=math.e**4, gfap_simoa=math.e**4)
    assert both["ptau217_lumipulse"]["change"] == both["gfap_simoa"]["change"] == 0
    assert both["all_blood_values"]["change"] == pytest.approx(0.1 * 4 / 2) and list(both)[-1] == "all_blood_values"
    assert both["all_blood_values"]["per_sd"] is None
    assert "all_blood_values" not in rows(age=75.0, ptau217_lumipulse=math.e)


def test_card_tells_what_all_blood_values_do():
    section = sensitivity_section({"AV45": {"age": (0.01, 0.02), "all_blood_values": (math.nan, 0.3)}})
    assert "| age | +0.010 / 0.020 |" in section and "| all_blood_values | n/a / 0.300 |" in section


def test_regions_count_by_their_volume_and_cut_ones_with_their_parent():
    volumes = np.ones(n_classes())
    volumes[INDEX["precuneus"]] = 2
    weights = class_weights(("precuneus", "middle_frontal"), volumes)
    assert weights[INDEX["precuneus"]] == pytest.approx(2 / 3) and weights.sum() == pytest.approx(1)
    inferior = class_weights(("cerebellar_grey_inferior",), volumes)
    assert inferior[INDEX["cerebellar_grey"]] == 1
    assert class_weights(("precuneus", "middle_frontal"), np.zeros(n_classes())).max() == 0.5
