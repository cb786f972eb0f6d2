"""The model folder's checks, and the Synthesizer's draws."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from models_small import CLASSES, SHAPE, small_model, small_recipe
from safetensors.torch import load_file, save_file

from bids_petsynth.anatomy.regions import class_weights, n_classes
from bids_petsynth.errors import InputError, ModelError, UsageError
from bids_petsynth.models import folder as folder_module
from bids_petsynth.models.conditioning import used_variables
from bids_petsynth.models.folder import load_model, save_model
from bids_petsynth.models.regional import Geometry
from bids_petsynth.models.synthesizer import Synthesizer, choose_device, pool_labels
from bids_petsynth.pet.tracers import targets
from bids_petsynth.types import Anatomy, ClinicalRecord, Grid, Value


@pytest.fixture
def saved(tmp_path):
    save_model(small_model(), tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **changes):
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(about | changes))


def reseal(folder):
    """Put the files' present checksums into model.json."""
    about = json.loads((folder / "model.json").read_text())
    edit(folder, sha256={name: folder_module._sha256(folder / name) for name in about["sha256"]})


def test_a_model_comes_back_in_half_precision(saved):
    model, again = small_model(), load_model(saved)
    assert len(again.weights_sha256) == len(again.fingerprint) == 64
    left_out = {"denoiser": None, "regional": None, "space": None, "weights_sha256": "", "fingerprint": ""}
    assert replace(again, **left_out) == replace(model, **left_out)
    for name, value in model.denoiser.state_dict().items():
        assert torch.allclose(again.denoiser.state_dict()[name], value, atol=1e-6, rtol=1e-3), name


def test_weights_are_split_into_files_below_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 100_000)
    save_model(small_model(), tmp_path)
    files = sorted(p.name for p in tmp_path.glob("weights-*"))
    assert len(files) > 1 and files[0] == "weights-00001.safetensors"
    assert all(p.stat().st_size < 200_000 for p in tmp_path.glob("weights-*"))
    load_model(tmp_path)


def test_loading_leaves_the_callers_random_numbers_alone(saved):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(saved)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["recipe.toml", "weights-00001.safetensors", "calibration.json", "MODEL_CARD.md"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ModelError, match=f"lacks its file {name}"):
        load_model(saved)


def test_other_damage_gets_a_sentence_each(saved, tmp_path):
    with pytest.raises(ModelError, match="There is no model folder"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="has no model.json"):
        load_model(tmp_path / "empty")
    weights = saved / "weights-00001.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-4] + b"abcd")
    with pytest.raises(ModelError, match="checksum differs"):
        load_model(saved)
    weights.write_bytes(b"not weights")
    reseal(saved)
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_model(saved)
    weights.write_bytes(original)
    reseal(saved)
    load_model(saved)
    edit(saved, format=99)
    with pytest.raises(ModelError, match="newer version.*update"):
        load_model(saved)
    edit(saved, format=1)
    with pytest.raises(ModelError, match="older version.*train it again"):
        load_model(saved)
    (saved / "model.json").write_text("{")
    with pytest.raises(ModelError, match="not a JSON object"):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("denoiser.stem.weight"), "lack the tensor denoiser.stem.weight"),
        (lambda t: t.update({"denoiser.stem.weight": torch.zeros(3)}), r"has the shape \(3,\)"),
        (lambda t: t.update({"denoiser.more": torch.zeros(3)}), "hold denoiser.more"),
    ],
)
def test_tensors_that_do_not_fit_the_recipe_are_named(saved, change, words):
    path = saved / "weights-00001.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    reseal(saved)
    with pytest.raises(ModelError, match=words):
        load_model(saved)


def anatomy(classes: int = CLASSES) -> Anatomy:
    rng = np.random.default_rng(0)
    probabilities = rng.random((classes, *SHAPE)).astype(np.float16)
    probabilities /= probabilities.sum(0)
    t1w = rng.random(SHAPE).astype(np.float32)
    return Anatomy(t1w, probabilities.argmax(0).astype(np.uint8), probabilities, Grid(SHAPE, np.eye(4)))


def record(**values: float | None) -> ClinicalRecord:
    return ClinicalRecord({k: Value(k, v, "missing" if v is None else "found") for k, v in values.items()})


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    return Synthesizer(small_model())


def test_draws_are_deterministic_and_depend_on_seed_tracer_and_record(synthesizer):
    known = record(age=70.0, ptau217_lumipulse=0.3)
    draws = synthesizer.draw(anatomy(), known, "AV45", n_draws=3, seed=1)
    assert draws.shape == (3, *SHAPE) and draws.dtype == np.float32 and np.isfinite(draws).all()
    assert np.array_equal(draws, synthesizer.draw(anatomy(), known, "AV45", n_draws=3, seed=1))
    others = [(known, "AV45", 2), (known, "FDG", 1), (record(age=70.0), "AV45", 1)]
    for who, tracer, seed in others:
        assert not np.allclose(draws, synthesizer.draw(anatomy(), who, tracer, n_draws=3, seed=seed), atol=1e-3)
    assert len(synthesizer.draw(anatomy(), known, "AV45")) == synthesizer.model.recipe.n_draws


@pytest.mark.parametrize("gtm", [False, True])
def test_draws_have_the_regional_means_that_the_regional_flow_says(gtm):
    """Measured in the latent space, where they are painted; the mean over draws is that of many regional draws."""
    model = small_model(small_recipe(regional={"gtm": gtm}))
    engine, who = Synthesizer(model), record(age=70.0)
    blocks = np.add.outer(np.arange(16) // 8, 2 * (np.arange(24) // 12))[:, :, None].repeat(16, 2)
    head = replace(anatomy(), probabilities=np.eye(CLASSES, dtype=np.float16)[blocks].transpose(3, 0, 1, 2))
    labels = pool_labels(head.probabilities, model.recipe.label_pool)
    sources = model.denoiser.prepare(torch.from_numpy(head.t1w)[None], labels)
    draws = torch.from_numpy(engine.draw(head, who, "FDG", n_draws=5, seed=3))
    found = model.denoiser.measure(model.space.encode(draws), sources)
    expected = engine.regional_draws(who, "FDG", engine.geometry(head), seed=3)
    # the last region is absent from this head
    found, expected = found[:, :4], expected[:, :4]
    torch.testing.assert_close(found.mean(0), expected.mean(0), atol=0.01, rtol=0.01)
    assert found.var(0, correction=0).sum().item() == pytest.approx(expected.var(0).sum().item(), rel=0.1)
    # gains on texture change everything else
    rough = Synthesizer(replace(model, texture={"FDG": (1.0, 3.0)}))
    again = torch.from_numpy(rough.draw(head, who, "FDG", n_draws=5, seed=3))
    kept = model.denoiser.measure(model.space.encode(again), sources)[:, :4]
    torch.testing.assert_close(kept, found, atol=0.01, rtol=0.01)
    assert again.std() > 1.3 * draws.std()
    assert np.array_equal(rough.draw(head, who, "AV45", n_draws=2), engine.draw(head, who, "AV45", n_draws=2))


def test_the_mean_of_two_draws_is_that_of_nine():
    # an untrained flow's means differ so much that what an untrained network bends hardly counts
    engine, who = Synthesizer(small_model(small_recipe(regional={"gtm": False}))), record(age=70.0)
    two, nine = (engine.draw(anatomy(), who, "FDG", n_draws=n, seed=3) for n in (2, 9))
    # means of independent draws would be .78 of their standard deviation apart
    assert (two.mean(0) - nine.mean(0)).std() < 0.05 * nine.std(0).mean()


def test_what_is_foreseen_is_what_the_draws_show():
    """Labels that are the probabilities' own blocks: a draw's mean in each is what its regional draw said."""
    model = small_model(classes=n_classes())
    model = replace(model, spread={"FDG": 1.5}, target_spread={"FDG": 1.2})
    engine, who = Synthesizer(model), record(age=70.0)
    blocks = 1 + np.add.outer(np.arange(16) // 8, 2 * (np.arange(24) // 12))[:, :, None].repeat(16, 2)
    head = replace(anatomy(), probabilities=np.eye(n_classes(), dtype=np.float16)[blocks].transpose(3, 0, 1, 2))
    labels = pool_labels(head.probabilities, model.recipe.label_pool)
    codes = np.where(blocks == 3, 40, blocks)
    draws = engine.calibrated(engine.draw(head, who, "FDG", n_draws=4, seed=3), "FDG")
    found = np.stack([draws[:, codes == code].mean(1) for code in (1, 2, 4, 40)], 1)
    foreseen = engine.foreseen(labels, codes, who, "FDG", 4, seed=3)
    assert foreseen.few.shape == (4, 4) and foreseen.many.shape == (256, 4)
    deviation = found - found.mean(0)
    np.testing.assert_allclose(deviation, foreseen.few - foreseen.few.mean(0), atol=0.1 * deviation.std())
    np.testing.assert_allclose(foreseen.few.mean(0), foreseen.many.mean(0), atol=1e-4)
    assert Synthesizer(small_model(small_recipe(regional=None))).foreseen(labels, codes, who, "FDG", 4, 3) is None


def test_calibration_scales_deviations_from_the_mean():
    synthesizer = Synthesizer(small_model(small_recipe(regional=None)))
    plain = synthesizer.draw(anatomy(), record(), "AV45", n_draws=4)
    wide = Synthesizer(replace(synthesizer.model, spread={"AV45": 2.0})).calibrated(plain, "AV45")
    assert np.array_equal(synthesizer.calibrated(plain, "FDG"), plain)
    np.testing.assert_allclose(wide.mean(0), plain.mean(0), atol=1e-4)
    np.testing.assert_allclose(wide.std(0), 2 * plain.std(0), rtol=1e-3, atol=1e-4)


def test_a_regional_part_calibrates_the_target_and_the_rest_of_the_regions():
    model, n = small_model(classes=n_classes()), n_classes()
    volumes = torch.rand(1, n, generator=torch.Generator().manual_seed(5))
    head = Geometry(volumes, torch.eye(n)[None])
    plain = Synthesizer(model).regional_draws(record(age=70.0), "FDG", head, 0).double().numpy()
    wide = Synthesizer(replace(model, spread={"FDG": 1.5}, target_spread={"FDG": 0.5}))
    found = wide.regional_draws(record(age=70.0), "FDG", head, 0).double().numpy()
    np.testing.assert_allclose(found.mean(0), plain.mean(0), atol=1e-5)
    weights = class_weights(targets()["fdg_metaroi_like"].regions, volumes[0].numpy())
    mean, target = (plain @ weights).mean(), plain @ weights
    np.testing.assert_allclose(found @ weights - mean, 0.5 * (target - mean), atol=1e-5)
    # what the target does not tell of a region, by ordinary regression, is half as much again
    for region in (1, 20, 35):
        rests = [
            v[:, region] - np.polyval(np.polyfit(v @ weights, v[:, region], 1), v @ weights) for v in (plain, found)
        ]
        np.testing.assert_allclose(rests[1], 1.5 * rests[0], atol=1e-5)
    images = wide.draw(anatomy(n_classes()), record(age=70.0), "FDG", n_draws=2)
    assert wide.calibrated(images, "FDG") is images  # once is enough


@pytest.mark.parametrize("regional", [{}, None])
def test_guidance_moves_away_from_the_null_and_weight_0_is_the_null(regional):
    def draw(weight: float, who: ClinicalRecord) -> np.ndarray:
        model = small_model(small_recipe(process={"guidance": weight}, regional=regional))
        return Synthesizer(model).draw(anatomy(), who, "AV45", n_draws=1)

    known = record(age=4.0, ptau217_lumipulse=0.9)
    np.testing.assert_allclose(draw(0.0, known), draw(1.0, record()), atol=1e-5)
    one, two, null = draw(1.0, known), draw(2.0, known), draw(1.0, record())
    assert np.abs(two - null).mean() > 1.3 * np.abs(one - null).mean() > 0


def test_used_variables_say_what_was_found(synthesizer):
    status = used_variables(
        record(age=70.0, sex=None, ptau217_lumipulse=-1.0, mmse=29.0), synthesizer.model.recipe.conditioning.variables
    )
    assert status["age"] == "found" and status["sex"] == "missing" and status["nfl_simoa"] == "missing"
    assert status["ptau217_lumipulse"] == "missing"
    assert "mmse" not in status and len(status) == 8


def test_wrong_requests_get_a_sentence(synthesizer):
    with pytest.raises(UsageError, match="does not know the tracer PIB; it knows AV45, FBB, FDG, AV1451"):
        synthesizer.draw(anatomy(), record(), "PIB")
    small = replace(anatomy(), t1w=np.zeros((8, 8, 8), np.float32))
    with pytest.raises(InputError, match="model's grid"):
        synthesizer.draw(small, record(), "AV45")
    with pytest.raises(UsageError, match="Unknown device"):
        choose_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_where_there_is_none(saved):
    with pytest.raises(UsageError, match="--gpus all.*--nv"):
        Synthesizer.load(saved, device="cuda")
    assert choose_device("auto") == "cpu"


def test_a_recipe_without_chance_gives_one_draw_however_many_are_asked_for():
    changes = {"kind": "direct", "noise": False, "steps": 1, "guidance": 1.0}
    data = small_recipe(regional=None).model_dump(mode="json") | {"process": changes}
    engine = Synthesizer(small_model(type(small_recipe()).model_validate(data)))
    assert len(engine.draw(anatomy(), record(age=70.0), "AV45", n_draws=8)) == 1
