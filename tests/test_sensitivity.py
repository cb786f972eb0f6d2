"""How much each variable moved the result, against a regional flow whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models_small import small_model

from bids_petsynth.anatomy.regions import LEFT, RIGHT, n_classes, region_index
from bids_petsynth.api import _class_weights, sensitivity
from bids_petsynth.types import Anatomy, ClinicalRecord, Grid, Value

INDEX = region_index()


@pytest.fixture
def anatomy() -> Anatomy:
    """Two target regions (one twice as large as the other) and the whole cerebellum with its cut part."""
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[0] = LEFT + INDEX["precuneus"]
    labels[1] = RIGHT + INDEX["precuneus"]
    labels[2] = LEFT + INDEX["middle_frontal"]
    labels[3] = LEFT + INDEX["cerebellar_grey"]
    labels[4] = LEFT + INDEX["cerebellar_grey_inferior"]
    return Anatomy(np.ones(labels.shape), labels, np.zeros(0), Grid(labels.shape, np.eye(4)))


class Known:
    """Target regions at 1 + .1 · log p-tau217 + .02 · (age − 70); the reference at 2."""

    model = small_model()

    def volumes(self, anatomy):
        return None

    def regional_draws(self, values, tracer, volumes, seed, n):
        load = 1 + 0.1 * math.log(values.get("ptau217_lumipulse", 1.0)) + 0.02 * (values.get("age", 70.0) - 70)
        means = np.full((n, n_classes()), 9.0)
        means[:, [INDEX["precuneus"], INDEX["middle_frontal"]]] = [load, load + 0.3]
        means[:, INDEX["cerebellar_grey"]] = 2
        return torch.from_numpy(means + np.linspace(-0.01, 0.01, n)[:, None] * (means < 2))


def test_change_and_step_of_each_variable(anatomy):
    Known.model = type(Known.model)(**{**vars(Known.model), "classes": n_classes()})
    values = {"age": 75.0, "ptau217_lumipulse": math.e}
    record = ClinicalRecord({k: Value(k, v, "converted" if k == "age" else "found") for k, v in values.items()})
    rows = {row["variable"]: row for row in sensitivity(Known(), anatomy, record, "AV45", seed=0)}
    assert set(rows) == {spec.name for spec in Known.model.recipe.conditioning.variables}
    sd = dict(zip(rows, Known.model.variables.sd, strict=True))
    # a sum of two effects, halved by the reference
    assert rows["age"]["change"] == pytest.approx(0.02 * 5 / 2)
    assert rows["age"]["per_sd"] == pytest.approx(0.02 * sd["age"] / 2)
    assert rows["age"]["status"] == "converted" and rows["age"]["unit"] == "years"
    assert rows["ptau217_lumipulse"]["change"] == pytest.approx(0.1 / 2)
    assert rows["ptau217_lumipulse"]["per_sd"] == pytest.approx(0.1 * sd["ptau217_lumipulse"] / 2)
    assert rows["sex"]["status"] == "missing" and rows["sex"]["change"] is None and rows["sex"]["per_sd"] is None


def test_regions_count_by_their_volume_and_cut_ones_with_their_parent(anatomy):
    weights = _class_weights(anatomy.labels, ("precuneus", "middle_frontal"), n_classes())
    assert weights[INDEX["precuneus"]] == pytest.approx(2 / 3) and weights.sum() == pytest.approx(1)
    inferior = _class_weights(anatomy.labels, ("cerebellar_grey_inferior",), n_classes())
    assert inferior[INDEX["cerebellar_grey"]] == 1
