"""Pictures of the surface: deficits planted in ellipsoids and in written files, sides, captions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from surface_small import GRID, MIDDLE, coordinates, ellipsoid, labelled

from bids_petsynth.anatomy.regions import region_index
from bids_petsynth.evaluation import normative as norms
from bids_petsynth.evaluation.surface import Projection, project, surface_of, template_surface
from bids_petsynth.evaluation.template import Warp
from bids_petsynth.reports import surface as pictures
from bids_petsynth.reports.canvas import Figure
from bids_petsynth.types import Grid

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
def body():
    return surface_of(ellipsoid() < 1, GRID.affine)


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
    low = seen["SYNTHETIC"] < -3
    assert low.sum() > 15 and surface.left[low].all()
    assert np.linalg.norm(surface.points[low].mean(0) - place) < 6
    # another model, another tracer, no set
    assert (
        pictures.participant_figure(scan, replace(pet, about={"Model": {"WeightsSHA256": "x"}}), tmp_path / "m") is None
    )
    assert pictures.participant_figure(scan, replace(pet, tracer=tracer("AV45")), tmp_path / "m") is None
    assert pictures.participant_figure(scan, pet, tmp_path) is None
