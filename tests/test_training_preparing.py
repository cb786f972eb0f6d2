"""A site's pairs: which of several scans is kept, and several processes that prepare together."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ground_small import SmallGround
from models_small import small_recipe

from bids_petsynth.bids.pets import pair, with_pets
from bids_petsynth.errors import InputError
from bids_petsynth.pet.preparation import PlacedPET
from bids_petsynth.training import phases, preparing, real
from bids_petsynth.types import Anatomy, Case, ClinicalRecord, Grid, OtherScan, PetScan

LOADS = {"near": 70.0, "far": 5.0, "unreadable": None}


def pet(name: str, day: str | None, tracer: str = "AV45") -> PetScan:
    return PetScan("01", name, tracer, Path(f"sub-01_ses-{name}_trc-{tracer}_pet.nii.gz"), date=day)


def t1w(participant: str = "01") -> Case:
    return Case(participant, "base", Path(f"sub-{participant}_ses-base_T1w.nii.gz"), t1w_date="2020-01-31")


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    """``preparing.prepare`` with preparations that cost nothing; returns people and rows by session."""

    def head(case, recipe, how):
        return Path(f"{case.label}.npz"), Anatomy(np.zeros(1), np.zeros(1), np.zeros(1), Grid((1, 1, 1), np.eye(4)))

    def scan(pair, anatomy, how):
        if pair.pet.session == "unreadable":
            raise InputError("cut off")
        return Path(pair.pet.session), {"frames": 1.0}, LOADS[pair.pet.session]

    monkeypatch.setattr(preparing, "_head", head)
    monkeypatch.setattr(preparing, "_scan", scan)

    def run(*pets: PetScan):
        how = preparing.Preparation(tmp_path)
        people, rows = preparing.prepare(
            pair([t1w()], pets), None, lambda case: ClinicalRecord({}), how, lambda line: None
        )
        return people, {row["session_id"]: row for row in rows}

    return run


def test_sessions_that_lie_an_unknown_time_apart_are_noted(prepared):
    _, rows = prepared(pet("near", None))
    assert rows["near"]["status"] == "used"
    assert rows["near"]["notes"].endswith("are of two sessions, and no acq_time tells how far apart they are.")


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_scans_with_one_tracer_the_nearest_is_kept_and_the_other_said_to_be_left_out(prepared, order):
    people, rows = prepared(*[pet("near", "2020-02-01"), pet("far", "2020-06-30")][::order])
    ((stored,)) = people
    assert stored.scans == {"AV45": Path("near")} and stored.centiloid == LOADS["near"]
    assert rows["near"]["status"] == "used" and rows["far"]["status"] == "left out"
    assert (
        "sub-01_ses-near_trc-AV45" in rows["far"]["reason"]
        and "1 days from the T1w, this one 151" in (rows["far"]["reason"])
    )


def test_where_both_are_as_near_the_newer_is_kept_and_a_scan_of_no_use_keeps_none_out(prepared):
    _, rows = prepared(pet("far", "2020-01-21"), pet("near", "2020-02-10"))
    assert rows["near"]["status"] == "used" and "newer" in rows["far"]["reason"]
    people, rows = prepared(pet("unreadable", "2020-01-31"), pet("far", "2020-06-30"), pet("near", None, "FDG"))
    assert {name: row["status"] for name, row in rows.items()} == {
        "unreadable": "left out",
        "far": "used",
        "near": "used",
    }
    assert people[0].scans == {"AV45": Path("far"), "FDG": Path("near")}


def test_participant_is_given_the_same_one_and_says_so():
    case = with_pets([t1w()], [pet("far", "2020-06-30"), pet("near", "2020-02-01")], ["AV45"], 365)[0]
    assert [scan.session for scan in case.pets] == ["near"]
    assert any("ses-far_trc-AV45_pet.nii.gz is not used" in note for note in case.notes)


def test_two_processes_may_write_the_same_file_at_once(tmp_path, monkeypatch):
    """The second writes all of it while the first is in the middle: neither takes the other's part away."""
    path, savez, begun = tmp_path / "head.npz", np.savez, []

    def interrupted(part, **arrays):
        savez(part, **arrays)
        if not begun:
            begun.append(part)
            monkeypatch.setattr(os, "getpid", lambda: 2)
            real._write(path, values=np.ones(3))

    monkeypatch.setattr(np, "savez", interrupted)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    real._write(path, values=np.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["head.npz"]


def test_what_other_labels_were_used_for_is_prepared_again(tmp_path, monkeypatch):
    """Reference regions and masks are the labels', so a scan that was prepared with others does not fit a new head."""
    made = []
    scan = OtherScan("01", "base", "T2w", tmp_path / "T2w.nii.gz")
    scan.path.write_bytes(b"an image")
    anatomy = Anatomy(np.ones((2, 2, 2), np.float32), np.ones((2, 2, 2), int), np.zeros(0), Grid((2, 2, 2), np.eye(4)))
    monkeypatch.setattr("bids_petsynth.anatomy.others.prepare_other", lambda *_: made.append(1) or np.ones((2, 2, 2)))
    monkeypatch.setattr("bids_petsynth.reports.training.other_picture", lambda *_: b"picture")
    (tmp_path / "scans").mkdir()
    paths = [preparing._other(scan, anatomy, preparing.Preparation(tmp_path))[0] for _ in range(2)]
    monkeypatch.setattr(preparing, "weights_hash", lambda: "other weights")
    paths.append(preparing._other(scan, anatomy, preparing.Preparation(tmp_path))[0])
    assert len(made) == 2 and paths[0] == paths[1] != paths[2]


@dataclass
class Process:
    """One of several that train together, in place of lightning's."""

    global_rank: int
    world_size: int
    waited: int = 0

    @property
    def is_global_zero(self) -> bool:
        return self.global_rank == 0

    def barrier(self) -> None:
        self.waited += 1


@pytest.mark.parametrize("phase", ["pairs", "heads", "scans"])
def test_each_process_prepares_its_part_before_all_read_everything(tmp_path, monkeypatch, phase):
    """Before they wait for each other, no head is worked on twice; after it, all know the same people."""
    cases = [t1w(f"{number:02d}") for number in range(5)]
    pets = [PetScan(case.participant, "base", "AV45", Path("x")) for case in cases] if phase != "heads" else []
    given = {"pairs": (pair(cases, pets), ([], [])), "heads": ([], (cases, [])), "scans": ([], ([], pair([], pets)))}
    worked: dict[int, list[str]] = {}
    found = []
    for rank in range(2):
        process = Process(rank, 2)

        def head(case, recipe, how, process=process, rank=rank):
            if not process.waited:
                worked.setdefault(rank, []).append(case.participant)
            return Path(f"{case.participant}.npz"), {"notes": ""} if isinstance(case, PetScan) else None

        monkeypatch.setattr(preparing, "_head", head)
        monkeypatch.setattr(preparing, "_alone", head)
        monkeypatch.setattr(preparing, "_scan", lambda pair, anatomy, how: (Path("scan"), {}, None))
        how = preparing.Preparation(tmp_path)
        read = lambda case: ClinicalRecord({})  # noqa: E731
        found.append(preparing.prepare_together(process, *given[phase], None, read, how, lambda line: None))
        assert process.waited == 1
    names = [case.participant for case in cases]
    assert sorted(worked[0] + worked[1]) == names and len(worked[0]) == 3
    people, rows, heads, references = found[0]
    assert found[0] == found[1] and len(rows) == len(pets)
    made = {"pairs": [one.head for one in people], "heads": [path for _, path in heads]}
    made["scans"] = [path for _, path in references]
    assert {phase: [Path(f"{name}.npz") for name in names]} == {key: paths for key, paths in made.items() if paths}
    assert {tracer for tracer, _ in references} <= {"AV45"} and [name for name, _ in heads] in ([], names)


def test_a_scan_without_t1w_lends_its_style_as_bright_as_the_others():
    """Every third case is made in its style, of its tracer alone, and heads that have no PET keep their turn."""
    rng = np.random.default_rng(0)
    recipe, asked = small_recipe(), []
    ground = SmallGround(recipe, count=3)
    brain = np.zeros(ground.case(0).t1w.shape, bool)
    brain[2:-2, 2:-2, 2:-2] = True
    uptake = np.where(brain, rng.random(brain.shape, np.float32), 0)
    uptake /= uptake[brain].mean()

    class Ground(SmallGround):
        references = (("FDG", lambda: (uptake, brain)), ("PIB", lambda: pytest.fail("nobody else has it")))

    def transfer(t1w, head, pet, its):
        asked.append((head, pet, its))
        return pet

    make = phases.styled(Ground(recipe, count=3), transfer)
    for number in range(6):
        case, other = make(number), ground.case(number + 1 + number // 3)
        assert torch.equal(case.pet["AV45"], other.pet["AV45"])
        assert torch.equal(case.pet["FDG"], other.pet["FDG"]) == (number % 3 != 2)
    head, pet, its = asked[-1]
    scan, inside = ground.case(7).pet["FDG"].numpy(), (ground.case(7).measured > 0).numpy()
    assert (its == brain).all() and pet[brain].mean() == pytest.approx(scan[inside].mean(), rel=1e-5)
    assert np.corrcoef(pet[brain], uptake[brain])[0, 1] == pytest.approx(1)

    # people of one tracer each, in step with the references: each of these has its turns
    taken = []
    Ground.references = tuple(
        (name, lambda name=name: (taken.append(name), (uptake, brain))[1]) for name in ("AV45", "FDG")
    )
    turns = {number: (("AV45",), ("FDG",))[number % 2] for number in range(60)}
    make = phases.styled(Ground(recipe, 6, turns), transfer)
    for number in range(36):
        make(number)
    assert sorted(taken) == ["AV45"] * 6 + ["FDG"] * 6


def test_every_head_is_made_in_the_style_of_other_people():
    recipe, pairs = small_recipe(), []

    class Sessions(SmallGround):
        """Two sessions of each of four people; ``unpaired`` is a T1w without PET."""

        unpaired = (lambda: replace(SmallGround(recipe).case(99), head="", pet={}),)

        def case(self, number):
            return replace(super().case(number), head=f"{number % 8 // 2}")

    ground = Sessions(recipe, count=8)
    cases = [ground.case(number) for number in range(30)]
    heads = {case.t1w.numpy().tobytes(): number for number, case in enumerate(cases)}
    scans = {case.pet["AV45"].numpy().tobytes(): number for number, case in enumerate(cases)}

    def transfer(t1w, head, pet, its):
        pairs.append((heads.get(t1w.tobytes()), scans.get(pet.tobytes())))
        return pet

    make = phases.styled(ground, transfer)
    for number in range(32):
        make(number)
    pairs = [pair for pair in pairs if pair[1] is not None]  # florbetapir alone
    own = [(head, scan) for head, scan in pairs if head is not None]
    assert [head for head, _ in own] == list(range(16)) and len(pairs) == 32, "in turn with the T1w without PET"
    assert all(head % 8 // 2 != scan % 8 // 2 for head, scan in own)
    assert len({(head % 8, scan % 8) for head, scan in own}) > 8, "another partner the next time"


def test_scans_without_t1w_are_prepared_once_and_told(tmp_path, monkeypatch):
    scans = [replace(pet("base", None), participant=name, path=tmp_path / f"{name}.nii.gz") for name in ("02", "03")]
    scans.append(replace(scans[0], participant="04", problem="the file is a dangling link."))
    for scan in scans:
        scan.path.write_text(scan.participant)
    worked, told = [], []

    def on_template(scan, *rest):
        worked.append(scan.participant)
        if scan.participant == "03":
            raise InputError("no brain was found")
        uptake, brain = np.ones((2, 2, 2), np.float32), np.ones((2, 2, 2), bool)
        return PlacedPET(uptake, brain, Grid((2, 2, 2), np.eye(4)), {"brain_coverage": 0.91}, ("91 % of the brain.",))

    monkeypatch.setattr("bids_petsynth.pet.preparation.pet_on_template", on_template)
    monkeypatch.setattr("bids_petsynth.reports.training.alone_picture", lambda *_: b"picture")
    cases = [Case("02", "base", None, problem="sub-02_ses-base_T1w.nii.gz is a dangling link.")]
    arguments = pair(cases, scans), small_recipe(), preparing.Preparation(tmp_path), told.append
    for _ in range(2):
        references, rows = preparing.pets_without_t1w(*arguments)
        ((tracer, path),) = references
        uptake, brain = real.load_alone(path)
        assert tracer == "AV45" and (uptake == 1).all() and brain.dtype == bool
        assert [row["status"] for row in rows] == ["used", "left out", "left out"]
        assert rows[0]["brain_coverage"] == 0.91 and rows[0]["notes"].endswith("pre-training. 91 % of the brain.")
        assert rows[0]["notes"].startswith("sub-02_ses-base_T1w.nii.gz is a dangling link.")
        assert "no brain" in rows[1]["reason"] and "dangling" in rows[2]["reason"]
        assert (tmp_path / rows[0]["picture"]).read_bytes() == b"picture"
    assert worked == ["02", "03", "03"] and sum("left out" in line for line in told) == 4
