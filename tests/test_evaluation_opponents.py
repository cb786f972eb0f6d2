"""Images of simpler methods: what each of them is, from its definition, on made-up maps in template space."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.evaluation.comparison import maps_brain
from bids_petsynth.evaluation.opponent_images import PAINTED, image_errors, image_table, kept_voxels
from bids_petsynth.evaluation.pairs import MODEL, weighted_folds

NAMES = [name for _, name, _, _ in lookup()][:2]
CODES = [code for code, *_ in lookup()][:2]


@pytest.fixture(scope="module")
def world():
    """15 people in five units whose uptake is a pattern times a load that the record tells; one has no maps."""
    rng = np.random.default_rng(0)
    size = int(maps_brain().sum())
    load = rng.normal(0, 1, 15)
    pattern = rng.uniform(0.5, 1.5, size).astype(np.float32)
    # two halves of the brain are the two regions
    labels = np.where(np.nonzero(maps_brain())[0] < 48, CODES[0], CODES[1]).astype(np.float32)
    labels[:50] = np.nan
    truth = 1 + load[:, None].astype(np.float32) * pattern
    truth[3, 1000:2000] = np.nan
    offset = rng.uniform(0.1, 0.3, 15)

    def person(i):
        return lambda: {} if i == 7 else {"uptake": truth[i], "labels": labels, "difference": 0 * truth[i] + offset[i]}

    units = np.arange(15) // 3
    regional = np.stack([1 + load, 1 + load], 1)
    dealt = weighted_folds(regional, load[:, None], units)
    painted = pd.DataFrame(regional, columns=NAMES)
    return truth, labels, offset, units, dealt, image_errors([person(i) for i in range(15)], dealt, painted)


def test_errors_of_the_synthetic_pet_are_those_of_the_differences(world):
    *_, offset, _, _, found = world
    have = np.arange(15) != 7
    np.testing.assert_allclose(found[MODEL][have, 0], offset[have], rtol=1e-2)
    assert np.isnan(found[MODEL][7]).all()


def test_population_mean_and_ridge_are_those_of_the_other_people(world):
    truth, labels, _, units, dealt, found = world
    kept = kept_voxels()
    judged = (np.isfinite(truth) & (np.nan_to_num(labels) > 0))[:, kept]
    for fold in dealt:
        assert not set(units[fold.learned]) & set(units[fold.judged])
        mean = np.nanmean(truth[[i for i in fold.learned if i != 7]], 0)[kept]
        for i in (i for i in fold.judged if i != 7):
            expected = np.abs(mean - truth[i][kept])[judged[i]].mean()
            assert found["population mean"][i, 0] == pytest.approx(expected, rel=0.02)
    # the load tells every voxel but for the shrinkage of the ridge
    assert np.nanmean(found["ridge"][:, 0]) < 0.5 * np.nanmean(found["population mean"][:, 0])


def test_painted_regions_are_their_values(world):
    truth, labels, _, _, _, found = world
    kept = kept_voxels()
    # both regions of a person have one value, so the blur changes nothing
    for i in (0, 3):
        judged = (np.isfinite(truth[i]) & (np.nan_to_num(labels) > 0))[kept]
        level = world_level(i)
        expected = np.abs(level - truth[i][kept])[judged].mean()
        assert found[PAINTED][i, 0] == pytest.approx(expected, rel=0.01)


def world_level(i: int) -> float:
    """The regional value of a person, drawn as the fixture draws it."""
    return 1 + np.random.default_rng(0).normal(0, 1, 15)[i]


def test_the_table_says_who_is_nearer(world):
    *_, units, _, found = world
    table = image_table("AV45", found, 3.0, units).set_index("method")
    assert table.loc[MODEL, "n"] == 14 and np.isnan(table.loc[MODEL, "synthetic_nearer"])
    worse = (found[MODEL][:, 0] < found["population mean"][:, 0])[np.arange(15) != 7].mean()
    assert table.loc["population mean", "synthetic_nearer"] == pytest.approx(worse)
    row = table.loc[MODEL]
    assert row["mae_template_low"] < row["mae_template"] < row["mae_template_high"]
    mse = found[MODEL][np.arange(15) != 7, 1]
    assert row["psnr_template"] == pytest.approx((10 * np.log10(9 / mse)).mean())
