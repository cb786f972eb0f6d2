"""Finding real PET scans in datasets that are tidy, untidy or broken."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from pets_small import add, dataset, write

from bids_petsynth.bids.index import find_cases
from bids_petsynth.bids.pets import find_pets, pair
from bids_petsynth.errors import UsageError
from bids_petsynth.pet.tracers import canonical
from bids_petsynth.types import PetScan

DATA = Path(__file__).parents[2] / "shared" / "data"
EXAMPLES = DATA / "bids-examples"


def names(scans) -> list[str]:
    return [scan.path.name.removesuffix(".gz").removesuffix(".nii") for scan in scans]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return dataset(tmp_path / "raw")


def test_one_scan_per_participant_session_and_tracer(root: Path) -> None:
    add(root, "sub-02_ses-b_trc-FDG_pet")
    add(root, "sub-02_ses-b_trc-AV45_pet")
    add(root, "sub-02_ses-a_trc-FDG_pet")
    write(root / "sub-01/pet/sub-01_trc-PIB_pet.nii")
    scans = find_pets(root)
    assert [scan.label for scan in scans] == [
        "sub-01_trc-PIB",
        "sub-02_ses-a_trc-FDG",
        "sub-02_ses-b_trc-AV45",
        "sub-02_ses-b_trc-FDG",
    ]
    assert scans[0] == PetScan("01", None, "PIB", root / "sub-01/pet/sub-01_trc-PIB_pet.nii")
    assert names(find_pets(root, ["sub-02"], ["ses-b"])) == ["sub-02_ses-b_trc-AV45_pet", "sub-02_ses-b_trc-FDG_pet"]
    assert find_pets(root, ["00"]) == []


def test_what_cannot_be_asked_for(root: Path, tmp_path: Path) -> None:
    add(root, "sub-01_ses-a_trc-FDG_pet")
    with pytest.raises(UsageError, match="no participant 99; it has 00, 01"):
        find_pets(root, ["99"])
    with pytest.raises(UsageError, match="session z; they have a"):
        find_pets(root, ["01"], ["z"])
    with pytest.raises(UsageError, match="-d petprep=PATH"):
        find_pets(root, derivatives={"petprep": tmp_path / "no"})
    with pytest.raises(UsageError, match="does not exist"):
        find_pets(tmp_path / "no")


def test_files_that_are_no_raw_pet(root: Path) -> None:
    folder = add(root, "sub-01_trc-AV45_pet").parent
    for name in (
        "sub-01_trc-AV45_space-T1w_res-2_desc-synthMean_pet.nii.gz",
        "sub-01_trc-FDG_desc-synth01_pet.nii.gz",
        "sub-01_trc-FDG_space-T1w_pet.nii.gz",
        "sub-02_trc-FDG_pet.nii.gz",
        "sub-01_ses-a_trc-FDG_pet.nii.gz",
        "sub-01_trc-FDG_mimap.nii.gz",
        "sub-01_trc-FDG_pet.tsv",
    ):
        write(folder / name)
    write(root / "sub-01/anat/sub-01_trc-FDG_pet.nii.gz")
    write(root / "derivatives/petsynth/sub-01/pet/sub-01_trc-FDG_pet.nii.gz")
    (scan,) = find_pets(root)
    assert scan.path.name == "sub-01_trc-AV45_pet.nii.gz" and not scan.notes


@pytest.mark.parametrize(
    "trc, sidecar, expected",
    [
        ("", {"TracerName": "[18F]florbetapir"}, "AV45"),
        ("_trc-FBP", {}, "AV45"),
        ("_trc-FBP", {"TracerName": None}, "AV45"),
        ("_trc-FBP", {"TracerName": "n/a"}, "AV45"),
        ("_trc-PIB", {"TracerName": "Pittsburgh compound B"}, "PIB"),
        ("_trc-AV45", {"TracerName": "F18 marker, lot 7"}, "AV45"),
        ("", {"TracerName": " CIMBI-36 "}, "CIMBI-36"),
        ("_trc-CIMBI36", {"TracerName": "CIMBI-36"}, "CIMBI-36"),
        ("_trc-CIMBI36", {}, "CIMBI36"),
    ],
)
def test_tracer(root: Path, trc: str, sidecar: dict, expected: str) -> None:
    add(root, f"sub-01{trc}_pet", sidecar)
    (scan,) = find_pets(root, canonical=canonical)
    assert (scan.tracer, scan.problem) == (expected, None)


def test_tracer_keeps_its_spelling_where_nobody_gives_canonical_names(root: Path) -> None:
    add(root, "sub-01_trc-FBP_pet", {"TracerName": "[18F]florbetapir"})
    (scan,) = find_pets(root)
    assert (scan.tracer, scan.problem) == ("[18F]florbetapir", None)


@pytest.mark.parametrize(
    "sidecar", [None, {}, {"TracerName": 7}, {"TracerName": " "}, {"TracerName": "n/a"}, {"TracerName": ["FDG"]}]
)
def test_no_tracer_is_a_problem_of_that_scan_only(root: Path, sidecar) -> None:
    add(root, "sub-01_pet", sidecar)
    add(root, "sub-02_trc-FDG_pet")
    one, two = find_pets(root)
    assert one.tracer == "unknown" and two.problem is None
    assert one.problem == (
        "sub-01_pet.nii.gz has no tracer: write TracerName into its sidecar or trc-<label> into its name."
    )


def test_tracers_that_contradict_each_other(root: Path) -> None:
    add(root, "sub-01_trc-AV45_pet", {"TracerName": "FDG"})
    (scan,) = find_pets(root, canonical=canonical)
    assert "sub-01_trc-AV45_pet.nii.gz is FDG by TracerName" in scan.problem and "but AV45 by its name" in scan.problem


def test_newest_run(root: Path) -> None:
    for run in ("run-2", "run-10", "run-1"):
        add(root, f"sub-01_ses-a_trc-FDG_{run}_pet")
    (scan,) = find_pets(root)
    assert scan.path.name == "sub-01_ses-a_trc-FDG_run-10_pet.nii.gz"
    assert scan.notes == (
        "Of 3 PET images sub-01_ses-a_trc-FDG_run-10_pet.nii.gz is used, the highest run; not used: "
        "sub-01_ses-a_trc-FDG_run-1_pet.nii.gz, sub-01_ses-a_trc-FDG_run-2_pet.nii.gz.",
    )
    times = {"run-2": "2020-03-02T10:00:00", "run-10": "2020-03-01T10:00:00Z", "run-1": "2020-02-01"}
    rows = [f"pet/sub-01_ses-a_trc-FDG_{run}_pet.nii.gz\t{text}" for run, text in times.items()]
    write(root / "sub-01/ses-a/sub-01_ses-a_scans.tsv", "\n".join(["filename\tacq_time", *rows]) + "\n")
    (scan,) = find_pets(root)
    assert scan.path.name == "sub-01_ses-a_trc-FDG_run-2_pet.nii.gz" and scan.date == "2020-03-02"
    assert "the newest by acq_time" in scan.notes[0]


def test_spellings_of_one_tracer_are_one_scan(root: Path) -> None:
    add(root, "sub-01_run-1_pet", {"TracerName": "MC1"})
    add(root, "sub-01_run-2_pet", {"TracerName": "Mc-1"})
    (scan,) = find_pets(root)
    assert scan.tracer == "Mc-1" and "highest run" in scan.notes[0]


@pytest.mark.parametrize(
    "there, best",
    [
        (["rec-acdyn", "rec-acstat", "rec-nacdyn", "rec-nacstat"], "rec-acdyn"),
        (["rec-acstat", "rec-nacdyn"], "rec-acstat"),
        (["", "rec-nacdyn"], ""),
        (["rec-nacstat", "rec-nacdyn"], "rec-nacdyn"),
        (["rec-sim", "rec-nacstat"], "rec-nacstat"),
        (["rec-acdyn_run-1", "rec-nacdyn_run-2"], "rec-acdyn_run-1"),
        (["rec-acdyn_run-1", "rec-acdyn_run-2", "rec-acstat_run-2"], "rec-acdyn_run-2"),
        (["rec-acdyn_run-1", "rec-acstat_run-2"], "rec-acstat_run-2"),
    ],
)
def test_reconstructions(root: Path, there: list[str], best: str) -> None:
    files = {rec: add(root, "_".join(filter(None, ["sub-01_trc-FDG", rec, "pet"]))) for rec in there}
    (scan,) = find_pets(root)
    assert scan.path == files[best]
    (note,) = scan.notes
    assert note.startswith(f"Of {len(there)} PET images {scan.path.name} is used, ")
    left = note.split("not used: ")[1]
    assert all((path.name in left) == (rec != best) for rec, path in files.items())
    assert ("reconstruction" in note) == (there != ["rec-acdyn_run-1", "rec-acstat_run-2"])


def test_filters(root: Path) -> None:
    add(root, "sub-01_ses-a_trc-FDG_rec-acdyn_run-1_pet")
    add(root, "sub-01_ses-a_trc-FDG_rec-acstat_run-2_pet")
    add(root, "sub-01_ses-a_trc-AV45_pet")
    (scan,) = find_pets(root, filters={"pet": {"reconstruction": "acdyn"}, "t1w": {"session": "z"}})
    assert names([scan]) == ["sub-01_ses-a_trc-FDG_rec-acdyn_run-1_pet"] and not scan.notes
    assert names(find_pets(root, filters={"pet": {"tracer": "AV45", "run": None}})) == ["sub-01_ses-a_trc-AV45_pet"]
    assert names(find_pets(root, filters={"pet": {"run": "*"}})) == ["sub-01_ses-a_trc-FDG_rec-acstat_run-2_pet"]
    assert find_pets(root, filters={"pet": {"session": "b"}}) == []


@pytest.mark.parametrize(
    "filters, words",
    [
        ({"pet": {"traser": "x"}}, "cannot be used"),
        ({"PET": {}}, "unknown section PET; the PET is chosen by section pet"),
        ({"pet": {"subject": "01"}}, "--participant-label"),
    ],
)
def test_bad_filters(root: Path, filters: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_pets(root, filters=filters)


def test_sidecars_are_inherited(root: Path) -> None:
    write(root / "pet.json", {"TracerName": "FDG", "Units": "Bq/mL"})
    write(root / "trc-AV45_pet.json", {"TracerName": "florbetapir"})
    write(root / "T1w.json", {"FlipAngle": 8})
    add(root, "sub-01_ses-a_trc-AV45_pet", {"Units": "kBq/mL"})
    add(root, "sub-01_ses-a_pet")
    write(add(root, "sub-02_trc-PIB_pet").with_name("sub-02_trc-PIB_pet.json"), "{broken")
    av45, fdg, pib = find_pets(root, canonical=canonical)
    assert av45.sidecar == {"TracerName": "florbetapir", "Units": "kBq/mL"} and av45.tracer == "AV45"
    assert fdg.sidecar == {"TracerName": "FDG", "Units": "Bq/mL"} and fdg.tracer == "FDG"
    assert "sub-02_trc-PIB_pet.json is ignored" in pib.notes[0]


def test_absent_bytes_are_a_problem_of_their_scan_only(root: Path) -> None:
    add(root, "sub-01_trc-FDG_pet")
    link = root / "sub-02/pet/sub-02_trc-FDG_pet.nii.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../.git/annex/objects/aa/bb/key")
    add(root, "sub-03_trc-FDG_pet", text="")
    add(root, "sub-04_trc-FDG_pet", text="version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    problems = {scan.participant: scan.problem for scan in find_pets(root)}
    assert problems["01"] is None
    assert "sub-02_trc-FDG_pet.nii.gz is a link" in problems["02"] and "datalad get" in problems["02"]
    assert "is empty" in problems["03"]
    assert "git lfs pull" in problems["04"]


def test_dates(root: Path) -> None:
    add(root, "sub-01_ses-a_trc-FDG_pet")
    add(root, "sub-01_ses-a_trc-PIB_pet")
    add(root, "sub-01_ses-b_trc-FDG_pet")
    write(root / "sub-01/sub-01_sessions.tsv", "session_id\tacq_time\nses-a\t2019-05-06T07:08:09\nses-b\tn/a\n")
    write(
        root / "sub-01/ses-a/sub-01_ses-a_scans.tsv",
        "filename\tacq_time\npet/sub-01_ses-a_trc-PIB_pet.nii.gz\t2019-05-08T10:00:00\n",
    )
    assert [scan.date for scan in find_pets(root)] == ["2019-05-06", "2019-05-08", None]


def test_only_the_pet_of_those_asked_for_is_looked_at(root: Path) -> None:
    for i in range(500):
        add(root, f"sub-{i:03d}_trc-FDG_pet")
        write(root / f"sub-{i:03d}/func/sub-{i:03d}_task-rest_bold.nii.gz")
    find_pets(root, ["001"])  # imports pybids
    start = time.process_time()
    assert names(find_pets(root, ["007"])) == ["sub-007_trc-FDG_pet"]
    assert time.process_time() - start < 1


@pytest.mark.skipif(not EXAMPLES.exists(), reason="shared data absent")
@pytest.mark.parametrize("name", [f"pet00{i}" for i in range(1, 7)])
def test_bids_examples(name: str) -> None:
    folder = EXAMPLES / name
    sidecars = {path.stem: json.loads(path.read_text()) for path in folder.rglob("*_pet.json")}
    scans = find_pets(folder, canonical=canonical)
    assert sidecars and sorted(names(scans)) == sorted(sidecars)
    for scan in scans:
        assert scan.sidecar == sidecars[names([scan])[0]]
        assert scan.tracer == scan.sidecar["TracerName"]  # as the dataset spells it; FDG is canonical
        assert scan.problem is None and not scan.notes and not scan.prepared
    has_t1w = bool(list(folder.rglob("*_T1w.nii*")))
    for found in pair(find_cases(folder), scans):
        if has_t1w:
            assert (found.case.participant, found.case.session) == (found.pet.participant, found.pet.session)
        else:
            assert found.case is None and "has no T1w image" in found.note
