"""Regional means, SUVR, Centiloid and predictive intervals against closed forms and other libraries."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, stats

from bids_petsynth.anatomy.regions import codes_of, lookup
from bids_petsynth.errors import InputError
from bids_petsynth.pet.intervals import predictive, probability_above
from bids_petsynth.pet.quantification import (
    normalise,
    possible,
    quantify,
    region_means,
    suvr_rows,
    tacs_rows,
)
from bids_petsynth.pet.tracers import centiloid_equation, targets, tracer, tracers
from bids_petsynth.types import Foreseen, Grid

IXI = Path(__file__).parents[2] / "shared" / "data" / "ixi"
CODES = np.array([code for code, *_ in lookup()])
GRID = Grid((20, 22, 24), np.diag([10.0, 10.0, 10.0, 1.0]))  # 1 ml a voxel


@pytest.fixture(scope="module")
def labels():
    random = np.random.default_rng(5)
    volume = random.choice(np.append(CODES, 0), GRID.shape)
    return volume.astype(np.uint8)


@pytest.fixture(scope="module")
def draws(labels):
    """Six draws in which every region differs and whole draws go up and down together."""
    random = np.random.default_rng(6)
    level = random.uniform(0.8, 1.8, 256)[labels]
    return (level * random.normal(1, 0.05, (6, 1, 1, 1)) + random.normal(0, 0.1, (6, *GRID.shape))).astype(np.float32)


def without(labels, *names):
    return np.where(np.isin(labels, codes_of(*names)), 0, labels)


def test_region_means_by_hand():
    labels = np.zeros((2, 2, 2), np.uint8)
    labels[0] = [[101, 101], [101, 39]]
    volumes = np.zeros((2, 2, 2, 2))
    volumes[0, 0] = [[1, 2], [6, 5]]
    volumes[1, 0] = [[10, 20], [60, 50]]
    volumes[:, 1] = np.nan  # outside all labels: must not matter
    codes, means, sizes = region_means(volumes, labels, Grid((2, 2, 2), np.diag([2.0, 3.0, 0.5, 1])))
    assert codes.tolist() == [39, 101]
    assert means.tolist() == [[5, 3], [50, 30]]
    assert sizes.tolist() == pytest.approx([3, 9])


def test_region_means_agree_with_scipy(labels, draws):
    codes, means, sizes = region_means(draws, labels, GRID)
    for draw, mean in zip(draws, means, strict=True):
        np.testing.assert_allclose(mean, ndimage.mean(draw.astype(float), labels, codes), rtol=1e-10)
    np.testing.assert_allclose(sizes, [1000 * (labels == code).sum() for code in codes])


def test_region_means_agree_with_nilearn(labels, draws):
    import nibabel
    from nilearn.maskers import NiftiLabelsMasker

    image = nibabel.Nifti1Image(np.moveaxis(draws, 0, -1), GRID.affine)
    masker = NiftiLabelsMasker(nibabel.Nifti1Image(labels.astype(np.int16), GRID.affine), standardize=None)
    np.testing.assert_allclose(region_means(draws, labels, GRID)[1], masker.fit_transform(image), rtol=1e-5)


def test_bad_volumes_are_refused(labels, draws):
    with pytest.raises(InputError, match="shape"):
        region_means(draws[:, 1:], labels, GRID)
    with pytest.raises(InputError, match="no region"):
        region_means(draws, np.zeros_like(labels), GRID)
    holed = draws.copy()
    holed[1][labels == CODES[3]] = np.nan
    with pytest.raises(InputError, match="finite"):
        region_means(holed, labels, GRID)


@pytest.mark.parametrize("name", [t.name for t in tracers()])
def test_reference_mean_is_1_in_every_draw_after_normalising(labels, draws, name):
    suvr = normalise(draws * 7300, labels, GRID, tracer(name))
    assert suvr.dtype == draws.dtype
    inside = np.isin(labels, tracer(name).reference_codes)
    np.testing.assert_allclose(suvr[:, inside].mean(axis=1, dtype=float), 1, rtol=1e-6)
    np.testing.assert_allclose(normalise(suvr, labels, GRID, tracer(name)), suvr, rtol=1e-5)


def test_reference_region_absent_small_or_empty_is_named(labels, draws):
    with pytest.raises(InputError, match="FDG.*pons.* 0.0 ml"):
        normalise(draws, without(labels, "pons"), GRID, tracer("FDG"))
    tiny = Grid(GRID.shape, np.diag([1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(InputError, match="whole cerebellum"):
        normalise(draws, labels, tiny, tracer("AV45"))
    with pytest.raises(InputError, match="no activity"):
        normalise(np.zeros_like(draws), labels, GRID, tracer("AV1451"))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_predictive_intervals_cover_what_they_promise(count):
    random = np.random.default_rng(count)
    sets, truth = random.normal(1.3, 0.2, (5000, count)), random.normal(1.3, 0.2, 5000)
    estimates = [predictive(samples) for samples in sets]
    for level in (80, 95):
        bounds = np.array([getattr(estimate, f"interval{level}") for estimate in estimates])
        coverage = np.mean((truth >= bounds[:, 0]) & (truth <= bounds[:, 1]))
        nominal = level / 100
        assert abs(coverage - nominal) < 3.5 * np.sqrt(nominal * (1 - nominal) / 5000)


def test_predictive_interval_is_scipys_student_t():
    samples = np.array([1.1, 1.4, 1.25, 1.18, 1.32])
    estimate = predictive(samples)
    scale = samples.std(ddof=1) * np.sqrt(1 + 1 / 5)
    np.testing.assert_allclose(estimate.interval95, stats.t.interval(0.95, 4, samples.mean(), scale))
    np.testing.assert_allclose(estimate.interval80, stats.t.interval(0.80, 4, samples.mean(), scale))
    assert estimate.sd == pytest.approx(samples.std(ddof=1))
    expected = stats.t.sf(1.3, 4, samples.mean(), scale)
    assert probability_above(samples, 1.3) == pytest.approx(expected)


def test_probability_of_what_comes_next_is_uniform():
    random = np.random.default_rng(11)
    sets, truth = random.normal(20, 9, (4000, 6)), random.normal(20, 9, 4000)
    probabilities = [probability_above(samples, value) for samples, value in zip(sets, truth, strict=True)]
    assert stats.kstest(probabilities, "uniform").pvalue > 0.001


def test_many_samples_in_two_groups_give_the_share_of_the_upper_one():
    random = np.random.default_rng(4)
    groups = [np.concatenate([random.normal(0, 4, 190), random.normal(60, 10, 66)]) for _ in range(50)]
    found = np.mean([probability_above(samples, 20.0) for samples in groups])
    assert found == pytest.approx(66 / 256, abs=0.01)
    # a normal distribution of the same mean and spread would say less than .4 only by chance
    assert np.mean([probability_above(samples[::4], 20.0) for samples in groups]) > 0.35
    calm = random.normal(25, 2, 256)
    assert probability_above(calm, 20.0) > 0.99
    wide = calm.mean() + 5 * (calm - calm.mean())
    assert probability_above(wide, 20.0) == pytest.approx(stats.norm.sf(-0.5), abs=0.08)


def test_probability_is_monotone_and_half_at_the_mean():
    samples = np.array([10.0, 18, 25, 31])
    falling = [probability_above(samples, threshold) for threshold in np.linspace(-50, 90, 29)]
    assert all(a > b for a, b in zip(falling, falling[1:], strict=False))
    assert probability_above(samples, samples.mean()) == pytest.approx(0.5)
    rising = [probability_above(samples + step, 20.0) for step in range(-30, 31, 5)]
    assert all(a < b for a, b in zip(rising, rising[1:], strict=False))
    assert probability_above(np.full(4, 25.0), 20) == 1
    assert probability_above(np.full(4, 15.0), 20) == 0


def test_quantify_against_plain_loops(labels, draws):
    av45 = tracer("AV45")
    suvr = normalise(draws, labels, GRID, av45)
    result = quantify(suvr, labels, GRID, av45)
    assert result.reference_mean == pytest.approx(1, rel=1e-6)
    assert not any("not scaled" in note for note in result.notes)

    cortex = np.isin(labels, targets()["centiloid_like"].codes)
    values = np.array([draw[cortex].astype(float).mean() for draw in suvr])
    assert result.target.suvr.mean == pytest.approx(values.mean(), rel=1e-6)
    assert result.target.volume_mm3 == pytest.approx(1000 * cortex.sum())
    centiloids = 188.22 * values - 189.16
    assert result.centiloid.mean == pytest.approx(centiloids.mean(), rel=1e-5)
    scale = centiloids.std(ddof=1) * np.sqrt(1 + 1 / 6)
    np.testing.assert_allclose(
        result.centiloid.interval95, stats.t.interval(0.95, 5, centiloids.mean(), scale), rtol=1e-4
    )
    assert result.probability_positive == pytest.approx(stats.t.sf(20, 5, centiloids.mean(), scale), rel=1e-3)
    falling = [entry.probability for entry in result.positivity]
    assert falling == sorted(falling, reverse=True)
    assert any("approximate" in note for note in result.notes)

    assert [row.index for row in result.regions] == CODES.tolist()
    left = next(row for row in result.regions if row.name == "left_precuneus")
    mine = suvr[:, labels == 119].astype(float).mean(axis=1)
    assert (left.suvr.mean, left.suvr.sd) == pytest.approx((mine.mean(), mine.std(ddof=1)), rel=1e-5)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_few_draws_with_what_was_foreseen_cover_as_promised(count):
    """Scans whose regions follow a normal law the regional part knows, and deviate from it by what only draws show."""
    random = np.random.default_rng(count)
    names = [code for code, _, _, _ in lookup()]
    codes, volumes = np.array(names), np.full(len(names), 1e4)
    spec = tracer("AV45")
    reference = np.isin(codes, spec.reference_codes)
    width = np.where(reference, 0, 0.1 + 0.1 * random.random(len(codes)))

    def scans(n, own=0.03):
        foreseen = 1.2 + width * random.standard_normal((n, len(codes))) - 0.2 * reference
        return foreseen, foreseen + np.where(reference, 0, own * random.standard_normal(foreseen.shape))

    inside, narrow, rests = [], [], []
    for _ in range(60):
        many, _ = scans(256)
        few = many.mean(0) + (many[:count] - many[:count].mean(0))
        # centred as the image flow's noise is
        own = random.standard_normal(few.shape)
        own = (own - own.mean(0)) * np.sqrt(count / (count - 1))
        drawn = few + np.where(reference, 0, 0.03 * own)
        _, (truth,) = scans(1)
        _, found, _ = possible((codes, drawn, volumes), Foreseen(3 * few, 3 * many), spec)
        rests.append((found - many)[:, ~reference].std() / 0.03)
        np.testing.assert_allclose(found.mean(0), drawn.mean(0), atol=0.02)
        for samples, kept in ((found, inside), (drawn, narrow)):
            bounds = [predictive(column).interval80 for column in samples[:, ~reference].T]
            kept.extend(
                (low <= t <= high, high - low) for (low, high), t in zip(bounds, truth[~reference], strict=True)
            )
    # what only the draws show has its own spread, however few they are
    assert np.sqrt(np.mean(np.square(rests))) == pytest.approx(1, abs=0.03)
    covered, usual = np.array(inside).mean(0)
    assert covered == pytest.approx(0.8, abs=0.02 + 0.02 * (count == 2))
    # a t-interval of few draws covers too, by being wide
    assert usual < np.array(narrow).mean(0)[1] * (0.6 if count == 2 else 1.01)


def test_a_single_draw_stays_alone_whatever_was_foreseen(labels, draws):
    some = normalise(draws[:1], labels, GRID, tracer("AV45"))
    regions = len(np.unique(labels)) - 1
    foreseen = Foreseen(np.ones((1, regions)), np.ones((256, regions)))
    assert quantify(some, labels, GRID, tracer("AV45"), foreseen=foreseen).centiloid.interval95 is None


def test_pons_counts_in_the_brainstem(labels, draws):
    result = quantify(draws, labels, GRID, tracer("AV45"))
    row = next(row for row in result.composites if row.name == "brainstem")
    assert row.volume_mm3 == pytest.approx(1000 * np.isin(labels, (46, 48)).sum())


@pytest.mark.parametrize("name", ["FDG", "AV1451"])
def test_other_tracers_have_a_target_and_no_centiloid(labels, draws, name):
    result = quantify(normalise(draws, labels, GRID, tracer(name)), labels, GRID, tracer(name))
    assert result.centiloid is None and result.positivity == () and result.probability_positive is None
    assert result.target.name == tracer(name).default_target
    assert result.target.suvr.interval95[0] < result.target.suvr.mean < result.target.suvr.interval95[1]


def test_a_single_draw_has_no_intervals(labels, draws):
    result = quantify(normalise(draws[:1], labels, GRID, tracer("FBB")), labels, GRID, tracer("FBB"))
    assert result.centiloid.mean == pytest.approx(centiloid_equation("FBB")(result.target.suvr.mean))
    assert result.centiloid.sd is None and result.centiloid.interval80 is None and result.centiloid.interval95 is None
    assert result.probability_positive is None
    assert any("single draw" in note for note in result.notes)
    assert all(row["low95"] is None and row["sd"] is None for row in suvr_rows(result))


def test_unscaled_draws_and_missing_target_regions_are_said(labels, draws):
    result = quantify(normalise(draws, labels, GRID, tracer("AV45")) * 1.4, labels, GRID, tracer("AV45"))
    assert any("1.40" in note for note in result.notes)
    result = quantify(draws, without(labels, "precuneus"), GRID, tracer("AV45"))
    assert any("left_precuneus, right_precuneus" in note for note in result.notes)
    row = next(row for row in suvr_rows(result) if row["name"] == "precuneus")
    assert row["suvr"] is None and row["high95"] is None


def test_tables_have_petpreps_shape(labels, draws):
    fbb = tracer("FBB")
    result = quantify(normalise(draws, labels, GRID, fbb), labels, GRID, fbb)
    (row,) = tacs_rows(result, fbb)
    assert list(row) == ["frame_start", "frame_end", *(name for _, name, _, _ in lookup())]
    assert (row["frame_start"], row["frame_end"]) == (5400, 6600)
    long = suvr_rows(result)
    assert [entry["name"] for entry in long] == [*(name for _, name, _, _ in lookup()), *targets()]
    assert row["left_precuneus"] == next(entry["suvr"] for entry in long if entry["name"] == "left_precuneus")
    assert {entry["hemisphere"] for entry in long} == {"L", "R", "B"}


@pytest.mark.skipif(not IXI.is_dir(), reason="needs the real scans in ../shared/data/ixi")
def test_least_reference_volume_is_below_every_real_cerebellum():
    import nibabel

    from bids_petsynth.anatomy.regions import all_regions

    wanted = [r for r in all_regions() if r.name in ("cerebellar_grey", "cerebellar_white", "vermis")]
    dlmuse = [label for region in wanted for label in region.dlmuse]
    volumes = []
    for path in sorted(IXI.glob("derivatives/dlmuse/sub-*/anat/*_dseg.nii.gz")):
        image = nibabel.load(path)
        volume = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        volumes.append(np.isin(np.asarray(image.dataobj), dlmuse).sum() * volume)
    assert len(volumes) == 26
    assert min(volumes) > 1.5 * tracer("AV45").reference_min_ml
