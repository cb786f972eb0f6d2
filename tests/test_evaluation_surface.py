"""Surface projection against closed forms: ellipsoids and spheres with known values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from surface_small import AXES, GRID, MIDDLE, coordinates, ellipsoid, sphere

from bids_petsynth.anatomy.regions import LEFT, RIGHT, region_index
from bids_petsynth.evaluation.surface import (
    correlation,
    cortex,
    project,
    residual_correlations,
    smoothed_within,
    statistic_of,
    surface_of,
)


@pytest.fixture(scope="module")
def body():
    return surface_of(ellipsoid() < 1, GRID.affine)


def outer(surface) -> np.ndarray:
    """Points of the ellipsoid proper, off the midplane's rim where the two halves are rounded off."""
    return np.abs(surface.points[:, 0]) > 8


def test_points_lie_on_the_ellipsoid_and_normals_point_inwards(body):
    far = outer(body)
    offset = (body.points - MIDDLE)[far]
    radius = np.sqrt(np.square(offset / AXES).sum(1))
    # a millimetre in 50 to 75
    assert np.abs(radius - 1).max() < 0.02
    gradient = -offset / AXES**2
    gradient /= np.linalg.norm(gradient, axis=1, keepdims=True)
    assert (body.inward[far] * gradient).sum(1).min() > np.cos(np.radians(8))


def test_medial_points_lie_on_the_midplane_and_look_sideways(body):
    centre = np.linalg.norm(body.points[:, 1:] - MIDDLE[1:], axis=1) < 30
    medial = centre & (np.abs(body.points[:, 0]) < 8)
    assert medial.sum() > 500
    assert np.abs(body.points[medial, 0]).max() < 1.0
    sign = np.where(body.left[medial], -1, 1)
    np.testing.assert_allclose(body.inward[medial, 0], sign, atol=0.02)
    assert (body.points[body.left, 0] < 1).all() and (body.points[~body.left, 0] > -1).all()


def test_both_halves_mirror_each_other(body):
    left, right = body.points[body.left], body.points[~body.left]
    order = [np.lexsort(np.round(side * [sign, 1, 1], 3).T) for side, sign in ((left, -1), (right, 1))]
    np.testing.assert_allclose(left[order[0]] * [-1, 1, 1], right[order[1]], atol=1e-6)


def test_maximum_and_mean_along_the_normal_of_a_sphere():
    depth, mask = sphere()
    surface = surface_of(mask, GRID.affine)
    far = np.abs(surface.points[:, 0]) > 15
    # uptake rises to 2 at a depth of 6 mm and falls again, linearly: along a radius the mean has a closed form
    volume = 2 - np.abs(depth - 6) / 6
    top = project(volume, GRID.affine, surface, statistic="max", depth=12).values
    mean = project(volume, GRID.affine, surface, statistic="mean", depth=12).values
    # the sampled maximum misses the ridge by half a voxel at most
    np.testing.assert_allclose(top[far], 2, atol=0.2)
    samples = 2 - np.abs(np.arange(0, 12.1, 1.5) - 6) / 6
    assert abs(mean[far].mean() - samples.mean()) < 0.02
    np.testing.assert_allclose(mean[far], samples.mean(), atol=0.15)


def test_depth_is_respected():
    depth, mask = sphere()
    surface = surface_of(mask, GRID.affine)
    far = np.abs(surface.points[:, 0]) > 20
    core = (depth > 14).astype(float)
    assert project(core, GRID.affine, surface, depth=10.5).values[far].max() < 0.1
    assert project(core, GRID.affine, surface, depth=18).values[far].min() > 0.9


def test_only_the_tissue_counts():
    depth, mask = sphere()
    surface = surface_of(mask, GRID.affine)
    far = np.abs(surface.points[:, 0]) > 20
    bright_below = np.where(depth > 10, 9.0, 1.5)
    shell = (depth > -3) & (depth < 5)
    found = project(bright_below, GRID.affine, surface, shell)
    np.testing.assert_allclose(found.values[far], 1.5, atol=1e-5)
    nothing = project(bright_below, GRID.affine, surface, np.zeros_like(shell))
    assert np.isnan(nothing.values).all()


def test_translation_of_the_grid_changes_nothing(body):
    volume = np.sin(coordinates()[0] / 20) + np.cos(coordinates()[1] / 15)
    before = project(volume, GRID.affine, body)
    wider = np.pad(volume, ((3, 5), (7, 2), (4, 6)))
    affine = GRID.affine.copy()
    affine[:3, 3] -= 2.0 * np.array([3, 7, 4])
    after = project(wider, affine, body)
    np.testing.assert_allclose(after.values, before.values, atol=1e-5)
    mask = np.pad(ellipsoid() < 1, ((3, 5), (7, 2), (4, 6)))
    again = surface_of(mask, affine)
    np.testing.assert_allclose(again.points, body.points, atol=1e-6)
    assert again.key == body.key


def test_a_turned_grid_reads_the_same_values(body):
    volume = coordinates()[1]
    flipped = GRID.affine @ np.array([[-1.0, 0, 0, 71], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(
        project(volume[::-1], flipped, body).values, project(volume, GRID.affine, body).values, atol=1e-4
    )


def test_refusals(body):
    mask = ellipsoid() < 1
    with pytest.raises(ValueError, match="right, anterior"):
        surface_of(mask, np.diag([-2.0, 2, 2, 1]))
    with pytest.raises(ValueError, match="edge"):
        surface_of(np.ones((5, 5, 5), bool), GRID.affine)
    with pytest.raises(ValueError, match="max or mean"):
        project(mask * 1.0, GRID.affine, body, statistic="median")
    with pytest.raises(ValueError, match="shape"):
        project(mask * 1.0, GRID.affine, body, mask[1:])


def test_cortex_and_statistics():
    index = region_index()
    codes = np.array([LEFT + index["precuneus"], RIGHT + index["frontal_white"], index["vermis"], 0])
    assert cortex(codes).tolist() == [True, False, True, False]
    assert statistic_of("FDG") == "max" and statistic_of("AV45") == statistic_of("AV1451") == "mean"


def test_correlation_over_the_points_that_both_have():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50))
    a[:5], b[10:12] = np.nan, np.nan
    both = np.isfinite(a) & np.isfinite(b)
    assert correlation(a, b) == pytest.approx(stats.pearsonr(a[both], b[both])[0])
    assert np.isnan(correlation(a, np.ones(50))) and np.isnan(correlation(np.full(4, np.nan), np.ones(4)))


def test_residual_correlation_forgets_the_common_pattern():
    rng = np.random.default_rng(1)
    common, own = 5 * rng.standard_normal(3000), rng.standard_normal((12, 3000))
    real = common + own
    real[0, :100] = np.nan
    # half of the variance of what is told of a person is theirs
    told = common + own + rng.standard_normal(own.shape)
    found = residual_correlations(told, real)
    # the others' mean of 11 adds 1/11 to each: (1 + 1/11) / sqrt((1 + 1/11) (2 + 1/11))
    np.testing.assert_allclose(found, np.sqrt((12 / 11) / (23 / 11)), atol=0.06)
    assert all(correlation(a, b) > 0.95 for a, b in zip(told, real, strict=True))
    pattern = residual_correlations(common + rng.standard_normal(own.shape), real)
    assert np.abs(pattern).max() < 0.2 and np.isnan(residual_correlations(told[:1], real[:1])).all()


def test_smoothing_stays_within_the_mask_and_evens_out_noise():
    depth, mask = sphere()
    surface = surface_of(mask, GRID.affine)
    shell = (depth > -3) & (depth < 7)
    rng = np.random.default_rng(4)
    sharp = np.where(shell, 1.5, 9.0)
    even = smoothed_within(sharp, shell, GRID.affine, 6.0)
    np.testing.assert_allclose(even[shell], 1.5, rtol=1e-5)
    unknown = np.where(np.arange(GRID.shape[0])[:, None, None] % 7 == 0, np.nan, sharp)
    np.testing.assert_allclose(smoothed_within(unknown, shell, GRID.affine, 6.0)[shell], 1.5, rtol=1e-5)
    # the largest value of a noisy scan lies above that of a mean of many, hardly so once both are smoothed
    scan, far = 1.5 + 0.2 * rng.standard_normal(GRID.shape), np.abs(surface.points[:, 0]) > 10
    raw = project(scan, GRID.affine, surface, shell).values[far].mean() - 1.5
    smooth = project(smoothed_within(scan, shell, GRID.affine, 6.0), GRID.affine, surface, shell).values[far]
    assert raw > 0.1 and np.isfinite(smooth).all() and smooth.mean() - 1.5 < 0.35 * raw
