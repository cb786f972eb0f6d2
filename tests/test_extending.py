"""The diffs of docs/extending.md fit the code as it is, and do what the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
DIFFS = {
    title: re.findall(r"```diff\n(.*?)^```", part, re.S | re.M)[0]
    for title, part in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
}

TRACER = """
from bids_petsynth import tracers
from bids_petsynth.models.conditioning import tracer_index
from bids_petsynth.pet.tracers import centiloid_equation, tracer
assert tracer("[18F]MK-6240").name == tracer("florquinitau").name == tracers()[-1].name == "MK6240"
assert tracer_index("MK6240") == 11 and centiloid_equation("MK6240") is None
"""

VARIABLE = """
from bids_petsynth.clinical.records import read_record
from bids_petsynth.types import TableRow
told = {"p-tau231": {"Description": "Plasma p-tau231, in-house Simoa, Gothenburg", "Units": "ng/L"}}
record = read_record([TableRow("participants.tsv", {"p-tau231": "12,5"}, told)])
assert record.get("ptau231_ugot") == 12.5, record.values
from bids_petsynth.clinical.prompts import template_prompt
assert template_prompt(record, ["ptau231_ugot"]).endswith("Plasma ptau231 (Gothenburg Simoa) 12.5 pg/mL.")
"""

LOSS = """
import copy, torch
from models_small import CLASSES, SHAPE, small_model, small_recipe
from types import SimpleNamespace
from bids_petsynth.training.loop import Share
from bids_petsynth.training.objective import Objective
from bids_petsynth.training.losses import charbonnier
from bids_petsynth.training.pairs import Batch
from bids_petsynth.types import ClinicalRecord
assert abs(charbonnier(torch.full((1, 1), 3.0), torch.zeros(1, 1), 4.0).item() - 5) < 1e-6
rng = torch.Generator().manual_seed(0)
latents = torch.randn(2, 8, *(n // 4 for n in SHAPE), generator=rng)
labels = torch.rand(2, CLASSES, *(n // 2 for n in SHAPE), generator=rng).softmax(1).mul(255).round().byte()
t1w = torch.rand(2, *SHAPE, generator=rng)
batch = Batch(t1w, labels, latents, (ClinicalRecord({}),) * 2, ("AV45",) * 2)
pool = SimpleNamespace(batch=lambda step, n, rng, some: batch)
found = {}
for weight in (0.0, 1.0, 2.0):
    model = small_model(small_recipe(losses={"charbonnier": weight}))
    loss = Objective(model, pool, "cpu").loss(0, torch.Generator().manual_seed(1), Share())
    loss.backward()
    found[weight] = loss.item()
assert found[1.0] > found[0.0] and abs(found[2.0] - 2 * found[1.0] + found[0.0]) < 1e-4 * found[2.0], found
"""


def patched(folder: Path, diff: str) -> Path:
    """A copy of package, docs and tests with the diff applied; the weights are linked, not copied."""
    for part in ("bids_petsynth", "docs", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("models", "__pycache__"))
    shutil.copytree(
        ROOT / "bids_petsynth/models", folder / "bids_petsynth/models", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "bids_petsynth/data/models").symlink_to(ROOT / "bids_petsynth/data/models")
    for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    apply(folder, diff)
    return folder


def apply(folder: Path, diff: str, *options: str) -> None:
    words = ["patch", "-p1", "--no-backup-if-mismatch", *options]
    done = subprocess.run(words, cwd=folder, input=diff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def python(folder: Path, *words: str) -> None:
    paths = os.pathsep.join([str(folder), str(folder / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


pytestmark = pytest.mark.skipif(shutil.which("patch") is None, reason="needs the program patch")

CASES = {
    "A tracer": (TRACER, ["test_pet_tracers.py", "test_docs.py"]),
    "A clinical variable": (VARIABLE, ["test_clinical_tables.py", "test_docs.py"]),
    "A loss": (LOSS, ["test_training_losses.py", "test_training_engine.py"]),
}


@pytest.mark.parametrize("title", CASES)
def test_the_diff_does_what_the_page_says(title, tmp_path):
    code, _ = CASES[title]
    python(patched(tmp_path, DIFFS[title]), "-c", code)


@pytest.mark.parametrize("title", CASES)
def test_without_the_diff_it_would_not(title, tmp_path):
    with pytest.raises(AssertionError):
        python(ROOT, "-c", CASES[title][0])


@pytest.mark.slow
@pytest.mark.parametrize("title", CASES)
def test_the_tests_that_the_diff_touches_pass(title, tmp_path):
    folder = patched(tmp_path, DIFFS[title])
    tests = [f"tests/{name}" for name in CASES[title][1]]
    python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests)


def test_the_recipe_is_read_and_differs_as_shown(tmp_path):
    from bids_petsynth import load_recipe

    source = tmp_path / "bids_petsynth/data/recipes/petsynth.toml"
    source.parent.mkdir(parents=True)
    shutil.copy(ROOT / "bids_petsynth/data/recipes/petsynth.toml", source)
    apply(tmp_path, DIFFS["A recipe"], "-o", "ours.toml", "bids_petsynth/data/recipes/petsynth.toml")
    ours, theirs = load_recipe(tmp_path / "ours.toml"), load_recipe("petsynth")
    assert (ours.name, ours.process.solver, ours.process.steps) == ("ours", "euler", 20)
    names = [[v.name for v in recipe.conditioning.variables] for recipe in (ours, theirs)]
    assert names[0] == [*names[1], "ptau181_ugot"]
    assert ours.training == theirs.training and ours.network == theirs.network
