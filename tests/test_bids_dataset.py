"""The output dataset as a whole: its own files, races between processes, and what the BIDS validator says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bids_petsynth.bids.dataset import (
    DONE,
    FAILED,
    forget_sessionless,
    record_status,
    write_cohort,
    write_dataset_files,
    write_status,
)
from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.sidecars import (
    Synthesis,
    bids_uri,
    dseg_sidecar,
    mask_sidecar,
    pet_sidecar,
    probseg_sidecar,
    t1w_sidecar,
    table_sidecar,
)
from bids_petsynth.bids.sink import Sink
from bids_petsynth.bids.tables import read_tsv
from bids_petsynth.errors import UsageError
from bids_petsynth.types import Case, ClinicalRecord, Value

DATA = Path(__file__).parents[2] / "shared" / "data"
VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")
needs_validator = pytest.mark.skipif(not VALIDATOR.exists(), reason="bids-validator-deno is not installed")

ONE, TWO = Case("01", None, Path("x")), Case("02", "a", Path("x"), notes=("run 2 is used.",))
SYNTHESIS = Synthesis("demo", "1", "0" * 64, True, "heun", 6, 1.5, 0, 8)
RECORD = ClinicalRecord(
    {
        "age": Value("age", 70.0, "found", "participants.tsv: age"),
        "mmse": Value("mmse", 28.0, "found", "participants.tsv: mmse"),
        "apoe4": Value("apoe4", None, "missing", note="n/a in participants.tsv"),
    }
)


def errors(folder: Path) -> list[tuple[str, str, str]]:
    """Errors that the validator finds: code, key, file."""
    done = subprocess.run([VALIDATOR, folder, "--format", "json"], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    found = [
        (i["code"], i.get("subCode", ""), i.get("location", ""))
        for i in issues
        if i.get("severity", "error") == "error"
    ]
    assert (done.returncode == 0) == (not found)
    return found


def write_outputs(sink: Sink, case: Case) -> None:
    """Every kind of output with tiny images."""
    data, affine, sources = np.ones((4, 4, 4)), np.diag([2.0, 2, 2, 1]), ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    t1w = output_path("t1w", case)
    sink.save_image(t1w, data, affine, t1w_sidecar(case, sources))
    sink.save_image(output_path("brain_mask", case), data > 0, affine, mask_sidecar(sources))
    sink.save_image(output_path("dseg", case), data > 0, affine, dseg_sidecar(sources, {"confidence": 0.9}, ["x."]))
    sink.save_tsv(output_path("dseg_table", case), [{"index": 1, "name": "brain"}])
    sink.save_tsv(output_path("morph", case), [{"index": 1, "name": "brain", "volume-mm3": 512.0}], sidecar={})
    sink.save_text(output_path("xfm", case, to="petsynth"), "x")
    sink.save_text(output_path("report", case), "<p>x</p>")
    sink.save_text(output_path("figure", case, desc="x", suffix="pet", extension="svg"), "<svg/>")
    for tissue in ("GM", "WM", "CSF"):
        path = output_path("probseg", case, tissue=tissue)
        sink.save_image(path, data, affine, probseg_sidecar(tissue, sources))
    for tracer in ("AV45", "FDG"):
        for space in ("T1w", "MNI152NLin2009cAsym"):
            for kind, draw in (("mean", None), ("std", None), ("draw", 1)):
                entities = {"tracer": tracer, "space": space} | ({"draw": draw} if draw else {})
                sidecar = pet_sidecar(
                    case,
                    kind,
                    tracer,
                    SYNTHESIS,
                    RECORD,
                    sources,
                    reference_region="whole cerebellum",
                    spatial_reference=bids_uri(t1w, {}),
                    voxel_mm=2,
                    used=["age", "apoe4"],
                    draw=draw,
                )
                sink.save_image(output_path(f"pet_{kind}", case, **entities), data, affine, sidecar)
        table = table_sidecar({"precuneus": {"Units": "unitless"}}, tracer, SYNTHESIS, RECORD, sources)
        for kind in ("regions", "regions_std"):
            rows = [{"frame_start": 3000, "frame_end": 4200, "precuneus": 1.25}]
            sink.save_tsv(output_path(kind, case, tracer=tracer), rows, sidecar=table)
        sink.save_tsv(
            output_path("measures", case, tracer=tracer), [{"target_suvr": 1.5, "centiloid": None}], sidecar=table
        )


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0", "License": "CC0"}')
    return raw


@pytest.fixture
def out(tmp_path: Path, raw: Path) -> Path:
    out = tmp_path / "out"
    write_dataset_files(out, raw, "0.1", {"fmriprep": tmp_path / "fmriprep"}, "https://example.org/petsynth")
    return out


@needs_validator
def test_every_kind_of_output_is_valid(out: Path) -> None:
    sink = Sink(out, "s", "i")
    for case in (ONE, TWO):
        write_outputs(sink, case)
        record_status(out, case, "AV45", DONE)
    write_status(out)
    write_cohort(out)
    (out / "sub-01" / "pet" / f".{'0' * 32}.tmp").write_bytes(b"left over by a killed run")
    assert errors(out) == []


@needs_validator
def test_raw_names_of_the_simulation_are_valid(raw: Path) -> None:
    """Only the keys that a raw PET sidecar must have are missing here."""
    sink = Sink(raw)
    for case in (ONE, TWO):
        sink.save_image(output_path("raw_t1w", case), np.ones((4, 4, 4)), np.eye(4), {})
        sink.save_image(output_path("raw_pet", case, tracer="AV45"), np.ones((4, 4, 4, 2)), np.eye(4), {})
    assert {code for code, _, _ in errors(raw)} == {"SIDECAR_KEY_REQUIRED"}


@needs_validator
def test_validator_sees_what_is_wrong(out: Path) -> None:
    """The check above would fail for a wrong name and for a sidecar without its keys."""
    write_outputs(Sink(out), ONE)
    mean = out / output_path("pet_mean", ONE, tracer="AV45")
    mean.with_name(mean.name.replace(".nii.gz", ".json")).write_text("{}")
    (out / "sub-01/pet/sub-01_desc-x_tracer-FDG_pet.nii.gz").write_bytes(mean.read_bytes())
    keys = {key for _, key, _ in errors(out)}
    files = {Path(file).name for _, _, file in errors(out)}
    assert {"SpatialReference", "Resolution", "SkullStripped"} <= keys
    assert "sub-01_desc-x_tracer-FDG_pet.nii.gz" in files


@needs_validator
@pytest.mark.skipif(not DATA.exists(), reason="shared data absent")
def test_outputs_inside_a_real_dataset_are_valid(tmp_path: Path) -> None:
    raw = tmp_path / "ixi"
    shutil.copytree(DATA / "ixi", raw, ignore=shutil.ignore_patterns("derivatives"))
    out = raw / "derivatives" / "petsynth"
    write_dataset_files(out, raw, "0.1")
    write_outputs(Sink(out), ONE)
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert links == {"raw": "../.."}
    assert errors(raw) == [] and errors(out) == []


def test_dataset_files_are_the_same_whoever_writes_them(out: Path, raw: Path, tmp_path: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    arguments = (out, raw, "0.1", {"fmriprep": tmp_path / "fmriprep"}, "https://example.org/petsynth")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: write_dataset_files(*arguments), range(8)))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"] == [
        {"Name": "bids_petsynth", "Version": "0.1", "CodeURL": "https://example.org/petsynth"}
    ]
    assert set(description["DatasetLinks"]) == {"raw", "fmriprep"}


def test_raw_dataset_is_never_overwritten(raw: Path) -> None:
    before = (raw / "dataset_description.json").read_text()
    with pytest.raises(UsageError, match="is the BIDS dataset itself"):
        write_dataset_files(raw, raw / ".." / "raw", "0.1")
    assert (raw / "dataset_description.json").read_text() == before


@pytest.mark.parametrize("name", ["README", ".bidsignore", "descriptions.tsv"])
def test_files_of_a_project_are_never_overwritten(out: Path, raw: Path, tmp_path: Path, name: str) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / name).write_text("of the project")
    with pytest.raises(UsageError, match="choose a new or an empty folder"):
        write_dataset_files(project, raw, "0.1")
    assert [path.name for path in project.iterdir()] == [name] and (project / name).read_text() == "of the project"
    # what another task has just written there is ours
    shutil.copy(out / name, project / name)
    write_dataset_files(project, raw, "0.1")
    # and so is what an earlier version wrote, as the description tells
    (project / name).write_text("of version 0.0.1")
    write_dataset_files(project, raw, "0.1")
    assert (project / name).read_bytes() == (out / name).read_bytes()


def test_status_of_all_runs(out: Path) -> None:
    record_status(out, TWO, None, FAILED, "the T1w\tis empty.")
    record_status(out, ONE, "AV45", DONE)
    record_status(out, ONE, "FDG", FAILED, "no memory.")
    rows, _ = read_tsv(write_status(out))
    assert [tuple(row.values()) for row in rows] == [
        ("sub-01", "n/a", "AV45", "done", "n/a"),
        ("sub-01", "n/a", "FDG", "failed", "no memory."),
        ("sub-02", "ses-a", "n/a", "failed", "the T1w is empty."),
    ]
    record_status(out, TWO, "AV45", DONE)  # a second run succeeds
    rows, _ = read_tsv(write_status(out))
    assert [row["status"] for row in rows if row["participant_id"] == "sub-02"] == ["done"]
    with pytest.raises(ValueError):
        record_status(out, ONE, "AV45", "finished")


@pytest.mark.parametrize(
    ("sessions", "over"),
    [
        ({"1": "x"}, True),
        ({"1": "x", "2": None}, True),
        ({"1": None}, False),  # a session without T1w was asked for: there is still none
        ({None: "x", "1": "x"}, False),
        ({}, False),
    ],
)
def test_a_failure_without_session_ends_when_sessions_come(out: Path, raw: Path, sessions: dict, over: bool) -> None:
    record_status(out, Case("01", None, None), None, FAILED, "sub-01 has no T1w image.")
    record_status(out, Case("02", None, None), None, FAILED, "sub-02 has no T1w image.")
    cases = [Case("01", session, t1w and Path(t1w)) for session, t1w in sessions.items()]
    assert forget_sessionless(out, raw, [*cases, Case("02", None, None)]) == ({"01"} if over else set())
    told = {row["participant_id"] for row in read_tsv(write_status(out))[0]}
    assert told == ({"sub-02"} if over else {"sub-01", "sub-02"})


def test_a_failure_of_a_scan_without_session_that_is_there_stays(out: Path, raw: Path) -> None:
    """A run over session 1 alone says nothing of it."""
    t1w = raw / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    t1w.parent.mkdir(parents=True)
    t1w.symlink_to("nowhere.nii.gz")
    record_status(out, Case("01", None, None), None, FAILED, "sub-01_T1w.nii.gz is a link to nothing.")
    assert forget_sessionless(out, raw, [Case("01", "1", Path("x"))]) == set()
    assert [row["status"] for row in read_tsv(write_status(out))[0]] == ["failed"]


def test_racing_processes_lose_no_participant(out: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bids_petsynth.types import Case\n"
        "from bids_petsynth.bids.dataset import DONE, record_status, write_status\n"
        "out, start = Path(sys.argv[1]), int(sys.argv[2])\n"
        "for i in range(start, start + 15):\n"
        "    record_status(out, Case(f'{i:03d}', None, None), 'AV45', DONE); write_status(out)\n"
    )
    root = Path(__file__).parents[1]
    running = [subprocess.Popen([sys.executable, "-c", code, str(out), str(15 * i)], cwd=root) for i in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    rows, _ = read_tsv(out / "status.tsv")
    assert [row["participant_id"] for row in rows] == [f"sub-{i:03d}" for i in range(45)]


def test_cohort_table_joins_measures_and_regions(out: Path) -> None:
    assert read_tsv(write_cohort(out))[0] == []
    for case in (TWO, ONE):
        write_outputs(Sink(out), case)
    rows, _ = read_tsv(write_cohort(out))
    assert [(row["participant_id"], row["session_id"], row["tracer"]) for row in rows] == [
        ("sub-01", "n/a", "AV45"),
        ("sub-01", "n/a", "FDG"),
        ("sub-02", "ses-a", "AV45"),
        ("sub-02", "ses-a", "FDG"),
    ]
    assert rows[0] == dict(
        zip(
            ("participant_id", "session_id", "tracer", "target_suvr", "centiloid", "precuneus"),
            ("sub-01", "n/a", "AV45", "1.5", "n/a", "1.25"),
            strict=True,
        )
    )


def test_bids_uri(tmp_path: Path) -> None:
    raw = tmp_path.resolve() / "raw"
    datasets = {"raw": raw, "fmriprep": raw / "derivatives/fmriprep"}
    assert bids_uri(raw / "sub-01/x.nii", datasets) == "bids:raw:sub-01/x.nii"
    assert bids_uri(raw / "derivatives/fmriprep/sub-01/x.nii", datasets) == "bids:fmriprep:sub-01/x.nii"
    assert bids_uri(Path("sub-01/x.nii"), datasets) == "bids::sub-01/x.nii"
    # a folder may be a link out of the dataset, and a dataset may be named by a link
    (tmp_path / "store").mkdir()
    raw.mkdir()
    (raw / "sub-02").symlink_to(tmp_path / "store")
    assert bids_uri(raw / "sub-02/x.nii", datasets) == "bids:raw:sub-02/x.nii"
    (tmp_path / "link").symlink_to(raw)
    assert bids_uri(raw / "sub-01/x.nii", {"raw": tmp_path / "link"}) == "bids:raw:sub-01/x.nii"
    assert bids_uri(tmp_path / "link/sub-01/x.nii", {"raw": raw}) == "bids:raw:sub-01/x.nii"
    with pytest.raises(ValueError, match="none of the datasets"):
        bids_uri(Path("/elsewhere/x.nii"), datasets)


def test_values_stand_in_sidecars_only_on_request() -> None:
    def sidecar(record_values: bool) -> dict:
        return table_sidecar({}, "AV45", SYNTHESIS, RECORD, [], used=["age", "apoe4"], record_values=record_values)

    private = sidecar(False)
    assert private["Synthetic"] is True and private["DemonstrationModel"] is True
    assert private["Conditioning"] == {
        "age": {"Status": "found", "Source": "participants.tsv: age"},
        "apoe4": {"Status": "missing"},
    }
    assert sidecar(True)["Conditioning"]["age"]["Value"] == 70.0
    months = ClinicalRecord(
        {"age": Value("age", 70.0, "converted", "participants.tsv: age", "months → years", "months")}
    )
    told = table_sidecar({}, "AV45", SYNTHESIS, months, [], used=["age"])["Conditioning"]["age"]
    assert told == {"Status": "converted", "Source": "participants.tsv: age", "ConvertedFrom": "months"}
