"""Finding T1w scans in datasets that are tidy, untidy or broken."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bids_petsynth.bids.index import find_cases, read_filter_file
from bids_petsynth.errors import UsageError

DATA = Path(__file__).parents[2] / "shared" / "data"


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    write(root / "dataset_description.json", '{"Name": "x", "BIDSVersion": "1.10.0"}')
    for name in (
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii",
        "sub-02/ses-b/anat/sub-02_ses-b_run-2_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-10_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_acq-lowres_run-1_T1w.nii.gz",
        "sub-02/ses-c/pet/sub-02_ses-c_pet.nii.gz",
        "sub-03/anat/sub-03_T2w.nii.gz",
        "derivatives/other/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
    ):
        write(root / name)
    return root


def labels(cases) -> list[str]:
    return [case.label for case in cases]


def test_one_case_per_participant_and_session(dataset: Path) -> None:
    cases = find_cases(dataset)
    assert labels(cases) == ["sub-01", "sub-02_ses-a", "sub-02_ses-b", "sub-03"]
    assert cases[0].t1w == dataset / "sub-01/anat/sub-01_T1w.nii.gz"
    assert cases[1].t1w.suffix == ".nii"
    assert [case.problem for case in cases] == [None, None, None, "sub-03 has no T1w image."]


@pytest.mark.parametrize("label", ["01_old", "ADNI_002_S_0295", "01-b"])
def test_a_folder_that_is_not_named_as_bids_asks_fails_alone(dataset: Path, label: str) -> None:
    write(dataset / f"sub-{label}/anat/sub-{label}_T1w.nii.gz")
    cases = find_cases(dataset)
    assert labels(cases) == sorted(["sub-01", "sub-02_ses-a", "sub-02_ses-b", "sub-03", f"sub-{label}"])
    (case,) = find_cases(dataset, [label])
    assert case in cases and case.t1w is None
    assert case.problem.startswith(f"sub-{label} is not named") and "rename the folder" in case.problem


@pytest.mark.parametrize("asked", [["01"], ["sub-01"], ["sub-01", "01"]])
def test_labels_with_and_without_prefix(dataset: Path, asked: list[str]) -> None:
    assert labels(find_cases(dataset, asked)) == ["sub-01"]


def test_highest_run_counts_as_a_number_and_is_told(dataset: Path) -> None:
    (case,) = find_cases(dataset, ["02"], ["ses-b"])
    assert case.t1w.name == "sub-02_ses-b_run-10_T1w.nii.gz"
    assert "3 T1w images" in case.notes[0] and "highest run" in case.notes[0]
    assert "run-2_T1w" in case.notes[0]


def test_acquisition_time_beats_run(dataset: Path) -> None:
    write(
        dataset / "sub-02/ses-b/sub-02_ses-b_scans.tsv",
        "filename\tacq_time\n"
        "anat/sub-02_ses-b_run-2_T1w.nii.gz\t2020-03-02T10:00:00\n"
        "anat/sub-02_ses-b_run-10_T1w.nii.gz\t2020-03-01T10:00:00Z\n"
        "anat/sub-02_ses-b_acq-lowres_run-1_T1w.nii.gz\t2020-02-01\n",
    )
    (case,) = find_cases(dataset, ["02"], ["b"])
    assert case.t1w.name == "sub-02_ses-b_run-2_T1w.nii.gz"
    assert case.t1w_date == "2020-03-02"
    assert "acq_time" in case.notes[0]


def test_date_from_sessions_table(dataset: Path) -> None:
    write(dataset / "sub-02/sub-02_sessions.tsv", "session_id\tacq_time\nses-a\t2019-05-06T07:08:09\nses-b\tn/a\n")
    assert [c.t1w_date for c in find_cases(dataset, ["02"])] == ["2019-05-06", None]


def test_unknown_participant_is_named_with_those_that_exist(dataset: Path) -> None:
    with pytest.raises(UsageError, match=r"no participant 98, 99; it has 01, 02, 03"):
        find_cases(dataset, ["01", "99", "sub-98"])


def test_sessions(dataset: Path) -> None:
    with pytest.raises(UsageError, match=r"session z; they have a, b, c"):
        find_cases(dataset, ["02"], ["z"])
    by_label = {case.label: case.problem for case in find_cases(dataset, None, ["a", "c"])}
    assert by_label["sub-02_ses-a"] is None
    assert by_label["sub-02_ses-c"] == "sub-02 has no T1w image in session c; it has one in session a, b."
    assert "belongs to no session" in by_label["sub-01"]


@pytest.mark.parametrize("folder, words", [("nowhere", "does not exist"), (".", "no dataset_description.json")])
def test_not_a_dataset(tmp_path: Path, folder: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_cases(tmp_path / folder)


def test_dataset_without_participants_or_with_broken_description(tmp_path: Path) -> None:
    description = write(tmp_path / "dataset_description.json", "{}")
    with pytest.raises(UsageError, match="no participants"):
        find_cases(tmp_path)
    description.write_text("{")
    with pytest.raises(UsageError, match="not valid JSON"):
        find_cases(tmp_path)


def test_absent_bytes_are_a_problem_of_their_participant_only(dataset: Path) -> None:
    target = "../../.git/annex/objects/aa/bb/key"
    (dataset / "sub-04/anat").mkdir(parents=True)
    (dataset / "sub-04/anat/sub-04_T1w.nii.gz").symlink_to(target)
    write(dataset / "sub-05/anat/sub-05_T1w.nii.gz", "")
    write(dataset / "sub-06/anat/sub-06_T1w.nii.gz", "/annex/objects/MD5E-s1--d41d8.nii.gz\n")
    (dataset / "sub-07/anat/sub-07_T1w.nii.gz").mkdir(parents=True)
    loop = dataset / "sub-08/anat/sub-08_T1w.nii.gz"
    loop.parent.mkdir(parents=True)
    loop.symlink_to(loop.name)
    problems = {case.participant: case.problem for case in find_cases(dataset)}
    assert problems["01"] is None
    assert "datalad get" in problems["04"]
    assert "is empty" in problems["05"]
    assert "not fetched" in problems["06"]
    assert problems["07"]
    assert problems["08"]


def test_filters_as_in_fmriprep(dataset: Path) -> None:
    (case,) = find_cases(dataset, ["02"], filters={"t1w": {"session": "b", "acquisition": "lowres"}, "bold": {}})
    assert "acq-lowres" in case.t1w.name and not case.notes
    (case,) = find_cases(dataset, ["02"], filters={"t1w": {"session": ["b"], "acquisition": None}})
    assert case.t1w.name == "sub-02_ses-b_run-10_T1w.nii.gz" and "Of 2 T1w" in case.notes[0]
    assert len(find_cases(dataset, ["02"], filters={"t1w": {"run": "*"}})) == 1
    (case,) = find_cases(dataset, ["01"], filters={"t1w": {"acquisition": "mprage"}})
    assert case.problem == "sub-01 has no T1w image that passes the BIDS filter file."


@pytest.mark.parametrize(
    "filters, words",
    [
        ({"t1w": {"aquisition": "x"}}, "cannot be used"),
        ({"T1w": {}}, "unknown section T1w"),
        ({"t1w": "x"}, "must hold sections"),
        (["t1w"], "must hold sections"),
        ({"t1w": {"subject": "01"}}, "--participant-label"),
    ],
)
def test_bad_filters(dataset: Path, filters, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_cases(dataset, filters=filters)


def test_filter_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert read_filter_file(write(tmp_path / "good.json", '{"t1w": {"run": 1}}')) == {"t1w": {"run": 1}}
    for path in (tmp_path / "no.json", write(tmp_path / "bad.json", "{"), write(tmp_path / "list.json", "[]")):
        with pytest.raises(UsageError, match=path.name):
            read_filter_file(path)


def test_files_that_are_no_t1w_to_work_on(dataset: Path) -> None:
    for name in ("sub-02_T1w", "x_T1w", "sub-01_ses-a_T1w", "sub-01_part-phase_T1w", "sub-01_desc-x_T1w"):
        write(dataset / f"sub-01/anat/{name}.nii.gz")
    (case,) = find_cases(dataset, ["01"])
    assert case.t1w.name == "sub-01_T1w.nii.gz" and not case.notes


def test_a_contrast_agent_only_where_there_is_nothing_else(dataset: Path) -> None:
    for name in ("sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz", "sub-03/anat/sub-03_ce-gadolinium_T1w.nii.gz"):
        write(dataset / name)
    plain, given = find_cases(dataset, ["01", "03"])
    assert plain.t1w.name == "sub-01_T1w.nii.gz" and given.t1w.name == "sub-03_ce-gadolinium_T1w.nii.gz"
    (asked,) = find_cases(dataset, ["01"], filters={"t1w": {"ceagent": "gadolinium"}})
    assert asked.t1w.name == "sub-01_ce-gadolinium_T1w.nii.gz"


def test_sidecars_are_inherited(dataset: Path) -> None:
    write(dataset / "T1w.json", '{"MagneticFieldStrength": 1.5, "Manufacturer": "root"}')
    write(dataset / "acq-lowres_T1w.json", '{"FlipAngle": 8}')
    write(dataset / "sub-02/ses-b/anat/sub-02_ses-b_T1w.json", '{"Manufacturer": "session"}')
    write(dataset / "sub-02/ses-b/anat/sub-02_ses-b_run-10_T1w.json", '\ufeff{"MagneticFieldStrength": 3}')
    write(dataset / "sub-01/anat/sub-01_T1w.json", "{broken")
    one, a, b, _ = find_cases(dataset)
    assert b.sidecar == {"MagneticFieldStrength": 3, "Manufacturer": "session"}
    assert a.sidecar == one.sidecar == {"MagneticFieldStrength": 1.5, "Manufacturer": "root"}
    assert "sub-01_T1w.json is ignored" in one.notes[0]


def test_derivatives(dataset: Path, tmp_path: Path) -> None:
    prep = tmp_path / "fmriprep"
    for name in (
        "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_desc-preproc_T1w.nii.gz",
        "sub-02/anat/sub-02_desc-preproc_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-10_desc-preproc_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-10_desc-brain_mask.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-2_desc-preproc_T1w.nii.gz",
    ):
        write(prep / name)
    write(dataset / "sub-04/anat/sub-04_T1w.nii")
    one, a, b, _, four = find_cases(dataset, derivatives={"fmriprep": prep})
    assert {k: v.name for k, v in one.derivatives.items()} == {
        "preproc_t1w": "sub-01_desc-preproc_T1w.nii.gz",
        "brain_mask": "sub-01_desc-brain_mask.nii.gz",
    }
    assert not one.notes
    assert a.derivatives == {"preproc_t1w": prep / "sub-02/anat/sub-02_desc-preproc_T1w.nii.gz"}
    assert any("average" in note for note in a.notes) and any("no brain mask" in note for note in a.notes)
    assert b.derivatives["preproc_t1w"].name == "sub-02_ses-b_run-10_desc-preproc_T1w.nii.gz"
    assert b.derivatives["brain_mask"].exists()
    assert not four.derivatives and "fmriprep: no preprocessed T1w of sub-04" in four.notes[0]
    with pytest.raises(UsageError, match="-d fmriprep=PATH"):
        find_cases(dataset, derivatives={"fmriprep": tmp_path / "no"})


def test_of_raw_and_preprocessed_t1w_the_one_that_is_read_must_be_there(dataset: Path, tmp_path: Path) -> None:
    prep, raw = tmp_path / "fmriprep", dataset / "sub-01/anat/sub-01_T1w.nii.gz"
    preprocessed = write(prep / "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz")
    raw.unlink()
    raw.symlink_to("../.git/annex/objects/nowhere")
    assert "datalad get" in find_cases(dataset, ["01"])[0].problem
    assert find_cases(dataset, ["01"], derivatives={"fmriprep": prep})[0].problem is None
    preprocessed.write_text("/annex/objects/nowhere")
    (case,) = find_cases(dataset, ["01"], derivatives={"fmriprep": prep})
    assert case.problem.startswith("sub-01_desc-preproc_T1w.nii.gz is a placeholder")


def test_a_preprocessed_t1w_of_another_run_is_told(dataset: Path, tmp_path: Path) -> None:
    name = "sub-02_ses-b_acq-lowres_run-1_desc-preproc_T1w.nii.gz"
    write(tmp_path / "prep/sub-02/ses-b/anat" / name)
    (case,) = find_cases(dataset, ["02"], ["b"], derivatives={"prep": tmp_path / "prep"})
    assert case.derivatives["preproc_t1w"].name == name
    assert any(f"{name} is used, though its run is not the T1w's" in note for note in case.notes)


def test_one_of_many_participants_is_found_fast(tmp_path: Path) -> None:
    write(tmp_path / "dataset_description.json", "{}")
    for i in range(500):
        write(tmp_path / f"sub-{i:03d}/anat/sub-{i:03d}_T1w.nii.gz")
        write(tmp_path / f"sub-{i:03d}/func/sub-{i:03d}_task-rest_bold.nii.gz")
    find_cases(tmp_path, ["001"])  # imports pybids
    start = time.process_time()
    assert labels(find_cases(tmp_path, ["007"])) == ["sub-007"]
    assert time.process_time() - start < 1


@pytest.mark.skipif(not DATA.exists(), reason="shared data absent")
def test_real_datasets() -> None:
    cases = find_cases(DATA / "ixi")
    participants = (DATA / "ixi/participants.tsv").read_text().splitlines()[1:]
    assert labels(cases) == sorted(line.split("\t")[0] for line in participants)
    assert all(case.problem is None for case in cases)
    (case,) = find_cases(DATA / "bids-examples/pet001")
    assert case.sidecar == json.loads(case.t1w.with_suffix(".json").read_text())
