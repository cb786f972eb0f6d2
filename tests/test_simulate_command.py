"""``simulate`` as its users call it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_petsynth.cli.main import main


def test_example_becomes_a_simulated_dataset_that_participant_reads(example, tmp_path, capsys):
    out = tmp_path / "sim"
    words = [
        "simulate",
        "--participant-label",
        "positive",
        "--people-per-head",
        "2",
        "--tracer",
        "AV45",
        "--device",
        "cpu",
    ]
    assert main([str(example), str(out), *words]) == 0
    scans = sorted(out.rglob("*_pet.nii.gz"))
    assert [p.name for p in scans] == [f"sub-positivesim0{k}_trc-AV45_rec-sim_pet.nii.gz" for k in (1, 2)]
    table = list(csv.DictReader((out / "participants.tsv").open(), delimiter="\t"))
    assert [row["head"] for row in table] == ["positive", "positive"]
    dictionary = json.loads((out / "participants.json").read_text())
    assert all("imulated" in dictionary[name]["Description"] for name in ("ptau217_lumipulse", "age", "mmse"))
    first, second = (nib.load(path).get_fdata() for path in scans)
    assert first.shape == second.shape and not np.array_equal(first, second)
    tool = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    assert tool, "bids-validator-deno is not in this environment; `make env` installs it"
    done = subprocess.run([tool, str(out), "--json"], capture_output=True, text=True)
    found = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in found if issue["severity"] == "error"] == []
    # what it wrote is read with every variable found
    assert main([str(out), str(tmp_path / "out"), "participant", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "ptau217_lumipulse    found" in said and "missing" not in said.split("(not an input")[0]
    again = tmp_path / "again"
    assert main([str(example), str(again), *words]) == 0
    assert (again / "participants.tsv").read_bytes() == (out / "participants.tsv").read_bytes()
    # ANTs' sums depend on how its threads interleave, so that the head may lie a hair's breadth elsewhere
    for path in scans:
        pair = [nib.load(p).get_fdata().ravel() for p in (path, again / path.relative_to(out))]
        assert np.corrcoef(pair)[0, 1] > 0.995


def test_the_dataset_itself_is_not_overwritten(example, capsys):
    assert main([str(example), str(example), "simulate"]) == 2
    assert "folder of its own" in capsys.readouterr().err
