"""The band-limited codec against scipy's cosine transform, and its fidelity on blurred volumes; the autoencoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter

from bids_petsynth.folding import fold, unfold
from bids_petsynth.models.autoencoder import Autoencoder, build_space
from bids_petsynth.models.codec import BandLimitedCodec, dct_matrix
from bids_petsynth.models.recipe import load_recipe, parse_recipe, recipe_text

SHAPE = (32, 48, 32)


def small_recipe(space: dict | None = None):
    recipe = load_recipe("petsynth")
    data = recipe.model_dump(mode="json")
    data["grid"]["shape"] = list(SHAPE)
    data["network"] |= {"channels": [8, 16], "groups": 4, "embedding": 16}
    if space is not None:
        data |= {"space": space, "regional": None}
    return parse_recipe(recipe_text(type(recipe).model_validate(data)), "small")


@pytest.fixture(scope="module")
def codec() -> BandLimitedCodec:
    return BandLimitedCodec(small_recipe())


def test_dct_is_orthonormal_and_scipys():
    matrix = dct_matrix(20)
    assert torch.allclose(matrix @ matrix.T, torch.eye(20, dtype=torch.float64), atol=1e-12)
    x = np.random.default_rng(0).standard_normal(20)
    np.testing.assert_allclose(matrix.numpy() @ x, dctn(x, norm="ortho"), atol=1e-12)


def test_round_trip_is_the_orthogonal_projection(codec):
    x = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    there = codec.decode(codec.encode(torch.from_numpy(x)))
    for one, found in zip(x, there.numpy(), strict=True):
        kept = np.zeros(SHAPE)
        low = tuple(slice(n // 2) for n in SHAPE)
        kept[low] = dctn(one, norm="ortho")[low]
        np.testing.assert_allclose(found, idctn(kept, norm="ortho"), atol=1e-5)
    assert torch.allclose(codec.decode(codec.encode(there)), there, atol=1e-5)


def test_a_constant_keeps_its_value_in_the_latent(codec):
    latent = codec.encode(torch.full((1, *SHAPE), 1.4))
    assert latent.shape == (1, 8, 8, 12, 8)
    assert torch.allclose(latent, torch.full_like(latent, 1.4), atol=1e-5)


def test_fold_keeps_neighbours_together_and_is_undone_by_unfold():
    x = torch.arange(2 * 4 * 4 * 6.0).view(1, 2, 4, 4, 6)
    assert torch.equal(unfold(fold(x, 2), 2), x)
    assert torch.equal(fold(x, 2)[0, :8, 1, 0, 2], x[0, 0, 2:4, 0:2, 4:6].flatten())


@pytest.mark.parametrize("fwhm", [6.0, 7.0, 8.0])
def test_fidelity_on_what_a_scanner_resolves(codec, fwhm):
    """Piecewise constant uptake from 0 to 2 SUVR in wavy layers of two voxels, blurred: at least 45 dB."""
    rng = np.random.default_rng(1)
    x, y, z = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")
    radius = np.sqrt(x**2 + (y / 1.4) ** 2 + z**2) + 1.5 * np.sin(y / 3) + 1.5 * np.cos(x / 2 + z / 3)
    uptake = np.array([1.7, 1.7, 0.7, 1.6, 1.5, 0.6, 0.05, 0.3])[np.clip(radius // 2, 0, 7).astype(int)]
    uptake = np.where(radius < 13, uptake, 0.2) * (1 + 0.05 * rng.standard_normal(SHAPE))
    pet = gaussian_filter(uptake, fwhm / 2.3548 / 2.0).astype(np.float32)
    found = codec.decode(codec.encode(torch.from_numpy(pet)[None]))[0].numpy()
    inside = radius < 13
    assert 20 * np.log10(3 / np.sqrt(((found - pet)[inside] ** 2).mean())) > 45
    for layer in range(7):
        part = inside & (radius // 2 == layer)
        assert abs(found[part].mean() / pet[part].mean() - 1) < 0.01


def test_autoencoder_learns_and_has_the_codecs_interface():
    recipe = small_recipe({"kind": "autoencoder", "channels": [8, 8, 8], "latent_channels": 3, "groups": 4})
    torch.manual_seed(0)
    net = build_space(recipe)
    assert isinstance(net, Autoencoder)
    rng = np.random.default_rng(0)
    blobs = [gaussian_filter(rng.standard_normal(SHAPE), 4) for _ in range(4)]
    volumes = torch.from_numpy(np.stack([1 + b / b.std() for b in blobs]).astype(np.float32))
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
    for _ in range(40):
        optimiser.zero_grad()
        decoded, divergence = net.reconstructed(volumes, torch.randn(4, recipe.latent_channels, *recipe.latent_shape))
        ((decoded - volumes).abs().mean() + 1e-6 * divergence).backward()
        optimiser.step()
    net.eval()
    together, encode = [], net.encode
    net.encode = lambda given: together.append(len(given)) or encode(given)
    net.fit_scale(volumes)
    assert together == [1] * 4  # a volume's features fill the memory
    with torch.no_grad():
        latents = net.encode(volumes)
        found = net.decode(latents)
    assert latents.shape == (4, recipe.latent_channels, *recipe.latent_shape)
    assert latents.std().item() == pytest.approx(1, abs=1e-3)
    error = (found - volumes).square().mean()
    assert error < 0.5 * (volumes - volumes.mean(0)).square().mean()


def test_texture_gains_scale_cosine_waves_by_their_frequency(codec):
    """A wave along each axis and an oblique one; in the middle of a band, between two, and beyond the last."""
    gains = (1.5, 0.8, 2.0, 0.5)
    x, y, z = np.meshgrid(*((np.arange(n) + 0.5) / n for n in SHAPE), indexing="ij")
    for k, expected in (((0, 0, 0), 1.0), ((0, 0, 2), None), ((3, 4, 0), None), ((0, 15, 0), 0.5)):
        wave = np.cos(np.pi * k[0] * x) * np.cos(np.pi * k[1] * y) * np.cos(np.pi * k[2] * z)
        wave = torch.from_numpy(wave[None].astype(np.float32))
        frequency = np.sqrt(sum((k[a] / (2 * n * 2.0)) ** 2 for a, n in enumerate(SHAPE)))
        if expected is None:
            expected = np.interp(frequency, [0, 0.005, 0.015, 0.025, 0.035], [1, *gains])
        found = codec.decode(codec.textured(codec.encode(wave), gains))
        assert torch.allclose(found, expected * codec.decode(codec.encode(wave)), atol=1e-5)
