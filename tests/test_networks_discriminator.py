"""The patch discriminator: norms of its layers, what a score sees, and that it learns to tell pairs apart."""

from __future__ import annotations

import pytest
import torch

from bids_petsynth.models.networks.discriminator import PatchDiscriminator
from bids_petsynth.training.losses import hinge_d, hinge_g


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_spectral_norm_of_every_layer_is_one():
    net = PatchDiscriminator((8, 12))
    image, source = torch.randn(2, 1, 1, 16, 16, 16)
    for _ in range(30):  # power iteration goes on with every call in training
        net(image, source)
    for layer in [*net.levels, net.out]:
        largest = torch.linalg.svdvals(layer.weight.flatten(1))[0]
        assert largest.item() == pytest.approx(1, abs=1e-3)
        drawn = layer.parametrizations.weight.original.flatten(1)
        assert torch.linalg.svdvals(drawn)[0].item() != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("dims", "channels"), [(2, (4, 4, 4)), (3, (4,)), (3, (4, 4))])
def test_a_score_sees_its_patch_and_no_more(dims, channels):
    net = PatchDiscriminator(channels, dims=dims).eval()
    size = 2 ** len(channels) * 8
    image = torch.randn(1, 1, *[size] * dims).requires_grad_()
    source = torch.randn_like(image).requires_grad_()
    scores = net(image, source)
    assert scores.shape == (1, 1, *[8] * dims)
    scores[(0, 0, *[4] * dims)].backward()
    for seen in (image.grad, source.grad):
        for axis in range(dims):
            line = seen[0, 0].abs().movedim(axis, 0).flatten(1).sum(1).nonzero().flatten()
            assert line[-1] - line[0] + 1 == net.patch == len(line)


def test_it_learns_which_image_belongs_to_the_source_and_a_generator_is_pulled_to_it():
    net = PatchDiscriminator((8,), dims=2)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(60):
        source = torch.randn(16, 1, 8, 8).sign()
        # each image has the same marginal: only the pair tells
        loss = hinge_d(net(source, source), net(-source, source))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    source = torch.randn(64, 1, 8, 8).sign()
    real, fake = net(source, source), net(-source, source)
    assert real.mean() > fake.mean() + 0.3
    image = torch.zeros_like(source).requires_grad_()
    hinge_g(net(image, source)).backward()
    assert (image.grad * source).sum() < 0, "a step against the gradient goes towards the source"


def test_without_a_source_it_judges_the_image_alone():
    assert PatchDiscriminator((4,), images=2, sources=0)(torch.randn(1, 2, 4, 4, 4)).shape == (1, 1, 2, 2, 2)
    with pytest.raises(ValueError, match="a source of 0 channels for a discriminator that takes 1"):
        PatchDiscriminator((4,))(torch.randn(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match="a source of 1 channels for a discriminator that takes 0"):
        PatchDiscriminator((4,), sources=0)(torch.randn(1, 1, 4, 4, 4), torch.randn(1, 1, 4, 4, 4))
