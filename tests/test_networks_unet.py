"""The U-Net: shipped weights load into it and give the same bits; each addition is nothing until it has learned."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bids_petsynth.models import denoiser
from bids_petsynth.models.networks.unet import ResidualBlock, UNet, modulated

WIDTHS = ((8, 16, 24), 2, 3, 12, 4)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def drawn(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def inputs(dims: int = 3, n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 8, *(8, 4, 12)[:dims]), torch.randn(n, 12)


def test_defaults_are_the_shipped_network_to_the_bit():
    theirs = drawn(denoiser.UNet(*WIDTHS))
    ours = UNet(*WIDTHS)
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (theirs, ours)]
    assert shapes[0] == shapes[1]
    ours.load_state_dict(theirs.state_dict())
    x, embedding = inputs()
    assert torch.equal(ours(x, embedding), theirs(x, embedding))


def test_defaults_start_from_the_same_draw_as_the_shipped_network():
    nets = []
    for kind in (denoiser.UNet, UNet):
        torch.manual_seed(1)
        nets.append(kind(*WIDTHS).state_dict())
    assert all(torch.equal(value, nets[1][name]) for name, value in nets[0].items())


ADDITIONS = {
    "linear": {"attention": "linear"},
    "full": {"attention": "full"},
    "context": {"context": 6},
    "spatial": {"spatial": True},
    "clinical": {"clinical": 5},
    "all": {"attention": "linear", "context": 6, "spatial": True, "clinical": 5},
}


def given(net: UNet, x: torch.Tensor, options: dict) -> dict[str, object]:
    result: dict[str, object] = {}
    if "context" in options:
        result |= {"context": torch.randn(len(x), 3, 6), "context_mask": torch.tensor([[1, 1, 0], [0, 0, 0]])}
    if "spatial" in options:
        plain = UNet(*WIDTHS, dims=x.ndim - 2)
        result["spatial"] = plain.trunk(x, torch.zeros(len(x), 12))[1]
    if "clinical" in options:
        result["clinical"] = torch.randn(len(x), 5)
    return result


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ADDITIONS)
def test_addition_is_nothing_at_first_and_something_once_learned(name, dims):
    options = ADDITIONS[name]
    plain, net = drawn(UNet(*WIDTHS, dims=dims)), UNet(*WIDTHS, dims=dims, **options)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert missing and not unexpected
    x, embedding = inputs(dims)
    extra = given(net, x, options)
    assert torch.equal(net(x, embedding, **extra), plain(x, embedding))
    net(x, embedding, **extra).square().sum().backward()
    zero = [p for p in net.parameters() if p.ndim > 1 and not p.any()]
    assert zero and all(p.grad.any() for p in zero), "every layer at zero is pulled away from it"
    drawn(net)
    with torch.no_grad():
        if extra:
            assert not torch.allclose(net(x, embedding, **extra), net(x, embedding), atol=1e-3)
        drawn(plain).load_state_dict({k: v for k, v in net.state_dict().items() if k in plain.state_dict()})
        assert not torch.allclose(net(x, embedding, **extra), plain(x, embedding), atol=1e-3)


def test_gates_scale_the_skips():
    net, plain = drawn(UNet(*WIDTHS, gates=True)), UNet(*WIDTHS)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("gates")})
    x, embedding = inputs()
    assert not torch.allclose(net(x, embedding), plain(x, embedding), atol=1e-3)
    for gate in net.gates:
        nn.init.constant_(gate.logit.bias, 100.0)
        nn.init.zeros_(gate.logit.weight)
    assert torch.equal(net(x, embedding), plain(x, embedding)), "an open gate is none"
    for gate in net.gates:
        nn.init.constant_(gate.logit.bias, -math.inf)
    for block in [*net.down[0], *net.down[1]]:
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    x.requires_grad_()
    net.trunk(x, embedding)[0].sum().backward()
    assert torch.allclose(x.grad.abs() > 0, torch.ones_like(x, dtype=torch.bool)), "shut gates leave the deep way open"


def test_modulation_is_the_identity_at_zero_and_its_formula_elsewhere():
    h = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    zeros = torch.zeros(2, 4, 1, 1, 1, dtype=torch.float64)
    assert torch.equal(modulated(h, zeros, zeros, zeros, torch.zeros_like(h)), h)
    scale, shift, channelwise = torch.randn(3, 2, 4, 1, 1, 1, dtype=torch.float64)
    voxelwise = torch.randn_like(h)
    actual = modulated(h, scale, shift, channelwise, voxelwise)
    for n, c, x, y, z in [(0, 0, 0, 0, 0), (1, 3, 2, 1, 0), (0, 2, 1, 1, 1)]:
        a, b, k = (v[n, c, 0, 0, 0].item() for v in (scale, shift, channelwise))
        expected = (h[n, c, x, y, z].item() * (1 + a) + b) * (1 + k) * (1 + voxelwise[n, c, x, y, z].item())
        assert actual[n, c, x, y, z].item() == pytest.approx(expected, rel=1e-12)


def test_half_precision_stays_near_full():
    net = drawn(UNet(*WIDTHS, **ADDITIONS["all"], gates=True))
    x, embedding = inputs()
    extra = given(net, x, ADDITIONS["all"])
    with torch.no_grad():
        expected = net(x, embedding, **extra)
        with torch.autocast("cpu", torch.bfloat16):
            actual = net(x, embedding, **extra)
    assert torch.corrcoef(torch.stack([actual.float().flatten(), expected.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize("dims", [2, 3])
def test_block_scales_voxels_by_an_image_and_channels_by_the_record(dims):
    block = drawn(ResidualBlock(4, 6, 2, dims=dims, spatial=True, clinical=3))
    with torch.no_grad():  # linear after the norm, so that scales can be read off
        block.conv2.weight.zero_()
        block.conv2.bias.zero_()
        centre = (slice(None), slice(None), *[1] * dims)
        block.conv2.weight[centre] = torch.eye(4)
        block.modulate.bias[4:] = 6.0  # and positive, where SiLU can be inverted
    seen = []
    block.conv2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, embedding, record = torch.randn(1, 4, *[4] * dims), torch.randn(1, 6), 0.3 * torch.randn(1, 3)
    image = torch.zeros_like(x)
    spot = (0, slice(None), *[2] * dims)
    image[spot] = 0.3 * torch.randn(4)
    block(x, embedding)
    block(x, embedding, image)
    block(x, embedding, None, record)
    block(x, embedding, torch.zeros_like(x), torch.zeros(1, 3))
    before, by_image, by_record, by_zeros = (_before_silu(s) for s in seen)
    expected = before.clone()
    expected[spot] *= 1 + block.voxelwise.weight.flatten(1) @ image[spot]
    torch.testing.assert_close(by_image, expected, rtol=1e-3, atol=1e-4)
    scale = (1 + block.channelwise.weight @ record[0]).view(1, 4, *[1] * dims)
    torch.testing.assert_close(by_record, before * scale, rtol=1e-3, atol=1e-4)
    assert torch.equal(seen[0], seen[3]) and torch.equal(before, by_zeros)


def _before_silu(y: torch.Tensor) -> torch.Tensor:
    assert (y > 0).all()
    low, high = torch.zeros_like(y), torch.full_like(y, 60.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = nn.functional.silu(middle) < y
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


def test_what_a_network_was_not_built_for_is_refused():
    net = UNet(*WIDTHS)
    x, embedding = inputs()
    with pytest.raises(ValueError, match="takes no context"):
        net(x, embedding, context=torch.zeros(2, 1, 6))
    with pytest.raises(ValueError, match="takes no clinical"):
        net(x, embedding, clinical=torch.zeros(2, 1))
    with pytest.raises(ValueError, match="1 feature maps for 12 blocks"):
        UNet(*WIDTHS, spatial=True)(x, embedding, spatial=[x])


def test_text_is_read_at_the_two_coarsest_levels_and_a_masked_one_is_not_read():
    net = drawn(UNet(*WIDTHS, context=6))
    assert list(net.read_down) == list(net.read_up) == ["1", "2"]
    assert list(UNet((8,), 1, 3, 12, 4, context=6).read_up) == ["0"]
    x, embedding = inputs()
    text, mask = torch.randn(2, 3, 6), torch.tensor([[1, 0, 0], [0, 0, 0]])
    spoiled = text.masked_fill(mask[..., None] == 0, math.nan)
    result = net(x, embedding, spoiled, mask)
    assert torch.equal(result, net(x, embedding, text, mask))
    torch.testing.assert_close(result[1:], net(x[1:], embedding[1:]))
    assert not torch.allclose(result[:1], net(x[:1], embedding[:1]), atol=1e-3)
