"""``participant`` as its users call it: on the example dataset, again, with changes, and with bad input."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from places import quick_labels

from bids_petsynth.bids.dataset import DONE, record_begun, record_status
from bids_petsynth.bids.index import find_cases
from bids_petsynth.bids.sink import hash_key
from bids_petsynth.cli.main import main
from bids_petsynth.cli.participant import memory
from bids_petsynth.errors import InputError
from bids_petsynth.settings import Settings
from bids_petsynth.types import Case, OtherScan, PetScan
from bids_petsynth.workflows import steps

FULL = ("participant", "--n-draws", "3", "--save-draws", "--device", "cpu", "--random-seed", "3")
TWO_WORKERS = ("--nprocs", "2", "--omp-nthreads", "1")
EXPECTED = Path(__file__).parent / "participant_outputs.txt"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def run(example, tmp_path_factory) -> Path:
    """Two tracers for both heads, from relative paths, as `make demo` gives them."""
    folder = example.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = [*FULL, "--tracer", "AV45", "FDG"]
        assert main([example.name, "out", *words]) == 0
    return folder / "out"


def listing(out: Path) -> list[str]:
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())


def test_every_expected_file_and_no_other(run):
    assert listing(run) == EXPECTED.read_text().split()


def test_nipype_is_left_as_it_was(run):
    from nipype import config

    defaults = {"remove_node_directories": "false", "create_report": "true", "job_finished_timeout": "5"}
    assert {name: config.get("execution", name) for name in defaults} == defaults
    assert config.get("logging", "workflow_level") == "INFO"


def test_validator_finds_no_error(run):
    tool = shutil.which("bids-validator-deno", path=str(Path(__import__("sys").executable).parent))
    assert tool, "bids-validator-deno is not in this environment; `make env` installs it"
    done = subprocess.run([tool, str(run), "--json"], capture_output=True, text=True)
    found = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in found if issue["severity"] == "error"] == []


def test_images_are_suvr_on_the_t1w(run, example):
    for label in ("sub-negative", "sub-positive"):
        folder = run / label / "pet"
        image = nib.load(folder / f"{label}_trc-AV45_space-T1w_res-2_desc-synthMean_pet.nii.gz")
        assert np.allclose(image.header.get_zooms(), 2, atol=1e-4)
        data = image.get_fdata()
        draws = [nib.load(p).get_fdata() for p in sorted(folder.glob("*_trc-AV45_*desc-synth0*_pet.nii.gz"))]
        assert len(draws) == 3
        assert np.allclose(np.mean(draws, 0), data, atol=1e-4)
        std = nib.load(folder / f"{label}_trc-AV45_space-T1w_res-2_desc-synthStd_pet.nii.gz").get_fdata()
        # the draws are centred on their expectation
        assert np.allclose(np.std(draws, 0), std, atol=1e-4)
        # the PET lies on the T1w: its brighter part is the brain of the mask, in scanner space
        from nilearn.image import resample_to_img

        mask = nib.load(run / label / "anat" / f"{label}_desc-brain_mask.nii.gz")
        inside = resample_to_img(mask, image, interpolation="nearest").get_fdata() > 0
        assert data[inside].mean() > 3 * data[~inside].mean()
        table = rows(folder / f"{label}_trc-AV45_desc-synthMean_suvr.tsv")
        assert float(next(r["suvr"] for r in table if r["name"] == "whole_cerebellum")) == pytest.approx(1, abs=1e-3)


def test_sidecar_says_what_it_is(run):
    path = run / "sub-positive/pet/sub-positive_trc-AV45_space-T1w_res-2_desc-synthMean_pet.json"
    about = json.loads(path.read_text())
    assert about["Synthetic"] is True and about["DemonstrationModel"] is True and about["Units"] == "unitless"
    assert about["Conditioning"]["ptau217_lumipulse"]["Status"] in ("found", "converted")
    assert len(about["Model"]["WeightsSHA256"]) == 64
    assert any(uri.startswith("bids:raw:sub-positive/anat/") for uri in about["Sources"])
    text = path.read_text()
    assert '"Value"' not in text


def test_the_profiles_differ(run):
    measures = {
        label: rows(run / label / "pet" / f"{label}_trc-AV45_desc-synthMean_measures.tsv")[0]
        for label in ("sub-negative", "sub-positive")
    }
    values = {label: float(row["centiloid_approximate"]) for label, row in measures.items()}
    assert values["sub-positive"] > values["sub-negative"] + 20
    assert float(measures["sub-positive"]["probability_positive"]) > float(
        measures["sub-negative"]["probability_positive"]
    )
    cohort = rows(run / "group_desc-synthMean_regions.tsv")
    assert [(r["participant_id"], r["tracer"]) for r in cohort] == [
        (f"sub-{who}", tracer) for who in ("negative", "positive") for tracer in ("AV45", "FDG")
    ]


@quick_labels()
def test_a_rerun_does_only_what_changed(run, example, tmp_path, capsys):
    out, bids = tmp_path / "out", tmp_path / "bids"
    shutil.copytree(run, out)
    shutil.copytree(example, bids)
    images = {p: p.stat().st_mtime_ns for p in out.rglob("sub-*.nii.gz")}
    words = [*FULL, "--tracer", "AV45"]
    assert main([str(bids), str(out), *words]) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("sub-*.nii.gz")} == images
    told = rows(out / "status.tsv")
    assert {r["status"] for r in told} == {"done"}
    # a scan that cannot be read for a while is as it was when it can be read again
    (scan,) = bids.glob("sub-positive/anat/*_T1w.nii.gz")
    kept = scan.rename(tmp_path / "kept.nii.gz")
    scan.symlink_to("nowhere.nii.gz")
    assert main([str(bids), str(out), *words]) == 1
    assert "Probability of amyloid" not in (out / "sub-positive.html").read_text()
    scan.unlink()
    kept.rename(scan)
    assert main([str(bids), str(out), *words]) == 0
    assert rows(out / "status.tsv") == told
    assert "Probability of amyloid" in (out / "sub-positive.html").read_text()
    table = bids / "participants.tsv"
    lines = table.read_text().splitlines()
    changed = [line if not line.startswith("sub-positive") else _with_age(lines[0], line, "70") for line in lines]
    table.write_text("\n".join(changed) + "\n")
    assert main([str(bids), str(out), *(word for word in words if word != "--save-draws")]) == 0
    renewed = {p for p, time in images.items() if p.exists() and p.stat().st_mtime_ns != time}
    # the draws that were not asked for again are gone, those of the other tracer and person stand
    gone = {p for p in images if not p.exists()}
    assert {p.name.split("_space")[0] for p in renewed} >= {"sub-positive_trc-AV45"}
    assert all("_trc-AV45" in p.name for p in renewed | gone) and all("desc-synth0" in p.name for p in gone)
    capsys.readouterr()


def _with_age(header: str, line: str, age: str) -> str:
    cells = line.split("\t")
    cells[header.split("\t").index("age")] = age
    return "\t".join(cells)


def test_python_gives_the_same_as_the_command(run, example):
    from bids_petsynth import Synthesizer

    header, *lines = (example / "participants.tsv").read_text().splitlines()
    cells = dict(
        zip(header.split("\t"), next(x for x in lines if x.startswith("sub-positive")).split("\t"), strict=True)
    )
    record = {k: v for k, v in cells.items() if k not in ("participant_id",) and v != "n/a"}
    names = {
        "age",
        "sex",
        "apoe_genotype",
        "ptau217_lumipulse",
        "ab42_40_lumipulse",
        "ptau181_simoa",
        "gfap_simoa",
        "nfl_simoa",
    }
    t1w = next(example.glob("sub-positive/anat/*_T1w.nii.gz"))
    pet = Synthesizer.load(device="cpu").synthesize(
        t1w, {k: record[k] for k in names}, tracer="AV45", n_draws=3, seed=3
    )
    assert all(path.is_file() for path in pet.save(run.parent / "python"))
    written = nib.load(run / "sub-positive/pet/sub-positive_trc-AV45_space-T1w_res-2_desc-synthMean_pet.nii.gz")
    assert np.abs(pet.mean - written.get_fdata()).max() < 0.02


def bad_dataset(example: Path, folder: Path) -> Path:
    """The example's positive head beside six participants whose input is bad, each in its own way, and sub-lost."""
    shutil.copytree(example, folder)
    shutil.rmtree(folder / "sub-negative")
    good = next((folder / "sub-positive" / "anat").glob("*_T1w.nii.gz"))
    made = {}
    for label in ("text", "cut", "zeros", "fourd", "dangling", "lost"):
        made[label] = folder / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"
        made[label].parent.mkdir(parents=True)
    made["text"].write_bytes(b"no image, but not empty" * 20)
    made["cut"].write_bytes(good.read_bytes()[:200_000])
    nib.save(nib.Nifti1Image(np.zeros((60, 60, 60), np.float32), np.diag([3.0, 3, 3, 1])), made["zeros"])
    nib.save(nib.Nifti1Image(np.ones((40, 40, 40, 4), np.float32), np.diag([4.0, 4, 4, 1])), made["fourd"])
    made["dangling"].symlink_to(folder / ".git" / "annex" / "objects" / "nowhere")
    made["lost"].write_bytes(good.read_bytes())
    (folder / "sub-empty" / "anat").mkdir(parents=True)
    (folder / "sub-empty" / "anat" / "sub-empty_T2w.json").write_text("{}")
    return folder


def test_bad_participants_and_a_lost_worker_concern_nobody_else(example, tmp_path, capsys, monkeypatch):
    """Among them a worker that is killed, as the kernel does when memory runs out, while it reads sub-lost's scan."""
    bids, out = bad_dataset(example, tmp_path / "bids"), tmp_path / "out"
    (tmp_path / "site").mkdir()
    # workers, but not this process, import it at their start
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def die(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('sub-lost_T1w.nii.gz'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(die)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    words = ["participant", "--tracer", "AV45", "FDG", "--n-draws", "2", "--device", "cpu", *TWO_WORKERS]
    assert main([str(bids), str(out), *words]) == 1
    told = rows(out / "status.tsv")
    assert [r["status"] for r in told if r["participant_id"] == "sub-positive"] == ["done", "done"]
    status = {r["participant_id"]: r for r in told}
    reasons = {
        "text": "not a readable NIfTI",
        "cut": "truncated",
        "zeros": "one value only",
        "fourd": "4 dimensions",
        "dangling": "link",
        "empty": "no T1w",
        "lost": "memory ran out",
    }
    for label, part in reasons.items():
        row = status[f"sub-{label}"]
        assert row["status"] == "failed" and part in row["reason"] and f"sub-{label}" in row["reason"], row
        assert row["reason"].count("\n") == 0 and "Traceback" not in row["reason"]
    # the head of "text", "cut" … is found bad only in a worker: every tracer then has the same reason
    assert len({r["reason"] for r in told if r["participant_id"] == "sub-cut"}) == 1
    # each failure tells of its run: before any work, in a worker, of a worker that was killed
    for label in ("empty", "cut", "lost"):
        page = (out / f"sub-{label}.html").read_text()
        assert "--n-draws 2" in page and "of the run that failed" in page and version("torch") in page, label
    said = capsys.readouterr()
    assert "FAILED" in said.err and "Traceback" not in said.out + said.err
    assert not list((out / "logs").glob("*crash*"))


def test_names_and_sessions_that_change_between_runs(tmp_path):
    """A folder that is not named as BIDS asks, and a participant without T1w whose sessions come later."""
    bids, out = tmp_path / "bids", tmp_path / "out"
    for label in ("01", "01_old"):
        (bids / f"sub-{label}").mkdir(parents=True)
    (bids / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    words = [str(bids), str(out), "participant", "--tracer", "AV45", "--device", "cpu"]
    assert main(words) == 1
    told = [(r["participant_id"], r["session_id"], r["reason"]) for r in rows(out / "status.tsv")]
    assert [row[:2] for row in told] == [("sub-01", "n/a"), ("sub-01_old", "n/a")]
    assert "no T1w" in told[0][2] and "rename the folder" in told[1][2]
    t1w = bids / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_T1w.nii.gz"
    t1w.parent.mkdir(parents=True)
    t1w.symlink_to("nowhere.nii.gz")
    assert main([*words, "--participant-label", "01"]) == 1
    told = {(r["participant_id"], r["session_id"]) for r in rows(out / "status.tsv")}
    assert told == {("sub-01", "ses-1"), ("sub-01_old", "n/a")}
    page = (out / "sub-01.html").read_text()
    assert "is a link" in page and "no T1w" not in page and "rename the folder" not in page
    assert not list((out / "logs").glob("*crash*"))


def test_after_a_lost_worker_only_what_is_left_is_done_again(example, tmp_path, monkeypatch):
    from bids_petsynth.workflows import participant

    settings = Settings(example, tmp_path / "out", ("AV45", "FDG"), nprocs=2)
    begun: list[tuple[str, tuple[str, ...]]] = []

    def batch(jobs, settings, plugin, tell):
        """A worker is lost before any FDG of several people, and after the AV45 of the last, of which no node tells."""
        for job in jobs:
            begun.append((job.case.participant, job.tracers))
            for tracer in job.tracers:
                record_begun(settings.out_dir, job.case, tracer)
                if len(jobs) == 1 or tracer == "AV45":
                    record_status(settings.out_dir, job.case, tracer, DONE, "written")
                    if len(jobs) == 1 or job != jobs[-1]:
                        tell(job.case, tracer, DONE, "written")
        return "lost"

    monkeypatch.setattr(participant, "_run_batch", batch)
    outcomes = participant.run(find_cases(example), settings)
    people = ("negative", "positive")
    assert begun == [(who, ("AV45", "FDG")) for who in people] + [(who, ("FDG",)) for who in people]
    assert sorted((o.case.participant, o.tracer, o.status) for o in outcomes) == [
        (who, tracer, "done") for who in people for tracer in settings.tracers
    ]
    assert [r["status"] for r in rows(tmp_path / "out" / "status.tsv")] == ["done"] * 4


@pytest.mark.parametrize("scan", ["pets", "others"])
def test_a_scan_beside_the_t1w_that_cannot_be_read_concerns_nobody_else(example, tmp_path, scan):
    """It could be read when it was found."""
    from bids_petsynth.workflows.participant import plan

    lost = tmp_path / "sub-positive_scan.nii.gz"
    found = {"pets": PetScan("positive", None, "FDG", lost), "others": OtherScan("positive", None, "T2w", lost)}
    case = replace(find_cases(example, ["positive"])[0], **{scan: (found[scan],)})
    with pytest.raises(InputError, match=r"sub-positive: sub-positive_scan.nii.gz cannot be read \(No such file"):
        plan(case, Settings(example, tmp_path / "out", ("AV45",)))


def test_no_value_reaches_logs_and_sidecars_unless_asked(run):
    header, *lines = (run.parent / "bids" / "participants.tsv").read_text().splitlines()
    column = header.split("\t").index("ptau217_lumipulse")
    secrets = [line.split("\t")[column] for line in lines]
    texts = [p.read_text() for p in run.rglob("*") if p.suffix in (".json", ".txt") or p.name == "status.tsv"]
    assert len(texts) > 20
    assert not any(f'"Value": {secret}' in text or f" {secret} pg" in text for text in texts for secret in secrets)


def test_a_hash_over_values_cannot_be_found_by_trying_them(run, example):
    """All that goes into it is in the output folder or can be tried, but for the key."""
    settings = Settings(example, run, ("AV45",))
    (case,) = find_cases(example, ["positive"])
    record = steps.record_of(case, settings)
    about = json.loads(next(run.glob("sub-positive/pet/*trc-AV45*space-T1w*synthMean_pet.json")).read_text())
    scan = json.loads((run / "sub-positive/anat/sub-positive_dseg.json").read_text())["InputHash"]
    used = list(about["Conditioning"])
    assert about["InputHash"] == steps.pet_hash(scan, record, used, (), hash_key(run))
    assert about["InputHash"] != steps.pet_hash(scan, record, used)


TABLE = "participant_id\tage\tsex\tptau217_lumipulse\nsub-positive\t71\tF\t0.4\n"


@pytest.mark.parametrize(
    ("table", "units", "missing", "sentence"),
    [
        (None, None, {"age", "ptau217_lumipulse"}, "participants.tsv"),
        (TABLE.replace("sub-positive", "sub-other"), None, {"age"}, "participants.tsv"),
        (TABLE + "sub-positive\t64\tF\t0.4\n", None, {"age"}, "age"),
        (TABLE.replace("71", "n/a"), None, {"age"}, ""),
        (TABLE.replace("71", "seventy"), None, {"age"}, "age"),
        (TABLE.replace("71", "710"), None, {"age"}, "age"),
        (TABLE.replace("0.4", "0,4"), None, set(), ""),
        (TABLE, "furlong", {"ptau217_lumipulse"}, "ptau217_lumipulse"),
    ],
    ids=["absent", "no such participant", "duplicates", "n/a", "text", "impossible age", "comma", "unknown unit"],
)
def test_trouble_in_participants_tsv_is_named(example, tmp_path, table, units, missing, sentence):
    from bids_petsynth.bids.index import find_cases
    from bids_petsynth.settings import Settings
    from bids_petsynth.workflows.steps import record_of

    bids = tmp_path / "bids"
    shutil.copytree(example, bids)
    for name in ("participants.tsv", "participants.json"):
        (bids / name).unlink()
    if table is not None:
        (bids / "participants.tsv").write_text(table)
        unit = {"ptau217_lumipulse": {"Units": units or "pg/mL"}}
        (bids / "participants.json").write_text(json.dumps(unit))
    case = find_cases(bids, participants=["positive"])[0]
    record = record_of(case, Settings(bids, tmp_path / "out", ("AV45",)))
    assert missing <= {name for name, value in record.values.items() if value.status == "missing"}
    if not missing:
        assert record.get("ptau217_lumipulse") == pytest.approx(0.4)
    assert any(sentence in text for text in record.warnings) or not sentence
    assert not any(value in text for text in record.warnings for value in ("710", "seventy", "0.4"))


def test_the_age_at_the_first_of_several_visits_is_not_taken_for_another_without_a_word(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-1\t71\nsub-2\t71\n")
    for folder in ("sub-1/ses-M00", "sub-1/ses-M48", "sub-2/ses-M48"):
        (tmp_path / folder).mkdir(parents=True)
    settings = Settings(tmp_path, tmp_path / "out", ("AV45",))
    warned = [steps.record_of(Case(label, "M48", None), settings).warnings for label in ("1", "2")]
    assert [len(sentences) for sentences in warned] == [1, 0] and "column age" in warned[0][0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tracer", "AV99"], "AV45"),
        (["--tracer", "PIB"], "does not know the tracer PIB"),
        (["--device", "cuda:7"], "--gpus all"),
        (["--model", "/nowhere"], "no model folder /nowhere"),
        (["--output-spaces", "MNI:3mm"], "--output-spaces"),
        (["--participant-label", "nobody"], "nobody"),
        (["-d", "fmriprep"], "NAME=PATH"),
        (["--nprocs", "1", "--omp-nthreads", "4"], "--omp-nthreads 4"),
    ],
)
def test_bad_arguments_end_at_once(example, tmp_path, capsys, words, sentence):
    assert main([str(example), str(tmp_path / "out"), "participant", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said
    assert not (tmp_path / "out" / "status.tsv").exists()


@pytest.mark.parametrize(("text", "gib"), [("16G", 16), ("12000MB", 11.71875), ("1.5 tib", 1536), ("8", 8)])
def test_sizes_of_memory(text, gib):
    assert memory(text) == gib


@pytest.mark.parametrize(
    ("text", "sentence"), [("lots", "no size such as 16G"), ("3G", "too little for one participant")]
)
def test_sizes_that_are_none(example, tmp_path, capsys, text, sentence):
    with pytest.raises(SystemExit, match="2"):
        main([str(example), str(tmp_path), "participant", "--mem", text])
    assert sentence in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written(example, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([str(example), str(tmp_path / "file" / "out"), "participant"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_work_directory_is_made(example, tmp_path, capsys, monkeypatch):
    from bids_petsynth.workflows import participant

    monkeypatch.setattr(participant, "run", lambda *_: [])
    work, out = tmp_path / "me" / "work", tmp_path / "out"
    words = [str(example), str(out), "participant", "--device", "cpu", "--work-dir"]
    assert main([*words, str(work), "--dry-run"]) == 0 and not work.exists()
    assert main([*words, str(work)]) == 0 and work.is_dir()
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    assert main([*words, str(tmp_path / "file" / "work")]) == 2
    assert "cannot be made (Not a directory); choose another with --work-dir" in capsys.readouterr().err


def test_dry_run_writes_nothing_and_tells_all(example, tmp_path, capsys):
    assert main([str(example), str(tmp_path / "out"), "participant", "--dry-run", "--tracer", "AV45", "FDG"]) == 0
    said = capsys.readouterr().out
    assert "sub-negative" in said and "sub-positive" in said and "ptau217_lumipulse" in said
    assert "trc-FDG_space-T1w_res-2_desc-synthMean_pet.nii.gz" in said
    assert not (tmp_path / "out").exists()


def test_write_mapping(example, tmp_path, capsys):
    target = tmp_path / "mapping.tsv"
    assert main([str(example), str(tmp_path / "out"), "participant", "--write-mapping", str(target)]) == 0
    assert "ptau217_lumipulse" in target.read_text()
    assert main([str(example), str(tmp_path / "out"), "participant", "--dry-run", "--mapping", str(target)]) == 0
    capsys.readouterr()
