"""Recipe errors, and the rectified flow's solvers against an exact Gaussian oracle."""

from __future__ import annotations

import math

import pytest
import tomli_w
import torch

from bids_petsynth.errors import ModelError
from bids_petsynth.models.diffusion import target_of
from bids_petsynth.models.process import (
    centred,
    euler,
    flow_loss,
    guided,
    heun,
    interpolate,
    preconditioned,
    shift_time,
    shifted_grid,
    training_times,
)
from bids_petsynth.models.processes import Diffusion, Direct
from bids_petsynth.models.recipe import DiffusionSpec, DirectSpec, load_recipe, parse_recipe, recipe_text
from bids_petsynth.tables import data_path

MEAN, SD = 0.7, 0.3


def oracle(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[ε − x0 | x_t] for x0 ~ N(MEAN, SD²), by the formula of conditional Gaussians."""
    variance = (1 - t) ** 2 * SD**2 + t**2
    return -MEAN + (t - (1 - t) * SD**2) / variance * (x - (1 - t) * MEAN)


def sampled(solve) -> tuple[float, float]:
    """Mean and SD of samples; the map is affine, so two points give them exactly."""
    low, high = solve(torch.tensor([0.0, 1.0], dtype=torch.float64))
    return low.item(), (high - low).item()


@pytest.mark.parametrize(("steps", "sd"), [(4, 0.177), (8, 0.235), (16, 0.266), (30, 0.281)])
def test_euler_shrinks_the_spread_by_the_known_amount(steps, sd):
    assert sampled(lambda x: euler(oracle, x, shifted_grid(steps)))[1] == pytest.approx(sd, abs=0.001)


@pytest.mark.parametrize(("steps", "sd"), [(4, 0.283), (6, 0.294), (8, 0.297)])
def test_heun_with_a_last_euler_step_on_a_shifted_grid(steps, sd):
    grid = shifted_grid(steps, 0.5)
    found = sampled(lambda x: euler(oracle, heun(oracle, x, grid[:-1]), grid[-2:]))
    assert found[1] == pytest.approx(sd, abs=0.0015)


def test_heun_converges_to_mean_and_spread_at_second_order():
    errors = []
    for steps in (8, 16, 32):
        mean, sd = sampled(lambda x, n=steps: heun(oracle, x, shifted_grid(n, 1.5)))
        assert mean == pytest.approx(MEAN, abs=0.02)
        errors.append(abs(sd - SD))
    assert errors[0] < 0.006
    assert errors[2] < errors[1] / 2.5 < errors[0] / 2.5**2 * 1.6


def test_centred_noise_is_standard_normal_in_each_draw_and_correlated_as_said():
    rng = torch.Generator().manual_seed(0)
    noise = torch.stack([centred(torch.randn(4, generator=rng)) for _ in range(20_000)])
    torch.testing.assert_close(noise.mean(1), torch.zeros(20_000), atol=1e-6, rtol=0)
    expected = torch.full((4, 4), -1 / 3).fill_diagonal_(1.0)
    torch.testing.assert_close(torch.cov(noise.T), expected, atol=0.03, rtol=0)
    one = torch.randn(1, 3, generator=rng)
    assert torch.equal(centred(one), one)


def test_a_few_draws_from_centred_noise_have_the_exact_mean():
    noise = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = shifted_grid(32, 1.5)
    means = [heun(oracle, x, grid).mean(0) for x in (noise, centred(noise))]
    assert (means[1] - MEAN).abs().max() < 0.005
    # independent ones are off by SD / √4 on average
    assert (means[0] - MEAN).square().mean().sqrt().item() == pytest.approx(SD / 2, rel=0.3)


def test_oracle_is_the_regression_of_the_training_target():
    rng = torch.Generator().manual_seed(0)
    data = MEAN + SD * torch.randn(400_000, generator=rng, dtype=torch.float64)
    noise = torch.randn(400_000, generator=rng, dtype=torch.float64)
    t = torch.full((400_000,), 0.6, dtype=torch.float64)
    x = interpolate(data, noise, t)
    target = noise - data
    slope = torch.cov(torch.stack([x, target]))[0, 1] / x.var()
    expected = oracle(torch.tensor(1.0), torch.tensor(0.6)) - oracle(torch.tensor(0.0), torch.tensor(0.6))
    assert slope.item() == pytest.approx(expected.item(), abs=0.01)


def test_times_cover_the_unit_interval_as_the_sampler_does():
    rng = torch.Generator().manual_seed(0)
    t = torch.cat([training_times(4, 3.0, rng) for _ in range(500)])
    assert t.min() >= 0 and t.max() <= 1
    middle = shift_time(torch.tensor(0.5), 3.0).item()
    assert middle == pytest.approx(0.75)
    assert (t < middle).float().mean().item() == pytest.approx(0.5, abs=0.01)
    grid = shifted_grid(5, 2.0)
    assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()


def test_preconditioning_is_exact_for_unit_gaussians_and_its_loss_counts_the_network_alike():
    rng = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 200_000, 1, generator=rng, dtype=torch.float64)
    for time in (0.02, 0.5, 0.98):
        t = torch.full((200_000,), time, dtype=torch.float64)
        x = interpolate(data, noise, t)
        zero = preconditioned(lambda z: torch.zeros_like(z), x, t)
        # the best linear prediction of the target is already there
        assert torch.cov(torch.stack([x[:, 0], (noise - data - zero)[:, 0]]))[0, 1].abs() < 0.01
        # what the network has to add, and an error of it, weigh the same at every time
        assert flow_loss(zero, noise - data, t).mean().item() == pytest.approx(1, abs=0.02)
        wrong = preconditioned(lambda z: torch.full_like(z, 0.1), x, t)
        assert flow_loss(wrong, zero, t).mean().item() == pytest.approx(0.01, rel=1e-3)
        assert preconditioned(lambda z: z, x, t).sub(zero).std().item() * (t[0] ** 2 + (1 - t[0]) ** 2).sqrt() == (
            pytest.approx(1, abs=0.02)
        )


def test_guidance_extrapolates_from_the_null():
    assert guided(torch.tensor(2.0), torch.tensor(1.0), 3.0) == 4.0


def test_built_in_recipe_round_trips():
    recipe = load_recipe("petsynth")
    assert parse_recipe(recipe_text(recipe), "text") == recipe
    plain = recipe.model_copy(update={"regional": None})
    assert parse_recipe(recipe_text(plain), "text") == plain
    assert recipe.latent_shape == (24, 28, 24) and recipe.latent_channels == 8 and recipe.ratio == 4
    assert recipe.label_pool == 2
    assert math.prod(recipe.latent_shape) * recipe.latent_channels == math.prod(recipe.grid.shape) / 8


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 5", "steps = 0", "process.steps"),
        ('solver = "heun"', 'solver = "dopri"', "process.solver"),
        ("fold = 2", "folds = 2", "folds: no such field"),
        ("cutoff = 0.125", "cutoff = 0.11", "cutoff"),
        ("shape = [96, 112, 96]", "shape = [90, 112, 96]", "multiple of 16"),
        ("channels = [64, 128, 192]", "channels = [60, 128, 192]", "network.groups"),
        ('"AV45", "FBB"', '"AV45", "AV45"', "listed twice"),
        ('images = ["t1w", "labels"]', 'images = ["t1w"]', "regional"),
        ("n_draws = 8", "n_draws = = 8", "not valid TOML"),
        ('kind = "codec"', 'kind = "pixels"', "space"),
    ],
)
def test_bad_recipes_get_one_sentence(old, new, words):
    text = data_path("recipes", "petsynth.toml").read_text()
    assert old in text
    with pytest.raises(ModelError, match="recipe|Recipe|mine") as caught:
        parse_recipe(text.replace(old, new, 1), "mine.toml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


AUTOENCODER = {"kind": "autoencoder", "channels": [8, 16], "latent_channels": 2}
VOLUME = {"kind": "codec", "cutoff": 0.125, "fold": 1}
DDPM = {"kind": "ddpm", "steps": 2, "timesteps": 10}
SLABS = {"kind": "dual-arm", "channels": [8, 16], "groups": 4, "slices": 12, "stride": 4}
OF_T1W = {"images": [], "sources": ["T1w"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": AUTOENCODER | {"groups": 5}}, "space: channels: each must be a multiple of groups"),
        ({"process": DDPM | {"beta": [0.1, 1.5]}}, "process: beta"),
        ({"process": DDPM | {"beta": [0.2, 0.1]}}, "process: beta"),
        ({"process": DDPM | {"target": "x0", "preconditioned": True}}, "process: preconditioned"),
        ({"network": SLABS | {"stride": 13}}, "network.stride: slabs of 12 slices would leave gaps"),
        ({"network": SLABS | {"slices": 10}, "losses": {"ssim": 1.0}}, "network.slices: losses.ssim needs 11"),
        ({"network": SLABS | {"slices": 99}}, "network.slices: the volume has 48"),
        ({"network": SLABS, "losses": {"adversarial": 0.1}}, "losses.adversarial"),
        ({"network": SLABS, "losses": {"image_every": 2}}, "losses.image_every"),
        ({"losses": {"adversarial": 0.1, "image_every": 2}}, "losses.image_every"),
        ({"network": SLABS | {"attention": "full"}}, "neither attention nor gates"),
        ({"network": {"channels": [8, 6], "groups": 2, "attention": "full"}}, "network.attention needs multiples of 4"),
        ({"network": {"channels": [6, 8], "groups": 2}, "conditioning": OF_T1W}, "conditioning.fusion needs multiples"),
        ({"network": {"channels": [6, 8], "groups": 2}, "conditioning": {"text": {}}}, "text needs multiples of 4"),
        ({"conditioning": {"variables": [{"name": "ptau217_lumipuls"}]}}, "did you mean ptau217_lumipulse"),
        ({"conditioning": {"sources": ["FDGG"]}}, "conditioning.sources: there is no FDGG; did you mean FDG?"),
        ({"tracers": ["flortaucipir"]}, "tracers: there is no flortaucipir"),
        ({"tracers": ["AV45", "T1w"]}, '"t1w" gives away the T1w'),
        ({"tracers": ["T1w"], "conditioning": {"images": ["labels"]}}, '"labels" gives away the T1w'),
        ({"conditioning": {"images": []}}, "nothing of the person is shown to a network that draws AV45"),
        ({"tracers": ["T1w"], "conditioning": OF_T1W}, "nothing of the person is shown to a network that draws T1w"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_told_when_a_recipe_is_read(changes, words):
    own = OF_T1W if changes.get("network", {}).get("kind") == "dual-arm" else {}
    data = load_recipe("petsynth").model_dump(mode="json", exclude_none=True) | {"space": VOLUME, "regional": None}
    for part, values in ({"conditioning": own} | changes).items():
        fresh = "kind" in values
        data[part] = data[part] | values if isinstance(values, dict) and not fresh else values
    data = {part: values for part, values in data.items() if values is not None}
    with pytest.raises(ModelError) as caught:
        parse_recipe(tomli_w.dumps(data), "mine.toml")
    assert words in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).count(". ") == 0


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("regression", {"losses": {"l1": 0.0}}, "losses: every weight is 0"),
        ("pasta", {"losses": {"l1": 0.0, "ssim": 0.0, "translation": 0.0}}, "losses: every weight is 0"),
        ("mri2pet", {"losses": {"process": 0.0}}, "losses.laplacian is of pairs alone"),
        ("mri2pet", {"losses": {"regions": "fixed"}}, "losses.regions weighs voxels of l1 and mse"),
        ("cldm", {"losses": {"image_every": 2}}, "losses.image_every chooses examples"),
        ("language", {"training": {"batch": 1}}, "losses.alignment compares examples of a batch"),
        ("pasta", {"conditioning": {"images": ["labels"]}}, "conditioning.images"),
        ("pasta", {"conditioning": {"drop_source": 0.5}}, "conditioning.drop_source"),
        ("cldm", {"conditioning": {"drop_source": 0.5}}, "conditioning.drop_source"),
        ("petsynth", {"conditioning": {"drop_source": 0.5}}, "conditioning.drop_source"),
        ("ddpm3d", {"process": {"sampler": "ddpm", "eta": 0.5}}, "process.eta"),
    ],
)
def test_what_a_training_would_not_heed_is_told_before_it_and_loads_in_a_trained_model(tmp_path, name, changes, words):
    data = load_recipe(name).model_dump(mode="json", exclude_none=True)
    for part, values in changes.items():
        data[part] |= values
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(data))
    with pytest.raises(ModelError) as caught:
        load_recipe(path)
    assert words in str(caught.value) and "; set " in str(caught.value) and str(caught.value).count(". ") == 0
    parse_recipe(path.read_text(), "a model's")


def test_slabs_are_shown_no_images_unless_a_recipe_says_so(tmp_path):
    text = data_path("recipes", "pasta.toml").read_text().replace("images = []\n", "")
    assert "images" not in text
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert load_recipe(path).conditioning.images == ()
    assert load_recipe("pasta").conditioning.images == ()


def test_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ModelError, match="petsynth"):
        load_recipe("nothing")


def diffusion_of(target, steps=5):
    return Diffusion(DiffusionSpec(kind="ddpm", schedule="linear", beta=(0.0015, 0.02), target=target, steps=steps))


@pytest.mark.parametrize("target", ["epsilon", "x0", "velocity"])
def test_an_error_of_the_network_is_not_blown_up_in_what_is_judged(target):
    """Of an output that is off by one everywhere, the trusted squared error of the data is one at most, at any time."""
    process = diffusion_of(target)
    t = torch.tensor([1, 10, 500, 990, 1000]) / 1000
    data, noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    x = process.corrupt(data, noise, t)
    right = target_of(target, data, noise, (t * 1000).round().long() - 1, process.alphas)
    assert process.error(right, data, noise, t).max() < 1e-9
    assert torch.allclose(process.data(right, x, t), data, atol=1e-4)
    off = (process.data(right + 1, x, t) - data).square().mean(1) * process.trust(t)
    assert (off <= 1 + 1e-6).all() and off.max() > 0.5


@pytest.mark.parametrize("target", ["epsilon", "x0", "velocity"])
def test_diffusion_draws_a_gaussian_by_its_exact_network(target):
    """The best guess of every quantity for Gaussian data is linear; draws by it have the data's mean and spread."""
    process = diffusion_of(target, steps=1000)

    def output(x, t):
        alpha = process.alphas[(t * 1000).round().long() - 1]
        total = alpha * SD**2 + 1 - alpha
        x0 = MEAN + alpha.sqrt() * SD**2 / total * (x - alpha.sqrt() * MEAN)
        epsilon = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        return {"x0": x0, "epsilon": epsilon, "velocity": alpha.sqrt() * epsilon - (1 - alpha).sqrt() * x0}[target]

    rng = torch.Generator().manual_seed(0)
    drawn = process.draw(output, torch.randn(20_000, 1, generator=rng).double(), rng)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert drawn.std().item() == pytest.approx(SD, rel=0.03)


def test_a_preconditioned_network_that_returns_nothing_knows_a_gaussian_of_unit_variance():
    """By its output of 0 the draws are those of such data; its errors reach the data smaller than they are."""
    spec = DiffusionSpec(kind="ddpm", schedule="linear", beta=(0.0015, 0.02), steps=200, preconditioned=True)
    process, rng = Diffusion(spec), torch.Generator().manual_seed(0)

    def through(network):
        return lambda x, t: process.output(network, x, t)

    start = torch.randn(20_000, 1, generator=rng)
    drawn = process.draw(through(lambda x, t: torch.zeros_like(x)), start, rng)
    assert drawn.mean().item() == pytest.approx(0, abs=0.02) and drawn.std().item() == pytest.approx(1, rel=0.02)
    t = torch.tensor([1, 10, 500, 990, 1000]) / 1000
    data, noise = torch.randn(2, 5, 3, generator=rng)
    x, step = process.corrupt(data, noise, t), (t * 1000).round().long() - 1
    velocity = target_of("velocity", data, noise, step, process.alphas)
    assert process.error(process.output(lambda *_: velocity, x, t), data, noise, t).max() < 1e-10
    off = process.data(process.output(lambda *_: velocity + 1, x, t), x, t) - data
    assert (process.trust(t) == 1).all()
    torch.testing.assert_close(off, -(1 - process.alphas[step]).sqrt().float()[:, None].expand(5, 3), atol=1e-3, rtol=0)


def test_one_pass_sees_nothing_or_noise():
    noise, t = torch.randn(2, 3), torch.ones(2)
    for noisy in (False, True):
        process = Direct(DirectSpec(kind="direct", noise=noisy))
        assert torch.equal(process.corrupt(noise + 5, noise, t), noise if noisy else torch.zeros(2, 3))
        assert torch.equal(process.draw(lambda x, t: x + t, noise, torch.Generator()), noise * noisy + 1)
