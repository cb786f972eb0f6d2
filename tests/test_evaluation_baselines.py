"""Baselines: maps invert, weights give the textbook prediction, paint is undone, the oracle knows what it must."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import Ridge

from bids_petsynth.evaluation import baselines as base
from bids_petsynth.evaluation.uncertainty import auc

SHAPE = (32, 36, 28)


def wavy(rng: np.random.Generator, size: float = 2.0) -> np.ndarray:
    """A smooth map that leaves the border where it is."""
    shift = np.stack([ndimage.gaussian_filter(rng.standard_normal(SHAPE), 6) for _ in range(3)])
    inner = np.zeros(SHAPE)
    inner[9:-9, 9:-9, 9:-9] = 1
    shift *= ndimage.gaussian_filter(inner, 4)
    return (np.indices(SHAPE) + size * shift / np.abs(shift).max()).astype(np.float32)


def test_inverse_and_composition_undo_a_map():
    where = wavy(np.random.default_rng(0))
    every = np.indices(SHAPE)
    assert np.abs(where - every).max() > 1.5
    for both in (base.composed(where, base.inverse(where)), base.composed(base.inverse(where), where)):
        assert np.abs(both - every).max() < 0.3 and np.abs(both - every).mean() < 0.01


def test_composition_goes_on_beyond_the_field_of_view():
    every = np.indices(SHAPE, np.float32)
    assert base.composed(every + 3, every + 5) == pytest.approx(every + 8)


def test_kept_half_of_a_map_gives_it_back():
    where = wavy(np.random.default_rng(1))
    lost = np.abs(base.doubled(base.halved(where).astype(np.float16), SHAPE) - where)
    assert lost.max() < 0.2 and lost.mean() < 0.01


def test_normalised_coordinates_read_what_torch_reads():
    import torch
    import torch.nn.functional as F

    volume = np.random.default_rng(2).random(SHAPE).astype(np.float32)
    where = wavy(np.random.default_rng(3))
    size = np.array(SHAPE)[:, None, None, None]
    normalised = (((2 * where + 1) / size) - 1)[::-1].copy()
    assert base.from_normalised(normalised) == pytest.approx(where, abs=1e-4)
    grid = torch.from_numpy(normalised).permute(1, 2, 3, 0)[None].float()
    theirs = F.grid_sample(torch.from_numpy(volume)[None, None], grid, "bilinear", "border", align_corners=False)
    assert base.pulled(volume, where) == pytest.approx(theirs[0, 0].numpy(), abs=1e-4)


@pytest.mark.slow
def test_registration_finds_a_planted_warp():
    rng = np.random.default_rng(4)
    shape = (48, 56, 40)
    template = ndimage.gaussian_filter(rng.standard_normal(shape), 2).astype(np.float32)
    template = np.where(np.linalg.norm(np.indices(shape).T - [24, 28, 20], axis=-1).T < 18, 1 + 5 * template, 0)
    where = np.indices(shape, np.float32)
    where[1] += 2
    head = base.pulled(template.astype(np.float32), where)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        found = base.register(head, template.astype(np.float32), affine, Path(folder))
    assert np.abs(found - where)[:, head > 0.5].mean() < 0.3


def people(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    values = rng.standard_normal((n, 3))
    return values, values @ rng.standard_normal((3, 7)) + 0.1 * rng.standard_normal((n, 7)) + 2


@pytest.mark.parametrize("alpha", [0.1, 50.0])
def test_ridge_weights_are_ridge(alpha):
    values, figures = people()
    person = np.array([0.5, -1.0, 2.0])
    theirs = Ridge(alpha=alpha).fit(values, figures).predict(person[None])[0]
    assert base.ridge_weights(values, person, alpha) @ figures == pytest.approx(theirs)


def test_missing_variables_are_not_used():
    values, figures = people()
    person = np.array([0.5, np.nan, 2.0])
    theirs = Ridge(alpha=1.0).fit(values[:, [0, 2]], figures).predict([[0.5, 2.0]])[0]
    assert base.ridge_weights(values, person, 1.0) @ figures == pytest.approx(theirs)
    empty = np.full(3, np.nan)
    for weights in (base.ridge_weights(values, empty, 1.0), base.matched_weights(values, empty, 5)):
        assert weights @ figures == pytest.approx(figures.mean(0))


def test_matched_people_are_the_nearest():
    values, figures = people()
    person = values[17] + 1e-6
    assert base.matched_weights(values, person, 1) @ figures == pytest.approx(figures[17])
    assert np.count_nonzero(base.matched_weights(values, person, 10)) == 10
    assert base.matched_weights(values, person, 10).sum() == pytest.approx(1)


def test_leave_one_out_chooses_little_shrinkage_where_the_relation_is_strong():
    values, figures = people()
    noise = np.random.default_rng(6).standard_normal(figures.shape)
    assert base.choose(base.ridge_weights, (0.1, 1e4), values, figures) == 0.1
    assert base.choose(base.ridge_weights, (0.1, 1e4), values, noise) == 1e4


def blocks() -> tuple[np.ndarray, np.ndarray]:
    """Four regions in a box, with the head's T1w around them."""
    labels = np.zeros((5, 16, 20, 16), np.float32)
    labels[1, 3:8, 3:10, 3:13] = labels[2, 8:13, 3:10, 3:13] = 1
    labels[3, 3:8, 10:17, 3:13] = labels[4, 8:13, 10:17, 3:13] = 1
    labels[0] = 1 - labels[1:].sum(0)
    t1w = np.zeros((32, 40, 32), np.float32)
    t1w[2:-2, 2:-2, 2:-2] = 0.6
    return labels, t1w


def test_painted_values_come_back_from_the_painted_scan():
    on = base.channels(*blocks())
    values = np.array([0.3, 1.0, 2.0, 0.5, 1.5])
    scan = base.paint(values, on, 6.0, 4.0, (32, 40, 32))
    assert base.painted_values(scan[None], on, 6.0, 4.0)[0] == pytest.approx(values, abs=0.06)
    # the plain means are much farther off, because neighbours spill into each other
    coarse = base.pooled(scan, 2)
    means = np.array([coarse[label > 0.5].mean() for label in on])
    assert np.abs(means - values).max() > 0.1
    wrong = base.paint(base.painted_values(scan[None], on, 3.0, 4.0)[0], on, 3.0, 4.0, scan.shape)
    assert np.abs(wrong - scan).mean() > 2 * np.abs(base.paint(values, on, 6.0, 4.0, scan.shape) - scan).mean()


def test_air_is_not_painted_and_an_absent_region_has_no_value():
    labels, t1w = blocks()
    labels[0] += labels[4]
    labels[4] = 0
    on = base.channels(labels, t1w)
    assert on[0, 0].max() == 0 and on[0, 2, 2, 2] == 1
    found = base.painted_values(np.ones((2, *t1w.shape)), on, 4.0, 4.0)
    assert np.isnan(found[:, 4]).all() and np.isfinite(found[:, :4]).all()
    filled = base.regional_regression(np.random.default_rng(7).random((6, 2)), np.repeat(found, 3, 0))
    assert np.isfinite(filled.predict(np.zeros((1, 2)))).all()


def test_tabular_people_carry_the_heads_volumes_and_what_blood_tells():
    heads = np.log(np.random.default_rng(8).uniform(50, 4000, (4, 47)))
    records, volumes, centiloid = base.tabular_people(heads, 1500, 0)
    nearest = np.abs(volumes[:, None] - heads).mean(-1).min(1)
    assert volumes.shape == (1500, 47) and np.median(nearest) < 0.3
    blood = np.array([[r["ptau217_lumipulse"], r["age"]] for r in records])
    positive = centiloid > 20
    model = base.boosted(blood[:1000], positive[:1000], classify=True)
    assert 0.84 < auc(model.predict_proba(blood[1000:])[:, 1], positive[1000:]) < 0.95
    load = base.boosted(blood[:1000], centiloid[:1000]).predict(blood[1000:])
    assert 0.5 < np.corrcoef(load, centiloid[1000:])[0, 1] < 0.9
    again = base.tabular_people(heads, 1500, 0)
    assert (again[1] == volumes).all() and (base.tabular_people(heads, 1500, 1)[2] != centiloid).any()


def test_volumes_of_labels_and_of_classes():
    labels, _ = blocks()
    assert np.exp(base.log_volumes(labels)) == pytest.approx(labels[1:].sum((1, 2, 3)))
    classes = np.array([0, 1, 1, 2, 50])
    assert np.exp(base.head_log_volumes(classes))[:3] == pytest.approx([2, 1, 0.5])
