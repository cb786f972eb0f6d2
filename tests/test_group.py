"""The level group, on made-up cohorts: what it writes, what it says, and that the report always opens."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, WHOLE, Browser, Page
from cohort_small import Person, write

from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.pets import Pair
from bids_petsynth.bids.tables import read_tsv
from bids_petsynth.cli.main import main
from bids_petsynth.evaluation.comparison import Comparison
from bids_petsynth.reports.group import about_column
from bids_petsynth.types import Case, PetScan
from bids_petsynth.workflows import comparisons
from bids_petsynth.workflows import group as level

EVIL = "<script>alert(1)</script>"


def people(n: int = 24, seed: int = 0) -> list[Person]:
    """Two diagnoses with loads of about 10 and 60, and a plasma marker that follows the load."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(n):
        ill = number % 2
        load = float((60 if ill else 10) + 8 * rng.normal())
        columns = {
            "age": f"{60 + number % 25}",
            "sex": "FM"[number % 3 % 2],
            "diagnosis": "AD" if ill else f"CN {EVIL}",
            "ptau217_lumipulse": f"{0.1 + load / 200:.4f}",
        }
        out.append(Person(f"{number:03d}", columns, load))
    return out


def run(bids: Path, out: Path, *options: str) -> int:
    return main([str(bids), str(out), "group", "--nprocs", "1", *options])


def table(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / "group" / f"{name}.tsv", sep="\t", na_values="n/a", keep_default_na=False)


def check_page(out: Path) -> Page:
    """One file without scripts of others, everything with alternative texts, links to reports that are there."""
    page = Page(out / "group.html")
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(name) or ""
            fits = value.startswith(("data:image/", "#")) or not value or (out / value).is_file()
            assert fits, (tag, value[:80])
        if tag == "img":
            assert len(attributes["alt"]) > 30
    return page


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Two dozen people, one failed, one not worked on; the report is written."""
    folder = tmp_path_factory.mktemp("group")
    own = people()
    own += [Person("failed", {"age": "70"}, None), Person("later", {"age": "71"}, waiting=True)]
    bids, out = write(folder, own)
    assert run(bids, out) == 0
    return bids, out


def test_every_table_has_a_dictionary_that_describes_every_column(cohort):
    _, out = cohort
    tables = sorted((out / "group").glob("*.tsv"))
    assert {"quality", "groups", "values", "plasma"} <= {path.stem for path in tables}
    for path in tables:
        header = path.read_text().splitlines()[0].split("\t")
        about = json.loads(path.with_suffix(".json").read_text())
        assert about["Synthetic"] is True and about["Description"]
        assert [name for name in header if not about[name].get("Description")] == [], path.name


def test_the_page_escapes_everything_and_says_who_is_missing(cohort):
    _, out = cohort
    page = check_page(out)
    assert EVIL in page.seen and "Not worked on yet: sub-later" in page.seen
    assert "SYNTHETIC PET, not measured" in page.seen and "Demonstration model" in page.seen
    assert "the T1w is cut off" in page.seen
    status = table(out, "quality").set_index("participant_id")["status"]
    assert status["sub-failed"] == "failed" and status["sub-later"] == "not worked on yet"


def test_planted_differences_come_back(cohort):
    _, out = cohort
    groups = table(out, "groups")
    rows = groups[(groups["grouping"] == "diagnosis") & (groups["figure"] == "centiloid")].set_index("group")
    means = {"AD": [], "CN": []}
    for person in people():
        means[person.columns["diagnosis"][:2]].append(person.load)
    assert rows.loc["AD", "mean"] == pytest.approx(np.mean(means["AD"]), rel=1e-4)
    assert rows.loc["AD", "n"] == 12 and rows.loc["AD", "p_holm"] < 1e-6
    plasma = table(out, "plasma").iloc[0]
    assert plasma["marker"] == "ptau217_lumipulse" and plasma["spearman_r"] > 0.99 and plasma["auc"] > 0.99


def test_a_rerun_with_nothing_new_writes_nothing(cohort, capsys):
    bids, out = cohort
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert run(bids, out) == 0
    assert "Nothing has changed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_what_an_earlier_run_left_is_forgotten(tmp_path):
    bids, out = write(tmp_path, people(12))
    assert run(bids, out) == 0
    stale = out / "group" / "gone.tsv"
    stale.write_text("old\n")
    assert run(bids, out, "--group-column", "diagnosis") == 0
    assert not stale.exists()


SMALL = people(1)[0]


@pytest.mark.parametrize(
    "own",
    [
        [SMALL],
        [replace(SMALL, load=None)],
        [replace(SMALL, waiting=True)],
        [replace(p, columns={"age": "n/a", "sex": "n/a", "diagnosis": "n/a"}) for p in people(3)],
        [replace(p, columns={"age": "70", "sex": "F", "diagnosis": "CN"}, load=10.0, noise=0.0) for p in people(12)],
        [replace(p, columns={}) for p in people(2)],
        [replace(p, tracers=("FDG", "AV45", "FBB")) for p in people(4)],
        [replace(SMALL, session="1"), replace(SMALL, session="2", load=30.0)],
        [replace(p, spread=float("nan")) for p in people(4)],
    ],
    ids=["one", "failed", "waiting", "allmissing", "constant", "nocolumns", "tracers", "sessions", "onedraw"],
)
def test_degenerate_cohorts_get_a_report_that_opens(tmp_path, own):
    bids, out = write(tmp_path, own)
    assert run(bids, out) == 0
    check_page(out)


@pytest.mark.parametrize(
    "own",
    [
        [SMALL],
        [replace(p, columns={**p.columns, "diagnosis": "AD", "MMSE": "29"}) for p in people(12)],
        [
            replace(
                p,
                columns={"diagnosis": "AD" if p.label == "000" else "n/a", "MMSE": "29" if p.label == "000" else "n/a"},
            )
            for p in people(3)
        ],
        [SMALL, *(replace(p, load=None) for p in people(4)[1:])],
    ],
    ids=["one", "oneclass", "allmissing", "failed"],
)
def test_degenerate_cohorts_with_a_diagnosis_get_a_sentence(tmp_path, own):
    own = [replace(p, columns={"MMSE": "29", **p.columns}) for p in own]
    bids, out = write(tmp_path, own)
    assert run(bids, out, "--diagnosis", "diagnosis", "--diagnosis-cnn", "--score", "MMSE", "--seeds", "1") == 0
    seen = check_page(out).seen
    assert "Diagnosis" in seen and "Score MMSE" in seen
    assert "could not be made" not in seen and not list((out / "logs").glob("*crash*"))
    assert not (out / "group/classifier").exists()


def test_change_over_sessions_is_per_year_and_in_order_of_dates(tmp_path):
    visits = [("b", "2020-01-01T10:00:00", 10.0), ("a", "2022-01-01T10:00:00", 30.0)]
    own = [Person("01", {"age": "70"}, load, session, date=date) for session, date, load in visits]
    bids, out = write(tmp_path, own)
    assert run(bids, out) == 0
    row = table(out, "change").iloc[0]
    assert (row["from"], row["to"]) == ("ses-b", "ses-a")
    assert row["centiloid_change"] == pytest.approx(20, abs=1e-3)
    assert row["centiloid_per_year"] == pytest.approx(20 / (731 / 365.25), rel=1e-3)


def test_wrong_arguments_are_a_sentence(cohort, capsys, tmp_path):
    bids, out = cohort
    assert run(bids, out, "--group-column", "nothing") == 2
    assert "no column nothing" in capsys.readouterr().err
    assert run(bids, tmp_path / "absent") == 2
    assert run(bids, out, "--diagnosis", "nothing") == 2
    assert run(bids, out, "--folds", "1") == 2


# with real PET: the comparisons themselves are made up, what becomes of them is not


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
    from bids_petsynth.models.synthesizer import built_in

    bids, out = write(tmp_path, people(3))
    assert run(bids, out) == 0
    assert not (out / "group/heldout.tsv").exists()  # they are of another model
    about = json.loads((built_in() / "model.json").read_text())
    for path in out.rglob("*_pet.json"):
        sidecar = json.loads(path.read_text())
        sidecar["Model"] |= {"Name": about["name"], "Version": about["version"]}
        path.write_text(json.dumps(sidecar))
    assert run(bids, out) == 0
    assert "not from this dataset" in check_page(out).seen
    told = table(out, "heldout").set_index("tracer")
    line = re.search(r"^\| AV45 \| (\S+) \| (\S+) \|", (built_in() / "MODEL_CARD.md").read_text(), re.MULTILINE)
    assert told.loc["AV45", ["mae", "mae_of_mean"]].tolist() == [float(number) for number in line.groups()]
    assert list(told.index) == about["tracers"]


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


def test_which_real_scan_of_several_is_compared(cohort):
    from bids_petsynth.reports.content import read_participant

    bids, out = cohort
    scans = read_participant(out, "000")
    case = Case("000", None, Path("t1w.nii.gz"))
    far, near = (
        Pair(case, PetScan("000", session, "AV45", Path(f"{session}_pet.nii.gz")), gap)
        for session, gap in (("1", 300), ("2", 3))
    )
    other = Pair(case, PetScan("000", None, "FDG", Path("fdg_pet.nii.gz")))
    made, left = comparisons.jobs(scans, [far, near, other], out_dir=out)
    assert [job.pair for job in made] == [near]
    reasons = {pair.pet.path.name: why for pair, why in left}
    assert "nearer" in reasons["1_pet.nii.gz"] and "no synthetic FDG" in reasons["fdg_pet.nii.gz"]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_the_table_sorts_filters_and_prints_in_a_browser(cohort, tmp_path):
    _, out = cohort
    with Browser(tmp_path / "profile") as browser:
        browser.open((out / "group.html").as_uri())
        assert browser.value(WHOLE)
        rows = "[...document.querySelectorAll('#table-quality tbody tr')]"
        first = f"{rows}.filter(r => !r.hidden)[0].cells[0].textContent"
        assert browser.value(f"{rows}.length") == 26
        heads = "[...document.querySelectorAll('#table-quality th')]"
        press = heads + ".find(h => h.textContent === 'Centiloid approximate').querySelector('button')"
        loads = {f"sub-{p.label}": p.load for p in people()}
        browser.value(f"{press}.focus()")
        assert browser.value("document.activeElement.tagName") == "BUTTON"
        browser.value(f"{press}.click()")
        assert browser.value(first) == min(loads, key=loads.get)
        assert browser.value(f"{press}.parentElement.getAttribute('aria-sort')") == "ascending"
        browser.value(f"{press}.click()")
        assert browser.value(first) == max(loads, key=loads.get)
        browser.value(
            "(() => { const s = document.querySelector('[data-for=table-quality] select');"
            "s.value = 'failed'; s.dispatchEvent(new Event('input')); })()"
        )
        assert browser.value(f"{rows}.filter(r => !r.hidden).length") == 1
        assert browser.value("document.querySelector('[role=status]').textContent") == "1 of 26 rows"
        browser.pdf(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").stat().st_size > 20_000
        assert browser.messages == []


def test_no_value_of_a_participant_in_what_is_printed(tmp_path, capsys):
    bids, out = write(tmp_path, [replace(SMALL, columns={"age": "71.23456", "ptau217_lumipulse": "0.98765"})])
    assert run(bids, out) == 0
    said = capsys.readouterr()
    assert not re.search("71.23|0.987", said.out + said.err)
    assert not any("0.98765" in path.read_text() for path in (out / "group").glob("*.tsv"))


def test_a_part_that_fails_says_so_and_the_others_stand(tmp_path, monkeypatch, capsys):
    from bids_petsynth.errors import InputError
    from bids_petsynth.reports import cohort_sections, comparison_sections

    def broken(*_):
        raise ValueError("0.98765 is a value of somebody")

    def unusable(*_):
        raise InputError("the table of regions is empty; run participant again")

    bids, out = write(tmp_path, people(12))
    assert run(bids, out) == 0
    assert (out / "group/groups.tsv").is_file()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(cohort_sections, "group_section", broken)
        patch.setattr(comparison_sections, "regional_section", unusable)
        assert run(bids, out, "--group-column", "diagnosis") == 1
    said = capsys.readouterr()
    seen = check_page(out).seen
    for text in (said.err, seen):
        assert "Groups could not be made" in text or "This part could not be made" in text
        assert "unexpected ValueError; please report logs/group_groups_crash.txt" in text
        assert "the table of regions is empty; run participant again" in text
        assert "0.98765" not in text and "Traceback" not in text
    assert "Traceback" in (out / "logs/group_groups_crash.txt").read_text()
    assert "without 2 of its parts" in said.out
    # what failed leaves no table of an earlier run behind, and the rest is there
    assert not (out / "group/groups.tsv").exists()
    assert (out / "group/quality.tsv").is_file() and "Clinical and blood values" in seen
    # the same command again is no rerun with nothing to do
    assert run(bids, out, "--group-column", "diagnosis") == 0
    assert (out / "group/groups.tsv").is_file() and not (out / "logs/group_groups_crash.txt").exists()


def test_another_version_of_the_code_makes_the_report_again(tmp_path, monkeypatch, capsys):
    bids, out = write(tmp_path, people(2))
    assert run(bids, out) == 0 and run(bids, out) == 0
    assert "Nothing has changed" in capsys.readouterr().out
    monkeypatch.setattr(level, "code_hash", lambda: "another")
    assert run(bids, out) == 0
    assert "Nothing has changed" not in capsys.readouterr().out


def test_read_tsv_of_a_written_table(cohort):
    _, out = cohort
    rows, odd = read_tsv(out / "group" / "quality.tsv")
    assert len(rows) == 26 and odd == []


def test_whole_scans_tell_classes_apart_on_demand(tmp_path, capsys):
    own = people(24)
    bids, out = write(tmp_path, own)
    rng = np.random.default_rng(0)
    labels = np.zeros((12, 14, 12), np.uint8)
    labels[2:10, 2:12, 2:10] = 9
    for person in own:
        case = Case(person.label, None, None)
        scan = 1 + 0.1 * rng.normal(size=labels.shape)
        scan[3:7, 3:7, 3:7] += person.columns["diagnosis"] == "AD"
        for kind, data in (("pet_mean", scan), ("dseg", labels), ("t1w", 1 + rng.random(labels.shape))):
            path = out / output_path(kind, case, **({"tracer": "AV45"} if kind == "pet_mean" else {}))
            nib.save(nib.Nifti1Image(np.asarray(data, np.float32), np.diag([4.0, 4, 4, 1])), path)
    options = ("--diagnosis", "diagnosis", "--seeds", "1", "--folds", "2")
    assert run(bids, out, "--diagnosis-cnn") == 2 and "needs --diagnosis" in capsys.readouterr().err
    assert run(bids, out, *options, "--diagnosis-cnn") == 0
    told = table(out, "wholescansperformance").set_index("features")["auc"]
    assert told["whole synthetic PET"] > 0.9 and 0.1 < told["whole T1w"] < 0.9
    assert "A small 3D network looks at the whole scan (24 people, AV45)" in check_page(out).seen
    for path in (out / "group").glob("wholescans*.tsv"):
        header = path.read_text().splitlines()[0].split("\t")
        assert [name for name in header if not about_column(path.stem, name)] == [], path.name


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
