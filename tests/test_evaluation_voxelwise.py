"""Voxelwise maps against scipy, in one pass and in parts; atrophy against planted relations."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from bids_petsynth.anatomy.regions import LEFT, RIGHT, region_index
from bids_petsynth.evaluation.voxelwise import VoxelwiseMaps, against_atrophy, atrophy_measures


def test_maps_are_those_of_scipy():
    # a large mean beside a small spread is where naive sums of squares fail
    volumes = 1e4 + 0.01 * np.random.default_rng(0).standard_normal((9, 3, 4, 5))
    maps = VoxelwiseMaps()
    for volume in volumes:
        maps.add(volume)
    found = maps.maps()
    np.testing.assert_allclose(found["mean"], volumes.mean(0))
    np.testing.assert_allclose(found["sd"], volumes.std(0, ddof=1), rtol=1e-6)
    assert (found["n"] == 9).all() and maps.people == 9


def test_t_and_p_are_those_of_the_paired_test():
    rng = np.random.default_rng(1)
    real, synthetic = rng.standard_normal((2, 12, 4, 4, 4))
    synthetic[:, 0] += 3
    maps = VoxelwiseMaps()
    for a, b in zip(synthetic, real, strict=True):
        maps.add(a - b)
    found, expected = maps.maps(), stats.ttest_rel(synthetic, real)
    np.testing.assert_allclose(found["t"], expected.statistic)
    np.testing.assert_allclose(found["p"], expected.pvalue)
    np.testing.assert_allclose(found["q"].ravel(), stats.false_discovery_control(expected.pvalue.ravel()))
    assert (found["t"][0] > 0).all() and (found["q"][0] < 0.05).mean() > 0.9


def test_null_maps_have_uniform_p():
    rng = np.random.default_rng(2)
    maps = VoxelwiseMaps()
    for _ in range(8):
        maps.add(rng.standard_normal((20, 20, 20)))
    found = maps.maps()
    assert stats.kstest(found["p"].ravel(), "uniform").pvalue > 0.01
    assert (found["q"] < 0.05).mean() < 0.01


def test_voxels_that_some_people_lack():
    volumes = np.random.default_rng(3).standard_normal((7, 2, 2, 2))
    volumes[:4, 0, 0, 0] = np.nan
    volumes[1:, 1, 1, 1] = np.nan
    maps = VoxelwiseMaps()
    for volume in volumes:
        maps.add(volume)
    found = maps.maps()
    assert found["n"][0, 0, 0] == 3 and found["n"][1, 1, 1] == 1
    assert found["sd"][0, 0, 0] == pytest.approx(np.nanstd(volumes[:, 0, 0, 0], ddof=1))
    assert np.isnan(found["mean"][1, 1, 1]) and np.isnan(found["t"][1, 1, 1])
    assert np.isnan(maps.maps(least=5)["mean"][0, 0, 0])


def test_parts_merge_to_the_whole():
    volumes = np.random.default_rng(4).standard_normal((11, 3, 3, 3)) + 5
    volumes[3, 0] = np.nan
    whole, parts = VoxelwiseMaps(), [VoxelwiseMaps() for _ in range(3)]
    for number, volume in enumerate(volumes):
        whole.add(volume)
        parts[0 if number < 7 else 1].add(volume)
    merged = VoxelwiseMaps()
    for part in parts:
        merged.merge(part)
    assert merged.people == 11
    for name, expected in whole.maps().items():
        np.testing.assert_allclose(merged.maps()[name], expected)


def test_nobody_one_person_and_constant_differences():
    assert VoxelwiseMaps().maps() == {}
    maps = VoxelwiseMaps()
    maps.add(np.full((2, 2, 2), 0.3))
    assert np.isnan(maps.maps()["mean"]).all() and np.isnan(maps.maps()["q"]).all()
    maps.add(np.full((2, 2, 2), 0.3))
    maps.add(np.full((2, 2, 2), 0.3))
    found = maps.maps()
    np.testing.assert_allclose(found["mean"], 0.3)
    assert (found["sd"] < 1e-9).all() and np.isnan(found["t"]).all()
    with pytest.raises(ValueError, match="among volumes"):
        maps.add(np.zeros((2, 2, 3)))


def test_memory_does_not_grow_with_people():
    maps, volume = VoxelwiseMaps(), np.ones((40, 40, 40), np.float32)

    def grown(people: int) -> int:
        tracemalloc.start()
        for _ in range(people):
            maps.add(volume)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few = grown(5)
    assert grown(100) < 1.2 * few


def test_atrophy_measures_count_voxels():
    index = region_index()
    codes = np.zeros((10, 10, 10), np.uint8)
    codes[0], codes[1] = LEFT + index["precuneus"], RIGHT + index["frontal_white"]
    codes[2], codes[3] = LEFT + index["lateral_ventricle"], index["extra_axial_csf"]
    codes[4] = LEFT + index["cerebellar_grey"]
    found = atrophy_measures(codes, 8.0)
    assert found == pytest.approx({"brain_ml": 2.4, "ventricles_ml": 0.8, "cortex_ml": 0.8, "ventricle_share": 0.2})
    assert all(np.isnan(v) for v in atrophy_measures(np.zeros((2, 2, 2), np.uint8), 8.0).values())


def test_quality_against_atrophy():
    rng = np.random.default_rng(5)
    atrophy = rng.standard_normal(60)
    error = np.exp(atrophy + 0.5 * rng.standard_normal(60))
    found = against_atrophy(error, atrophy, np.arange(60), 150)
    assert found.estimate == pytest.approx(stats.spearmanr(error, atrophy).statistic)
    assert 0.5 < found.low < found.estimate < found.high < 1
    # people who share a head tell less than their number
    heads = np.repeat(np.arange(6), 10)
    level = rng.standard_normal(6)[heads]
    shared = against_atrophy(level + 0.1 * rng.standard_normal(60), level, heads, 150)
    alone = against_atrophy(level + 0.1 * rng.standard_normal(60), level, np.arange(60), 150)
    assert shared.high - shared.low > alone.high - alone.low
    null = [
        against_atrophy(rng.standard_normal(40), rng.standard_normal(40), np.arange(40), 40, seed) for seed in range(20)
    ]
    assert np.mean([interval.low < 0 < interval.high for interval in null]) > 0.8


def test_quality_against_atrophy_of_degenerate_cohorts():
    for errors, measures in (([1.0], [2.0]), ([1.0, 1, 1], [1, 2, 3]), ([np.nan, 1, 2], [1, 2, 3])):
        found = against_atrophy(np.array(errors), np.array(measures), np.arange(len(errors)), 20)
        assert np.isnan(found.estimate) and np.isnan(found.low)


def test_figure_of_the_maps_tells_its_numbers():
    from bids_petsynth.anatomy.alignment import template_grid
    from bids_petsynth.reports.voxelwise import voxelwise_figure

    grid = template_grid((48, 56, 48), 4.0)
    rng = np.random.default_rng(6)
    maps = VoxelwiseMaps()
    for _ in range(6):
        maps.add(0.25 + 0.01 * rng.standard_normal(grid.shape))
    found = voxelwise_figure(maps.maps(), grid, "FDG", maps.people, maps.people)
    assert "+0.250 SUVR on average" in found.alt and "100% of the brain differs" in found.alt
    assert found.content.startswith(b"\xff\xd8") and "6 people" in found.caption
