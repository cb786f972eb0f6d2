"""Alignment: closed forms, ANTs as second opinion, and label maps turned by known angles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_petsynth.anatomy import alignment as align
from bids_petsynth.anatomy.regions import LEFT, RIGHT, all_regions, codes_of, lookup, n_classes, region_index, regions
from bids_petsynth.anatomy.registration import affine_of, register_affine, to_ants
from bids_petsynth.anatomy.segmentation import brain_mask, sided_codes


def rigid(angles, shift) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def test_fit_recovers_a_known_similarity():
    rng = np.random.default_rng(1)
    points, truth = rng.normal(size=(30, 3)) * 40, rigid((10, -20, 15), (5, -3, 12))
    target = points @ truth[:3, :3].T * 1.1 + truth[:3, 3]
    found, scale, residual = align.fit_rigid(points, target, rng.uniform(1, 2, 30))
    assert np.allclose(found[:3, :3], truth[:3, :3], atol=1e-9)
    assert scale == pytest.approx(1.1) and residual < 1e-6


def test_ants_agrees_on_affines():
    import ants

    truth = rigid((5, -8, 12), (3, 4, -5))
    turn = ants.create_ants_transform(
        transform_type="AffineTransform", dimension=3, matrix=truth[:3, :3], translation=truth[:3, 3], center=[1, 2, 3]
    )
    point = np.array([10.0, -20, 30])
    flip = np.array([-1.0, -1, 1])
    expected = flip * np.array(turn.apply_to_point((flip * point).tolist()))
    assert np.allclose((affine_of(turn) @ [*point, 1])[:3], expected, atol=1e-4)


def test_registration_recovers_a_shift_with_the_same_numbers_for_a_seed(tmp_path, monkeypatch):
    from scipy.ndimage import gaussian_filter

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    image = gaussian_filter(np.random.default_rng(0).normal(size=(40, 44, 40)), 4).astype(np.float32)
    affine = np.diag([2.0, 2, 2, 1])
    moved = affine.copy()
    moved[:3, 3] = (3, -4, 2)
    options = {"aff_random_sampling_rate": 0.4, "aff_iterations": (40, 20, 0, 0)}
    first, again = (register_affine(to_ants(image, affine), to_ants(image, moved), "Rigid", 5, **options) for _ in "ab")
    assert np.array_equal(first, again)
    assert np.allclose(first[:3, 3] + (first[:3, :3] - np.eye(3)) @ [39, 43, 39], (3, -4, 2), atol=0.5)


def head_of_balls(turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A label map with a ball at each region's template centroid, turned by ``turn`` (template → scanner)."""
    grid = align.template_grid((96, 112, 96), 2.0)
    labels = np.zeros(grid.shape, np.uint8)
    index = region_index()
    offsets = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    for (name, _), centre in align.template_centroids().items():
        voxel = np.linalg.inv(grid.affine) @ [*centre, 1]
        where = np.round(voxel[:3]).astype(int) + offsets
        labels[tuple(where.T)] = index[name]
    return labels, turn @ grid.affine


@pytest.mark.parametrize("angles", [(0, 0, 0), (15, -10, 18), (-20, 20, -15)])
def test_turned_heads_come_back(angles):
    turn = rigid(angles, (12, -30, 7))
    labels, affine = head_of_balls(turn)
    found = align.align_centroids(labels, affine)
    difference = found.to_template @ turn
    angle = np.degrees(np.arccos(np.clip((np.trace(difference[:3, :3]) - 1) / 2, -1, 1)))
    assert angle < 1.0
    assert np.linalg.norm((difference @ [*align.GRID_CENTRE, 1])[:3] - align.GRID_CENTRE) < 1.0
    assert found.residual < 2.0 and found.scale == pytest.approx(1.0, abs=0.02)


def test_too_few_regions_are_no_head():
    labels = np.zeros((40, 40, 40), np.uint8)
    assert align.align_centroids(labels, np.eye(4)) is None
    labels[10:20, 10:20, 10:20] = 3
    assert align.align_centroids(labels, np.eye(4)) is None


def test_label_scheme_is_consistent():
    assert [r.index for r in regions()] == list(range(1, n_classes()))
    merged = [label for region in all_regions() for label in region.dlmuse]
    assert len(merged) == len(set(merged))
    codes = [code for code, *_ in lookup()]
    assert len(codes) == len(set(codes)) and max(codes) < 256
    assert set(codes_of("brainstem")) == {region_index()["brainstem"], region_index()["pons"]}
    with pytest.raises(KeyError, match="no such region: nose"):
        codes_of("nose")


def test_every_named_dlmuse_label_has_a_region(ixi):
    rows = (ixi / "derivatives" / "dlmuse" / "desc-dlmuse_dseg.tsv").read_text().splitlines()[1:]
    named = {int(row.split("\t")[0]): row.split("\t")[1] for row in rows}
    merged = {label for region in all_regions() for label in region.dlmuse}
    assert merged == set(named)
    sided = [region for region in regions() if region.sided]
    for region in sided:
        sides = {named[label].rsplit("_", 1)[-1] for label in region.dlmuse}
        assert sides == {"L", "R"}, region.name


def test_sides_and_cuts():
    labels, _ = head_of_balls(np.eye(4))
    grid = align.template_grid((96, 112, 96), 2.0)
    x, _, z = (np.indices(labels.shape)[k] * 2.0 + grid.affine[k, 3] for k in range(3))
    codes = sided_codes(labels, x, z, 1.0)
    index = region_index()
    assert set(np.unique(codes[x < -1])) & set(range(RIGHT, 256)) == set()
    assert set(np.unique(codes[x > 1])) & set(range(LEFT, RIGHT)) == set()
    low, high = z[codes == LEFT + index["cerebellar_grey_inferior"]], z[codes == LEFT + index["cerebellar_grey"]]
    assert low.size and high.size and low.max() < high.min()
    assert (codes == index["pons"]).any()


def test_brain_mask_drops_islands_and_fills_holes():
    classes = np.zeros((30, 30, 30), np.uint8)
    classes[5:20, 5:20, 5:20] = 1
    classes[12, 12, 12] = 0
    classes[25:27, 25:27, 25:27] = 2
    mask = brain_mask(classes)
    assert mask[12, 12, 12] and not mask[25:27, 25:27, 25:27].any()
    assert mask.sum() >= 15**3 - 8 * 12
