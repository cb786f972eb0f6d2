"""The network over whole scans finds a planted spot, nothing in noise, and is the same twice."""

import numpy as np
import pandas as pd
import pytest

from bids_petsynth.evaluation.study import SYNTHETIC, T1W, admit
from bids_petsynth.evaluation.volumes import _network, averaged, diagnose_volumes, out_of_fold


def study(n=48):
    index = pd.Index([f"sub-{i:02d}" for i in range(n)])
    label = pd.Series(np.where(np.arange(n) % 2, "AD", "CN"), index=index, name="dx")
    found = admit({T1W: pd.DataFrame({"x": np.ones(n)}, index=index)}, label, pd.Series(index, index=index))[0]
    return found.planned(1, 3, 0)


@pytest.fixture(scope="module")
def found():
    people = study()
    rng = np.random.default_rng(0)
    scans = rng.normal(size=(2, 48, 12, 14, 12)).astype(np.float32)
    scans[0, people.y == 1, 2:7, 3:8, 2:7] += 1
    place = {name: i for i, name in enumerate(people.sources[T1W].index)}
    read = {SYNTHETIC: lambda who: scans[0, place[who]], T1W: lambda who: scans[1, place[who]]}
    return diagnose_volumes(people, read, epochs=15, n_bootstrap=50)


def test_a_spot_is_found_and_noise_is_not(found):
    auc = found["performance"].set_index("features")["auc"]
    assert auc["whole synthetic PET"] > 0.9
    assert 0.25 < auc["whole T1w"] < 0.75
    assert found["comparison"]["difference"][0] > 0.2
    assert found["comparison"]["p"][0] < 0.01


def test_the_same_seed_gives_the_same_and_leaves_the_callers_random_numbers_alone():
    import torch

    people = study(16 * 2)
    scans = np.random.default_rng(1).normal(size=(32, 8, 8, 8)).astype(np.float16)
    torch.manual_seed(5)
    a = out_of_fold(scans, people.y, people.plans[0], 1, 3)
    after = torch.rand(1)
    b = out_of_fold(scans, people.y, people.plans[0], 1, 3)
    torch.manual_seed(5)
    np.testing.assert_array_equal(a, b)
    assert torch.rand(1) == after
    assert not np.array_equal(a, out_of_fold(scans, people.y, people.plans[0], 1, 4))


def test_scans_are_averaged_in_whole_cubes():
    scan = np.arange(66 * 40 * 35, dtype=np.float32).reshape(66, 40, 35) % 97
    found = averaged(scan)
    assert found.shape == (22, 13, 11)
    assert found[1, 2, 3] == pytest.approx(scan[3:6, 6:9, 9:12].mean(), rel=1e-3)
    assert averaged(np.full((8, 8, 8), np.nan)).sum() == 0


def test_the_network_is_small():
    assert sum(p.numel() for p in _network(2).parameters()) < 20_000
