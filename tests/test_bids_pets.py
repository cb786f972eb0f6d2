"""Finding real PET scans in datasets that are tidy, untidy or broken, and the T1w of each."""

from __future__ import annotations

import json
import re
import tarfile
import time
from pathlib import Path

import pytest

from bids_petsynth.bids.index import find_cases
from bids_petsynth.bids.pets import find_pets, pair
from bids_petsynth.errors import UsageError
from bids_petsynth.pet.tracers import tracer
from bids_petsynth.types import Case, PetScan

DATA = Path(__file__).parents[2] / "shared" / "data"
EXAMPLES = DATA / "bids-examples"
PETPREP = DATA / "petprep-derivatives" / "ds004869_testdata.tar.gz"


def write(path: Path, content: str | dict = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def canonical(name: str) -> str:
    return tracer(name).name


def names(scans) -> list[str]:
    return [scan.path.name.removesuffix(".gz").removesuffix(".nii") for scan in scans]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset with a participant without PET; tests add the scans that they are about."""
    folder = tmp_path / "raw"
    write(folder / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.10.0"})
    write(folder / "sub-00/anat/sub-00_T1w.nii.gz")
    return folder


def add(root: Path, name: str, sidecar: dict | None = None, text: str = "x") -> Path:
    """A PET image named ``name`` in the folder of its participant and session."""
    folder = root.joinpath(*[part for part in name.split("_") if part.startswith(("sub-", "ses-"))], "pet")
    if sidecar is not None:
        write(folder / f"{name}.json", sidecar)
    return write(folder / f"{name}.nii.gz", text)


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


# --- what PETPrep made


def test_petprep_takes_the_place_of_the_raw_scan(root: Path, tmp_path: Path) -> None:
    raw = add(root, "sub-01_ses-a_trc-AV45_pet", {"Units": "Bq/mL", "TaskName": "rest", "BodyPart": "BRAIN"})
    write(root / "sub-01/ses-a/sub-01_ses-a_scans.tsv", f"filename\tacq_time\npet/{raw.name}\t2020-01-02\n")
    prep = tmp_path / "petprep"
    made = add(prep, "sub-01_ses-a_trc-AV45_space-T1w_desc-preproc_pet", {"Units": "kBq/mL", "TaskName": None})
    for name in (
        "space-MNI152NLin2009cAsym_desc-preproc",
        "space-T1w_pvc-GTM_desc-preproc",
        "run-2_space-T1w_desc-preproc",
        "space-T1w_desc-smooth",
        "desc-preproc",
    ):
        add(prep, f"sub-01_ses-a_trc-AV45_{name}_pet")
    add(prep, "sub-01_ses-a_trc-FDG_space-T1w_desc-preproc_pet")
    (scan,) = find_pets(root, derivatives={"petprep": prep})
    assert scan == PetScan(
        participant="01",
        session="a",
        tracer="AV45",
        path=made,
        sidecar={"Units": "kBq/mL", "TaskName": "rest", "BodyPart": "BRAIN"},
        date="2020-01-02",
        prepared=True,
        notes=(f"petprep: {made.name} is used in place of {raw.name}.",),
    )


def test_broken_sidecars_of_a_prepared_scan_are_told(root: Path, tmp_path: Path) -> None:
    raw = add(root, "sub-01_trc-AV45_pet")
    made = add(tmp_path / "p", "sub-01_trc-AV45_space-T1w_desc-preproc_pet")
    broken = [write(path.with_name(path.name.replace(".nii.gz", ".json")), "{broken") for path in (raw, made)]
    (scan,) = find_pets(root, derivatives={"petprep": tmp_path / "p"})
    assert scan.problem is None and scan.sidecar == {} and len(scan.notes) == 3
    assert [f"{path.name} is ignored" in note for path, note in zip(broken, scan.notes, strict=False)] == [True, True]


def test_petprep_without_this_scan(root: Path, tmp_path: Path) -> None:
    raw = add(root, "sub-01_trc-AV45_pet")
    prep = tmp_path / "prep"
    add(prep, "sub-01_trc-AV45_space-T1w_pvc-GTM_desc-preproc_pet")
    (scan,) = find_pets(root, derivatives={"petprep": prep, "fmriprep": prep})
    assert (scan.path, scan.prepared, scan.problem) == (raw, False, None)
    assert scan.notes == (f"petprep: no preprocessed PET of {raw.name} in T1w space, the raw scan is used.",)


def test_petprep_on_a_coarser_grid(root: Path, tmp_path: Path) -> None:
    add(root, "sub-01_trc-AV45_pet")
    made = add(tmp_path / "p", "sub-01_trc-AV45_space-T1w_res-2_desc-preproc_pet")
    assert [scan.path for scan in find_pets(root, derivatives={"petprep": tmp_path / "p"})] == [made]


def test_first_of_several_derivatives(root: Path, tmp_path: Path) -> None:
    add(root, "sub-01_trc-AV45_pet")
    made = [add(tmp_path / name, "sub-01_trc-AV45_space-T1w_desc-preproc_pet") for name in ("b", "a")]
    folders = {"petprep": tmp_path / "c", "mine": tmp_path / "b", "other": tmp_path / "a"}
    folders["petprep"].mkdir()
    (scan,) = find_pets(root, derivatives=folders)
    assert scan.path == made[0] and scan.notes[0].startswith("mine: ") and len(scan.notes) == 1


def test_run_that_petprep_has_prepared_goes_before_newer_ones(root: Path, tmp_path: Path) -> None:
    for run in (1, 2, 3):
        add(root, f"sub-01_trc-AV45_run-{run}_pet", {"SeriesNumber": run})
    made = {run: add(tmp_path / "p", f"sub-01_trc-AV45_run-{run}_space-T1w_desc-preproc_pet") for run in (1, 2)}
    (scan,) = find_pets(root, derivatives={"petprep": tmp_path / "p"})
    assert scan.path == made[2] and scan.sidecar == {"SeriesNumber": 2}
    assert "preprocessed in T1w space, the highest run; not used:" in scan.notes[0]
    assert scan.notes[1].startswith(f"petprep: {made[2].name} is used")


def test_petprep_and_absent_bytes(root: Path, tmp_path: Path) -> None:
    """The bytes that count are those that will be read: the preprocessed ones."""
    add(root, "sub-01_trc-AV45_pet", text="")
    add(root, "sub-02_trc-AV45_pet")
    prep = tmp_path / "petprep"
    add(prep, "sub-01_trc-AV45_space-T1w_desc-preproc_pet")
    link = prep / "sub-02/pet/sub-02_trc-AV45_space-T1w_desc-preproc_pet.nii.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to("nowhere")
    one, two = find_pets(root, derivatives={"petprep": prep})
    assert one.prepared and one.problem is None
    assert two.prepared and two.problem.startswith(f"{link.name} is a link")


# --- the T1w of each


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


# --- real datasets


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


@pytest.fixture(scope="module")
def ds004869(tmp_path_factory) -> Path:
    """OpenNeuro ds004869 with the PET that PETPrep made of it; all images are empty."""
    if not PETPREP.exists():
        pytest.skip("shared data absent")
    folder = tmp_path_factory.mktemp("petprep")
    with tarfile.open(PETPREP) as archive:
        raw_or_pet = re.compile(r"ds004869/(sub-|[^/]+$|derivatives/petprep/sub-[^/]+/ses-[^/]+/pet/)")
        archive.extractall(folder, [m for m in archive if m.isfile() and raw_or_pet.match(m.name)], filter="data")
    return folder / "ds004869"


def test_real_petprep_output(ds004869: Path) -> None:
    prep = ds004869 / "derivatives" / "petprep"
    made = sorted(prep.glob("sub-*/ses-*/pet/*_space-T1w_desc-preproc_pet.nii.gz"))
    for image in made[1:]:
        image.write_bytes(b"x")
    scans = find_pets(ds004869, derivatives={"petprep": prep})
    assert len(made) == 54 and [scan.path for scan in scans] == made
    assert [bool(scan.problem) for scan in scans] == [True] + [False] * 53
    for scan in scans:
        own = json.loads(scan.path.with_name(scan.path.name.replace(".nii.gz", ".json")).read_text())
        (source,) = (uri for uri in own["Sources"] if uri.startswith("bids:raw:"))  # PETPrep's own word for its input
        raw = json.loads((ds004869 / source.removeprefix("bids:raw:").replace(".nii.gz", ".json")).read_text())
        assert scan.prepared and scan.tracer == raw["TracerName"] and "TracerName" not in own
        assert scan.sidecar == raw | {key: value for key, value in own.items() if key != "TaskName"}
    plain = find_pets(ds004869, ["21"])
    assert [scan.path.name for scan in plain] == ["sub-21_ses-retest_pet.nii.gz", "sub-21_ses-test_pet.nii.gz"]
    assert all("is empty" in scan.problem and not scan.prepared for scan in plain)


def test_real_petprep_output_is_paired(ds004869: Path) -> None:
    """The only T1w belongs to no session and no date is given: it goes with both scans."""
    for image in ds004869.glob("sub-21/anat/*_T1w.nii.gz"):
        image.write_bytes(b"x")
    cases = find_cases(ds004869, ["21", "04"])
    found = pair(cases, find_pets(ds004869, ["21", "04"]))
    assert [p.case.t1w.name if p.case else None for p in found] == [None, None] + ["sub-21_T1w.nii.gz"] * 2
    assert found[0].note == "sub-04_T1w.nii.gz is empty." and {p.note for p in found[2:]} == {""}
