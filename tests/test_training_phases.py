"""A whole training at toy size: who stops it and who is reported, and that a kill within a phase changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ground_small import SmallGround
from models_small import small_recipe

from bids_petsynth.training import generator
from bids_petsynth.training.generator import Run, train
from bids_petsynth.training.validation import share_held_out

FIGURES = dict.fromkeys(("mae", "mae_of_mean", "bias", "voxel_r"), 0.5)


def held_out(people: int, scans: int = 1):
    case = SmallGround(small_recipe()).case(0)
    return tuple(replace(case, head=f"{n}") for n in range(people) for _ in range(scans))


@pytest.mark.parametrize("people", [8, 11, 40])
def test_those_who_stop_a_training_are_not_those_who_are_reported(people):
    cases = held_out(people, scans=2)
    shared = share_held_out(cases, patience=3)
    watched, reported = ({case.head for case in part} for part in (shared.watched, shared.reported))
    assert watched | reported == {f"{n}" for n in range(people)} and not watched & reported
    assert len(shared.watched) == 2 * len(watched) and 3 <= len(watched) <= 8 and len(watched) <= len(reported)
    assert f"of {len(reported)} people; {len(watched)} other" in shared.note


def test_where_they_are_few_or_nothing_is_decided_all_are_reported():
    few = share_held_out(held_out(7), patience=1)
    assert len(few.reported) == len(few.watched) == 7 and "too good" in few.note
    plain = share_held_out(held_out(20), patience=0)
    assert len(plain.reported) == 20 and len(plain.watched) == 2 and plain.note == ""


@pytest.mark.parametrize("patience", [0, 50])
def test_the_card_is_of_the_people_who_did_not_stop_it(tmp_path, monkeypatch, patience):
    recipe = small_recipe(
        regional=None, tracers=["AV45"], training={"steps": 2, "patience": patience, "tensorboard": False}
    )
    ground = SmallGround(recipe, 3, tracers=("AV45",), held=held_out(8))
    seen = []

    def figures(synthesizer, cases, n, voxel_size):
        seen.append({case.head for case in cases})
        return {"AV45": FIGURES}, {"AV45": 1.0}

    monkeypatch.setattr(generator, "evaluate", figures)
    model = train(ground, recipe, Run(tmp_path, validate=1e-9, report=lambda line: None))
    *watched, reported = seen
    assert len(watched) == 2 and watched[0] == watched[1]
    assert ("4 other held-out people" in model.card) == bool(patience)
    assert len(reported) == (4 if patience else 8) and bool(reported & watched[0]) == (not patience)
