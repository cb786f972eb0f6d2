"""Training of the networks that read a head: the loss's gradient, the fold of voxels, heads on the grid, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bids_petsynth.anatomy import network
from bids_petsynth.anatomy.network import UNet, refining_net
from bids_petsynth.anatomy.regions import n_classes, regions
from bids_petsynth.anatomy.segmentation import averaged, load_network, sharpened, usual_contrast
from bids_petsynth.folding import fold, unfold
from bids_petsynth.training import labelling, refining
from bids_petsynth.training.augment import Pose, on_grid, random_shape
from bids_petsynth.training.labelling import CLUSTERS, Plan, dice_by_class, evaluate, loss_and_gradient, train


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
    plan = Plan(steps=24, seed=1, rate=5e-3, decay=0.9, every=12)
    whole = trained_whole_and_in_parts(partial(train, "locating", arrays), "locating", plan, tmp_path, monkeypatch)
    rows = [line.split(",") for line in (whole / "log.csv").read_text().splitlines()]
    assert [r[0] for r in rows] == ["12", "24"] and float(rows[1][1]) < float(rows[0][1])
    assert json.loads((whole / "config.json").read_text())["network"] == "locating"


def trained_whole_and_in_parts(train, name, plan, tmp_path, monkeypatch):
    """The folder of an uninterrupted run, whose weights one that was killed and resumed has to the last bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, plan)
    store = labelling.store_checkpoint

    def killed(*args):
        store(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(labelling, "store_checkpoint", killed)
        train(parts, plan)
    train(parts, replace(plan, resume=True))
    weights = f"{name}.safetensors"
    assert (parts / weights).read_bytes() == (whole / weights).read_bytes()
    return whole


WHITE, GREY_MATTER = (next(r.index for r in regions() if r.tissue == tissue) for tissue in ("wm", "gm"))


class Coarse(torch.nn.Module):
    """Stands for the labelling network: knows white matter roughly, from a blurred image, and finds too little."""

    multiple = 2

    def forward(self, image, start=(0, 0, 0)):
        out = torch.full((1, n_classes(), *image.shape[2:]), -6.0)
        out[:, 0], out[:, WHITE] = 0.0, 12 * (F.avg_pool3d(image, 5, 1, 2)[:, 0] - 0.7)
        return out


def test_refining_net_finds_the_image_s_borders_and_resumes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    classes = np.zeros((3, 24, 24, 20), np.uint8)
    for one, move in zip(classes, (0, 1, 2), strict=True):
        one[7 + move : 19, 6 : 18 + move, 8:17] = WHITE
    t1w = np.where(classes == WHITE, 1.0, 0.3) + 0.02 * rng.standard_normal(classes.shape)
    np.savez(tmp_path / "grid.npz", names=["a", "b", labelling.UNSEEN[0]], t1w=t1w.astype(np.float16), classes=classes)
    monkeypatch.setattr(refining, "load_network", lambda name, device: Coarse())
    monkeypatch.setattr(refining, "WINDOW", (20, 20, 16))
    train, plan = partial(refining.train, tmp_path / "grid.npz"), Plan(steps=200, seed=1, rate=1e-2, decay=0.9)
    whole = tmp_path / "learned"
    train(whole, replace(plan, every=100))
    trained_whole_and_in_parts(train, "refining", replace(plan, steps=8, every=4), tmp_path, monkeypatch)
    image, truth = torch.from_numpy(t1w[2].astype(np.float32)), torch.from_numpy(classes[2])
    coarse = averaged(Coarse(), image)
    net = load_network("refining", whole / "refining.safetensors")
    with torch.inference_mode():
        fine = sharpened(net, image, coarse)
    before, after = (evaluate([found.argmax(0)], [truth])[0] for found in (coarse, fine))
    assert before < 0.9 and after > 0.97
    # it is the image that tells, not the labels that it is given
    with torch.inference_mode():
        blind = sharpened(net, torch.full_like(image, 0.65), coarse)
    assert evaluate([blind.argmax(0)], [truth])[0] < 0.93
    # the log tells the same of the unseen head, whose image is not mirrored there
    assert float((whole / "log.csv").read_text().splitlines()[-1].split(",")[2]) == pytest.approx(after, abs=0.02)


def test_an_untrained_refining_net_adds_nothing_and_mirrors_do_not_matter():
    torch.manual_seed(0)
    net, image, logits = refining_net(n_classes()), torch.rand(8, 6, 7), torch.randn(n_classes(), 8, 6, 7)
    with torch.inference_mode():
        assert torch.equal(sharpened(net, image, logits), logits)
        torch.nn.init.normal_(net.head.weight)
        found = sharpened(net, image, logits)
        mirrored = sharpened(net, image.flip(0), logits.flip(1)).flip(1)
    assert not torch.equal(found, logits)
    torch.testing.assert_close(found, mirrored, atol=1e-4, rtol=1e-4)


def test_averaged_logits_are_those_of_each_move_moved_back():
    """A network that tells each voxel's own place answers with the mean over the places where the voxel lay."""

    class Places(torch.nn.Module):
        multiple = 4

        def forward(self, image):
            return torch.arange(float(image.shape[3])).view(1, 1, 1, -1, 1).expand_as(image)

    class Itself(Places):
        def forward(self, image):
            return image

    image, moves = torch.rand(5, 8, 6), ((0, 0, 0), (1, 2, 1))
    torch.testing.assert_close(averaged(Itself(), image, moves)[0], image)
    found = averaged(Places(), image, moves)
    assert found.shape == (1, 5, 8, 6)
    expected = (torch.arange(8) + torch.arange(8).roll(-2)) / 2
    torch.testing.assert_close(found, expected.view(1, 1, -1, 1).expand(1, 5, 8, 6))


def test_contrast_is_brought_to_the_usual():
    rng = torch.Generator().manual_seed(0)
    image, probabilities = 0.1 * torch.rand(6, 4, 4, generator=rng) + 0.4, torch.zeros(n_classes(), 6, 4, 4)
    assert torch.equal(usual_contrast(image, probabilities), image)  # nothing is found
    image[:2] *= 1.8
    probabilities[WHITE, :2] = 0.9
    assert usual_contrast(image, probabilities)[:2].median().item() == pytest.approx(1, rel=1e-6)
    probabilities[GREY_MATTER, 2:4] = 0.9
    usual = usual_contrast(image, probabilities)
    assert usual[2:4].median().item() == pytest.approx(0.72, rel=1e-4)
    # a power and a factor, which contrasts differ by, are undone
    torch.testing.assert_close(usual_contrast(3 * image**0.7, probabilities), usual, atol=1e-4, rtol=1e-4)
    for grey, power in ((0.01, 0.5), (1.5, 2.0)):  # no T1w, which no power makes one
        strange = image.clone()
        strange[2:4] = grey * image[:2].median()
        expected = (strange / strange[:2].median()) ** power
        torch.testing.assert_close(usual_contrast(strange, probabilities), expected, atol=1e-4, rtol=1e-4)
