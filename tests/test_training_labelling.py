"""Training of the networks that read a head: the loss's gradient, the fold of voxels, heads on the grid, resuming."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bids_petsynth.anatomy import network
from bids_petsynth.anatomy.network import UNet
from bids_petsynth.anatomy.regions import n_classes
from bids_petsynth.folding import fold, unfold
from bids_petsynth.training import labelling
from bids_petsynth.training.augment import Pose, on_grid, random_shape
from bids_petsynth.training.labelling import CLUSTERS, dice_by_class, loss_and_gradient, train


def test_gradient_in_closed_form_is_autograds():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 300, generator=rng, requires_grad=True)
    target = torch.randint(4, (300,), generator=rng)  # class 4 does not occur
    weight = torch.rand(5, generator=rng) + 0.1
    p = logits.softmax(0)
    overlap = torch.stack([p[c][target == c].sum() for c in range(4)])
    size = torch.bincount(target, minlength=4)
    dice = (2 * overlap + 1) / (p.sum(1)[:4] + size + 1)
    expected = F.cross_entropy(logits.T, target, weight) + 1 - dice.mean()
    expected.backward()
    value, gradient = loss_and_gradient(logits, target, weight)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, logits.grad, atol=1e-6, rtol=1e-4)


def test_fold_and_unfold_are_inverse_and_keep_cubes_together():
    volume = torch.arange(2 * 3 * 4 * 6 * 8.0).view(2, 3, 4, 6, 8)
    folded = fold(volume, 2)
    assert folded.shape == (2, 24, 2, 3, 4)
    assert torch.equal(unfold(folded, 2), volume)
    assert set(folded[1, 8:16, 1, 2, 3].tolist()) == set(volume[1, 1, 2:4, 4:6, 6:8].flatten().tolist())


def test_a_window_sees_what_the_whole_grid_sees():
    """Coordinates and learned maps of a window are those of its place on the grid."""
    torch.manual_seed(0)
    net = UNet(3, (4, 6), (16, 16, 24)).eval()
    for place in net.places:
        torch.nn.init.normal_(place)
    assert torch.equal(network._window(net.coordinates, (4, 4, 4), (8, 0, 4), 2), net.coordinates[:, :, 4:8, 0:4, 2:6])
    image = torch.rand(1, 1, 16, 16, 24)
    assert net(image).shape == (1, 3, 16, 16, 24)
    assert net(image[..., :8], (0, 0, 16)).shape == (1, 3, 16, 16, 8)
    assert not torch.equal(net(image[..., :8], (0, 0, 16)), net(image[..., :8], (0, 0, 0)))


def test_dice_by_class():
    found, truth = torch.tensor([0, 1, 1, 2, 2, 2]), torch.tensor([0, 1, 2, 2, 2, 1])
    assert dice_by_class(found, truth, 4)[:2].tolist() == pytest.approx([0.5, 2 / 3])
    assert dice_by_class(found, truth, 4)[2].isnan()


@pytest.fixture
def head():
    rng = np.random.default_rng(0)
    labels = np.zeros((20, 24, 20), np.uint8)
    labels[5:15, 6:18, 5:15] = 1
    labels[6:10, 10:14, 8:12] = 26
    image = np.where(labels == 26, 200, np.where(labels == 1, 120, 20)) + rng.integers(0, 9, labels.shape)
    return image.astype(np.uint8), labels


def test_without_spread_a_random_head_stands_on_the_grid_or_mirrored(head):
    image, labels = (torch.from_numpy(x) for x in head)
    to_head = torch.eye(4)
    to_head[:3, 3] = torch.tensor([2.0, 2, 2])
    still = Pose(0, 0, 0, 0, 0, 0)
    plain = on_grid(image.float(), labels.long(), to_head, (16, 16, 16))[1]
    seen = set()
    for seed in range(8):
        rng = torch.Generator().manual_seed(seed)
        cut = random_shape(image.float(), labels.long(), to_head, still, (16, 16, 16), (0, 8, 0), (16, 8, 16), rng)[1]
        same = torch.equal(cut, plain[:, 8:])
        assert same or torch.equal(cut, plain.flip(0)[:, 8:])
        seen.add(same)
    assert seen == {True, False}


def test_locating_net_learns_and_a_resumed_run_equals_an_uninterrupted_one(head, tmp_path, monkeypatch):
    image, labels = head
    labels = np.where(labels == 0, n_classes() + CLUSTERS - 1, labels).astype(np.uint8)
    to_head = np.eye(4)
    to_head[:3, 3] = (20 - np.array([48, 48, 48])) / 2 + np.array([0, 2, 0])
    arrays = tmp_path / "heads.npz"
    names = np.array(["a", "b", labelling.UNSEEN[0]])
    np.savez(arrays, images=[image] * 3, classes=[labels] * 3, names=names, maps=[to_head] * 3)
    monkeypatch.setattr(labelling, "LABEL_SHAPE", (48, 48, 48))
    options = {"steps": 24, "seed": 1, "rate": 5e-3, "device": "cpu", "decay": 0.9, "every": 12}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("locating", arrays, whole, resume=False, **options)
    store = labelling.store_checkpoint

    def killed(*args):
        store(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(labelling, "store_checkpoint", killed)
        train("locating", arrays, parts, resume=False, **options)
    train("locating", arrays, parts, resume=True, **options)
    assert (parts / "locating.safetensors").read_bytes() == (whole / "locating.safetensors").read_bytes()
    rows = [line.split(",") for line in (whole / "log.csv").read_text().splitlines()]
    assert [r[0] for r in rows] == ["12", "24"] and float(rows[1][1]) < float(rows[0][1])
    assert json.loads((whole / "config.json").read_text())["network"] == "locating"
