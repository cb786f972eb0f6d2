"""Style transfer: what the result shares with the PET, what with the T1w, and VGG19 as published."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage

from bids_petsynth.errors import UsageError
from bids_petsynth.training import style
from bids_petsynth.training.style import VGG19, StyleLoss, match_histogram, read_vgg19, restyle, statistics_transfer

SHAPE = (36, 40, 30)


def ellipsoid(shape: tuple[int, ...], radii: tuple[float, ...]) -> np.ndarray:
    axes = np.meshgrid(*((np.arange(n) - (n - 1) / 2) / r for n, r in zip(shape, radii, strict=True)), indexing="ij")
    return sum(a**2 for a in axes) < 1


@pytest.fixture(scope="module")
def heads() -> tuple[np.ndarray, np.ndarray]:
    """A sharp T1w of folded tissue, and the smooth, noisy PET of a smaller head."""
    rng = np.random.default_rng(0)
    brain = ellipsoid(SHAPE, (16, 18, 13))
    folds = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2)
    t1w = np.where(brain, 0.6 + 0.4 * (folds > 0), 0) + brain * 0.02 * rng.standard_normal(SHAPE)
    other = ellipsoid(SHAPE, (14, 16, 11))
    uptake = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 3)
    uptake = 1.2 + 0.4 * uptake / uptake.std()
    uptake *= 1 + 0.01 * np.arange(SHAPE[2])  # slices differ in level
    noise = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.2)
    return t1w, np.where(other, np.maximum(uptake + 0.1 * noise / noise.std(), 0.05), 0)


def test_histogram_of_equal_length_becomes_the_reference_in_the_order_of_the_values():
    rng = np.random.default_rng(1)
    values, reference = rng.standard_normal(101), rng.gamma(2, size=101)
    result = match_histogram(values, reference)
    np.testing.assert_allclose(np.sort(result), np.sort(reference))
    assert (np.argsort(result) == np.argsort(values)).all()


def test_histogram_of_other_length_has_the_quantiles_of_the_reference_and_ties_stay_ties():
    rng = np.random.default_rng(2)
    values, reference = rng.standard_normal(5000), rng.gamma(2, size=800)
    ranks = (np.argsort(np.argsort(values)) + 0.5) / len(values)
    expected = np.quantile(reference, ranks, method="hazen")
    np.testing.assert_allclose(match_histogram(values, reference), expected)
    levels = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(
        np.quantile(match_histogram(values, reference), levels), np.quantile(reference, levels), rtol=0.02, atol=0.01
    )
    coarse = match_histogram(np.array([1, 1, 2, 2, 2, 5.0]), reference)
    assert coarse[0] == coarse[1] < coarse[2] == coarse[3] == coarse[4] < coarse[5]


def shells(image: np.ndarray) -> np.ndarray:
    """Log of the mean power in shells of frequency, of a block within both heads under a Hann window."""
    block = image[9:27, 10:30, 9:21]
    windows = np.meshgrid(*(np.hanning(n + 2)[1:-1] for n in block.shape), indexing="ij")
    window = np.prod(windows, axis=0)
    power = np.abs(np.fft.fftn(window * (block - np.average(block, weights=window)), (32, 32, 32))) ** 2
    grid = np.meshgrid(*[np.fft.fftfreq(32)] * 3, indexing="ij")
    radius = np.sqrt(sum(g**2 for g in grid))
    edges = np.linspace(0.06, 0.5, 10)
    return np.log([power[(radius >= a) & (radius < b)].mean() for a, b in zip(edges[:-1], edges[1:], strict=True)])


def gradient(image: np.ndarray) -> np.ndarray:
    return np.stack(np.gradient(image))


def test_statistics_are_the_pets_and_edges_the_t1ws(heads):
    t1w, pet = heads
    t1w_mask, pet_mask = t1w > 0, pet > 0
    result = statistics_transfer(t1w, pet)
    assert result.shape == t1w.shape and result.dtype == np.float32
    assert not result[~t1w_mask].any()

    levels = np.linspace(0.02, 0.98, 25)
    ours, theirs = (np.flatnonzero(m.any((0, 1))) for m in (t1w_mask, pet_mask))
    for z, partner in ((ours[0], theirs[0]), (ours[-1], theirs[-1]), (15, None)):
        if partner is None:
            partner = round((z - ours[0]) / np.ptp(ours) * np.ptp(theirs) + theirs[0])
        mine, other = result[..., z][t1w_mask[..., z]], pet[..., partner][pet_mask[..., partner]]
        assert other.min() - 1e-6 <= mine.min() and mine.max() <= other.max() + 1e-6
        if len(mine) > 100:
            np.testing.assert_allclose(np.quantile(mine, levels), np.quantile(other, levels), atol=0.02)

    distance = {
        name: np.abs(shells(image) - shells(pet)).mean()
        for name, image in (
            ("t1w in SUVR", t1w / t1w[t1w_mask].mean() * pet[pet_mask].mean()),
            ("histogram alone", _histogram_alone(t1w, pet)),
            ("result", result),
        )
    }
    assert distance["result"] < 0.35 * min(distance["t1w in SUVR"], distance["histogram alone"]), distance

    inner = ndimage.binary_erosion(t1w_mask, iterations=3)
    smooth = ndimage.gaussian_filter(t1w, 1.5)  # as PET would show these edges
    own = np.corrcoef(gradient(smooth)[:, inner].ravel(), gradient(result)[:, inner].ravel())[0, 1]
    foreign = np.corrcoef(gradient(pet)[:, inner].ravel(), gradient(result)[:, inner].ravel())[0, 1]
    assert own > 0.7 and abs(foreign) < 0.2, (own, foreign)


def _histogram_alone(t1w: np.ndarray, pet: np.ndarray) -> np.ndarray:
    out = np.zeros_like(t1w)
    out[t1w > 0] = match_histogram(t1w[t1w > 0], pet[pet > 0])
    return out


def test_a_pet_is_its_own_style(heads):
    _, pet = heads
    np.testing.assert_allclose(statistics_transfer(pet, pet), pet, rtol=0.02, atol=0.02)


def test_units_of_the_t1w_do_not_matter_and_masks_do(heads):
    t1w, pet = heads
    expected = statistics_transfer(t1w, pet)
    np.testing.assert_allclose(statistics_transfer(700 * t1w, pet), expected, rtol=1e-3, atol=1e-3)
    half = (pet > 0) & (np.arange(SHAPE[0])[:, None, None] < SHAPE[0] // 2)
    bright = np.where(half, pet, 50.0)
    assert statistics_transfer(t1w, bright, pet_mask=half).max() <= pet.max() + 1e-6
    with pytest.raises(ValueError, match="with 0 voxels"):
        statistics_transfer(t1w, np.zeros_like(pet))


def test_a_pet_on_another_grid_and_flat_images_are_fine(heads):
    t1w, pet = heads
    cropped = pet[3:-2, 2:-4, 4:-5]
    result = statistics_transfer(t1w, cropped)
    assert result.shape == t1w.shape and np.isfinite(result).all()
    flat = statistics_transfer((t1w > 0).astype(float), (pet > 0) * 1.5)
    np.testing.assert_allclose(flat[t1w > 0], 1.5)
    textured = statistics_transfer(0.7 * (t1w > 0), pet, rounds=1)
    assert np.ptp(textured[..., 15][t1w[..., 15] > 0]) == 0, "no texture is made of rounding"


# torchvision's published vgg19: convolutions by place, (out, in)
PUBLISHED = {
    0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128),
    10: (256, 128), 12: (256, 256), 14: (256, 256), 16: (256, 256),
    19: (512, 256), 21: (512, 512), 23: (512, 512), 25: (512, 512),
    28: (512, 512), 30: (512, 512), 32: (512, 512), 34: (512, 512),
}  # fmt: skip


@pytest.fixture(scope="module")
def vgg() -> VGG19:
    """Random weights that keep activations in size (He et al., arXiv:1502.01852)."""
    torch.manual_seed(0)
    net = VGG19().requires_grad_(False)
    for place in PUBLISHED:
        weight = net.features[place].weight
        weight.normal_(std=math.sqrt(2 / (9 * weight.shape[1])))
        net.features[place].bias.zero_()
    return net


def test_vgg19_is_the_published_one(vgg):
    expected = {}
    for place, (out, width) in PUBLISHED.items():
        expected |= {f"features.{place}.weight": (out, width, 3, 3), f"features.{place}.bias": (out,)}
    assert {name: tuple(value.shape) for name, value in vgg.state_dict().items()} == expected
    # 143 667 240 published parameters less those of the classifier
    assert sum(p.numel() for p in vgg.parameters()) == 143_667_240 - 123_642_856
    pools = [i for i, layer in enumerate(vgg.features) if isinstance(layer, torch.nn.MaxPool2d)]
    assert pools == [4, 9, 18, 27, 36] and len(vgg.features) == 37
    named = {"conv1_1": 0, "conv2_1": 5, "conv3_1": 10, "conv4_1": 19, "conv4_2": 21, "conv5_1": 28}
    x = torch.rand(1, 1, 32, 16)
    found = vgg(x, list(named))
    colours = torch.cat([(x - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))], dim=1)
    for name, place in named.items():
        torch.testing.assert_close(found[name], vgg.features[: place + 2](colours))
        assert (found[name] >= 0).all()


def test_weights_are_read_from_a_file_that_holds_them(vgg, tmp_path):
    tensors = vgg.state_dict() | {"classifier.0.weight": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "vgg19.safetensors")
    read = read_vgg19(tmp_path / "vgg19.safetensors")
    assert all(torch.equal(value, vgg.state_dict()[name]) for name, value in read.state_dict().items())
    assert not any(p.requires_grad for p in read.parameters())
    with pytest.raises(UsageError, match=r"cannot be read .*save the state_dict"):
        read_vgg19(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(UsageError, match="cannot be read"):
        read_vgg19(tmp_path / "text.safetensors")
    save_file({"features.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"features.0.weight is \(64, 1, 3, 3\), not \(64, 3, 3, 3\)"):
        read_vgg19(tmp_path / "other.safetensors")
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UsageError, match="features.0.weight is missing"):
        read_vgg19(tmp_path / "foreign.safetensors")


def slices(image: np.ndarray, *places: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([image[..., z] / image.max() for z in places])).float()[:, None]


def test_style_loss_is_its_definition(vgg, heads):
    content, other, image = slices(heads[0], 14, 15), slices(heads[1], 14, 15), slices(heads[0], 10, 20)
    loss = StyleLoss.between(vgg, content, other, weight=7.0)
    actual = loss(image)
    names = (*style.STYLES, style.CONTENT)
    got, of_content, of_style = (vgg(x, names) for x in (image, content, other))
    for n in range(2):
        expected = ((got["conv4_2"][n] - of_content["conv4_2"][n]) ** 2).mean().item()
        for name in style.STYLES:
            ours, theirs = (f[name][n].flatten(1).double().numpy() for f in (got, of_style))
            difference = np.einsum("ip,jp->ij", ours, ours) - np.einsum("ip,jp->ij", theirs, theirs)
            expected += 7.0 * ((difference / ours.size) ** 2).mean()
        assert actual[n].item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(StyleLoss.between(vgg, other, other, 7.0)(other), torch.zeros(2))


@pytest.mark.parametrize(("optimiser", "steps"), [("adam", 6), ("lbfgs", 4)])
def test_restyling_lowers_the_loss_of_each_slice_as_if_it_were_alone(vgg, heads, optimiser, steps):
    content, other = (slices(image[:, 4:36], 13, 16) for image in heads)
    loss = StyleLoss.between(vgg, content, other)
    result = restyle(vgg, content, other, steps, optimiser)
    before, after = loss(content), loss(result)
    assert (after < 0.9 * before).all()
    alone = restyle(vgg, content[1:], other[1:], steps, optimiser)
    torch.testing.assert_close(result[1:], alone, rtol=1e-2, atol=1e-3)


def test_vgg_transfer_of_a_volume(vgg, heads):
    t1w, pet = (image[8:28, 8:28, 12:16] for image in heads)
    result = style.vgg_transfer(500 * t1w, pet, vgg, steps=3, batch=3)
    assert result.shape == t1w.shape and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= pet.max() and not result[t1w <= 0].any()
    white = [np.percentile(image[image > 0], 99.5) for image in (t1w, pet)]
    content, other = (
        torch.from_numpy(np.clip(image[..., 3] / w, 0, 1)).float()[None, None]
        for image, w in zip((t1w, pet), white, strict=True)
    )
    expected = restyle(vgg, content, other, 3)[0, 0].clamp(0, 1).numpy() * white[1]
    np.testing.assert_allclose(result[..., 3][t1w[..., 3] > 0], expected[t1w[..., 3] > 0], rtol=2e-2, atol=5e-3)
    with pytest.raises(ValueError, match="slices 16 voxels wide"):
        style.vgg_transfer(t1w[:12], pet, vgg)
