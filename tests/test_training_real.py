"""Real pairs as training cases: kept on disk, varied, split by person."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_petsynth.anatomy.regions import LEFT, RIGHT, n_classes, region_index
from bids_petsynth.training.pairs import TrainingCase
from bids_petsynth.training.real import (
    Stored,
    case_maker,
    load_case,
    regional_people,
    split_people,
    store_head,
    store_scan,
    varied,
)
from bids_petsynth.types import Anatomy, Grid

SHAPE = (16, 24, 16)
INDEX = region_index()


def anatomy() -> Anatomy:
    """The left half precuneus, the right half cerebellum, air behind."""
    codes = np.zeros(SHAPE, np.uint8)
    codes[:8, 8:], codes[8:, 8:] = LEFT + INDEX["precuneus"], RIGHT + INDEX["cerebellar_grey"]
    probabilities = np.zeros((n_classes(), *SHAPE), np.float16)
    for index in (0, INDEX["precuneus"], INDEX["cerebellar_grey"]):
        probabilities[index] = np.isin(codes, (index, LEFT + index, RIGHT + index)) if index else codes == 0
    t1w = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    return Anatomy(t1w, codes, probabilities, Grid(SHAPE, np.diag([2.0, 2, 2, 1])))


@pytest.fixture
def stored(tmp_path) -> Stored:
    store_head(anatomy(), 2, tmp_path / "heads" / "a.npz")
    scan = np.where(anatomy().labels == LEFT + INDEX["precuneus"], 1.5, 1.0)
    store_scan(scan, tmp_path / "scans" / "a.npz")
    return Stored("a", tmp_path / "heads" / "a.npz", {"AV45": tmp_path / "scans" / "a.npz"}, {"age": 70.0}, 40.0)


def test_a_case_comes_back_as_it_was_stored(stored):
    case, head = load_case(stored), anatomy()
    np.testing.assert_allclose(case.t1w, head.t1w, atol=1e-3)
    assert set(case.measured.unique().tolist()) == {0, INDEX["precuneus"], INDEX["cerebellar_grey"]}
    assert case.labels.shape == (n_classes(), 8, 12, 8)
    torch.testing.assert_close(case.labels.sum(0), torch.ones(8, 12, 8))
    assert case.pet["AV45"][2, 12, 3] == 1.5 and case.truth == {"centiloid": 40.0} and case.record == {"age": 70.0}


def test_regional_means_are_those_of_the_scan_and_missing_tracers_stay_unknown(stored):
    people = regional_people([stored], ("FDG", "AV45"), 2.0)
    assert people.means.shape == (1, 2, n_classes()) and people.means[0, 0].isnan().all()
    voxels = 8 * 16 * 16 / 8
    # the floor adds one voxel of nothing
    assert people.means[0, 1, INDEX["precuneus"]].item() == pytest.approx(1.5 * voxels / (voxels + 1), rel=1e-3)
    assert people.heads.volumes[0, INDEX["precuneus"]].item() == pytest.approx(8 * 16 * 16 * 8 / 1000)


def test_variation_keeps_image_labels_and_scan_together(stored):
    """Wherever the voxels go, the precuneus goes with them; a mirrored case is the mirrored case to the bit."""
    case, sides = load_case(stored), []
    mirrored = case.measured.flip(0)
    for seed in range(24):
        other = varied(case, torch.Generator().manual_seed(seed))
        there = other.measured == INDEX["precuneus"]
        inner = torch.nn.functional.avg_pool3d(there.float()[None, None], 3, 1, 1)[0, 0] > 0.99
        assert other.pet["AV45"][inner].min() > 1.2
        assert other.labels[INDEX["precuneus"]].sum().item() == pytest.approx(there.sum().item() / 8, rel=0.15)
        sides.append("left" if there[:8].sum() > there[8:].sum() else "right")
        if torch.equal(other.measured, mirrored):
            torch.testing.assert_close(other.pet["AV45"], case.pet["AV45"].flip(0))
            torch.testing.assert_close(other.labels, case.labels.flip(1), atol=1e-4, rtol=0)
    assert 5 < sides.count("right") < 19


def test_first_everyone_as_scanned_then_varied_and_the_same_again(stored):
    make = case_maker([stored, stored], seed=1)
    for number in (0, 1):
        torch.testing.assert_close(make(number).t1w, load_case(stored).t1w)
    later: TrainingCase = make(3)
    assert not torch.allclose(later.t1w, load_case(stored).t1w)
    torch.testing.assert_close(make(3).t1w, later.t1w)
    assert not torch.allclose(make(5).t1w, later.t1w)


def crowd() -> list[Stored]:
    """40 people, a fifth of them with two sessions; the second half amyloid-positive; every fourth with FDG, too."""
    people = []
    for number in range(40):
        scans = {"AV45": None} | ({"FDG": None} if number % 4 == 0 else {})
        for _ in range(2 if number % 5 == 0 else 1):
            people.append(Stored(f"{number:02d}", None, scans, {}, 80.0 if number >= 20 else 5.0))
    return people


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_people_are_split_whole_and_evenly(seed):
    inside, outside = split_people(crowd(), 0.2, seed)
    a, b = ({stored.participant for stored in part} for part in (inside, outside))
    assert not a & b and len(b) == 8 and len(inside) + len(outside) == len(crowd())
    held = {stored.participant: stored for stored in outside}.values()
    assert 3 <= sum(stored.centiloid > 20 for stored in held) <= 5
    assert 1 <= sum("FDG" in stored.scans for stored in held) <= 3
    assert split_people(crowd(), 0.2, seed)[1] == outside


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_who_is_held_out_mostly_stays_so_when_people_are_added(seed):
    """A model that is adapted must not be measured on people that it was trained on."""
    more = [Stored(f"new{number}", None, {"AV45": None}, {}, 80.0) for number in range(6)]
    before, after = (
        {s.participant for s in split_people(people, 0.2, seed)[1]} for people in (crowd(), crowd() + more)
    )
    trained_on = {stored.participant for stored in crowd()} - before
    assert len(after & trained_on) <= 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_small_site_is_on_both_sides(seed):
    """Sites of four and of 36 people: by chance alone the small one would be missed in four splits of ten."""
    people = [replace(stored, site="small" if int(stored.participant) % 10 == 3 else "large") for stored in crowd()]
    inside, outside = split_people(people, 0.25, seed)
    for part, count in ((inside, 3), (outside, 1)):
        assert len({stored.participant for stored in part if stored.site == "small"}) == count


def test_however_few_someone_is_held_out():
    inside, outside = split_people(crowd()[3:5], 0.1, 0)
    assert len(inside) == len(outside) == 1
    with pytest.raises(ValueError, match="one participant"):
        split_people(crowd()[3:4], 0.5, 0)
