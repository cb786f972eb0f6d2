"""DDPM's schedules, targets and samplers against closed forms, an exact Gaussian oracle and MONAI's schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bids_petsynth.models.diffusion import (
    SAMPLERS,
    add_noise,
    cosine_alphas,
    ddim,
    ddpm,
    linear_alphas,
    scaled_linear_alphas,
    spaced,
    target_of,
    to_epsilon,
    to_x0,
)

MEAN, SD = 0.7, 0.3
KINDS = ("epsilon", "x0", "velocity")
SCHEDULES = {
    "linear_beta": linear_alphas(1000, 0.0015, 0.02),
    "scaled_linear_beta": scaled_linear_alphas(1000, 0.0015, 0.0205),
    "cosine": cosine_alphas(1000),
}
LINEAR, COSINE = SCHEDULES["linear_beta"], SCHEDULES["cosine"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def oracle(kind: str, x: Tensor, alpha: Tensor) -> Tensor:
    """E[target | x_t] for x0 ~ N(MEAN, SD²), by the formula of conditional Gaussians."""
    signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    mean, covariance = {
        "epsilon": (0.0, sigma),
        "x0": (MEAN, signal * SD**2),
        "velocity": (-sigma * MEAN, signal * sigma * (1 - SD**2)),
    }[kind]
    return mean + covariance / (alpha * SD**2 + 1 - alpha) * (x - signal * MEAN)


def prediction(alphas: Tensor, kind: str = "x0"):
    return lambda x, t: to_x0(kind, oracle(kind, x, alphas[t]), x, t, alphas)


def affine_ddim(alphas: Tensor, count: int) -> tuple[float, float]:
    """Mean and SD of DDIM's draws: each step multiplies the deviation from √ᾱ MEAN by a known factor."""
    product, shift = 1.0, -math.sqrt(alphas[-1].item()) * MEAN
    for i in range(count):
        a = alphas[round(len(alphas) * (1 - i / count)) - 1].item()
        b = 1.0 if i == count - 1 else alphas[round(len(alphas) * (1 - (i + 1) / count)) - 1].item()
        product *= (math.sqrt(a * b) * SD**2 + math.sqrt((1 - a) * (1 - b))) / (a * SD**2 + 1 - a)
    return MEAN + product * shift, product


def ancestral(alphas: Tensor, count: int) -> tuple[float, float]:
    """Mean and SD of ancestral draws, by propagating them through precision-weighted products of Gaussians."""
    grid = [alphas[round(len(alphas) * (1 - i / count)) - 1].item() for i in range(count)] + [1.0]
    mean, variance = 0.0, 1.0
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        # x0 predicted from x: slope and offset
        slope = math.sqrt(a) * SD**2 / (a * SD**2 + 1 - a)
        offset = MEAN - slope * math.sqrt(a) * MEAN
        if b == 1.0:
            return slope * mean + offset, slope * math.sqrt(variance)
        # prior of x_s given x0 times likelihood of x_t given x_s
        prior, ratio = 1 / (1 - b), a / b
        likelihood = ratio / (1 - ratio)
        from_x = (likelihood / math.sqrt(ratio) + prior * math.sqrt(b) * slope) / (prior + likelihood)
        constant = prior * math.sqrt(b) * offset / (prior + likelihood)
        mean, variance = from_x * mean + constant, from_x**2 * variance + 1 / (prior + likelihood)
    raise AssertionError


# schedules


def test_linear_schedules_are_products_of_one_minus_beta():
    for alphas, power, last in ((LINEAR, 1, 0.02), (SCHEDULES["scaled_linear_beta"], 2, 0.0205)):
        low, high = 0.0015 ** (1 / power), last ** (1 / power)
        beta = [(low + (high - low) * i / 999) ** power for i in range(1000)]
        for t in (0, 1, 500, 999):
            assert alphas[t].item() == pytest.approx(math.prod(1 - b for b in beta[: t + 1]), rel=1e-12)
        assert (1 - alphas[1:] / alphas[:-1]).tolist() == pytest.approx(beta[1:], rel=1e-9)
        assert alphas.shape == (1000,) and alphas.dtype == torch.float64


def test_cosine_schedule_is_its_formula_up_to_the_largest_beta():
    def curve(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0, 1, 500, 998):
        assert COSINE[t].item() == pytest.approx(curve((t + 1) / 1000) / curve(0), rel=1e-9)
    assert COSINE[999].item() == pytest.approx(0.001 * curve(0.999) / curve(0), rel=1e-9)
    assert (1 - COSINE[1:] / COSINE[:-1]).max().item() == pytest.approx(0.999, abs=1e-12)
    assert cosine_alphas(1000, max_beta=1.0)[-1] == 0
    assert cosine_alphas(10, s=0.1)[4].item() == pytest.approx(
        (math.cos(0.6 / 1.1 * math.pi / 2) / math.cos(0.1 / 1.1 * math.pi / 2)) ** 2, rel=1e-12
    )


def test_spacing_is_even_and_includes_the_noisiest_step():
    assert spaced(1000, 5).tolist() == [999, 799, 599, 399, 199]
    assert spaced(1000, 1000).tolist() == list(range(999, -1, -1))
    assert spaced(10, 1).tolist() == [9]
    uneven = spaced(1000, 300)
    assert len(uneven) == 300 and uneven[0] == 999 and uneven[-1] == 2
    assert set(uneven.diff().tolist()) == {-3, -4}
    for count in (0, 11):
        with pytest.raises(ValueError, match="between 1 and the schedule's 10"):
            spaced(10, count)


# targets


@pytest.mark.parametrize("name", SCHEDULES)
def test_monai_agrees_on_schedules_noise_and_velocity(name):
    from monai.networks.schedulers import DDPMScheduler

    first, last = (0.0015, 0.0205) if name.startswith("scaled") else (0.0015, 0.02)
    betas = {} if name == "cosine" else {"beta_start": first, "beta_end": last}
    theirs, alphas = DDPMScheduler(1000, name, **betas), SCHEDULES[name]
    # theirs are float32
    assert torch.allclose(theirs.alphas_cumprod.double(), alphas, rtol=1e-3, atol=0)
    data, noise = torch.randn(2, 3, 2, 4, 5, 6, generator=generator())
    t = torch.tensor([0, 500, 999])
    assert torch.allclose(theirs.add_noise(data, noise, t), add_noise(data, noise, t, alphas), atol=1e-5)
    velocity = target_of("velocity", data, noise, t, alphas)
    assert torch.allclose(theirs.get_velocity(data, noise, t), velocity, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alphas", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_conversions_undo_the_target_at_every_timestep(kind, alphas):
    data, noise = torch.randn(2, 1000, 1, 2, generator=generator(), dtype=torch.float64)
    t = torch.arange(1000)
    noisy = add_noise(data, noise, t, alphas)
    output = target_of(kind, data, noise, t, alphas)
    assert torch.allclose(to_x0(kind, output, noisy, t, alphas), data, atol=1e-10)
    assert torch.allclose(to_epsilon(kind, output, noisy, t, alphas), noise, atol=1e-10)
    # a scalar timestep, as samplers pass it
    assert torch.equal(to_x0(kind, output, noisy, t[7], alphas)[7], to_x0(kind, output, noisy, t, alphas)[7])


@pytest.mark.parametrize("kind", ["x0", "velocity"])
def test_conversions_hold_where_no_data_is_left_and_in_low_precision(kind):
    alphas, t = cosine_alphas(1000, max_beta=1.0), torch.tensor([999, 998, 0])
    data, noise = torch.randn(2, 3, 50, generator=generator())
    noisy = add_noise(data, noise, t, alphas)
    assert torch.equal(noisy[0], noise[0])
    output = target_of(kind, data, noise, t, alphas)
    assert torch.allclose(to_x0(kind, output, noisy, t, alphas), data, atol=1e-6)
    # at the first step 1 − ᾱ is 4e-5, so that float32 leaves five digits of ε
    assert torch.allclose(to_epsilon(kind, output, noisy, t, alphas), noise, atol=1e-4)
    half = [convert(kind, output.bfloat16(), noisy.bfloat16(), t, alphas) for convert in (to_x0, to_epsilon)]
    assert all(out.dtype == torch.float32 for out in half)
    assert torch.allclose(half[0], data, atol=0.03)


def test_impossible_targets_get_a_sentence():
    x, t = torch.zeros(2, 3), torch.tensor([5, 9])
    with pytest.raises(ValueError, match="predict x0 or velocity"):
        to_x0("epsilon", x, x, t, cosine_alphas(10, max_beta=1.0))
    assert torch.equal(to_epsilon("epsilon", x, x, t, cosine_alphas(10, max_beta=1.0)), x)
    for convert in (target_of, to_x0, to_epsilon):
        with pytest.raises(ValueError, match="unknown target score; use epsilon"):
            convert("score", x, x, t, COSINE)


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_is_the_regression_of_the_target(kind):
    data, noise = torch.randn(2, 400_000, generator=generator(), dtype=torch.float64)
    data, t = MEAN + SD * data, torch.tensor(300)
    x = add_noise(data, noise, t, COSINE)
    rest = target_of(kind, data, noise, t, COSINE) - oracle(kind, x, COSINE[300])
    assert rest.mean().item() == pytest.approx(0, abs=0.005)
    assert torch.cov(torch.stack([x, rest]))[0, 1].item() == pytest.approx(0, abs=0.005)


# samplers


@pytest.mark.parametrize("count", [1, 2, 5, 7, 50, 1000])
@pytest.mark.parametrize("alphas", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_ddim_is_the_affine_map_that_theory_gives(alphas, count):
    noise = torch.tensor([0.0, 1.0], dtype=torch.float64)
    low, high = ddim(prediction(alphas), noise, alphas, spaced(1000, count), generator()).tolist()
    mean, sd = affine_ddim(alphas, count)
    assert (low, high - low) == pytest.approx((mean, sd), abs=1e-9)


@pytest.mark.parametrize(("count", "sd"), [(5, 0.183), (10, 0.237), (50, 0.286), (100, 0.293), (1000, 0.299)])
def test_ddim_shrinks_the_spread_by_the_known_amount(count, sd):
    noise = torch.tensor([0.0, 1.0], dtype=torch.float64)
    low, high = ddim(prediction(COSINE), noise, COSINE, spaced(1000, count), generator()).tolist()
    assert low == pytest.approx(MEAN, abs=1e-4)
    assert high - low == pytest.approx(sd, abs=6e-4)


@pytest.mark.parametrize("alphas", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize(("count", "n"), [(1, 200_000), (4, 200_000), (30, 200_000), (1000, 40_000)])
def test_ancestral_draws_have_the_mean_and_spread_that_theory_gives(alphas, count, n):
    rng = generator(1)
    draws = ddpm(prediction(alphas), torch.randn(n, generator=rng), alphas, spaced(1000, count), rng)
    mean, sd = ancestral(alphas, count)
    # four standard errors
    assert draws.mean().item() == pytest.approx(mean, abs=4 * sd / math.sqrt(n))
    assert draws.std().item() == pytest.approx(sd, rel=4 / math.sqrt(2 * n))
    if count == 1000:
        # β starts at 0.0015 in the linear schedule, at 0.00004 in the cosine one
        assert (mean, sd) == pytest.approx((MEAN, SD), abs=0.01 if alphas is LINEAR else 0.002)


@pytest.mark.parametrize("alphas", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("count", [3, 40])
def test_ddim_with_full_noise_is_ddpm(alphas, count):
    noise = torch.randn(1000, generator=generator(), dtype=torch.float64)
    ends = [
        ddim(prediction(alphas), noise, alphas, spaced(1000, count), generator(5), eta=1.0),
        ddpm(prediction(alphas), noise, alphas, spaced(1000, count), generator(5)),
    ]
    assert torch.allclose(*ends, atol=1e-9)
    half = ddim(prediction(alphas), noise, alphas, spaced(1000, count), generator(5), eta=0.5)
    assert not torch.allclose(half, ends[1], atol=1e-3)


def test_sampling_starts_well_where_no_data_is_left():
    alphas, noise = cosine_alphas(1000, max_beta=1.0), torch.tensor([0.0, 1.0], dtype=torch.float64)
    velocity = prediction(alphas, "velocity")
    low, high = ddim(velocity, noise, alphas, spaced(1000, 20), generator()).tolist()
    assert (low, high - low) == pytest.approx(affine_ddim(alphas, 20), abs=1e-9)
    full = ddim(velocity, noise, alphas, spaced(1000, 20), generator(), eta=1.0)
    assert torch.allclose(full, ddpm(velocity, noise, alphas, spaced(1000, 20), generator()), atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_every_target_gives_the_same_path(eta):
    noise = torch.randn(100, generator=generator(), dtype=torch.float64)
    ends = [ddim(prediction(COSINE, k), noise, COSINE, spaced(1000, 25), generator(), eta) for k in KINDS]
    assert torch.allclose(ends[0], ends[1], atol=1e-9) and torch.allclose(ends[2], ends[1], atol=1e-9)


def nonlinear(x: Tensor, t: Tensor) -> Tensor:
    """A network that is no oracle."""
    return torch.tanh(2 * x) * (1 + t / 1000)


@pytest.mark.parametrize(("kind", "name"), [("epsilon", "epsilon"), ("x0", "sample"), ("velocity", "v_prediction")])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_monai_takes_the_same_ddim_steps(kind, name, eta):
    from monai.networks.schedulers import DDIMScheduler

    theirs = DDIMScheduler(1000, "linear_beta", clip_sample=False, prediction_type=name)
    theirs.alphas_cumprod = LINEAR
    # its own timesteps do not fit the stride by which it steps
    theirs.set_timesteps(50)
    start, rng = torch.randn(64, generator=generator()), generator(3)
    x = start
    for t in range(999, -1, -20):
        x = theirs.step(nonlinear(x, torch.tensor(t)), t, x, eta, rng)[0]
    ours = ddim(
        lambda x, t: to_x0(kind, nonlinear(x, t), x, t, LINEAR), start, LINEAR, spaced(1000, 50), generator(3), eta
    )
    assert torch.allclose(ours, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("clamp", [None, (-0.5, 0.8)])
def test_monai_takes_the_same_ancestral_steps(clamp):
    from monai.networks.schedulers import DDPMScheduler

    low, high = clamp or (0.0, 0.0)
    theirs = DDPMScheduler(
        100,
        "cosine",
        clip_sample=clamp is not None,
        prediction_type="sample",
        clip_sample_min=low,
        clip_sample_max=high,
    )
    alphas = cosine_alphas(100)
    start, rng = torch.randn(2, 64, generator=generator()), generator(3)
    x = start
    for t in range(99, -1, -1):
        x = theirs.step(nonlinear(x, torch.tensor(t)), t, x, rng)[0]
    ours = ddpm(nonlinear, start, alphas, spaced(100, 100), generator(3), clamp)
    assert torch.allclose(ours, x, atol=1e-3)
    if clamp:
        assert ours.max() <= high and ours.min() >= low


def test_ddim_clamps_the_data_and_follows_it_with_the_noise():
    seen = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return torch.full_like(x, 5.0)

    start = torch.tensor([0.3], dtype=torch.float64)
    end = ddim(predict, start, COSINE, torch.tensor([700, 400]), generator(), clamp=(-1.0, 2.0))
    a, b = COSINE[700].item(), COSINE[400].item()
    epsilon = (0.3 - 2 * math.sqrt(a)) / math.sqrt(1 - a)
    assert seen[1].item() == pytest.approx(2 * math.sqrt(b) + math.sqrt(1 - b) * epsilon, rel=1e-12)
    assert end.item() == 2.0


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_depend_on_the_given_generator_only(name):
    start, steps = torch.randn(1, 2, 3, generator=generator()), spaced(1000, 10)
    options = {"eta": 0.5} if name == "ddim" else {}
    before = torch.get_rng_state()

    def draw(seed: int) -> Tensor:
        return SAMPLERS[name](prediction(COSINE), start, COSINE, steps, generator(seed), **options)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert draw(1).dtype == torch.float32
    # one number per voxel and step but the last, and none without noise
    used, expected = generator(1), generator(1)
    SAMPLERS[name](prediction(COSINE), start, COSINE, steps, used, **options)
    for _ in range(9):
        torch.randn(1, 2, 3, generator=expected)
    assert torch.equal(used.get_state(), expected.get_state())
    unused = generator(1)
    ddim(prediction(COSINE), start, COSINE, steps, unused)
    assert torch.equal(unused.get_state(), generator(1).get_state())
