"""Deformations against the volumes that were asked for, and against the identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bids_petsynth.anatomy.regions import n_classes, region_index
from bids_petsynth.simulation.anatomy import deform, log_volume_factors
from bids_petsynth.simulation.person import draw_people

IXI = Path(__file__).parents[2] / "shared" / "data" / "ixi"


@pytest.fixture(scope="module")
def ball() -> torch.Tensor:
    """A ventricle in white matter in cortex in fluid, spheres, ``(1, 48, 48, 48)``."""
    index = region_index()
    axes = torch.meshgrid(*[torch.arange(48.0) - 23.7] * 3, indexing="ij")
    radius = sum(axis**2 for axis in axes).sqrt()
    labels = torch.zeros(48, 48, 48, dtype=torch.long)
    for size, name in (
        (21, "extra_axial_csf"),
        (18, "superior_frontal"),
        (14, "frontal_white"),
        (7, "lateral_ventricle"),
    ):
        labels[radius < size] = index[name]
    return labels[None]


def soft_volumes(labels: torch.Tensor, factors: np.ndarray) -> torch.Tensor:
    """Volumes by interpolated one-hot images, which do not round."""
    images = torch.nn.functional.one_hot(labels, n_classes()).permute(0, 4, 1, 2, 3).float()
    moved, _ = deform(images, labels, factors)
    return moved.sum((0, 2, 3, 4))


def test_regions_reach_the_volumes_asked_for(ball):
    index = region_index()
    factors = np.zeros((1, n_classes()))
    factors[0, index["lateral_ventricle"]] = 0.3
    factors[0, index["superior_frontal"]] = -0.12
    factors[0, index["extra_axial_csf"]] = np.nan
    before = torch.bincount(ball.flatten(), minlength=n_classes())
    after = soft_volumes(ball, factors)
    for name, wanted in (("lateral_ventricle", 0.3), ("superior_frontal", -0.12), ("frontal_white", 0.0)):
        k = index[name]
        assert float(torch.log(after[k] / before[k])) == pytest.approx(wanted, abs=0.04), name
    # what the brain loses its fluid gains: the skull nearly stays
    assert float(after[1:].sum() / before[1:].sum()) == pytest.approx(1, abs=0.025)
    _, hard = deform(torch.zeros(1, 1, 48, 48, 48), ball, factors)
    k = index["lateral_ventricle"]
    assert float(torch.log((hard == k).sum() / before[k])) == pytest.approx(0.3, abs=0.1)


def test_no_change_is_the_identity_and_head_size_scales(ball):
    factors = np.zeros((1, n_classes()))
    image = torch.rand(1, 1, 48, 48, 48, generator=torch.Generator().manual_seed(0))
    moved, labels = deform(image, ball, factors)
    torch.testing.assert_close(moved, image, atol=1e-4, rtol=0)
    assert torch.equal(labels, ball)
    _, larger = deform(image, ball, factors, head_size=np.array([0.12]))
    assert float(torch.log((larger > 0).sum() / (ball > 0).sum())) == pytest.approx(0.12, abs=0.02)


def test_random_shape_is_seeded(ball):
    factors = np.zeros((1, n_classes()))
    image = torch.rand(1, 1, 48, 48, 48)
    one, two, three = (deform(image, ball, factors, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_factors_age_a_head_by_the_difference_only():
    people = draw_people(200, np.random.default_rng(0))
    same = log_volume_factors(people, reference_age=people.age)
    older = log_volume_factors(people, reference_age=people.age - 20)
    index = region_index()
    assert np.all(older[:, index["lateral_ventricle"]] > same[:, index["lateral_ventricle"]])
    assert np.all(older[:, index["hippocampus"]] < same[:, index["hippocampus"]])
    assert np.isnan(same[:, [0, index["extra_axial_csf"]]]).all()


@pytest.mark.skipif(not IXI.exists(), reason="needs the real heads of ../shared/data/ixi")
def test_a_real_head_realises_its_factors():
    import nibabel as nib

    from bids_petsynth.training.labelling import merge_dlmuse

    path = next((IXI / "derivatives" / "dlmuse" / "sub-IXI174" / "anat").glob("*_dseg.nii.gz"))
    labels = merge_dlmuse(np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj).astype(np.uint8))
    labels = torch.from_numpy(labels.astype(np.int64))[None]
    factors = log_volume_factors(draw_people(1, np.random.default_rng(2)))
    before, after = (
        torch.bincount(x.flatten(), minlength=n_classes())[1:].double()
        for x in (labels, deform(torch.zeros(1, 1, *labels.shape[1:]), labels, factors)[1])
    )
    here = (before > 400).numpy() & np.isfinite(factors[0, 1:])
    wanted, got = factors[0, 1:][here], torch.log(after / before).numpy()[here]
    assert np.corrcoef(wanted, got)[0, 1] > 0.85
    assert np.sqrt(np.mean((wanted - got) ** 2)) < 0.06
