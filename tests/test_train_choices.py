"""What ``train`` makes of its options before and after the scans are prepared, without any scan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from models_small import small_model, small_recipe

from bids_petsynth.cli import train
from bids_petsynth.cli.main import main
from bids_petsynth.clinical.language import TextOptions
from bids_petsynth.models.folder import load_model, save_model
from bids_petsynth.models.recipe import recipe_text
from bids_petsynth.models.synthesizer import reader_of
from bids_petsynth.training import generator, preparing
from bids_petsynth.training.real import Stored

TEXT = {"style": "template", "encoder": "hashed", "width": 32, "tokens": 8}


@pytest.fixture
def command(tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """Command of a training whose scans need no preparing and whose steps are none."""
    people = [Stored(f"{n:02d}", Path(f"head{n}"), {"AV45": Path(f"scan{n}")}, {}) for n in range(8)]
    (tmp_path / "bids").mkdir()
    monkeypatch.setattr(train, "_paired", lambda *_: ([], [], ["AV45"]))
    monkeypatch.setattr(preparing, "prepare_together", lambda *_: (people, [], []))

    def untrained(ground, recipe, run):
        save_model(small_model(recipe), run.out / "model")

    monkeypatch.setattr(generator, "train", untrained)

    def words(recipe, *more: str) -> list[str]:
        path = tmp_path / "given.toml"
        path.write_text(recipe_text(recipe))
        return [str(tmp_path / "bids"), str(tmp_path), "train", "--recipe", str(path), "--name", "ours", *more]

    return words


def worded(**text):
    return small_recipe(regional=None, conditioning={"text": TEXT | text})


def test_a_model_keeps_how_its_prompts_were_written_and_read(tmp_path, command):
    assert main(command(worded(encoder="minilm"), "--prompt", "numbers", "--text-encoder", "hashed")) == 0
    model = load_model(tmp_path / "models" / "ours")
    assert model.recipe.conditioning.text.style == "numbers" and model.recipe.conditioning.text.encoder == "hashed"
    # as `participant` reads it without a word on prompts
    prompt = reader_of(model, TextOptions()).prompt({"age": 70.0})
    assert prompt.status == "numbers" and prompt.text.startswith("age 70")
