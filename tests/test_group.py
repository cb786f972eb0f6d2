"""The level group, on made-up cohorts: what it writes, what it says, and that the report always opens."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from browser import CHROMIUM, WHOLE, Browser
from cohort_small import Person, write
from group_small import EVIL, SMALL, check_page, people, run, table

from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.pets import Pair, pair, with_pets
from bids_petsynth.bids.tables import read_tsv
from bids_petsynth.models.synthesizer import built_in
from bids_petsynth.reports.group import about_column
from bids_petsynth.types import Case, PetScan
from bids_petsynth.workflows import comparisons
from bids_petsynth.workflows import group as level


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


def test_sessions_without_dates_are_in_the_order_of_their_numbers(tmp_path):
    own = [Person("01", {}, load, session) for session, load in (("M6", 10.0), ("M12", 20.0), ("M108", 50.0))]
    bids, out = write(tmp_path, own)
    assert run(bids, out) == 0
    rows = table(out, "change")
    assert list(zip(rows["from"], rows["to"], strict=True)) == [("ses-M6", "ses-M12"), ("ses-M12", "ses-M108")]
    assert rows["centiloid_change"].tolist() == pytest.approx([10, 30], abs=1e-3)


def test_tracers_are_compared_in_the_first_scan_that_has_both(tmp_path):
    own = [replace(p, session="1") for p in people(4)]
    own += [replace(p, session="2", tracers=("AV45", "FBB")) for p in people(4)]
    bids, out = write(tmp_path, own)
    assert run(bids, out) == 0
    assert table(out, "tracers")["n"].tolist() == [4]


def test_people_of_one_family_are_not_tested_as_if_they_were_independent(tmp_path):
    own = [replace(p, columns={**p.columns, "family": f"{int(p.label) // 2}"}) for p in people()]
    bids, out = write(tmp_path, own)
    assert run(bids, out, "--cluster-column", "family") == 0
    groups, plasma = table(out, "groups"), table(out, "plasma")
    assert groups["p_holm"].isna().all() and plasma["p"].isna().all()
    of_figure = groups[(groups["figure"] == "centiloid") & (groups["grouping"] == "diagnosis")]
    assert (of_figure["mean_low"] < of_figure["mean"]).all() and (of_figure["mean"] < of_figure["mean_high"]).all()


def test_what_leaks_is_told_whatever_model_made_the_scans(tmp_path):
    bids, out = write(tmp_path, people())
    for path in out.rglob("*desc-synthMean_pet.json"):
        path.write_text(path.read_text().replace(built_in_name(), "a site's own"))
    assert run(bids, out, "--diagnosis", "diagnosis", "--seeds", "1", "--folds", "2") == 0
    assert "Run group again with --model" in check_page(out).seen
    leaks = table(out, "diagnosisleakage").set_index("column")["leaks"]
    assert leaks["ptau217_lumipulse"]
    given = table(out, "values").set_index("variable")["model_input"]
    assert given["ptau217_lumipulse"] and given["age"] and "The synthesis itself used ptau217" in check_page(out).seen


def built_in_name() -> str:
    return json.loads((built_in() / "model.json").read_text())["name"]


def test_wrong_arguments_are_a_sentence(cohort, capsys, tmp_path):
    bids, out = cohort
    assert run(bids, out, "--group-column", "nothing") == 2
    assert "no column nothing" in capsys.readouterr().err
    assert run(bids, tmp_path / "absent") == 2
    assert run(bids, out, "--diagnosis", "nothing") == 2
    assert run(bids, out, "--folds", "1") == 2


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
    assert "2_pet.nii.gz: it lies 3 days from the T1w, this one 300 days" in reasons["1_pet.nii.gz"]
    assert reasons["fdg_pet.nii.gz"] == "there is no synthetic FDG of sub-000: run participant with --tracer FDG"


def test_group_compares_the_real_scan_that_participant_takes(cohort):
    """The nearest in time, be it of another session than the T1w."""
    from bids_petsynth.reports.content import read_participant

    _, out = cohort
    (scan,) = read_participant(out, "000")
    case = Case("000", "a", Path("t1w.nii.gz"), t1w_date="2020-01-01")
    pets = [
        PetScan("000", "b", "AV45", Path("near_pet.nii.gz"), date="2020-01-03"),
        PetScan("000", "a", "AV45", Path("far_pet.nii.gz"), date="2020-09-01"),
    ]
    made, left = comparisons.jobs([replace(scan, case=case)], pair([case], pets), out_dir=out)
    (given,) = with_pets([case], pets, ["AV45"], 365)
    assert [job.pair.pet for job in made] == list(given.pets) == pets[:1]
    assert [f"{other.pet.path.name} is not used. {why}" for other, why in left] == list(given.notes)


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
