"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from places import SHARED, as_ours, made_once, quick_labels

import bids_petsynth.anatomy.registration  # noqa: F401  (fixes ANTs' threads before a test uses ants by itself)

#: Files that take minutes or make what others wait for. They are begun with, so that no process waits or ends late.
FIRST = ("test_train_command.py", "test_participant_spaces.py", "test_participant.py")


def pytest_configure(config: pytest.Config) -> None:
    """Give each process of a run one core: threads of several on the same cores mostly wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of :data:`FIRST`, then the others as they are."""
    rank = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))


@pytest.fixture(scope="session")
def example(tmp_path_factory) -> Path:
    """The phantom example dataset."""
    from bids_petsynth.cli.example import write_example

    folder = tmp_path_factory.mktemp("example") / "bids"
    write_example(folder)
    return folder


@pytest.fixture(scope="session")
def ixi() -> Path:
    """26 real heads with DLMUSE segmentations."""
    if not (SHARED / "ixi").is_dir():
        pytest.skip("the real scans of shared/data/ixi are not here")
    return SHARED / "ixi"


@pytest.fixture(scope="session")
def site(example, tmp_path_factory) -> Path:
    """Six simulated people on the two phantom heads, with one amyloid scan each; only read by tests."""
    from bids_petsynth.cli.main import main

    def make(folder: Path) -> None:
        words = [str(example), str(folder), "simulate", "--people-per-head", "3", "--tracer", "AV45"]
        with quick_labels():
            assert main([*words, "--random-seed", "3"]) == 0

    return made_once(tmp_path_factory, "site", make)


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory) -> Path:
    """The default recipe with tiny networks, on the grid that heads are labelled on."""
    from models_small import small_recipe

    from bids_petsynth.models.recipe import recipe_text

    small = small_recipe(
        grid={"shape": [96, 112, 96]},
        network={"channels": [16, 24]},
        regional={"width": 32, "training_steps": 400, "batch": 32, "rate": 3e-3},
        training={"steps": 3},
    )
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(recipe_text(small))
    return path


@pytest.fixture(scope="session")
def trained_site(site, tiny_recipe, tmp_path_factory) -> Path:
    """Output folder in which a model ``ours`` was trained on the site's scans; only read by tests."""
    from bids_petsynth.cli.main import main

    def make(folder: Path) -> None:
        with quick_labels():
            assert main([str(site), str(folder), "train", *as_ours(tiny_recipe)]) == 0

    return made_once(tmp_path_factory, "trained", make)


@pytest.fixture(scope="session")
def prepared_site(trained_site) -> Path:
    """Folder of the heads and scans that ``train`` prepared."""
    return trained_site / "models" / "ours-training"
