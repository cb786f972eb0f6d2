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
import pytest
from places import quick_labels

from bids_petsynth.cli.main import main
from bids_petsynth.cli.simulate import owner
from bids_petsynth.types import Case


def rows(bids: Path) -> list[dict[str, str]]:
    with (bids / "participants.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_example_becomes_a_simulated_dataset_that_participant_reads(site, tmp_path, capsys):
    scans = sorted(site.rglob("*_pet.nii.gz"))
    names = [f"sub-{head}sim0{k}_trc-AV45_rec-sim_pet.nii.gz" for head in ("negative", "positive") for k in (1, 2, 3)]
    assert [p.name for p in scans] == names
    table = rows(site)
    assert [row["head"] for row in table] == ["negative"] * 3 + ["positive"] * 3
    dictionary = json.loads((site / "participants.json").read_text())
    assert all("imulated" in dictionary[name]["Description"] for name in ("ptau217_lumipulse", "age", "mmse"))
    first, second = (nib.load(path).get_fdata() for path in scans[:2])
    assert first.shape == second.shape and not np.array_equal(first, second)
    tool = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    assert tool, "bids-validator-deno is not in this environment; `make env` installs it"
    done = subprocess.run([tool, str(site), "--json"], capture_output=True, text=True)
    found = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in found if issue["severity"] == "error"] == []
    # what it wrote is read with every variable found
    assert main([str(site), str(tmp_path / "out"), "participant", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "ptau217_lumipulse    found" in said and "missing" not in said.split("(not an input")[0]


@quick_labels()  # as the site's
def test_a_person_comes_again_whichever_others_are_simulated(example, site, tmp_path):
    words = ["simulate", "--participant-label", "positive", "--people-per-head", "2", "--tracer", "AV45"]
    again = tmp_path / "again"
    assert main([str(example), str(again), *words, "--random-seed", "3", "--device", "cpu"]) == 0
    assert rows(again) == [row for row in rows(site) if row["head"] == "positive"][:2]
    # ANTs' sums depend on how its threads interleave, so that the head may lie a hair's breadth elsewhere
    for path in sorted(again.rglob("*_pet.nii.gz")):
        pair = [nib.load(p).get_fdata().ravel() for p in (path, site / path.relative_to(again))]
        assert np.corrcoef(pair)[0, 1] > 0.995


def test_the_dataset_itself_is_not_overwritten(example, capsys):
    assert main([str(example), str(example), "simulate"]) == 2
    assert "folder of its own" in capsys.readouterr().err


@pytest.mark.parametrize("level", ["simulate", "participant", "group"])
def test_no_other_dataset_is_overwritten(example, tmp_path, capsys, level):
    about = {"Name": "x", "BIDSVersion": "1.4.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]}
    (tmp_path / "dataset_description.json").write_text(json.dumps(about))
    (tmp_path / "README").write_text("of others")
    assert main([str(example), str(tmp_path), level]) == 2
    assert "holds another dataset" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"dataset_description.json", "README"}
    assert json.loads((tmp_path / "dataset_description.json").read_text()) == about


def test_age_beside_a_real_head_is_not_exact(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t71.6\tF\nsub-02\t93.2\tn/a\n")
    assert owner(tmp_path, Case("01", None, None)) == (71.0, 0.0)
    age, sex = owner(tmp_path, Case("02", None, None))
    assert age == 89 and np.isnan(sex)
