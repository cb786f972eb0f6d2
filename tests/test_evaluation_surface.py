"""Surface projection against closed forms: ellipsoids with known values, planted deficits, known maps between heads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from bids_petsynth.anatomy.alignment import template_centroids, template_grid
from bids_petsynth.anatomy.regions import LEFT, RIGHT, region_index
from bids_petsynth.errors import ModelError
from bids_petsynth.evaluation import normative as norms
from bids_petsynth.evaluation.surface import (
    Projection,
    correlation,
    cortex,
    project,
    residual_correlations,
    smoothed_within,
    statistic_of,
    surface_of,
    template_surface,
)
from bids_petsynth.evaluation.template import Warp, into_template, landmark_warp, landmarks, sample_at
from bids_petsynth.reports import surface as pictures
from bids_petsynth.reports.canvas import Figure
from bids_petsynth.types import Grid

AXES = np.array([60.0, 75.0, 50.0])
GRID = template_grid((72, 88, 64), 2.0)
#: Ellipsoid in the middle of x = 0.
MIDDLE = np.array([0.0, -17.0, 8.0])


def coordinates(grid: Grid = GRID) -> np.ndarray:
    """``(3, X, Y, Z)`` mm of each voxel."""
    every = np.indices(grid.shape).reshape(3, -1)
    return (grid.affine[:3, :3] @ every + grid.affine[:3, 3:]).reshape(3, *grid.shape)


def ellipsoid(grid: Grid = GRID, axes: np.ndarray = AXES) -> np.ndarray:
    """Squared radius, 1 on the ellipsoid."""
    return np.square((coordinates(grid) - MIDDLE[:, None, None, None]) / axes[:, None, None, None]).sum(0)


def sphere(radius: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """Depth below a sphere in mm, and its mask."""
    depth = radius - np.linalg.norm(coordinates() - MIDDLE[:, None, None, None], axis=0)
    return depth, depth > 0


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


def noise_people(n: int, points: int, seed: int, shift: np.ndarray | float = 0.0) -> list[Projection]:
    values = 1.5 + 0.1 * np.random.default_rng(seed).standard_normal((n, points))
    return [Projection(row + shift, "max", 13.5, "key") for row in values]


def test_normative_set_is_mean_and_sd_over_people():
    people = noise_people(12, 400, 1)
    people[0].values[:5] = np.nan
    found = norms.normative_of(people, "FDG", True, "g")
    values = np.stack([p.values for p in people])
    np.testing.assert_allclose(found.mean, np.nanmean(values, 0), rtol=1e-6)
    np.testing.assert_allclose(found.sd, np.nanstd(values, 0, ddof=1), rtol=1e-5)
    assert found.count[:6].tolist() == [11] * 5 + [12] and found.people == 12
    assert found.described == "12 simulated people with a normal FDG scan"


@pytest.mark.parametrize("people", [3, 12, 60])
def test_null_people_have_standard_normal_z_whatever_the_size_of_the_set(people):
    # each point is an independent set of its own
    normal = norms.normative_of(noise_people(people, 20_000, people))
    z = norms.z_scores(noise_people(1, 20_000, 999)[0], normal)
    assert stats.kstest(z, "norm").pvalue > 0.01
    assert abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.03


def test_a_far_value_has_a_finite_z_of_its_sign():
    normal = norms.normative_of(noise_people(200, 3, 4))
    z = norms.z_scores(Projection(np.array([-1e3, 1e3, np.nan]), "max", 13.5, "key"), normal)
    assert z[0] < -15 and z[1] > 15 and np.isnan(z[2])


def test_a_constant_point_has_no_z():
    same = [Projection(np.array([1.0, v]), "max", 13.5, "key") for v in (1.0, 2.0, 4.0)]
    z = norms.z_scores(Projection(np.array([5.0, 2.0]), "max", 13.5, "key"), norms.normative_of(same))
    assert np.isnan(z[0]) and np.isfinite(z[1])


def test_projections_made_in_other_ways_are_refused():
    normal = norms.normative_of(noise_people(3, 4, 0))
    for other in (("mean", 13.5, "key"), ("max", 9.0, "key"), ("max", 13.5, "other"), ("max", 13.5, "key", 0.0)):
        with pytest.raises(ValueError, match="different ways"):
            norms.z_scores(Projection(np.ones(4), *other), normal)
        with pytest.raises(ValueError, match="share"):
            norms.normative_of([*noise_people(3, 4, 0), Projection(np.ones(4), *other)])
    with pytest.raises(ValueError, match="two people"):
        norms.normative_of(noise_people(1, 4, 0))


def test_normative_file_round_trip_and_damage(tmp_path):
    sets = [norms.normative_of(noise_people(4, 30, i), name, True, "1x2x3@2") for i, name in enumerate(("AV45", "FDG"))]
    path = tmp_path / norms.FILE
    path.write_bytes(norms.to_bytes(sets))
    assert path.read_bytes() == norms.to_bytes(sets)
    back = norms.load_normative(path)
    assert list(back) == ["AV45", "FDG"]
    for one in sets:
        same = back[one.tracer]
        for name in ("mean", "sd", "count"):
            np.testing.assert_array_equal(getattr(same, name), getattr(one, name))
        assert (same.people, same.simulated, same.depth, same.surface, same.grid) == (4, True, 13.5, "key", "1x2x3@2")
    for content in (b"", path.read_bytes()[:-9], b"not a set of anything"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ModelError, match="copy the model folder"):
            norms.load_normative(tmp_path / "bad")
    with pytest.raises(ModelError):
        norms.load_normative(tmp_path / "absent")


def test_normative_set_belongs_to_its_model(tmp_path):
    from dataclasses import replace

    from models_small import small_model

    from bids_petsynth.models.folder import load_model, save_model

    one = norms.normative_of(noise_people(4, 30, 0), "FDG", True, "16x24x16@2")
    save_model(replace(small_model(), surface=norms.to_bytes([one])), tmp_path)
    model = load_model(tmp_path)
    assert norms.model_normative(tmp_path, model.weights_sha256)["FDG"].people == 4
    assert norms.model_normative(tmp_path, model.weights_sha256, "16x24x16@2")
    assert norms.model_normative(tmp_path, model.weights_sha256, "96x112x96@2") == {}
    assert norms.model_normative(tmp_path, "another model") == {}
    with (tmp_path / norms.FILE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="damaged"):
        norms.model_normative(tmp_path, model.weights_sha256)
    save_model(small_model(), tmp_path)
    assert norms.model_normative(tmp_path, load_model(tmp_path).weights_sha256) == {}
    assert not (tmp_path / norms.FILE).exists()


def test_who_is_normal():
    assert norms.is_normal({"mmse": 29}, {"centiloid": 3})
    assert not norms.is_normal({"mmse": 29}, {"centiloid": 60})
    assert not norms.is_normal({"mmse": 18}, {"centiloid": 3})
    assert norms.is_normal({"mmse": np.nan}, {"centiloid": 3}) and norms.is_normal({"mmse": 29}, {})
    assert not norms.is_normal({}, {})


# A planted deficit on every side and face of the ellipsoid.

FACES = {
    "right lateral": (60, -17, 8),
    "left lateral": (-60, -17, 8),
    "superior": (30, -17, 8 + 50 * np.sqrt(0.75)),
    "inferior": (-30, -17, 8 - 50 * np.sqrt(0.75)),
    "anterior": (25, -17 + 75 * np.sqrt(1 - (25 / 60) ** 2), 8),
    "posterior": (-25, -17 - 75 * np.sqrt(1 - (25 / 60) ** 2), 8),
    "right medial": (2, 0, 20),
    "left medial": (-2, -30, 10),
}


@pytest.fixture(scope="module")
def looked(body):
    return dict(zip([view.name for view in pictures.VIEWS], pictures.looks(body), strict=True))


@pytest.mark.parametrize("face", FACES)
def test_a_planted_deficit_is_found_where_it_was_planted(face, body, looked):
    rng = np.random.default_rng(3)
    base = np.where(ellipsoid() < 1.1, 1.5, 0.0)

    def person(deficit: float = 0.0) -> Projection:
        volume = base + 0.05 * rng.standard_normal(GRID.shape)
        reach = np.linalg.norm(coordinates() - np.array(FACES[face])[:, None, None, None], axis=0)
        # no deficit beyond the midplane
        side = np.sign(coordinates()[0]) == np.sign(FACES[face][0])
        return project(volume - deficit * ((reach < 18) & side), GRID.affine, body, statistic="mean")

    normal = norms.normative_of([person() for _ in range(12)])
    z = norms.z_scores(person(0.5), normal)
    low = z < -4
    assert low.sum() > 20
    places = body.points[low]
    assert np.median(np.linalg.norm(places - FACES[face], axis=1)) < 18
    sides = body.left[low]
    assert (sides.mean() > 0.9) if FACES[face][0] < 0 else (sides.mean() < 0.1)
    assert np.nanmean(z[np.linalg.norm(body.points - FACES[face], axis=1) > 40]) == pytest.approx(0, abs=0.15)
    # in the picture: the darkest spot lies where the view puts that place
    image = looked[face].values(z)
    row, column = (np.mean(np.nonzero(image < -4)[axis]) for axis in (0, 1))
    view = next(view for view in pictures.VIEWS if view.name == face)
    expected = []
    for (axis, sign), size, seen in ((view.up, image.shape[0], -1), (view.right, image.shape[1], 1)):
        middle = GRID.affine[axis, 3] + (GRID.shape[axis] - 1)
        expected.append(size / 2 - 0.5 + seen * sign * (FACES[face][axis] - middle) / pictures.PIXEL)
    assert abs(row - expected[0]) * pictures.PIXEL < 8 and abs(column - expected[1]) * pictures.PIXEL < 8


def test_marks_agree_with_the_axes():
    for view in pictures.VIEWS:
        axis, sign = view.right
        ends = {0: ("L", "R"), 1: ("P", "A")}[axis]
        assert view.marks == (ends if sign > 0 else ends[::-1]), view.name
        # right, up and towards the eye are a right-handed triple, or the picture would be a mirror image
        basis = np.eye(3)
        across, up = (s * basis[a] for a, s in (view.right, view.up))
        np.testing.assert_allclose(np.cross(across, up), view.towards * basis[view.axis], atol=0)


def test_each_view_shows_the_side_that_faces_it(body, looked):
    for view in pictures.VIEWS:
        picture = looked[view.name]
        points = body.points[picture.points[:, 0]]
        middle = np.where(np.arange(3) == 0, 0, MIDDLE)
        if "medial" in view.name:
            assert (np.abs(points[:, 0]) < 12).mean() > 0.9
        else:
            assert ((points - middle)[:, view.axis] * view.towards > -6).all(), view.name
        for coordinate, place in ((view.right, 1), (view.up, 0)):
            image = picture.values(body.points[:, coordinate[0]])
            image = image[:, np.isfinite(image).any(0)][np.isfinite(image).any(1)]
            line = np.nanmean(image, axis=1 - place) * coordinate[1] * (1 if place == 1 else -1)
            assert all(b > a - 0.5 for a, b in pairwise(line)), view.name


# The warp through landmarks.


def labelled(matrix: np.ndarray, spacing: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Little balls at the template's centroids, moved by an affine map, as codes on a grid."""
    shape = tuple(int(extent / spacing) for extent in (220, 260, 220))
    affine = template_grid(shape, spacing).affine
    codes = np.zeros(shape, np.uint8)
    index = region_index()
    for (name, side), centre in template_centroids().items():
        if name == "extra_axial_csf":
            continue
        where = np.linalg.inv(affine) @ matrix @ np.append(centre, 1)
        low = np.round(where[:3]).astype(int)
        place = tuple(slice(v - 1, v + 2) for v in low)
        codes[place] = index[name] + {"L": LEFT, "R": RIGHT, "B": 0}[side]
    return codes, affine


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


def test_figures_say_whom_they_compare_with():
    surface = template_surface()
    rng = np.random.default_rng(0)
    people = [Projection(rng.standard_normal(len(surface.points)), "mean", 13.5, surface.key) for _ in range(3)]
    normal = norms.normative_of(people, "AV45", True)
    z = np.where(surface.left, -3.0, np.nan)
    found = pictures.z_figure({"synthetic": z}, normal)
    assert found.content.startswith(b"\xff\xd8")
    assert "3 simulated people" in found.caption and "10% of a normal" in found.caption
    assert "100% below -1.64" in found.alt
    again = pictures.z_figure({"synthetic": z}, normal)
    assert again.content == found.content
    two = pictures.surface_figure({"a": z, "b": z}, (-3, 3), "z", Figure("s", b"", "", ""), "PuOr_r")
    assert len(two.content) > 10_000


@pytest.mark.parametrize("axcodes", ["RAS", "LPI"])
def test_a_participant_s_figure_comes_from_the_written_files(tmp_path, monkeypatch, axcodes):
    from dataclasses import replace

    import nibabel as nib
    from models_small import small_model

    from bids_petsynth.models.folder import load_model, save_model
    from bids_petsynth.pet.tracers import tracer
    from bids_petsynth.reports.content import Pet, Scan
    from bids_petsynth.types import Case

    codes, affine = labelled(np.eye(4))
    surface = template_surface()
    # grey matter everywhere but at the landmarks, so that every point has a value
    grey = np.where(codes == 0, region_index()["vermis"], codes).astype(np.uint8)
    level = np.random.default_rng(0).normal(1.5, 0.1, (20, 1))
    people = [Projection(np.full(len(surface.points), v[0]), "max", 13.5, surface.key) for v in level]
    save_model(
        replace(small_model(), surface=norms.to_bytes([norms.normative_of(people, "FDG", True)])), tmp_path / "m"
    )
    place = surface.points[np.linalg.norm(surface.points - [-70.0, -30, 20], axis=1).argmin()]
    reach = np.linalg.norm(coordinates(Grid(codes.shape, affine)) - place[:, None, None, None], axis=0)
    turn = nib.orientations.axcodes2ornt(axcodes)
    for name, data in (("pet", 1.5 - 0.6 * (reach < 22)), ("dseg", grey)):
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine).as_reoriented(turn), tmp_path / f"{name}.nii")
    about = {"Model": {"WeightsSHA256": load_model(tmp_path / "m").weights_sha256}}
    pet = Pet(tracer("FDG"), tmp_path / "pet.nii", tmp_path / "pet.nii", about, (), {})
    scan = Scan(Case("01", None, None), None, tmp_path / "dseg.nii", None, {}, (pet,), {})
    # the whole brain of these labels is one vermis: its landmark would lie anywhere
    monkeypatch.setattr(
        "bids_petsynth.evaluation.surface.landmark_warp", lambda *_: Warp(lambda points: points, 87, 0.0)
    )
    seen = {}
    monkeypatch.setattr(pictures, "surface_figure", lambda rows, *rest, **_: seen.update(rows) or rest[2])
    found = pictures.participant_figure(scan, pet, tmp_path / "m")
    assert "20 simulated people with a normal FDG scan" in found.caption
    low = seen["synthetic"] < -3
    assert low.sum() > 15 and surface.left[low].all()
    assert np.linalg.norm(surface.points[low].mean(0) - place) < 6
    # another model, another tracer, no set
    assert (
        pictures.participant_figure(scan, replace(pet, about={"Model": {"WeightsSHA256": "x"}}), tmp_path / "m") is None
    )
    assert pictures.participant_figure(scan, replace(pet, tracer=tracer("AV45")), tmp_path / "m") is None
    assert pictures.participant_figure(scan, pet, tmp_path) is None


def test_a_normative_set_is_added_to_a_model_folder(tmp_path):
    from models_small import small_model

    from bids_petsynth.models.folder import load_model, save_model

    save_model(small_model(), tmp_path)
    before = load_model(tmp_path)
    norms.add_to_model(tmp_path, [norms.normative_of(noise_people(4, 30, 0), "FDG", True)])
    after = load_model(tmp_path)
    assert after.weights_sha256 == before.weights_sha256 and after.fingerprint != before.fingerprint
    assert list(norms.model_normative(tmp_path, after.weights_sha256)) == ["FDG"]


def test_normative_sets_from_training_people():
    import torch

    from bids_petsynth.anatomy.regions import n_classes
    from bids_petsynth.training.pairs import TrainingCase

    codes, _ = labelled(np.eye(4), 4.0)
    classes = torch.from_numpy(codes.astype(np.int64) % 100)
    assert int(classes.max()) < n_classes()
    grid = template_grid(codes.shape, 4.0)
    rng = np.random.default_rng(0)

    def people(n: int, mmse: float):
        for _ in range(n):
            scan = torch.full(codes.shape, float(rng.normal(1.2, 0.1)))
            empty = torch.zeros(())
            yield TrainingCase("h", empty, classes, classes, empty, {"mmse": mmse}, {}, {"FDG": scan})

    (found,) = norms.normative_from_cases([*people(10, 29), *people(2, 15)], ("FDG", "AV45"), grid, simulated=True)
    assert (found.tracer, found.people, found.simulated) == ("FDG", 10, True)
    assert found.grid == norms.grid_name(codes.shape, 4.0) == "55x65x55@4"
    told = np.isfinite(found.mean)
    # landmarks are balls: only points near one have any grey matter
    assert told.any() and np.ptp(found.mean[told]) < 1e-5 and abs(found.mean[told][0] - 1.2) < 0.1
    assert norms.normative_from_cases(people(9, 29), ("FDG",), grid) == ()


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
