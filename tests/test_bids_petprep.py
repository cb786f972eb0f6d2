"""What PETPrep made takes the place of raw scans; its real output at the end."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest
from pets_small import add, dataset, write

from bids_petsynth.bids.index import find_cases
from bids_petsynth.bids.pets import find_pets, pair
from bids_petsynth.types import PetScan

DATA = Path(__file__).parents[2] / "shared" / "data"

PETPREP = DATA / "petprep-derivatives" / "ds004869_testdata.tar.gz"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return dataset(tmp_path / "raw")


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
