"""Scans as sources: which of them a network is given, and that it makes a difference."""

from __future__ import annotations

import numpy as np
import pytest
from models_small import CLASSES, SHAPE, small_model, small_recipe

from bids_petsynth.models.conditioning import taken_sources
from bids_petsynth.models.recipe import ConditioningSpec, Recipe
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.types import Anatomy, ClinicalRecord, Grid

SOURCES = ["T1w", "T2w", "FDG", "AV45"]


def recipe_with(fusion: str, **changes) -> Recipe:
    conditioning = {"images": [], "sources": SOURCES, "fusion": fusion}
    return small_recipe(regional=None, conditioning=conditioning, tracers=["AV45", "FDG"], **changes)


def anatomy() -> Anatomy:
    rng = np.random.default_rng(0)
    probabilities = rng.random((CLASSES, *SHAPE)).astype(np.float16)
    return Anatomy(rng.random(SHAPE, np.float32), probabilities.argmax(0), probabilities, Grid(SHAPE, np.eye(4)))


@pytest.mark.parametrize(
    ("fusion", "there", "target", "taken"),
    [
        ("attention", {"T1w", "FDG", "AV45"}, "AV45", ("T1w", "FDG")),
        ("attention", {"T1w", "CT"}, "AV45", ("T1w",)),
        ("concatenation", {"T1w", "FDG"}, "AV45", ("FDG",)),
        ("concatenation", {"T1w", "T2w"}, "AV45", ("T1w",)),
        ("concatenation", {"T1w", "AV45"}, "AV45", ("T1w",)),
        ("concatenation", {"AV45"}, "AV45", ()),
    ],
)
def test_what_is_taken_of_what_is_there(fusion, there, target, taken):
    assert taken_sources(ConditioningSpec(sources=SOURCES, fusion=fusion), there, target) == taken


@pytest.mark.parametrize("fusion", ["attention", "concatenation"])
def test_a_real_pet_changes_what_is_drawn_and_the_target_itself_does_not(fusion):
    engine, head = Synthesizer(small_model(recipe_with(fusion))), anatomy()
    scan = np.random.default_rng(1).random(SHAPE, np.float32)

    def drawn(**given: np.ndarray) -> np.ndarray:
        return engine.draw(head, ClinicalRecord({}), "AV45", n_draws=1, given=given)

    alone, with_fdg = drawn(), drawn(FDG=scan)
    assert np.abs(with_fdg - alone).max() > 1e-3
    np.testing.assert_array_equal(drawn(AV45=scan), alone)
    # a T2w beside the T1w is one more source to attention; what takes one source goes on with the first of its list
    assert (np.abs(drawn(T2w=scan) - alone).max() > 1e-3) == (fusion == "attention")
