"""The level group where there is real PET; the comparisons themselves are made up, what becomes of them is not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cohort_small import write
from group_small import SMALL, check_page, people, run, table

from bids_petsynth.bids.pets import Pair
from bids_petsynth.evaluation.comparison import Comparison
from bids_petsynth.models.synthesizer import built_in
from bids_petsynth.reports.group import about_column
from bids_petsynth.types import PetScan
from bids_petsynth.workflows import comparisons
from bids_petsynth.workflows import group as level


def with_real(monkeypatch, error: float = 0.0, noise: float = 3.0, maps: bool = False) -> None:
    """Every synthetic scan has a real one whose Centiloid is ``error`` above it, give or take ``noise``."""

    def one(job):
        rng = np.random.default_rng(list(job.scan.case.label.encode()))
        shift = (error + noise * rng.normal()) / 183.0
        synthetic = {row["name"]: float(row["suvr"]) for row in job.pet.regions}
        real = {name: value + shift for name, value in synthetic.items()}
        load = float(job.pet.measures["centiloid_approximate"]) + 183.0 * shift
        image = {"mae_brain": 0.1 + abs(shift), "ssim_brain": 0.9, "psnr_brain": float("inf")}
        found = Comparison(image, synthetic, real, load, atrophy={"ventricle_share": 0.02 + 0.01 * rng.random()})
        return comparisons.Outcome(job, found)

    def jobs(scans, pairs, **how):
        made = []
        for scan in scans:
            for pet in scan.pets:
                real = PetScan(scan.case.participant, scan.case.session, pet.tracer.name, Path("none_pet.nii.gz"))
                made.append(comparisons.Job(scan, pet, Pair(scan.case, real), **how))
        return made, [(Pair(None, PetScan("x", None, "AV45", Path("x"))), "sub-x has no T1w image.")]

    monkeypatch.setattr(comparisons, "one", one)
    monkeypatch.setattr(comparisons, "jobs", jobs)
    monkeypatch.setattr(comparisons, "kept_maps", lambda job: {})
    monkeypatch.setattr("bids_petsynth.workflows.maps.kept_maps", lambda job: {})


def test_planted_bias_error_and_status_come_back(tmp_path, monkeypatch):
    with_real(monkeypatch, error=5.0)
    bids, out = write(tmp_path, people(40))
    assert run(bids, out) == 0
    seen = check_page(out).seen
    assert "MAE brain" in seen and "mae_brain" not in seen  # figures are named in words
    row = table(out, "global").query("method == 'synthetic PET' and figure == 'Centiloid'").iloc[0]
    assert row["bias"] == pytest.approx(-5, abs=1.5) and row["bias_low"] < -5 < row["bias_high"]
    assert row["loa_high"] - row["loa_low"] == pytest.approx(2 * 1.96 * 3, rel=0.3)
    other = table(out, "global").query("method == 'ridge' and figure == 'Centiloid'").iloc[0]
    assert other["r"] > 0.9 and abs(other["bias"]) < 1.5  # the record tells the load, and has no bias to tell
    assert np.isnan(table(out, "global").query("method == 'population mean'")["r"]).all()
    cut = table(out, "cutoffs").query("method == 'synthetic PET' and cutoff == 20").iloc[0]
    assert cut["n_positive"] == cut["n_called_positive"] + round((1 - cut["sensitivity"]) * cut["n_positive"]) - round(
        (1 - cut["specificity"]) * (cut["n"] - cut["n_positive"])
    )
    cover = table(out, "coverage").query("grouping == 'all' and figure == 'target'").iloc[0]
    assert cover["coverage95"] == 1  # the spread of .1 SUVR is far above the planted error
    assert table(out, "left")["reason"].tolist() == ["sub-x has no T1w image."]
    for path in (out / "group").glob("*.tsv"):
        header = path.read_text().splitlines()[0].split("\t")
        assert [name for name in header if not about_column(path.stem, name)] == [], path.name


def test_without_a_cohort_the_card_of_the_model_in_use_speaks(tmp_path):
    bids, out = write(tmp_path, people(3))
    assert run(bids, out) == 0
    assert "not from this dataset" in check_page(out).seen
    told = table(out, "heldout").set_index("tracer")
    line = re.search(r"^\| AV45 \| (\S+) \| (\S+) \|", (built_in() / "MODEL_CARD.md").read_text(), re.MULTILINE)
    assert told.loc["AV45", ["mae", "mae_of_mean"]].tolist() == [float(number) for number in line.groups()]
    assert list(told.index) == json.loads((built_in() / "model.json").read_text())["tracers"]


def test_of_another_model_than_made_the_scans_nothing_is_said(tmp_path):
    bids, out = write(tmp_path, people(3))
    for path in out.rglob("*_pet.json"):
        sidecar = json.loads(path.read_text())
        sidecar["Model"] |= {"Name": "ours"}
        del sidecar["Conditioning"]  # nor does it tell what it takes
        path.write_text(json.dumps(sidecar))
    assert run(bids, out) == 0
    seen = check_page(out).seen
    assert "were made by ours" in seen and "--model and its folder" in seen
    assert not (out / "group/heldout.tsv").exists() and not (out / "group/outside.tsv").exists()
    assert "SD from the mean" not in seen and "itself used" not in seen
    assert not table(out, "values")["model_input"].any()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_people_with_real_pet(tmp_path, monkeypatch, n):
    with_real(monkeypatch)
    bids, out = write(tmp_path, people(n))
    assert run(bids, out) == 0
    assert "are compared" in check_page(out).seen


def test_people_who_share_a_head_are_one_unit(tmp_path, monkeypatch):
    with_real(monkeypatch)
    own = [replace(p, columns={**p.columns, "head": f"h{int(p.label) // 4}"}) for p in people(24)]
    bids, out = write(tmp_path, own, {"GeneratedBy": [{"Name": "bids_petsynth simulate"}]})
    assert run(bids, out) == 0
    seen = check_page(out).seen
    assert "24 participants are 6 independent units" in seen and "says nothing about patients" in seen
    assert table(out, "cutoffs")["p_bias"].isna().all()


def test_change_in_real_pet(tmp_path, monkeypatch):
    with_real(monkeypatch)
    own = []
    for person in people(12):
        own += [replace(person, session="1"), replace(person, session="2", load=person.load + int(person.label))]
    bids, out = write(tmp_path, own)
    assert run(bids, out) == 0
    row = table(out, "changesummary").query("figure == 'centiloid'").iloc[0]
    assert row["n"] == 12 and row["mae"] < 10


def test_is_simulated(tmp_path):
    bids, _ = write(tmp_path, [SMALL])
    assert not level.is_simulated(bids)
    (bids / "dataset_description.json").write_text('{"Name": "x", "GeneratedBy": [{"Name": "bids-petsynth-example"}]}')
    assert level.is_simulated(bids)
    (bids / "dataset_description.json").write_text('{"Name": "x", "GeneratedBy": "nobody"}')
    assert not level.is_simulated(bids)


def test_diagnosis_and_score(tmp_path, monkeypatch):
    with_real(monkeypatch)
    own = people(24)
    mmse = {p.label: f"{30 - p.load / 10:.1f}" for p in own}
    own = [replace(p, columns={**p.columns, "MMSE": mmse[p.label]}) for p in own]
    bids, out = write(tmp_path, own)
    options = (
        "--diagnosis",
        "diagnosis",
        "--score",
        "MMSE",
        "--score-range",
        "20",
        "30",
        "--seeds",
        "1",
        "--folds",
        "2",
    )
    assert run(bids, out, *options) == 0
    seen = check_page(out).seen
    assert "Classes are those of the column diagnosis" in seen
    told = table(out, "diagnosisperformance")
    best = told[told["features"] == "synthetic PET"].iloc[0]
    assert best["auc"] > 0.95
    assert json.loads((out / "group/classifier/classifier.json").read_text())["Classes"]
    assert not list((out / "group").glob("wholescans*"))
    score = table(out, "score")
    assert score[score["features"] == "synthetic PET"].iloc[0]["r"] > 0.8
    for path in (out / "group").glob("*.tsv"):
        header = path.read_text().splitlines()[0].split("\t")
        assert [name for name in header if not about_column(path.stem, name)] == [], path.name
