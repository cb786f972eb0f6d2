"""A synthetic scan against a real one, with true volumes: what is planted in the real scan comes back."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from test_reports import head, write_scan

from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.bids.pets import find_pets, pair
from bids_petsynth.errors import InputError
from bids_petsynth.evaluation.comparison import as_json, compare, covered_codes, from_json, maps_brain, written_anatomy
from bids_petsynth.pet.tracers import canonical, centiloid_equation
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.reports.content import read_participant
from bids_petsynth.types import Case
from bids_petsynth.workflows.comparisons import jobs, kept_maps, run_all

CODES = {name: code for code, name, _, _ in lookup()}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset with one person, whose PETPrep scan has 1 in the reference region and 2 in the left precuneus."""
    folder = tmp_path_factory.mktemp("comparison")
    bids, out, petprep = folder / "raw", folder / "out", folder / "petprep"
    case = Case("01", None, bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    write_scan(out, case, ("AV45",), {"age": 70.0})
    found = head()
    labels, affine = found.anatomy.labels, found.anatomy.grid.affine
    activity = np.where(labels > 0, 700.0, 100.0)
    activity[np.isin(labels, tracer_named("AV45").reference_codes)] = 500.0
    activity[labels == CODES["left_precuneus"]] = 1000.0
    for root, name in ((bids, "sub-01_trc-AV45_pet"), (petprep, "sub-01_trc-AV45_space-T1w_desc-preproc_pet")):
        (root / "sub-01" / "pet").mkdir(parents=True)
        nib.save(nib.Nifti1Image(activity.astype(np.float32), affine), root / "sub-01" / "pet" / f"{name}.nii.gz")
        about = {"TracerName": "AV45", "Units": "Bq/mL", "FrameTimesStart": [3000], "FrameDuration": [1200]}
        (root / "sub-01" / "pet" / f"{name}.json").write_text(json.dumps(about))
        (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    (petprep / "dataset_description.json").write_text(
        '{"Name": "x", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "petprep"}]}'
    )
    (bids / "sub-01" / "anat").mkdir()
    nib.save(nib.Nifti1Image(found.anatomy.t1w, affine), case.t1w)
    (scan,) = read_participant(out, "01")
    (real,) = find_pets(bids, derivatives={"petprep": petprep}, canonical=canonical)
    assert real.prepared
    return bids, out, case, scan, real


def test_planted_values_come_back(world):
    _, _, _, scan, real = world
    (pet,) = scan.pets
    found, maps = compare(scan, pet, real, None, None, 0)
    assert found.real["left_precuneus"] == pytest.approx(2, rel=0.02)
    assert found.real["right_precuneus"] == pytest.approx(1.4, rel=0.02)
    written = {row["name"]: float(row["suvr"]) for row in reversed(pet.regions) if row["suvr"] != "n/a"}
    assert found.synthetic == pytest.approx({name: written[name] for name in found.synthetic}, abs=1e-4)
    equation = centiloid_equation("AV45")
    assert found.centiloid == pytest.approx(equation(found.real["centiloid_like"]))
    # the images, from the files themselves
    mean = np.asarray(nib.load(pet.mean).dataobj)
    anatomy = written_anatomy(scan, pet)
    inside = anatomy.labels > 0
    truth = np.select(
        [~inside, anatomy.labels == CODES["left_precuneus"], np.isin(anatomy.labels, pet.tracer.reference_codes)],
        [0.2, 2.0, 1.0],
        1.4,
    )
    assert found.image["mae_brain"] == pytest.approx(np.abs(mean - truth)[inside].mean(), rel=0.02)
    assert from_json(json.loads(json.dumps(as_json(found)))) == found
    if maps:  # pieces strewn over an egg are no landmarks: the map need not fit, but it must be on the grid
        assert maps["difference"].shape == (maps_brain().sum(),)


def test_comparisons_are_kept_and_made_again_when_the_scan_changes(world):
    bids, out, case, scan, real = world
    said = []
    todo, left = jobs([scan], pair([case], [real]), out_dir=out)
    assert len(todo) == 1 and left == []
    first = run_all(todo, 1, said.append)
    stamp = todo[0].record.stat().st_mtime_ns
    assert run_all(todo, 1, said.append)[0].found == first[0].found
    assert todo[0].record.stat().st_mtime_ns == stamp
    assert isinstance(kept_maps(todo[0]), dict)
    smoothed, _ = jobs([scan], pair([case], [real]), out_dir=out, fwhm=8.0)
    again = run_all(smoothed, 1, said.append)
    assert again[0].found.real["left_precuneus"] < first[0].found.real["left_precuneus"] - 0.1


def test_a_scan_that_cannot_be_read_is_a_sentence_and_is_remembered(world):
    _, out, case, scan, real = world
    broken = real.path.with_name("broken_pet.nii.gz")
    broken.write_bytes(b"nothing")
    todo, _ = jobs([scan], pair([case], [replace(real, path=broken)]), out_dir=out)
    (outcome,) = run_all(todo, 1, lambda line: None)
    assert outcome.found is None and "broken_pet" in outcome.problem
    said = []
    assert run_all(todo, 1, said.append)[0].problem == outcome.problem and said == []


def test_what_the_field_of_view_misses():
    labels = np.repeat(np.array([0, 7, 9], np.uint8), 100).reshape(3, 10, 10)
    covered = np.ones(labels.shape, bool)
    covered[2, :2] = False
    assert covered_codes(labels, covered) == {7}


def test_what_the_field_of_view_cuts_off_is_not_taken_for_no_uptake(world):
    """A scan of 1 in the whole brain that misses the lowest planes of the brain."""
    _, _, _, scan, real = world
    (pet,) = scan.pets
    image = nib.load(real.path)
    labels = written_anatomy(scan, pet).labels
    first = int(np.flatnonzero((labels > 0).any((0, 1)))[0]) + 5
    affine = image.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, first], [0, 0, 0, 1.0]])
    short = real.path.with_name(f"short_{real.path.name}")
    nib.save(nib.Nifti1Image(np.where(labels[..., first:] > 0, 500, 100).astype(np.float32), affine), short)
    found, _ = compare(scan, pet, replace(real, path=short), None, None, 0)
    cut = {row["name"] for row in pet.regions if CODES.get(row["name"]) in np.unique(labels[..., :first])}
    assert len(cut & set(found.real)) > 10, "regions that are cut and still measured"
    assert list(found.real.values()) == pytest.approx([1.0] * len(found.real), abs=1e-3)
    whole = {row["name"]: float(row["suvr"]) for row in reversed(pet.regions) if row["suvr"] != "n/a"}
    assert any(abs(found.synthetic[name] - whole[name]) > 1e-3 for name in found.synthetic)


def test_an_output_that_is_gone_is_a_sentence(world, tmp_path):
    _, _, _, scan, real = world
    (pet,) = scan.pets
    with pytest.raises(InputError, match="run the level participant again"):
        compare(scan, replace(pet, mean=tmp_path / "gone.nii.gz"), real, None, None, 0)


def test_frechet_distance_on_named_features(world, tmp_path):
    from monai.networks.nets import resnet10
    from safetensors.torch import save_file
    from scipy.linalg import sqrtm

    from bids_petsynth.errors import UsageError
    from bids_petsynth.evaluation.perception import frechet, network

    weights = tmp_path / "weights.safetensors"
    net = resnet10(spatial_dims=3, n_input_channels=1, num_classes=2)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, weights)
    _, _, _, scan, real = world
    found, _ = compare(scan, scan.pets[0], real, None, None, 0, ("resnet10", weights))
    assert len(found.features["real"]) == 512 and found.features["real"] != found.features["synthetic"]
    with pytest.raises(UsageError, match="are not those of"):
        network("resnet18", weights)
    with pytest.raises(UsageError, match="no readable safetensors"):
        network("resnet10", tmp_path / "absent")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 4)), 1 + 2 * rng.normal(size=(60, 4))
    both = np.cov(a.T), np.cov(b.T)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(sum(both) - 2 * sqrtm(both[0] @ both[1]).real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-4)
    assert np.isnan(frechet(a[:1], b))
