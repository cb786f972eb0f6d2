"""Conditioning and denoiser: learned nulls, painting, the exact Gaussian start, one head for many draws."""

from __future__ import annotations

import math

import pytest
import torch
from models_small import CLASSES, SHAPE, small_model, small_recipe

from bids_petsynth.errors import ModelError
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
from bids_petsynth.models.denoiser import Denoiser
from bids_petsynth.models.processes import build_process
from bids_petsynth.models.recipe import ConditioningSpec, VariableSpec
from bids_petsynth.models.regional import Condition

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
    names = [("age", ""), ("sex", ""), ("gfap_simoa", "blood"), ("nfl_simoa", "blood")]
    variables = tuple(VariableSpec(name=name, group=group) for name, group in names)
    spec = ConditioningSpec(variables=variables, drop_variable=0.2, drop_group=0.3, drop_record=0.1)
    kept = withhold(torch.ones(40_000, 4), spec, rng)
    expected = torch.tensor([0.8, 0.8, 0.8 * 0.7, 0.8 * 0.7]) * 0.9
    torch.testing.assert_close(kept.mean(0), expected, atol=0.01, rtol=0)
    # E[rate^2] of U^4 is 1/9
    none = (kept[:, 2:].sum(1) == 0).float().mean().item()
    assert none == pytest.approx(0.1 + 0.9 * (0.3 + 0.7 / 9), abs=0.01)
    assert withhold(torch.zeros(5, 4), spec, rng).sum() == 0
    never = ConditioningSpec(variables=variables, drop_variable=0, drop_group=0, drop_record=0)
    assert withhold(torch.ones(50, 4), never, rng).min() == 1


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


PLAIN = {"regional": None}


def painted(n: int = 1) -> torch.Tensor:
    return 1 + torch.randn(n, 8, 4, 6, 4, generator=torch.Generator().manual_seed(5))


def test_untrained_network_is_the_exact_velocity_of_a_gaussian():
    net, flow = Denoiser(small_recipe(), CLASSES), build_process(small_recipe())
    x, t = torch.randn(2, 8, 4, 6, 4), torch.tensor([0.3, 0.8])
    time = t.view(2, 1, 1, 1, 1)
    expected = (2 * time - 1) / ((1 - time) ** 2 + time**2) * x
    with torch.no_grad():
        sources = net.prepare(*images(2))
        found = flow.output(lambda z, s: net(z, s, sources, condition(2), painted(2)), x, t)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("recipe", [small_recipe(), small_recipe(**PLAIN)])
def test_draws_of_one_head_share_its_sources(recipe):
    net = small_model(recipe).denoiser
    x, t, m = torch.randn(3, 8, 4, 6, 4), torch.full((3,), 0.5), painted(3)
    with torch.no_grad():
        once = net(x, t, net.prepare(*images()), condition(3), m)
        t1w, labels = images()
        each = net(x, t, net.prepare(t1w.expand(3, -1, -1, -1), labels.expand(3, -1, -1, -1, -1)), condition(3), m)
    assert torch.allclose(once, each, atol=1e-4)


def moved_by(recipe, changed: str) -> float:
    """How much the velocity moves when one input does."""
    net = small_model(recipe).denoiser
    (t1w, labels), known, t, m = images(), condition(1), torch.tensor([0.5]), painted()
    x = torch.randn(1, 8, 4, 6, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(x, t, net.prepare(t1w, labels), known, m)
        t1w = t1w.flip(1) if changed == "t1w" else t1w
        labels = labels.flip(1) if changed == "labels" else labels
        values = known.values + (changed == "values")
        mask = known.mask * (changed != "mask")
        tracer = known.tracer + (changed == "tracer")
        t = t + 0.2 * (changed == "time")
        m = m + 0.5 * (changed == "painted")
        after = net(x, t, net.prepare(t1w, labels), Condition(values, mask, tracer), m)
    return (after - before).abs().max().item()


@pytest.mark.parametrize("changed", ["t1w", "labels", "values", "mask", "tracer", "time"])
def test_every_input_matters(changed):
    assert moved_by(small_recipe(**PLAIN), changed) > 1e-3


@pytest.mark.parametrize("changed", ["t1w", "labels", "tracer", "time", "painted"])
def test_every_input_matters_to_a_network_that_fills_a_painting(changed):
    assert moved_by(small_recipe(), changed) > 1e-3


@pytest.mark.parametrize("changed", ["values", "mask"])
def test_with_a_regional_part_the_record_is_left_to_it(changed):
    assert moved_by(small_recipe(), changed) == 0


def test_painting_in_the_latent_space_is_measured_there():
    net = Denoiser(small_recipe(), CLASSES)
    sources = net.prepare(*images(2))
    means = torch.rand(2, CLASSES, generator=torch.Generator().manual_seed(2))
    latents = net.paint(means, sources)
    assert latents.shape == (2, 8, 4, 6, 4)
    torch.testing.assert_close(net.measure(latents, sources), means, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("shown", "sources"), [(["t1w"], []), (["labels"], []), ([], ["T1w"])])
def test_image_sources_can_be_left_out(shown, sources):
    net = Denoiser(small_recipe(conditioning={"images": shown, "sources": sources}, **PLAIN), CLASSES)
    scans = (torch.randn(1, 1, 8, 4, 6, 4), torch.ones(1, 1, dtype=torch.bool)) if sources else ()
    with torch.no_grad():
        out = net(torch.randn(1, 8, 4, 6, 4), torch.tensor([0.5]), net.prepare(*images(), *scans), condition(1))
    assert out.shape == (1, 8, 4, 6, 4)


def test_autoencoder_space_works_with_the_same_network():
    space = {"kind": "autoencoder", "channels": [8, 8, 8], "latent_channels": 3}
    recipe = small_recipe(**PLAIN)
    net = Denoiser(type(recipe).model_validate(recipe.model_dump(mode="json") | {"space": space}), CLASSES)
    with torch.no_grad():
        out = net(torch.randn(1, 3, 4, 6, 4), torch.tensor([0.5]), net.prepare(*images()), condition(1))
    assert out.shape == (1, 3, 4, 6, 4)
