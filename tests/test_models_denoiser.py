"""Conditioning and denoiser: learned nulls, guidance, painting, the exact Gaussian start, one head for many draws."""

from __future__ import annotations

import math

import pytest
import torch
from models_small import CLASSES, SHAPE, small_model, small_recipe

from bids_petsynth.errors import ModelError
from bids_petsynth.models.codec import fold
from bids_petsynth.models.conditioning import (
    RecordEmbedding,
    Standardisation,
    fit_standardisation,
    record_matrix,
    standardise,
    tracer_codes,
    tracer_index,
    withhold,
)
from bids_petsynth.models.denoiser import Condition, Denoiser
from bids_petsynth.models.recipe import VariableSpec

AGE, PTAU = VariableSpec(name="age"), VariableSpec(name="ptau217_lumipulse", transform="log")


def test_records_become_standardised_values_and_a_mask():
    records = [{"age": 70.0, "ptau217_lumipulse": math.e}, {"age": None}, {"age": 80.0, "ptau217_lumipulse": 0.0}]
    matrix = record_matrix(records, [AGE, PTAU])
    values, mask = standardise(matrix, Standardisation((75.0, 0.0), (5.0, 0.5)))
    assert values.tolist() == [[-1, 2], [0, 0], [1, 0]]
    assert mask.tolist() == [[1, 1], [0, 0], [1, 0]]
    fitted = fit_standardisation(matrix)
    assert fitted.mean == pytest.approx((75.0, 1.0)) and fitted.sd == pytest.approx((math.sqrt(50), 1.0))


def test_withholding_drops_values_and_whole_records_at_the_given_rates():
    rng = torch.Generator().manual_seed(0)
    kept = withhold(torch.ones(20_000, 3), 0.2, 0.1, rng)
    assert (kept.sum(1) == 0).float().mean().item() == pytest.approx(0.1 + 0.9 * 0.2**3, abs=0.01)
    assert kept.mean().item() == pytest.approx(0.8 * 0.9, abs=0.01)


def test_a_missing_value_is_a_learned_null_whatever_stood_there():
    torch.manual_seed(0)
    net = RecordEmbedding(2, 16)
    tracer, t = torch.tensor([4]), torch.tensor([0.5])

    def run(value: float, known: float) -> torch.Tensor:
        return net(torch.tensor([[0.3, value]]), torch.tensor([[1.0, known]]), tracer, t)

    assert torch.equal(run(0.0, 0.0), run(3.0, 0.0))
    assert not torch.allclose(run(0.0, 0.0), run(0.0, 1.0))
    run(0.0, 0.0).sum().backward()
    assert net.null.grad[1].abs().sum() > 0 and net.null.grad[0].abs().sum() == 0


def test_tracer_codes_are_distinct_and_fixed():
    codes = tracer_codes()
    assert sorted(codes.values()) == list(range(len(codes)))
    assert codes["AV45"] == 4 and codes["AV1451"] == 10
    with pytest.raises(ModelError, match="tracer_codes.tsv"):
        tracer_index("XYZ")


def images(n: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    labels = torch.rand(n, CLASSES, *(s // 2 for s in SHAPE), generator=rng).softmax(1)
    return torch.rand(n, *SHAPE, generator=rng), labels


def condition(n: int) -> Condition:
    rng = torch.Generator().manual_seed(4)
    return Condition(torch.randn(n, 8, generator=rng), torch.ones(n, 8), torch.tensor([4, 9, 10, 4])[:n])


def test_untrained_network_is_the_exact_velocity_of_its_gaussian():
    recipe = small_recipe()
    net = Denoiser(recipe, CLASSES)
    x, t = torch.randn(2, 8, 4, 6, 4), torch.tensor([0.3, 0.8])
    s, time = recipe.network.residual_sd, t.view(2, 1, 1, 1, 1)
    expected = (time - (1 - time) * s**2) / ((1 - time) ** 2 * s**2 + time**2) * x
    with torch.no_grad():
        found = net(x, t, net.prepare(*images(2)), condition(2))
    assert torch.allclose(found, expected, atol=1e-5)


def test_draws_of_one_head_share_its_sources():
    net = small_model().denoiser
    x, t = torch.randn(3, 8, 4, 6, 4), torch.full((3,), 0.5)
    with torch.no_grad():
        once = net(x, t, net.prepare(*images()), condition(3))
        t1w, labels = images()
        each = net(x, t, net.prepare(t1w.expand(3, -1, -1, -1), labels.expand(3, -1, -1, -1, -1)), condition(3))
    assert torch.allclose(once, each, atol=1e-4)


@pytest.mark.parametrize("changed", ["t1w", "labels", "values", "mask", "tracer", "time"])
def test_every_input_matters(changed):
    net = small_model().denoiser
    (t1w, labels), known, t = images(), condition(1), torch.tensor([0.5])
    x = torch.randn(1, 8, 4, 6, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(x, t, net.prepare(t1w, labels), known)
        t1w = t1w.flip(1) if changed == "t1w" else t1w
        labels = labels.flip(1) if changed == "labels" else labels
        values = known.values + (changed == "values")
        mask = known.mask * (changed != "mask")
        tracer = known.tracer + (changed == "tracer")
        t = t + 0.2 * (changed == "time")
        after = net(x, t, net.prepare(t1w, labels), Condition(values, mask, tracer))
    assert (after - before).abs().max() > 1e-3


def test_painter_paints_regions_and_measures_them():
    painter = Denoiser(small_recipe(), CLASSES).painter
    shape = (4, 6, 4)
    half = torch.zeros(1, 1, 8, 12, 8)
    half[..., 6:, :] = 1
    basis = (half.flatten(2), (1 - half).flatten(2))
    image = 2.0 * half + 0.5 * (1 - half)
    seen = painter.measure(fold(image, 2), basis)[0]
    assert seen.tolist() == pytest.approx([2.0, 0.5], rel=0.01)
    painter.values = torch.nn.Linear(32, 2)
    torch.nn.init.zeros_(painter.values.weight)
    painter.values.bias.data = torch.tensor([2.0, 0.5])
    painted = painter(torch.zeros(1, 32), basis, torch.Size(shape))
    assert painter.measure(painted, basis)[0].tolist() == pytest.approx([2.0, 0.5], abs=0.2)
    assert painted.max() <= 2.001 and painted.min() >= 0.499


@pytest.mark.parametrize("sources", [["t1w"], ["labels"], []])
def test_image_sources_can_be_left_out(sources):
    net = Denoiser(small_recipe(conditioning={"images": sources}), CLASSES)
    with torch.no_grad():
        out = net(torch.randn(1, 8, 4, 6, 4), torch.tensor([0.5]), net.prepare(*images()), condition(1))
    assert out.shape == (1, 8, 4, 6, 4)


def test_autoencoder_space_works_with_the_same_network():
    space = {"kind": "autoencoder", "channels": [8, 8, 8], "latent_channels": 3}
    recipe = small_recipe()
    net = Denoiser(type(recipe).model_validate(recipe.model_dump(mode="json") | {"space": space}), CLASSES)
    with torch.no_grad():
        out = net(torch.randn(1, 3, 4, 6, 4), torch.tensor([0.5]), net.prepare(*images()), condition(1))
    assert out.shape == (1, 3, 4, 6, 4)
