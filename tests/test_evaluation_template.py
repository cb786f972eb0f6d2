"""The warp through landmarks against known maps, and the template's surface."""

from __future__ import annotations

import numpy as np
import pytest
from surface_small import coordinates, labelled

from bids_petsynth.anatomy.alignment import template_centroids, template_grid
from bids_petsynth.evaluation.surface import project, template_surface
from bids_petsynth.evaluation.template import Warp, into_template, landmark_warp, landmarks, sample_at
from bids_petsynth.types import Grid


def test_landmark_warp_recovers_an_affine_map():
    matrix = np.array([[0.93, 0.05, 0, 3], [-0.04, 0.9, 0.03, -2], [0, 0.02, 0.95, 4], [0, 0, 0, 1.0]])
    codes, affine = labelled(matrix)
    warp = landmark_warp(codes, affine)
    points = template_surface().points[::50]
    # centroids were rounded to voxels of 2 mm, and neighbours cover each other a little
    off = np.linalg.norm(warp(points) - (points @ matrix[:3, :3].T + matrix[:3, 3]), axis=1)
    assert np.median(off) < 1 and off.max() < 3.5
    assert warp.landmarks > 80 and warp.residual < 1.5


def test_landmarks_are_centroids_with_sides():
    codes, affine = labelled(np.eye(4))
    found = landmarks(codes, affine)
    for key in (("precuneus", "L"), ("hippocampus", "R"), ("brainstem", "B")):
        np.testing.assert_allclose(found[key], template_centroids()[key], atol=2.0)
    assert found[("hippocampus", "L")][0] < 0 < found[("hippocampus", "R")][0]


def test_too_few_labels_are_refused():
    with pytest.raises(ValueError, match="only 0"):
        landmark_warp(np.zeros((8, 8, 8), np.uint8), np.eye(4))


def test_into_template_follows_a_known_map():
    def bend(points: np.ndarray) -> np.ndarray:
        return points * [0.9, 1.0, 1.1] + 3 * np.sin(points[:, ::-1] / 40)

    grid = template_grid((40, 45, 40), 4.0)
    head = template_grid((120, 140, 120), 2.0)
    x, y, z = coordinates(head)
    volume = x + 2 * y - z
    found = into_template(volume, head.affine, Warp(bend, 0, 0.0), grid)
    moved = bend(coordinates(grid).reshape(3, -1).T)
    expected = (moved @ [1, 2, -1]).reshape(grid.shape)
    known = np.isfinite(found)
    assert known.mean() > 0.9
    np.testing.assert_allclose(found[known], expected[known], atol=0.1)


def test_outside_the_field_of_view_is_unknown():
    values = sample_at(np.ones((4, 4, 4)), np.eye(4), np.array([[0.0, 0, 0], [3.4, 3, 3], [3.6, 3, 3], [-2, 0, 0]]))
    np.testing.assert_array_equal(np.isnan(values), [False, False, True, True])


def test_a_person_warped_into_the_template_keeps_sides_and_places():
    """A head that is smaller and shifted: a deficit on the left of the head lies on the left of the template."""
    matrix = np.diag([0.9, 0.9, 0.9, 1.0])
    matrix[:3, 3] = [5, -4, 3]
    codes, affine = labelled(matrix)
    surface = template_surface()
    head = Grid(codes.shape, affine)
    place = surface.points[np.linalg.norm(surface.points - [-70.0, -30, 20], axis=1).argmin()]
    reach = np.linalg.norm(coordinates(head) - (matrix[:3, :3] @ place + matrix[:3, 3])[:, None, None, None], axis=0)
    values = project(2.0 - (reach < 14), affine, warp=landmark_warp(codes, affine), statistic="mean").values
    low = values < 1.5
    assert low.sum() > 20 and surface.left[low].all()
    assert np.linalg.norm(surface.points[low].mean(0) - place) < 5


def test_template_surface_has_the_size_of_a_brain():
    surface = template_surface()
    low, high = surface.points.min(0), surface.points.max(0)
    # MNI152: about 140 × 180 × 150 mm with the cerebellum and brainstem
    assert (np.abs(high - low - [142, 178, 150]) < 12).all()
    assert surface.left.sum() == (~surface.left).sum() > 4000
