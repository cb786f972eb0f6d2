"""Slabs put together again, and two arms that condition each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models_small import CLASSES, small_model, small_recipe
from models_small import SHAPE as VOLUME
from torch import nn

from bids_petsynth.models.denoiser import build_denoiser
from bids_petsynth.models.networks.dual import DualArm
from bids_petsynth.models.networks.slab import cut, join, starts, weights
from bids_petsynth.models.networks.unet import UNet
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.types import Anatomy, ClinicalRecord, Grid

CASES = [(7, 7, 3), (20, 15, 5), (23, 6, 4), (10, 4, 4), (9, 5, 1), (8, 1, 1)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("depth", "slices", "stride"), CASES)
def test_slabs_of_a_volume_give_it_back_to_the_bit(depth, slices, stride):
    volume = torch.randn(2, 1, 3, 4, depth) * 10 ** torch.arange(-3.0, 1.0)[:, None]
    slabs = cut(volume, slices, stride)
    places = starts(depth, slices, stride)
    assert slabs.shape == (2, len(places), slices, 3, 4)
    for k, a in enumerate(places):
        for j in range(slices):
            assert torch.equal(slabs[:, k, j], volume[:, 0, :, :, a + j])
    assert torch.equal(join(slabs, depth, stride), volume)


@pytest.mark.parametrize(("depth", "slices", "stride"), CASES)
def test_slabs_that_disagree_are_averaged_by_weights_that_sum_to_one(depth, slices, stride):
    places = starts(depth, slices, stride)
    slabs = torch.randn(2, len(places), slices, 2, 3, dtype=torch.float64)
    expected = np.zeros((2, 2, 3, depth))
    for z in range(depth):
        covering = [(k, z - a) for k, a in enumerate(places) if 0 <= z - a < slices]
        share = np.array([min(j + 1, slices - j) for _, j in covering], float)
        share /= share.sum()
        np.testing.assert_allclose(weights(depth, slices, stride)[[k for k, _ in covering], z], share)
        expected[..., z] = sum(w * slabs[:, k, j].numpy() for w, (k, j) in zip(share, covering, strict=True))
    np.testing.assert_allclose(join(slabs, depth, stride)[:, 0], expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(weights(depth, slices, stride).sum(0), 1, rtol=1e-14)


def test_join_hands_gradients_to_slabs_by_their_weights():
    slabs = torch.randn(1, 3, 5, 1, 1, dtype=torch.float64).requires_grad_()
    volume = join(slabs, 9, 2)
    volume.sum().backward()
    expected = torch.stack([row[a : a + 5] for row, a in zip(weights(9, 5, 2), starts(9, 5, 2), strict=True)])
    torch.testing.assert_close(slabs.grad[0, :, :, 0, 0], expected)


def test_slabs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="15 slices does not fit a volume of 9"):
        starts(9, 15, 5)
    with pytest.raises(ValueError, match="leave gaps; choose a stride of 1 to 4"):
        starts(9, 4, 5)
    with pytest.raises(ValueError, match="2 slabs for a volume of 9 slices; it needs 3"):
        join(torch.zeros(1, 2, 5, 2, 2), 9, 2)


SLICES, SHAPE = 4, (8, 12)


def dual(**options) -> DualArm:
    return DualArm(SLICES, (8, 12), 1, 6, 3, 4, **options)


def drawn(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def inputs(depth: int = SLICES, n: int = 2) -> tuple[torch.Tensor, ...]:
    images = torch.randn(2, n, 1, *SHAPE, depth)
    return images[0], images[1], torch.randn(n, 6), torch.randn(n, 3)


@pytest.mark.parametrize("swapped", [False, True])
def test_arms_are_wired_as_published(swapped):
    net = drawn(dual())
    noisy, source, time, clinical = inputs()
    conditioner, denoiser = (net.arms[i] for i in ((1, 0) if swapped else (0, 1)))
    prediction, translation = net(noisy, source, time, clinical, swapped=swapped)
    assert prediction.shape == translation.shape == noisy.shape

    def as_channels(volume: torch.Tensor) -> torch.Tensor:
        return volume[:, 0].permute(0, 3, 1, 2)

    # block by block, without the U-Net's own walk
    seen: list[torch.Tensor] = []
    blocks = [block for level in conditioner.unet.down for block in level]
    blocks += [block for level in reversed(conditioner.unet.up) for block in level]
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in blocks]
    conditioner.translate(as_channels(source))
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(blocks) == 4
    hidden = conditioner.translation(nn.functional.silu(conditioner.norm(seen[-1])))
    torch.testing.assert_close(as_channels(translation), hidden)
    expected = denoiser.unet(denoiser.stem(as_channels(noisy)), time, spatial=seen, clinical=clinical)
    torch.testing.assert_close(as_channels(prediction), expected)


def test_swapping_exchanges_the_arms_and_adds_no_parameters():
    net, mirror = drawn(dual()), dual()
    exchanged = {
        name.replace("arms.0", "arms.x").replace("arms.1", "arms.0").replace("arms.x", "arms.1"): value
        for name, value in net.state_dict().items()
    }
    mirror.load_state_dict(exchanged)
    noisy, source, time, clinical = inputs()
    before = set(net.state_dict())
    swapped = net(noisy, source, time, clinical, swapped=True)
    for a, b in zip(swapped, mirror(noisy, source, time, clinical), strict=True):
        assert torch.equal(a, b)
    assert set(net.state_dict()) == before
    sizes = [sum(p.numel() for p in arm.parameters()) for arm in net.arms]
    assert sizes[0] == sizes[1] == sum(sizes) / 2


def test_each_loss_reaches_the_arms_it_should():
    net = drawn(dual())
    noisy, source, time, clinical = inputs()
    net(noisy, source, time, clinical)[1].square().sum().backward()
    assert all(p.grad is None for p in net.arms[1].parameters()), "the translation is the conditioner's alone"
    net.zero_grad()
    net(noisy, source, time, clinical)[0].square().sum().backward()
    assert net.arms[0].stem.weight.grad.any() and net.arms[1].stem.weight.grad.any()
    net.zero_grad()
    prediction, translation = net(noisy, source, time, clinical)
    back, there = net(source, prediction, time, clinical, swapped=True)
    sum(x.square().sum() for x in (prediction, translation, back, there)).backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused, "a cycle trains every parameter"


def test_prediction_starts_free_of_source_and_record_and_comes_to_depend_on_both():
    net = dual()
    noisy, source, time, clinical = inputs()
    for arm in net.arms:
        drawn(arm.unet.out)
        for block in [b for level in [*arm.unet.down, *arm.unet.up] for b in level]:
            drawn(block.conv2)
    first = net(noisy, source, time, clinical)[0]
    assert torch.equal(first, net(noisy, source * 2, time, clinical + 1)[0])
    drawn(net)
    assert not torch.allclose(net(noisy, source, time, clinical)[0], net(noisy, source * 2, time, clinical)[0])
    assert not torch.allclose(net(noisy, source, time, clinical)[0], net(noisy, source, time, clinical + 1)[0])
    # the translation knows no record, time or noise: it is computed once for all steps
    assert torch.equal(net(noisy, source, time, clinical)[1], net(noisy * 2, source, time + 1, clinical + 1)[1])


@pytest.mark.parametrize("swapped", [False, True])
def test_a_deep_volume_is_the_weighted_mean_of_its_slabs(swapped):
    net = drawn(dual(stride=3))
    noisy, source, time, clinical = inputs(9)
    slabs = [
        net(noisy[..., a : a + SLICES], source[..., a : a + SLICES], time, clinical, swapped)
        for a in starts(9, SLICES, 3)
    ]
    for whole, parts in zip(net(noisy, source, time, clinical, swapped), zip(*slabs, strict=True), strict=True):
        channels = torch.stack([part[:, 0].permute(0, 3, 1, 2) for part in parts], dim=1)
        torch.testing.assert_close(whole, join(channels, 9, 3))


def test_draws_of_a_person_share_the_conditioning():
    net = drawn(dual(stride=2))
    noisy, source, time, clinical = inputs(7, n=6)
    source = source[:2]
    shared = net.condition(source).repeated(3)
    expected, translation = net(noisy, source.repeat_interleave(3, 0), time, clinical)
    torch.testing.assert_close(net.denoise(noisy, shared, time, clinical), expected)
    torch.testing.assert_close(shared.translation, translation)


def test_an_arm_is_a_unet_that_may_have_attention():
    net = dual(attention="linear", heads=2)
    assert isinstance(net.arms[0].unet, UNet) and net.arms[0].unet.attention is not None
    noisy, source, time, clinical = inputs()
    assert net(noisy, source, time[:1], clinical[:1])[0].shape == noisy.shape


def test_a_sampler_asks_the_conditioner_once_per_head():
    """And draws the same as if it were asked in every step."""
    space, network = {"cutoff": 0.25, "fold": 1}, {"kind": "dual-arm", "slices": 6, "stride": 3, "channels": [8, 16]}
    conditioning = {"images": [], "sources": ["T1w"], "variables": []}
    recipe = small_recipe(space=space, network=network, conditioning=conditioning, regional=None, tracers=["AV45"])
    net = drawn(build_denoiser(recipe, CLASSES))
    model = replace(small_model(recipe), denoiser=net, latent_mean=(0.5,), latent_sd=(0.6,))
    rng = np.random.default_rng(0)
    labels = np.zeros((CLASSES, *VOLUME), np.float16)
    head = Anatomy(rng.random(VOLUME, np.float32), labels[0], labels, Grid(VOLUME, np.eye(4)))
    asked = []
    net.arms.arms[0].stem.register_forward_hook(lambda *_: asked.append(1))
    once = Synthesizer(model).draw(head, ClinicalRecord({}), "AV45", n_draws=3)
    assert len(asked) == 1
    net.settled = lambda sources: sources
    every = Synthesizer(model).draw(head, ClinicalRecord({}), "AV45", n_draws=3)
    assert len(asked) > 3
    np.testing.assert_array_equal(once, every)
