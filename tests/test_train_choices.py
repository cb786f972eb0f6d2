"""What ``train`` makes of its options before and after the scans are prepared, without any scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from chat_server import completion, echo, serving
from ground_small import SmallGround
from models_small import small_model, small_recipe

from bids_petsynth.bids.pets import Pair
from bids_petsynth.cli import train
from bids_petsynth.cli.main import main
from bids_petsynth.clinical.language import TextOptions
from bids_petsynth.errors import UsageError
from bids_petsynth.models.folder import load_model, save_model
from bids_petsynth.models.recipe import Recipe, recipe_text
from bids_petsynth.models.synthesizer import reader_of
from bids_petsynth.training import generator, preparing
from bids_petsynth.training.real import Stored
from bids_petsynth.types import Case, PetScan

TEXT = {"style": "template", "encoder": "hashed", "width": 32, "tokens": 8}


@pytest.fixture
def prepared() -> list[bool]:
    """Grows when scans are prepared."""
    return []


@pytest.fixture
def command(tmp_path, monkeypatch, prepared) -> Callable[..., list[str]]:
    """Command of a training whose scans need no preparing and whose steps are none."""
    labels = [f"{n:02d}" for n in range(8)]
    people = [Stored(label, Path(f"head{label}"), {"AV45": Path(f"scan{label}")}, {}) for label in labels]
    cases = [Case(label, None, Path("t1w")) for label in labels]
    pairs = [Pair(case, PetScan(case.participant, None, "AV45", Path("pet"))) for case in cases]
    (tmp_path / "bids").mkdir()
    monkeypatch.setattr(train, "_paired", lambda *_: (cases, pairs, ["AV45"]))
    monkeypatch.setattr(preparing, "prepare_together", lambda *_: prepared.append(True) or (people, [], [], []))

    def untrained(ground, recipe, run):
        save_model(small_model(recipe), run.out / "model")

    monkeypatch.setattr(generator, "train", untrained)

    def words(recipe, *more: str) -> list[str]:
        path = tmp_path / "given.toml"
        path.write_text(recipe_text(recipe))
        return [str(tmp_path / "bids"), str(tmp_path), "train", "--recipe", str(path), "--name", "ours", *more]

    return words


def test_of_too_few_people_only_the_reasons_are_gathered(command, monkeypatch):
    """Those of scans without a T1w among them, which would be pre-trained on."""
    fits = Case("01", None, Path("t1w"))
    lone = Pair(None, PetScan("02", None, "AV45", Path("pet")), note="sub-02 has no T1w image.")
    pairs = [Pair(fits, PetScan("01", None, "AV45", Path("pet"))), lone]
    given = []
    monkeypatch.setattr(train, "_paired", lambda *_: ([fits], pairs, ["AV45"]))
    monkeypatch.setattr(preparing, "prepare_together", lambda _, *some: given.append(some[:2]) or ([], [], [], []))
    recipe = small_recipe(regional=None, pretraining={"steps": 1, "style": "statistics"})
    assert main(command(recipe)) == 2
    assert given == [([lone], ([], []))]


def worded(**text):
    return small_recipe(regional=None, conditioning={"text": TEXT | text})


def test_a_model_keeps_how_its_prompts_were_written_and_read(tmp_path, command):
    assert main(command(worded(encoder="minilm"), "--prompt", "numbers", "--text-encoder", "hashed")) == 0
    model = load_model(tmp_path / "models" / "ours")
    assert model.recipe.conditioning.text.style == "numbers" and model.recipe.conditioning.text.encoder == "hashed"
    # as `participant` reads it without a word on prompts
    prompt = reader_of(model, TextOptions()).prompt({"age": 70.0})
    assert prompt.status == "numbers" and prompt.text.startswith("age 70")


def test_everybodys_prompt_is_asked_for_once_before_the_first_step(tmp_path, command, monkeypatch, capsys):
    """Here of eight people, whose scans and steps are none; the server fails at those of 72 and 73 years."""
    people = [Stored(f"{n:02d}", Path(f"head{n}"), {"AV45": Path(f"scan{n}")}, {"age": 70.0 + n}) for n in range(8)]
    words = command(worded(), "--prompt", "llm", "--text-cache", str(tmp_path / "cache"))
    monkeypatch.setattr(preparing, "prepare_together", lambda *_: (people, [], [], []))
    seen = []

    def train_on(ground, recipe, run):
        """The steps ask for everybody's text twice, while the server is gone for good."""
        server.answer = lambda body: (500, {}, b"gone")
        seen.append([run.texts.prompt(stored.record).status for stored in people * 2])
        seen.append(ground.data())
        save_model(small_model(recipe), run.out / "model")
        (run.out / "checkpoint.safetensors").touch()

    monkeypatch.setattr(generator, "train", train_on)

    def partly(body):
        told = body["messages"][-1]["content"]
        return b"{}" if "72" in told or "73" in told else completion(echo(body))

    with serving(lambda body: b"{}") as server:
        words += ["--llm-endpoint", server.url, "--llm-model", "tiny"]
        assert main(words) == 2 and not seen
        assert "8 of 8 prompts could not be had from the language model. " in capsys.readouterr().err
        # it stops answering for good after the first
        server.answer = lambda body: completion(echo(body)) if "70" in str(body) else (500, {}, b"")
        assert main(words) == 2 and not seen
        assert "7 of 8 prompts" in capsys.readouterr().err
        server.answer = partly
        server.requests.clear()
        assert main(words) == 0
        assert seen[0].count("llm") == 12 and seen[0].count("template (malformed reply)") == 4
        assert len(server.requests) == 7 and "Prompts: 2 of 8 are the template's" in seen[1]
        assert "2 of 8 prompts could not be had" in capsys.readouterr().err
        # a training that goes on goes on with the same prompts
        assert main(words) == 0
        assert seen[2] == seen[0] and len(server.requests) == 7


def test_where_pet_is_a_source_all_tracers_of_the_site_are():
    def sources(given, tracers):
        conditioning = {"images": [], "sources": given, "fusion": "attention"}
        recipe = small_recipe(regional=None, tracers=["AV45"], conditioning=conditioning)
        return train.with_site_sources(recipe, tracers).conditioning.sources

    assert sources(["T1w", "T2w", "FDG", "AV45"], ["AV45", "AV1451"]) == ("T1w", "T2w", "AV45", "AV1451")
    assert sources(["T1w", "T2w"], ["AV45"]) == ("T1w", "T2w")


def pretrained(**changes):
    return small_recipe(regional=None, pretraining={"steps": 1, "style": "vgg19"}, **changes)


@pytest.mark.parametrize(
    ("recipe", "options", "told"),
    [
        (worded(style="llm"), [], "--llm-endpoint"),
        (worded(), ["--prompt", "llm"], "--llm-endpoint"),
        (worded(), ["--text-encoder", "nowhere"], "nowhere"),
        (pretrained(), [], "--vgg19"),
        (pretrained(), ["--vgg19", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_read_is_told_before_scans_are_prepared(command, prepared, capsys, recipe, options, told):
    assert main(command(recipe, *options)) in (1, 2)
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said and not prepared


def test_another_text_encoder_than_the_first_models_is_told_before_scans_are_prepared(
    tmp_path, command, prepared, capsys
):
    save_model(replace(small_model(worded()), text_encoder="another"), tmp_path / "start")
    assert main(command(worded(), "--init-from", str(tmp_path / "start"))) == 2
    assert "was trained with the text encoder another" in capsys.readouterr().err and not prepared


def test_weights_of_vgg19_that_cannot_be_read_are_told_before_the_autoencoder_is_trained(tmp_path):
    space = {"kind": "autoencoder", "channels": [2, 4], "groups": 2, "latent_channels": 2}
    recipe = Recipe.model_validate(pretrained().model_dump(mode="json") | {"space": space})
    (tmp_path / "vgg19").write_bytes(b"none")
    with pytest.raises(UsageError, match="vgg19"):
        generator.train(SmallGround(recipe), recipe, generator.Run(tmp_path / "out", vgg19=tmp_path / "vgg19"))
    assert not (tmp_path / "out" / "autoencoder").exists()
