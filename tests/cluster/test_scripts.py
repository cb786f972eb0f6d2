"""Every script of docs/hpc run by a real Slurm: looked at is what it leaves, not only how it ends."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from slurm_node import ROOT, SCRIPTS, Slurm, started_slurm  # noqa: F401  (a fixture)

pytestmark = pytest.mark.cluster

OPTIONS = "--n-draws 2 --random-seed 3"
HEADS = ("sub-negative", "sub-positive")
#: Beginnings of what the cohort report is made of.
GROUP = ("group.", "group/")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def listing(out: Path) -> list[str]:
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())


def expected(*heads: str) -> list[str]:
    """The stored list of a run's outputs without what other options made there."""
    files = (ROOT / "tests" / "participant_outputs.txt").read_text().split()
    others = set(HEADS) - set(heads)
    return [f for f in files if "_trc-FDG" not in f and "desc-synth0" not in f and not any(o in f for o in others)]


def submit(slurm: Slurm, folder: Path, bids: Path, out: Path, kind: str, **environment: str) -> tuple[str, str]:
    """Run submit.sh as a user does; numbers of the array and of the job after it."""
    given = {"BIDS_DIR": str(bids), "OUT_DIR": str(out), "OPTIONS": OPTIONS} | environment
    said = slurm.call("bash", SCRIPTS / "submit.sh", kind, cwd=folder, **given)
    array, group = re.search(r"participants: job (\d+).*group: job (\d+)", said).groups()
    return array, group


def output_of(folder: Path) -> str:
    return "\n".join(f"{p.name}:\n{p.read_text()}" for p in sorted((folder / "slurm-logs").glob("*.out")))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a space and letters that are not ASCII in its path."""
    folder = tmp_path_factory.mktemp("cluster") / "meine Köpfe"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def bids(example, place) -> Path:
    return Path(shutil.copytree(example, place / "bids"))


@pytest.fixture(scope="module")
def array(slurm, bids, place) -> tuple[Path, list[dict[str, str]], dict[str, str]]:
    """The example through submit.sh: its output folder, the array's tasks, the state of the job after it."""
    job, group = submit(slurm, place, bids, place / "out", "cpu")
    tasks = slurm.wait(job, place)
    return place / "out", tasks, slurm.wait(group, place)[0]


def test_an_array_writes_what_one_run_writes(array, place):
    out, tasks, _ = array
    assert [t["JobState"] for t in tasks] == ["COMPLETED"] * 2, output_of(place)
    assert {t["NumCPUs"] for t in tasks} == {"4"} and {t["ArrayTaskId"] for t in tasks} == {"1", "2"}
    assert {t["Partition"] for t in tasks} == {"cpu"}
    assert [f for f in listing(out) if not f.startswith(GROUP)] == expected(*HEADS)
    assert [(r["participant_id"], r["status"]) for r in rows(out / "status.tsv")] == [(h, "done") for h in HEADS]
    assert [r["participant_id"] for r in rows(out / "group_desc-synthMean_regions.tsv")] == list(HEADS)
    for head in HEADS:
        about = json.loads(next((out / head / "pet").glob("*T1w_res-2_desc-synthMean_pet.json")).read_text())
        assert f"--participant-label {head}" in about["Command"]


def test_the_group_job_runs_after_the_array(array, place):
    out, tasks, state = array
    assert state["JobState"] == "COMPLETED", output_of(place)
    assert state["StartTime"] >= max(task["EndTime"] for task in tasks)
    listed = (ROOT / "tests" / "container" / "outputs_group.txt").read_text().split()
    assert [f for f in listing(out) if f.startswith(GROUP)] == listed
    assert all(head in (out / "group.html").read_text() for head in HEADS)


def test_a_failed_task_keeps_the_group_from_running(slurm, example, tmp_path):
    bids = Path(shutil.copytree(example, tmp_path / "bids"))
    for image in bids.rglob("*_T1w.nii.gz"):
        image.unlink()
        image.symlink_to("../../.git/annex/objects/nowhere")
    job, group = submit(slurm, tmp_path, bids, tmp_path / "out", "cpu", CHUNK="2")
    (task,) = slurm.wait(job, tmp_path)  # both participants in one task
    assert (task["JobState"], task["ExitCode"]) == ("FAILED", "1:0"), output_of(tmp_path)
    (state,) = slurm.wait(group, tmp_path)
    assert state["JobState"] == "CANCELLED"
    told = rows(tmp_path / "out" / "status.tsv")
    assert [r["status"] for r in told] == ["failed"] * 2 and all("datalad get" in r["reason"] for r in told)


def test_the_gpu_partition(slurm, bids, place, tmp_path):
    one = Path(shutil.copytree(bids, tmp_path / "bids"))
    shutil.rmtree(one / HEADS[0])
    job, _ = submit(slurm, tmp_path, one, tmp_path / "out", "gpu")
    (task,) = slurm.wait(job, tmp_path)
    assert task["Partition"] == "gpu" and "gres:gpu:1" in task["TresPerNode"]
    import torch

    if torch.cuda.is_available():
        assert task["JobState"] == "COMPLETED", output_of(tmp_path)
    else:  # never a silent fallback
        assert task["JobState"] == "FAILED" and not list((tmp_path / "out").rglob("*_pet.nii.gz"))
        assert re.search("(?i)cuda", output_of(tmp_path)) and "Traceback" not in output_of(tmp_path)


def test_a_killed_task_is_told(slurm, bids, tmp_path):
    job, group = submit(slurm, tmp_path, bids, tmp_path / "out", "cpu", SBATCH_ARGS="--cpus-per-task=1")
    notes = tmp_path / "out" / "logs" / "status"
    for _ in range(120):
        if notes.is_dir() and any(notes.iterdir()):
            break
        time.sleep(0.5)
    slurm.call("scancel", "--signal=KILL", "--full", job, cwd=tmp_path)
    slurm.call("scancel", group, cwd=tmp_path)
    slurm.wait(job, tmp_path)
    from bids_petsynth.bids.dataset import write_status

    told = rows(write_status(tmp_path / "out"))
    assert told and all(r["status"] == "failed" and "memory or time ran out" in r["reason"] for r in told)


def plugin_run(slurm: Slurm, folder: Path, bids: Path, **environment: str) -> str:
    """The driver's job."""
    (folder / "slurm-logs").mkdir()
    given = {"BIDS_DIR": str(bids), "OUT_DIR": str(folder / "out"), "WORK_DIR": str(folder / "work dir")}
    given |= {"PLUGIN": str(SCRIPTS / "plugin.yml"), "OPTIONS": OPTIONS, "STEP_CPUS": "2"} | environment
    return slurm.call("sbatch", "--parsable", SCRIPTS / "plugin.sh", cwd=folder, **given).strip()


def steps_of(slurm: Slurm, folder: Path) -> list[dict[str, str]]:
    """All jobs of steps that Slurm remembers."""
    text = slurm.call("scontrol", "-o", "show", "jobs", cwd=folder)
    jobs = [dict(p.split("=", 1) for p in line.split() if "=" in p) for line in text.splitlines()]
    return [job for job in jobs if re.match("petsynth-(anatomy|synthesis|outputs|report)", job.get("JobName", ""))]


def test_every_step_a_job_through_nipypes_plugin(slurm, array, bids, tmp_path):
    (driver,) = slurm.wait(plugin_run(slurm, tmp_path, bids), tmp_path)
    assert driver["JobState"] == "COMPLETED", output_of(tmp_path)
    jobs = steps_of(slurm, tmp_path)
    names = ["petsynth-anatomy", "petsynth-outputs_AV45", "petsynth-report", "petsynth-synthesis_AV45"]
    assert sorted(job["JobName"] for job in jobs) == sorted(names * 2)
    assert {job["JobState"] for job in jobs} == {"COMPLETED"} and {job["TimeLimit"] for job in jobs} == {"01:00:00"}
    assert {job["NumCPUs"] for job in jobs if "report" not in job["JobName"]} == {"2"}
    assert listing(tmp_path / "out") == expected(*HEADS)
    assert not list((tmp_path / "work dir").iterdir())
    # the same numbers as from the array; threads sum in another order
    for head in HEADS:
        name = f"{head}/pet/{head}_trc-AV45_space-T1w_res-2_desc-synthMean_pet.nii.gz"
        one, two = (nib.load(folder / name).get_fdata() for folder in (array[0], tmp_path / "out"))
        assert np.abs(one - two).max() < 0.02


def test_a_killed_step_is_told_and_the_others_go_on(slurm, bids, tmp_path):
    done = {job["JobId"] for job in steps_of(slurm, tmp_path)}
    driver = plugin_run(slurm, tmp_path, bids)
    victim = None
    for _ in range(240):
        fresh = [j for j in steps_of(slurm, tmp_path) if j["JobId"] not in done and j["JobState"] == "RUNNING"]
        victim = next((j for j in fresh if j["JobName"] == "petsynth-anatomy"), None)
        if victim:
            break
        time.sleep(0.5)
    assert victim, output_of(tmp_path)
    slurm.call("scancel", "--signal=KILL", "--full", victim["JobId"], cwd=tmp_path)
    (state,) = slurm.wait(driver, tmp_path)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "1:0"), output_of(tmp_path)
    told = rows(tmp_path / "out" / "status.tsv")
    assert sorted(r["status"] for r in told) == ["done", "failed"]
    assert "memory or time ran out" in next(r["reason"] for r in told if r["status"] == "failed")


def test_a_job_that_slurm_refuses_is_told(slurm, bids, tmp_path):
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("plugin: SLURM\nplugin_args: {sbatch_args: --partition=none, max_tries: 0}\n")
    (state,) = slurm.wait(plugin_run(slurm, tmp_path, bids, PLUGIN=str(plugin)), tmp_path)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "1:0")
    assert "Invalid partition" in output_of(tmp_path) and "sbatch_args" in output_of(tmp_path)


@pytest.fixture(scope="module")
def people(slurm, example, tmp_path_factory) -> Path:
    """Six simulated people with an amyloid scan each, and a recipe of tiny networks."""
    folder = tmp_path_factory.mktemp("people")
    words = [*slurm.environment["PETSYNTH"].split(), example, folder / "bids", "simulate", "--people-per-head", "3"]
    subprocess.run([*map(str, words), "--tracer", "AV45"], check=True, env=slurm.environment, capture_output=True)
    code = (
        "import sys; from models_small import small_recipe; from bids_petsynth.models.recipe import recipe_text\n"
        "print(recipe_text(small_recipe(grid={'shape': [96, 112, 96]}, network={'channels': [16, 24]},\n"
        "  regional={'width': 32, 'training_steps': 400, 'batch': 32, 'rate': 3e-3}, training={'steps': 4})))\n"
    )
    environment = slurm.environment | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    (folder / "tiny.toml").write_text(done.stdout)
    return folder


@pytest.mark.parametrize("processes", [2, 1])
def test_training_under_torchrun(slurm, people, tmp_path, processes):
    """One node here; the script asks for two, each with four GPUs. Two processes prepare the scans that one reuses."""
    (tmp_path / "slurm-logs").mkdir()
    prepared = tmp_path / "out" / "models" / "ours-training"
    for part in ("heads", "scans"):
        if (people / part).is_dir():
            shutil.copytree(people / part, prepared / part)
    given = {"BIDS_DIR": str(people / "bids"), "OUT_DIR": str(tmp_path / "out"), "PROCS": str(processes)}
    given["OPTIONS"] = f"--recipe {people / 'tiny.toml'} --name ours --held-out .34 --device cpu"
    smaller = ["--nodes=1", "--gres=none", "--partition=cpu", "--cpus-per-task=4", "--mem=12G"]
    job = slurm.call("sbatch", "--parsable", *smaller, SCRIPTS / "train.sh", cwd=tmp_path, **given).strip()
    (state,) = slurm.wait(job, tmp_path)
    assert state["JobState"] == "COMPLETED", output_of(tmp_path)
    from bids_petsynth.models.folder import load_model

    model = load_model(tmp_path / "out" / "models" / "ours")
    assert model.recipe.name == "ours" and "Trained on 4 people" in model.card
    for part in ("heads", "scans"):
        assert len(list((prepared / part).glob("*.npz"))) == 6
        shutil.copytree(prepared / part, people / part, dirs_exist_ok=True)
