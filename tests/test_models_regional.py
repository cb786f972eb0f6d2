"""Regional uptake: painting and measuring are inverse; the flow learns what is planted and spreads as people do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from models_small import small_recipe
from scipy.ndimage import gaussian_filter

from bids_petsynth.errors import TrainingError
from bids_petsynth.models.conditioning import fit_standardisation, record_matrix, standardise, tracer_index
from bids_petsynth.models.recipe import RegionalSpec
from bids_petsynth.models.regional import (
    BLUR,
    Condition,
    Geometry,
    Painting,
    RegionalFlow,
    regional_means,
    representative,
)
from bids_petsynth.training.regional import RegionalPeople, like_fine, train_regional

CLASSES = 4


def labels(n: int = 1) -> torch.Tensor:
    """Three blurry regions and one that is absent."""
    rng = torch.Generator().manual_seed(0)
    raw = torch.nn.functional.interpolate(torch.randn(n, 3, 4, 4, 4, generator=rng), scale_factor=4, mode="trilinear")
    present = (4 * raw).softmax(1)
    return torch.cat([present, torch.zeros(n, 1, 16, 16, 16)], 1)


def alike(n: int, volumes: torch.Tensor | None = None) -> Geometry:
    """Heads whose regions do not spill over."""
    return Geometry(torch.ones(n, CLASSES) if volumes is None else volumes, torch.eye(CLASSES).expand(n, -1, -1))


def test_regional_means_are_weighted_means():
    hard = torch.zeros(1, 2, 10, 10, 10)
    hard[:, 0, :5], hard[:, 1, 5:] = 1, 1
    volume = 2 * hard[:, 0] + 0.5 * hard[:, 1]
    assert regional_means(volume, hard)[0].tolist() == pytest.approx([2, 0.5], rel=0.003)


@pytest.mark.parametrize("heads", [1, 2])
def test_what_is_painted_is_measured_again(heads):
    painting = Painting(labels(heads))
    means = torch.tensor([[1.0, 2.0, 0.4, 0.0], [0.5, 1.5, 1.5, 0.0]])
    image = painting.paint(means)
    assert image.shape == (2, 16, 16, 16)
    torch.testing.assert_close(painting.measure(image), means, atol=0.01, rtol=0.01)


def test_what_is_left_has_no_regional_means():
    painting = Painting(labels())
    rest = painting.without_means(torch.rand(3, 16, 16, 16, generator=torch.Generator().manual_seed(1)))
    assert painting.measure(rest).abs().max() < 2e-3 and rest.std() > 0.1


def planted(n: int) -> RegionalPeople:
    """In AV45, regions rise with log p-tau217 (r = .8); in FDG, they are two groups whatever the record says."""
    rng = np.random.default_rng(0)
    load = rng.standard_normal(n)
    records = tuple({"age": 70.0, "sex": 0.0, "ptau217_lumipulse": float(np.exp(0.5 * x))} for x in load)
    means = torch.full((n, 2, CLASSES), 1.0)
    amyloid = 0.8 * load + 0.6 * rng.standard_normal(n)
    means[:, 0] += 0.3 * torch.from_numpy(amyloid).float()[:, None] + 0.03 * torch.from_numpy(
        rng.standard_normal((n, CLASSES))
    )
    means[:, 1] += torch.from_numpy(np.where(rng.random(n) < 0.3, 0.7, -0.3)).float()[:, None]
    return RegionalPeople(records, means, alike(n))


def learned(people: RegionalPeople, tracers: tuple[str, ...], **spec) -> Callable[..., torch.Tensor]:
    """What draws ``(n, classes)`` by a flow that was trained on the people."""
    conditioning = small_recipe().conditioning
    chosen = RegionalSpec(**{"width": 64, "blocks": 2, "training_steps": 600, "rate": 3e-3} | spec)
    torch.manual_seed(0)
    net = RegionalFlow(len(conditioning.variables), CLASSES, chosen)
    variables = fit_standardisation(record_matrix(people.records, conditioning.variables))
    train_regional(net, people, tracers, conditioning, variables, chosen, seed=0)

    def draw(record: dict, tracer: str, n: int = 400, guidance: float = 1.0, **of_head: torch.Tensor) -> torch.Tensor:
        values, mask = standardise(record_matrix([record], conditioning.variables), variables)
        condition = Condition(values, mask, torch.tensor([tracer_index(tracer)]), **of_head)
        return net.sample(n, condition, guidance, torch.Generator().manual_seed(0))

    return draw


@pytest.fixture(scope="module")
def trained():
    draw = learned(planted(1500), ("AV45", "FDG"), training_steps=1200)
    return lambda *args, **kwargs: draw(*args, **kwargs).numpy()


def test_draws_have_the_conditional_mean_and_spread(trained):
    """Linear regression on a standard normal: mean 1 + .3 · .8 · x, SD .3 · .6 (with .03 of each region's own)."""
    for x in (-1.0, 0.0, 1.0):
        draws = trained({"age": 70.0, "sex": 0.0, "ptau217_lumipulse": float(np.exp(0.5 * x))}, "AV45")
        assert draws.mean() == pytest.approx(1 + 0.24 * x, abs=0.05)
        assert draws.mean(1).std() == pytest.approx(0.18, rel=0.25)
        assert np.corrcoef(draws.T).min() > 0.9
    blind = trained({}, "AV45")
    assert blind.mean() == pytest.approx(1, abs=0.06) and blind.mean(1).std() == pytest.approx(0.3, rel=0.2)


def test_two_groups_stay_two_groups(trained):
    draws = trained({"age": 70.0, "sex": 0.0, "ptau217_lumipulse": 1.0}, "FDG").mean(1)
    assert np.mean(draws > 1.2) == pytest.approx(0.3, abs=0.08)
    assert np.mean(np.abs(draws - 1.2) < 0.25) < 0.1


def test_guidance_pushes_the_record_further(trained):
    high = {"age": 70.0, "sex": 0.0, "ptau217_lumipulse": float(np.exp(0.5))}
    assert trained(high, "AV45", guidance=2.0).mean() > trained(high, "AV45").mean() + 0.1
    np.testing.assert_allclose(trained(high, "AV45", guidance=0.0), trained({}, "AV45"), atol=1e-4)


def test_reading_a_painting_is_measuring_its_image():
    rng = torch.Generator().manual_seed(1)
    painting = Painting(torch.randn(1, CLASSES, 6, 8, 6, generator=rng).softmax(1))
    means, masks = torch.rand(5, CLASSES, generator=rng), (torch.rand(3, 6, 8, 6, generator=rng) > 0.5).float()
    volumes = painting.paint(means)
    expected = torch.stack([volumes[:, mask > 0].mean(1) for mask in masks], 1)
    torch.testing.assert_close(painting.read(means, masks), expected, atol=1e-4, rtol=1e-3)


def test_volumes_reach_the_draws_where_the_recipe_says_so():
    """Uptake that follows the volume of the last region alone, which no record tells."""
    rng = np.random.default_rng(0)
    volumes = torch.from_numpy(np.exp(0.3 * rng.standard_normal((1500, CLASSES)))).float()
    means = (1 + 0.5 * volumes[:, -1].log())[:, None, None].expand(-1, 1, CLASSES).contiguous()
    people = RegionalPeople(({"age": 70.0},) * 1500, means, alike(1500, volumes))
    two = torch.tensor([[1.0] * (CLASSES - 1) + [0.7], [1.0] * (CLASSES - 1) + [1.4]])
    drawn = {}
    for given in (True, False):
        draw = learned(people, ("AV45",), volumes=given)
        drawn[given] = [draw(people.records[0], "AV45", 200, volumes=v[None]).mean().item() for v in two]
    expected = (1 + 0.5 * two[:, -1].log()).tolist()
    assert drawn[True] == pytest.approx(expected, abs=0.05)
    assert drawn[False] == pytest.approx([1, 1], abs=0.05)


def test_the_transfer_matrix_is_that_of_a_blurred_scan():
    """Against scipy's blur of the uptakes, filled into the labels; one region is absent."""
    probabilities, uptake = labels()[0], torch.tensor([1.0, 2.0, 0.5, 9.0])
    scan = gaussian_filter(np.tensordot(uptake.numpy(), probabilities.numpy(), 1), BLUR, mode="nearest")
    geometry = Geometry.of(labels(), 2.0)
    means = regional_means(torch.from_numpy(scan)[None], probabilities[None])
    expected = geometry.transfer[0] @ (uptake * torch.tensor([1.0, 1, 1, 0]))
    torch.testing.assert_close(means[0], expected, atol=0.01, rtol=0.01)
    spread = means[0, :3].max() - means[0, :3].min()
    assert spread < 1.2, "blur and soft labels leave less of the contrast of 1.5"
    found = geometry.uptake(means[None].expand(1, 2, -1))
    torch.testing.assert_close(found[0, :, :3], uptake[:3].expand(2, -1), atol=0.05, rtol=0.02)
    assert geometry.volumes.sum().item() == pytest.approx(16**3 * 8 / 1000)


def test_uptake_spills_over_as_each_head_has_it():
    """Uptakes 1 to 4 on heads that blur them more or less; drawn for a head that blurs twice as much as any."""
    rng = torch.Generator().manual_seed(0)

    def spilling(much: torch.Tensor) -> torch.Tensor:
        much = much[:, None, None]
        return (1 - much) * torch.eye(CLASSES) + much / CLASSES

    n, uptake = 1200, torch.arange(1.0, 5.0)
    transfer = spilling(0.3 * torch.rand(n, generator=rng))
    means = (transfer @ (uptake + 0.1 * torch.randn(n, CLASSES, generator=rng))[..., None])[:, None, :, 0]
    people = RegionalPeople(({"age": 70.0},) * n, means, Geometry(torch.ones(n, CLASSES), transfer))
    new = spilling(torch.tensor([0.6]))
    drawn = {}
    for gtm in (True, False):
        drawn[gtm] = learned(people, ("AV45",), gtm=gtm)(people.records[0], "AV45", 300, transfer=new)
    torch.testing.assert_close(drawn[True].mean(0), new[0] @ uptake, atol=0.04, rtol=0)
    assert drawn[True].std(0).mean().item() == pytest.approx(0.1 * (0.55**2 + 3 * 0.15**2) ** 0.5, rel=0.2)
    assert (drawn[False].mean(0) - new[0] @ uptake).abs().max() > 0.3


def test_coarse_means_take_the_fine_ones_mean_and_spread():
    rng = torch.Generator().manual_seed(0)
    fine = 1 + 0.2 * torch.randn(300, 2, 3, generator=rng)
    coarse = 0.1 + 1.3 * fine
    torch.testing.assert_close(like_fine(coarse, fine[:40]), fine)
    torch.testing.assert_close(
        like_fine(coarse, fine[:5]).mean(), fine[:5].mean() + 1.3 * (fine.mean() - fine[:5].mean())
    )


def test_representative_draws_have_the_mean_and_spread_of_all():
    many = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3]) + 5
    few = representative(many, 6)
    torch.testing.assert_close(few.mean(0), many.mean(0))
    # about the known mean: M, not M - 1
    assert (few - many.mean(0)).square().mean(0).sum().item() == pytest.approx(many.var(0).sum().item(), rel=0.003)
    assert torch.equal(representative(many, 1), many[:1])


def few_people(n: int, value: float = 1.0) -> RegionalPeople:
    """``n`` with AV45, one of them with FDG, nobody with AV1451."""
    means = torch.full((n, 3, CLASSES), torch.nan)
    means[:, 0] = value + 0.1 * torch.randn(n, CLASSES, generator=torch.Generator().manual_seed(0))
    means[0, 1] = 1.3
    return RegionalPeople(tuple({"age": 60.0 + k} for k in range(n)), means, alike(n))


def trained_on_few(people: RegionalPeople) -> RegionalFlow:
    recipe = small_recipe()
    torch.manual_seed(0)
    spec = RegionalSpec(width=16, blocks=1, training_steps=20, rate=3e-3, volumes=True)
    net = RegionalFlow(len(recipe.conditioning.variables), CLASSES, spec)
    variables = fit_standardisation(record_matrix(people.records, recipe.conditioning.variables))
    loss = train_regional(net, people, ("AV45", "FDG", "AV1451"), recipe.conditioning, variables, spec, seed=0)
    assert np.isfinite(loss)
    return net


@pytest.mark.parametrize("n", [1, 5])
def test_a_tracer_of_one_person_leaves_the_flow_finite(n):
    net = trained_on_few(few_people(n))
    assert all(value.isfinite().all() for value in net.state_dict().values())
    one, none = tracer_index("FDG"), tracer_index("AV1451")
    assert torch.equal(net.mean[one], torch.full((CLASSES,), 1.3)) and torch.equal(net.sd[one], torch.ones(CLASSES))
    assert torch.equal(net.mean[none], torch.zeros(CLASSES)) and torch.equal(net.sd[none], torch.ones(CLASSES))


def test_a_regional_loss_that_is_not_finite_is_an_error():
    with pytest.raises(TrainingError, match=r"regional flow.*not finite at step 1 of 20.*regional.rate"):
        trained_on_few(few_people(5, value=3e38))
