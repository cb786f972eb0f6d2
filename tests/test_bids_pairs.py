"""Which T1w belongs to a PET scan."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_petsynth.bids.pets import pair
from bids_petsynth.types import Case, PetScan


def case(session: str | None = None, date: str | None = None, problem: str | None = None, participant="01") -> Case:
    name = f"sub-{participant}" + (f"_ses-{session}" if session else "") + "_T1w.nii.gz"
    return Case(participant, session, None if problem else Path(name), t1w_date=date, problem=problem)


def pet(session: str | None = None, date: str | None = None) -> PetScan:
    return PetScan("01", session, "AV45", Path("sub-01_pet.nii.gz"), date=date)


A, B = case("a", "2020-01-01"), case("b", "2020-12-31")  # 2020 has 366 days


@pytest.mark.parametrize(
    "cases, scan, expected, gap",
    [
        ([A, B], pet("b", "2020-01-02"), B, 364),  # the session counts, even where another T1w is nearer
        ([A, B], pet("b"), B, None),
        ([case("a"), case("b")], pet("b", "2020-01-02"), case("b"), None),
        ([A, B], pet("c", "2020-01-11"), A, 10),
        ([A, B], pet("c", "2020-12-30"), B, 1),
        ([A, B], pet("c", "2019-12-31"), A, 1),
        ([B, A], pet(None, "2020-01-01"), A, 0),
        ([A, case(None)], pet(None, "2020-01-02"), case(None), None),
        ([A, case("b")], pet("c", "2020-02-01"), A, 31),
        ([A], pet("c", "2020-12-31"), A, 365),
        ([case("a", "2020-01-01", "x"), B], pet("a", "2020-01-01"), B, 365),
        ([case(None, "2020-01-01")], pet("c"), case(None, "2020-01-01"), None),
        ([case(None)], pet("c"), case(None), None),
        ([case("a")], pet(None), case("a"), None),
        ([case(None, participant="02"), case("a")], pet(None), case("a"), None),
        ([case("a", problem="x"), case(None)], pet("c"), case(None), None),
    ],
)
def test_pairs(cases: list[Case], scan: PetScan, expected: Case, gap: int | None) -> None:
    (found,) = pair(cases, [scan])
    assert (found.case, found.pet, found.gap_days, found.note) == (expected, scan, gap, "")


def test_only_t1w_of_another_session_at_unknown_time_is_told() -> None:
    (found,) = pair([case("a")], [pet("c")])
    assert found.case == case("a") and found.gap_days is None
    assert "two sessions" in found.note and "sub-01_ses-a_T1w.nii.gz" in found.note


@pytest.mark.parametrize(
    "cases, scan, note",
    [
        ([], pet("a"), "sub-01 has no T1w image."),
        ([case(participant="02")], pet(), "sub-01 has no T1w image."),
        ([case("a", problem="sub-01_T1w.nii.gz is empty.")], pet("a"), "sub-01_T1w.nii.gz is empty."),
        ([A], pet("c", "2021-01-01"), "The nearest T1w, sub-01_ses-a_T1w.nii.gz, is 366 days away, more than 365."),
        ([A, B], pet("c", "2018-01-01"), "The nearest T1w, sub-01_ses-a_T1w.nii.gz, is 730 days away, more than 365."),
    ],
)
def test_pairs_without_t1w(cases: list[Case], scan: PetScan, note: str) -> None:
    (found,) = pair(cases, [scan])
    assert (found.case, found.pet, found.gap_days, found.note) == (None, scan, None, note)


def test_several_t1w_and_nothing_that_tells_the_nearest() -> None:
    (found,) = pair([A, B], [pet("c")])
    assert found.case is None and "None of 2 T1w images" in found.note and "acq_time" in found.note


def test_max_gap_and_order() -> None:
    pets = [pet("d", "2020-01-05"), pet("a"), pet("c", "2020-01-09")]
    found = pair([A, B], pets, max_gap=4)
    assert [p.pet for p in found] == pets
    assert [p.case for p in found] == [A, A, None]
    assert "8 days away, more than 4" in found[2].note
