"""What a step minimises: alike however a batch is shared, with the text that the synthesizer would read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ground_small import SmallGround
from models_small import SHAPE, small_recipe, with_autoencoder
from torch import Tensor
from toy_recipes import shrunk

from bids_petsynth.models.autoencoder import build_space
from bids_petsynth.models.recipe import Recipe
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.pet.tracers import tracer
from bids_petsynth.tables import read_table
from bids_petsynth.training.generator import build_model
from bids_petsynth.training.loop import Share, step_generator
from bids_petsynth.training.objective import Objective, _other_noise
from bids_petsynth.training.pairs import Pool

TEXT = {"style": "template", "encoder": "hashed", "width": 32, "tokens": 8}


def reader(recipe):
    from bids_petsynth.clinical.language import TextOptions, TextReader

    spec = recipe.conditioning
    return TextReader(spec.text, [variable.name for variable in spec.variables], TextOptions())


def objective(recipe, ground=None):
    ground = ground or SmallGround(recipe)
    space = build_space(recipe).requires_grad_(False)
    pool = Pool(ground.case, space.encode, *ground.pool, recipe.tracers, recipe.conditioning.sources)
    model = build_model(recipe, pool, ground, space)
    for parameter in model.denoiser.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return Objective(model, pool, "cpu", reader(recipe) if recipe.conditioning.text else None)


def shared(made: Objective, parts: int) -> float:
    """A step's loss of a batch of four in so many parts."""
    return sum(made.loss(3, step_generator(0, 3), Share(k, parts)).item() / parts for k in range(parts))


IMAGE_LOSSES = {"l1": 1.0, "mse": 0.5, "laplacian": 0.3, "clinical": 0.2, "adversarial": 0.1, "regions": "learned"}


@pytest.mark.parametrize("alignment", [0.0, 0.5])
def test_a_step_is_alike_however_its_batch_is_shared_but_for_the_alignment_and_that_is_said(alignment):
    recipe = small_recipe(
        tracers=["AV45", "FDG"],
        regional=None,
        losses={**IMAGE_LOSSES, "alignment": alignment},
        conditioning={"text": TEXT},
        training={"batch": 4},
    )
    made = objective(recipe)
    whole, halves, singly = (shared(made, parts) for parts in (1, 2, 4))
    if not alignment:
        assert halves == pytest.approx(whole, rel=1e-5) and singly == pytest.approx(whole, rel=1e-5)
        assert made.shared == ""
        return
    assert abs(whole - halves) > 1e-3 and abs(whole - singly) > 1e-3
    assert "alignment of text and image" in made.shared


@pytest.mark.parametrize("every", [2, 3, 4])
def test_losses_on_images_of_some_examples_are_those_of_all_on_average(every):
    """Exactly, over the choices that a step makes among them; each example is chosen as often, however shared."""
    losses = {"l1": 1.0, "clinical": 2.0, "regions": "learned"}
    recipe = small_recipe(tracers=["AV45", "FDG"], regional=None, losses=losses, training={"batch": 4})
    sampling = recipe.model_copy(update={"losses": recipe.losses.model_copy(update={"image_every": every})})
    made, some = objective(recipe), objective(sampling)
    some.net.load_state_dict(made.net.state_dict())
    example = made.example(0, step_generator(0, 0), Share())
    drawn = example.data + torch.randn(example.data.shape, generator=torch.Generator().manual_seed(0))
    chosen, losses = [], []
    for step in range(40 * every):
        one = some.example(step, step_generator(0, step), Share()).imaged
        chosen += one
        losses.append(some._sampled_losses(drawn, replace(example, imaged=one)).item())
        halves = [some.example(step, step_generator(0, step), Share(part, 2)).imaged for part in (0, 1)]
        assert sorted(2 * k + part for part, rows in enumerate(halves) for k in rows) == sorted(one)
        assert len(one) in (4 // every, -(-4 // every))
    alone = [some._sampled_losses(drawn, replace(example, imaged=(k,))).item() for k in range(4)]
    assert sum(alone) / every == pytest.approx(made._image_losses(drawn, example).item(), rel=1e-5)
    share = np.bincount(chosen, minlength=4) / len(losses)
    # 40 · every choices of one in every: three standard deviations and more
    assert np.abs(share - 1 / every).max() < 4 * np.sqrt((1 - 1 / every) / every / len(losses))
    assert sum(losses) / len(losses) == pytest.approx(np.dot(share, alone), rel=1e-5)
    assert shared(some, 2) == pytest.approx(shared(some, 1), rel=1e-5)
    assert shared(some, 4) == pytest.approx(shared(some, 1), rel=1e-5)


@pytest.mark.parametrize("normalisation", ["standard", "minmax"])
def test_what_training_made_of_a_scan_is_drawn_as_that_scan(normalisation):
    """The sampler ends where the network of a perfect model would: the scan of 2 mm comes out, in its own unit."""
    recipe = small_recipe(
        tracers=["AV45", "FDG", "T1w"],
        regional=None,
        normalisation=normalisation,
        space={"cutoff": 0.25, "fold": 1},
        conditioning={"images": [], "sources": ["AV45", "T1w"]},
        training={"batch": 8},
    )
    ground = SmallGround(recipe)
    made = objective(recipe, ground)
    sampler = Synthesizer(made.model, "cpu")

    def drawn(standardised: Tensor, name: str, number: int) -> np.ndarray:
        sampler._drawn = lambda noise, *_: standardised.expand_as(noise)
        case = ground.case(number)
        return sampler.sample(case.t1w[None], case.labels[None], {}, name, 1, 0, case.images)[0]

    example = made.example(0, step_generator(0, 0), Share())
    assert set(example.batch.tracers) == set(recipe.tracers)
    for latent, name, record in zip(example.data, example.batch.tracers, example.batch.records, strict=True):
        number = int(record["age"]) - 60
        # latents are kept in half precision
        np.testing.assert_allclose(drawn(latent[None], name, number), ground.case(number).images[name], atol=2e-3)
    for name in recipe.tracers:
        voxels = np.stack([ground.case(k).images[name].numpy() for k in range(ground.count)])
        ends = [drawn(torch.tensor(end), name, 0).mean() for end in (-1.0, 1.0)]
        known = {"minmax": (voxels.min(), voxels.max()), "standard": voxels.mean() + voxels.std() * np.array([-1, 1])}
        np.testing.assert_allclose(ends, known[normalisation], atol=2e-3)


@pytest.mark.parametrize("normalisation", ["standard", "minmax"])
def test_all_training_scans_are_standardised_by_every_modality_that_occurs(normalisation):
    """FDG is scanned in the last person alone, and a T2w is there for none."""
    recipe = small_recipe(
        tracers=["AV45", "FDG", "T1w"],
        regional=None,
        normalisation=normalisation,
        conditioning={"images": [], "sources": ["AV45", "T2w", "FDG"]},
    )
    count = 17
    ground = SmallGround(recipe, count, only={**dict.fromkeys(range(count), ("AV45",)), count - 1: ("FDG",)})
    space = build_space(recipe)
    pool = Pool(ground.case, space.encode, *ground.pool, recipe.tracers, recipe.conditioning.sources)
    model = build_model(recipe, pool, ground, space)
    cases = [ground.case(k) for k in range(count)]
    assert set(model.scaling) == {"AV45", "FDG", "T1w"}
    everything = []
    for name in ("AV45", "FDG", "T1w"):
        latents = torch.cat([space.encode(c.images[name][None]) for c in cases if name in c.images])
        everything.append(latents)
        values = latents.double().movedim(1, 0).flatten(1).numpy()
        centre, width = model.scaling[name]
        if normalisation == "minmax":
            scaled = (values - np.array(centre)[:, None]) / np.array(width)[:, None]
            # latents are kept in half precision
            np.testing.assert_allclose(scaled.max(1), 1, atol=3e-3)
            np.testing.assert_allclose(scaled.min(1), -1, atol=3e-3)
        else:
            np.testing.assert_allclose(centre, values.mean(1), atol=1e-4)
            np.testing.assert_allclose(width, values.std(1, ddof=1), rtol=1e-3)
    values = torch.cat(everything).movedim(1, 0).flatten(1)
    np.testing.assert_allclose(model.latent_mean, values.mean(1), atol=1e-4)
    np.testing.assert_allclose(model.latent_sd, values.std(1), rtol=1e-3)


def test_the_markers_that_must_not_drift_are_a_pets_regions_and_a_t1ws_hippocampus_and_ventricles():
    recipe = small_recipe(
        tracers=["AV45", "T1w"],
        regional=None,
        conditioning={"images": [], "sources": ["T1w", "AV45"]},
        losses={"process": 0.0, "clinical": 3.0},
        training={"batch": 6},
    )
    made = objective(recipe)
    example = made.example(0, step_generator(0, 0), Share())
    drawn = example.data + torch.randn(example.data.shape, generator=torch.Generator().manual_seed(0))
    errors = (made._image(drawn, example) - made._image(example.data, example))[:, 0].double().numpy()
    labels = example.labels.double().numpy()
    names = [row["name"] for row in read_table("regions.tsv")]
    rows = {"AV45": range(1, 48), "T1w": [1 + names.index(name) for name in ("hippocampus", "lateral_ventricle")]}
    assert set(example.batch.tracers) == set(rows) and errors.shape[1:] == labels.shape[2:]
    expected = [
        # a region's mean has the weight of one voxel of no error more
        np.mean([(np.sum(error * one[k]) / (one[k].sum() + 1)) ** 2 for k in rows[name]])
        for error, one, name in zip(errors, labels, example.batch.tracers, strict=True)
    ]
    assert made._image_losses(drawn, example).item() == pytest.approx(3 * np.mean(expected), rel=1e-4)


def test_l1_and_ssim_of_images_are_those_of_their_definitions():
    """PASTA's L1 + (1 - SSIM): errors in units of the SD over all scans, SSIM over the tracer's display window."""
    from skimage.metrics import structural_similarity

    losses = {"process": 0.0, "l1": 0.7, "ssim": 0.4}
    made = objective(small_recipe(tracers=["AV45"], regional=None, losses=losses, space={"cutoff": 0.25}))
    example = made.example(0, step_generator(0, 0), Share())
    drawn = example.data + 0.3 * torch.randn(example.data.shape, generator=torch.Generator().manual_seed(0))
    images = [made._image(one, example).double().numpy()[:, 0] for one in (drawn, example.data)]
    low, high = tracer("AV45").display
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": high - low}
    similar = [structural_similarity(a, b, **options) for a, b in zip(*images, strict=True)]
    error = np.abs(images[0] - images[1]).mean() / np.mean(made.model.latent_sd)
    expected = 0.7 * error + 0.4 * (1 - np.mean(similar))
    assert made._image_losses(drawn, example).item() == pytest.approx(expected, rel=1e-4)


def autoencoded(scale: float) -> Objective:
    """A step on an autoencoder whose latents are so many times as large, all else equal."""
    recipe = with_autoencoder(
        tracers=["AV45", "FDG"],
        regional=None,
        conditioning={"images": ["t1w"]},
        losses={"process": 0.0, "l1": 1.0, "mse": 0.5},
        training={"batch": 2},
    )
    ground = SmallGround(recipe)
    torch.manual_seed(0)
    space = build_space(recipe).requires_grad_(False)
    space.scale.fill_(scale)
    pool = Pool(ground.case, space.encode, *ground.pool, recipe.tracers)
    return Objective(build_model(recipe, pool, ground, space), pool, "cpu")


def test_losses_on_decoded_images_are_in_units_of_the_images():
    small, large = autoencoded(1.0), autoencoded(16.0)
    values = [shared(made, 1) for made in (small, large)]
    assert values[1] == pytest.approx(values[0], rel=2e-3)
    space, pool = small.model.space, small.pool
    fdg = [batch.latents[batch.tracers.index("FDG")][None] for batch in pool.people(4)]
    assert small._decoded_sd("FDG") == pytest.approx(np.std([space.decode(one).numpy() for one in fdg]), rel=1e-3)


def test_an_autoencoder_is_frozen_and_the_truth_leaves_no_graph():
    made = autoencoded(1.0)
    space, graphs = made.model.space, []
    decode = space.decode
    space.decode = lambda latents: graphs.append(torch.is_grad_enabled()) or decode(latents)
    made._decoded_sd("AV45"), made._decoded_sd("FDG")
    graphs.clear()
    made.loss(0, step_generator(0, 0), Share()).backward()
    assert sorted(graphs) == [False, True]
    assert all(p.grad is None for p in space.parameters())
    assert any(p.grad is not None and p.grad.any() for p in made.net.parameters())


@pytest.mark.parametrize("variables", [({"name": "age"}, {"name": "mmse"}), ()])
def test_notes_are_read_in_training_exactly_where_the_synthesizer_reads_them(variables):
    """A person without a known variable is known by their notes; a record withheld as a whole is, with its notes."""
    recipe = small_recipe(regional=None, conditioning={"text": TEXT, "variables": variables}, training={"batch": 4})
    made = objective(recipe)
    batch = next(made.pool.people(1))
    notes = {"notes": "Memory complaints for two years."}
    records = ({"mmse": 24.0}, {}, notes, {"mmse": 24.0, **notes})
    batch = replace(batch, records=records, tracers=batch.tracers[:1] * 4)
    sampler = Synthesizer(made.model, "cpu", made.texts)
    asked = [sampler._condition(record, batch.tracers[0], torch.ones(1, 1)) for record in records]
    everything = torch.ones(4, max(1, len(variables)))
    trained = made._condition(batch, everything)
    assert torch.equal(trained.text_mask, torch.cat([one.text_mask for one in asked]))
    assert trained.text_mask.any(1).tolist() == [bool(variables), False, True, True]
    torch.testing.assert_close(trained.text, torch.cat([one.text for one in asked]))
    assert not made._condition(batch, 0 * everything).text_mask.any()
    # what is withheld but not the whole record leaves the notes
    if variables:
        some = torch.tensor([1.0, 0.0]).expand(4, 2)
        assert made._condition(batch, some).text_mask.any(1).tolist() == [False, False, True, True]
    # a step shows and withholds them
    shown = [made.example(step, step_generator(0, step), Share()).condition for step in range(3)]
    assert all(one.text_mask.shape == (4, 8) for one in shown)


@pytest.mark.parametrize("cutoff", [0.25, 0.125, 0.0625])
def test_regions_are_weighed_and_learned_on_voxels_finer_and_coarser_than_labels(cutoff):
    """Voxels of 2, 4 and 8 mm beside labels of 4 mm."""
    space = {"cutoff": cutoff, "fold": 1}
    losses = {"l1": 1.0, "regions": "learned"}
    recipe = small_recipe(tracers=["AV45"], regional=None, space=space, losses=losses, network={"channels": [16]})
    made = objective(recipe)
    made.loss(0, step_generator(0, 0), Share()).backward()
    assert made.net.regions["AV45"].log_variance.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(8, 6, 7), (7, 6, 15)])
def test_noise_of_the_other_arm_is_nowhere_the_same_and_as_random(shape):
    noise = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    other = _other_noise(noise)
    assert not (other == noise).any()
    torch.testing.assert_close(other.flatten(1).sort().values, noise.flatten(1).sort().values)


def exchanged(of_target: Tensor, of_source: Tensor, **losses: float) -> Tensor:
    """A step's loss by PASTA's recipe of arms that map PET = 1.5 − 2 · T1w and back, but for a constant error each."""
    data = shrunk("pasta").model_dump(mode="json")
    data["grid"]["shape"], data["space"]["cutoff"], data["tracers"] = list(SHAPE), 0.125, ["AV45"]
    data["losses"] |= {"regions": "none", **losses}
    made = objective(Recipe.model_validate(data))

    def both(x, t, source, condition, swapped=False):
        drawn = (1.5 - source) / 2 + of_source if swapped else 1.5 - 2 * source + of_target
        return drawn, drawn

    made.net.denoiser.both = both
    example = made.example(0, step_generator(0, 0), Share())
    return made._exchange(replace(example, data=1.5 - 2 * example.sources.features))


def missed(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """What the arms miss of real scans and, in the cycle, of those too that the other has drawn from with its error."""
    return abs(a), abs(b) + abs(b - a / 2) + abs(a - 2 * b)


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (-0.4, -0.2), (0.3, -0.1)])
def test_a_cycle_passes_an_arms_error_on_by_the_slope_of_the_others_map(a, b):
    found, told = ([torch.tensor(x, requires_grad=True) for x in (a, b)] for _ in range(2))
    loss = exchanged(*found, l1=1.0, ssim=0.0, translation=0.1, cycle=0.7)
    once, cycle = missed(*told)
    expected = 1.1 * (once + 0.7 * cycle)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    if (a, b) == (0.3, -0.1):  # elsewhere a modulus has its kink
        loss.backward(), expected.backward()
        # an arm learns from what the other makes of its drawing
        assert [x.grad.item() for x in found] == pytest.approx([x.grad.item() for x in told], rel=1e-4)


def test_losses_of_pasta_vanish_for_inverse_arms_and_only_the_cycle_asks_the_arm_that_draws_t1w():
    none, some = torch.tensor(0.0), torch.tensor(0.2)
    assert exchanged(none, none).item() == pytest.approx(0, abs=1e-5)
    assert exchanged(none, some, cycle=0.0).item() == pytest.approx(0, abs=1e-5)
    for errors in ((none, some), (some, none)):
        # similarity comes on top
        assert exchanged(*errors) - exchanged(*errors, cycle=0.0) > 1.1 * missed(*errors)[1]
    # these errors cancel where the arms meet: what is left is the similarity of the T1w drawn from the real PET
    alike = {"l1": 0.0, "translation": 0.0}
    assert exchanged(2 * some, some, **alike) > exchanged(2 * some, some, cycle=0.0, **alike) + 1e-3
