"""What is normal at each point of the surface: sets, z scores, files, and the model folders that hold them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from surface_small import labelled, noise_people

from bids_petsynth.anatomy.alignment import template_grid
from bids_petsynth.errors import ModelError
from bids_petsynth.evaluation import normative as norms
from bids_petsynth.evaluation.surface import Projection


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
