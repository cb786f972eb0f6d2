"""Losses against closed forms, other libraries' versions and numerical derivatives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.autograd import gradcheck

from bids_petsynth.evaluation import image
from bids_petsynth.models.regional import FLOOR
from bids_petsynth.training import losses
from bids_petsynth.training.losses import RegionWeights

RNG = torch.Generator()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    RNG.manual_seed(0)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=RNG, dtype=torch.float64)


def variable(*shape: int) -> torch.Tensor:
    return noise(*shape).requires_grad_()


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two smooth images between 0 and about 3 that partly agree."""
    sigma = (0, 0, *[1.0] * (len(shape) - 2))
    first, second = (torch.from_numpy(ndimage.gaussian_filter(noise(*shape).numpy(), sigma)) for _ in range(2))
    return 1.5 + 3 * first, 1.5 + 2 * first + 2 * second


def blocks(n: int = 2, size: int = 8, classes: int = 3) -> torch.Tensor:
    """Slabs of equal thickness as hard labels, and one class that is absent."""
    index = torch.arange(size) * classes // size
    hard = torch.nn.functional.one_hot(index, classes + 1).T.double()
    return hard[None, :, :, None, None].expand(n, -1, -1, size, size).contiguous()


SHAPES = [(2, 3, 20, 17), (2, 1, 15, 13, 12)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [1.5, 0.8])
def test_ssim_is_that_of_gaussian_filters_away_from_the_border(shape, sigma):
    a, b = pair(*shape)
    ranges = torch.tensor([2.0, 3.0])
    inner = tuple(slice(r := int(3.5 * sigma + 0.5), -r) for _ in shape[2:])

    def reference(x: np.ndarray, y: np.ndarray, width: float) -> float:
        mx, my, mxx, myy, mxy = (ndimage.gaussian_filter(v, sigma, truncate=3.5) for v in (x, y, x * x, y * y, x * y))
        c1, c2 = (0.01 * width) ** 2, (0.03 * width) ** 2
        top = (2 * mx * my + c1) * (2 * (mxy - mx * my) + c2)
        return (top / ((mx**2 + my**2 + c1) * (mxx - mx**2 + myy - my**2 + c2)))[inner].mean()

    expected = [
        np.mean([reference(*c, w) for c in zip(x, y, strict=True)]) for x, y, w in zip(a, b, (2, 3), strict=True)
    ]
    np.testing.assert_allclose(losses.ssim(a, b, ranges, sigma), expected, atol=1e-12)
    np.testing.assert_allclose(losses.ssim(a.float(), b.float(), ranges, sigma), expected, atol=1e-5)
    if sigma == image.SSIM_SIGMA:
        assert losses.ssim(a, b, 3.0)[0].item() == pytest.approx(
            np.mean([image.ssim(*c, 3.0) for c in zip(a[0].numpy(), b[0].numpy(), strict=True)]), abs=1e-6
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_is_that_of_scikit_image(shape):
    from skimage import metrics

    a, b = pair(*shape)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 3.0}
    expected = [
        metrics.structural_similarity(x, y, channel_axis=0, **options)
        for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    np.testing.assert_allclose(losses.ssim(a, b, 3.0), expected, atol=1e-9)


def test_ssim_of_constants_is_the_closed_form_and_equal_images_have_1():
    a, b = (torch.full((1, 1, 12, 12), v).double() for v in (1.0, 1.5))
    c1 = 0.03**2
    assert losses.ssim(a, b, 3.0).item() == pytest.approx((3 + c1) / (3.25 + c1))
    x, _ = pair(2, 1, 12, 12, 12)
    torch.testing.assert_close(losses.ssim(x, x, 3.0), torch.ones(2).double())


def test_ssim_gradient_is_that_of_finite_differences():
    assert gradcheck(lambda a, b: losses.ssim(a, b, 2.0, 0.5), (variable(1, 2, 6, 5), variable(1, 2, 6, 5)))
    assert gradcheck(lambda a, b: losses.ssim(a, b, 2.0, 0.5), (variable(1, 1, 6, 5, 5), variable(1, 1, 6, 5, 5)))
    flat = torch.zeros(1, 1, 12, 12, requires_grad=True)
    losses.ssim(flat, torch.zeros(1, 1, 12, 12), 1.0).sum().backward()
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("shape", [(2, 1, 24, 28, 17), (1, 3, 33, 16)])
def test_the_pyramid_is_exact_and_each_level_is_half_as_large(shape):
    x = noise(*shape).float()
    pyramid = losses.laplacian_pyramid(x, 4)
    assert [p.shape[-1] for p in pyramid] == [math.ceil(shape[-1] / 2**k) for k in range(5)]
    torch.testing.assert_close(losses.reconstruct(pyramid), x, atol=2e-6, rtol=0)


def test_detail_of_hand_computed_images():
    constant = torch.full((1, 1, 8, 8, 8), 2.0)
    *details, coarse = losses.laplacian_pyramid(constant, 3)
    assert all(d.abs().max() < 1e-6 for d in details) and coarse.item() == pytest.approx(2)
    # a chequerboard averages to nothing: all of it is the finest detail
    axis = torch.tensor([1.0, -1.0]).repeat(4)
    board = axis[:, None] * axis
    first, second, rest = losses.laplacian_pyramid(board[None, None], 2)
    assert torch.equal(first[0, 0], board) and not second.any() and not rest.any()
    assert losses.laplacian_loss(board[None, None] * 3, board[None, None], 2).item() == pytest.approx(4 / 2)


def test_laplacian_loss_is_the_mean_of_each_levels_mse_and_small_images_say_how_many_levels_they_allow():
    a, b = noise(2, 1, 32, 40, 32), noise(2, 1, 32, 40, 32)
    levels = zip(losses.laplacian_pyramid(a, 5)[:5], losses.laplacian_pyramid(b, 5)[:5], strict=True)
    expected = sum((x - y).square().mean((1, 2, 3, 4)) for x, y in levels) / 5
    torch.testing.assert_close(losses.laplacian_loss(a, b), expected)
    assert not losses.laplacian_loss(a, a).any()
    assert losses.laplacian_loss(a + 1, a).max() < 1e-20
    assert gradcheck(lambda a, b: losses.laplacian_loss(a, b, 2), (variable(1, 1, 4, 5, 3), variable(1, 1, 4, 5, 3)))
    for n, most in ((2, 1), (3, 2), (4, 2), (5, 3), (96, 7)):
        line = torch.zeros(1, 1, n, 128)
        assert losses.laplacian_pyramid(line, most)[-1].shape[2] == 1
        with pytest.raises(ValueError, match=f"allows 1 to {most} pyramid levels, not {most + 1}"):
            losses.laplacian_pyramid(line, most + 1)


def test_clinical_consistency_sees_regional_means_alone():
    labels, target = blocks(), noise(2, 1, 8, 8, 8)
    assert not losses.clinical_consistency(target, target, labels).any()
    volume = labels.sum((2, 3, 4))
    shift = torch.tensor([0.3, 0.0, -0.1, 9.0]).double()  # the last class is absent
    moved = target + torch.einsum("nkxyz,k->nxyz", labels, shift)[:, None]
    expected = (shift * volume / (volume + FLOOR)).square().mean(1)
    torch.testing.assert_close(losses.clinical_consistency(moved, target, labels), expected)
    torch.testing.assert_close(losses.clinical_consistency(moved, target, labels, [0, 2]), expected * 2)
    texture = noise(2, 1, 8, 8, 8)
    own = torch.einsum("nkxyz,ncxyz->nk", labels, texture) / volume.clamp(min=1)
    texture = texture - torch.einsum("nkxyz,nk->nxyz", labels, own)[:, None]
    torch.testing.assert_close(losses.clinical_consistency(moved + texture, target, labels), expected)
    assert gradcheck(lambda x: losses.clinical_consistency(x, target[:1], labels[:1]), variable(1, 1, 8, 8, 8))


def test_finer_images_and_slabs_are_averaged_to_the_labels():
    labels, scan = blocks(1), noise(1, 1, 16, 16, 16)
    fine = labels.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    zero = torch.zeros_like(scan)
    found = losses.clinical_consistency(scan, zero, labels)
    flat, floor = fine.flatten(2), 8 * FLOOR
    expected = ((flat @ scan.flatten()) / (flat.sum(2) + floor)).square().mean(1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(losses.clinical_consistency(scan[:, 0], zero[:, 0], labels), found)
    with pytest.raises(ValueError, match="cannot be averaged"):
        losses.clinical_consistency(scan[..., :12], zero[..., :12], labels)


def test_fixed_weights_are_in_proportion_and_have_mean_1():
    labels = blocks(classes=2)
    weights = RegionWeights(3, {1: 10.0})(labels)
    assert weights.shape == (2, 1, 8, 8, 8)
    torch.testing.assert_close(weights[:, 0, [0, 7], 0, 0], torch.tensor([[2 / 11, 20 / 11]] * 2).double())
    assert RegionWeights(3)(labels, (16, 16, 16)).eq(1).all()
    with pytest.raises(ValueError, match="class 3"):
        RegionWeights(3, {3: 2.0})
    with pytest.raises(ValueError, match="above 0"):
        RegionWeights(3, {1: 0.0})


ERRORS = torch.tensor([0.05, 0.05, 0.4, 1.0]).double()


def learned(prior: float, fixed: dict[int, float] | None = None) -> tuple[RegionWeights, torch.Tensor]:
    """Weights after their likelihood is maximised for an error that is constant in each region."""
    labels = blocks()
    module = RegionWeights(4, fixed, learnable=True, prior=prior).double()
    error = torch.einsum("nkxyz,k->nxyz", labels, ERRORS)[:, None]
    optimiser = torch.optim.LBFGS(
        module.parameters(), max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = module.likelihood(error, labels)
        value.backward()
        return value

    optimiser.step(closure)
    return module, labels


def test_learned_scales_are_each_regions_error_whatever_its_fixed_weight():
    for fixed in (None, {2: 10.0}):
        module, _ = learned(0.0, fixed)
        torch.testing.assert_close(module.log_variance[:3].exp(), ERRORS[:3] + losses.ERROR_FLOOR, atol=1e-6, rtol=1e-6)


def test_the_prior_keeps_learned_weights_near_the_fixed_ones():
    ratio = []
    for prior in (0.0, 1.0, 1e3):
        module, labels = learned(prior, {2: 10.0})
        weights = module(labels)
        torch.testing.assert_close(weights.mean((1, 2, 3, 4)), torch.ones(2).double())
        ratio.append((weights[0, 0, 7, 0, 0] / weights[0, 0, 0, 0, 0]).item())
    assert ratio[0] == pytest.approx(10 * 0.051 / 0.401, rel=1e-4)
    assert ratio[0] < ratio[1] < ratio[2] and ratio[2] == pytest.approx(10, rel=0.01)


def test_gradients_are_those_of_the_joint_likelihood():
    labels = blocks(1, size=4)
    module = RegionWeights(4, {1: 5.0}, learnable=True, prior=0.0).double()
    module.log_variance.data = noise(4)
    error = noise(1, 1, 4, 4, 4).square().requires_grad_()
    # Kendall's loss voxel by voxel: both its gradients are those of the two parts, but for one positive factor
    scale = torch.einsum("nkxyz,k->nxyz", labels, module.log_variance)[:, None]
    fixed = torch.einsum("nkxyz,k->nxyz", labels, module.fixed)[:, None]
    joint = (fixed * ((error + losses.ERROR_FLOOR) * torch.exp(-scale) + scale)).sum() / fixed.sum()
    to_error, to_scale = torch.autograd.grad(joint, [error, module.log_variance])
    (weighted,) = torch.autograd.grad((module(labels) * error).mean(), error)
    ratio = weighted / to_error
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    found = torch.autograd.grad(module.likelihood(error, labels), [error, module.log_variance], allow_unused=True)
    assert found[0] is None
    torch.testing.assert_close(found[1], to_scale)
    # labels of one head serve several draws
    twice = torch.cat([error, error]).detach()
    torch.testing.assert_close(module.likelihood(twice, labels), module.likelihood(error, labels))


def test_a_perfect_image_has_no_weighted_error_and_a_bounded_likelihood():
    labels, module = blocks(), RegionWeights(4, learnable=True, prior=0.0).double()
    error = torch.zeros(2, 1, 8, 8, 8).double()
    module.log_variance.data.fill_(math.log(losses.ERROR_FLOOR))
    best = module.likelihood(error, labels)
    assert best.item() == pytest.approx(1 + math.log(losses.ERROR_FLOOR))
    (gradient,) = torch.autograd.grad(best, module.log_variance)
    assert gradient.abs().max() < 1e-6
    assert not (module(labels) * error).any()
    assert not any(p.requires_grad for p in RegionWeights(4).parameters())


def test_alignment_of_orthonormal_pairs_is_the_closed_form():
    n, temperature = 5, 0.5
    vectors = torch.linalg.qr(noise(8, n)).Q.T
    found = losses.text_image_alignment(3 * vectors, 0.1 * vectors, temperature)
    assert found.item() == pytest.approx(math.log(1 + (n - 1) * math.exp(-1 / temperature)))
    shuffled = losses.text_image_alignment(vectors, vectors.roll(1, 0), temperature)
    assert shuffled.item() == pytest.approx(found.item() + 1 / temperature)
    assert losses.text_image_alignment(noise(1, 4), noise(1, 4)).item() == 0
    assert gradcheck(lambda t, i: losses.text_image_alignment(t, i, 0.5), (variable(3, 4), variable(3, 4)))


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert losses.hinge_d(real, fake).item() == pytest.approx(0.25 + 1.0)
    assert losses.hinge_d(torch.ones(3), -torch.ones(3)).item() == 0
    assert losses.hinge_g(fake).item() == pytest.approx(1.0)
    assert gradcheck(losses.hinge_d, (variable(1, 1, 3, 3), variable(1, 1, 3, 3)))


@pytest.mark.parametrize("loss", [losses.ssim, losses.laplacian_loss])
def test_unequal_or_too_small_images_are_refused(loss):
    with pytest.raises(ValueError, match="equal shapes"):
        loss(torch.zeros(1, 1, 64, 64), torch.zeros(1, 64, 64), 1)
    with pytest.raises(ValueError, match="11 voxels|pyramid levels"):
        loss(torch.zeros(1, 1, 10, 64), torch.zeros(1, 1, 10, 64), 5)
