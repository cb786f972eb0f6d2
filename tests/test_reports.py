"""The participant's report, on small made-up outputs written by the workflow's own writers."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, WHOLE, Browser, Page, printed, tight

from bids_petsynth.anatomy.alignment import Alignment, template_grid
from bids_petsynth.anatomy.head import Head
from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.anatomy.volume import Volume
from bids_petsynth.api import SyntheticPET, synthesis_of
from bids_petsynth.bids.dataset import DONE, FAILED, record_status
from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.sidecars import run_metadata
from bids_petsynth.bids.sink import Sink
from bids_petsynth.cli.main import main
from bids_petsynth.models.conditioning import used_variables
from bids_petsynth.models.synthesizer import built_in
from bids_petsynth.pet.quantification import normalise, quantify
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.reports.boilerplate import methods
from bids_petsynth.reports.content import change_text, percent_text, read_participant
from bids_petsynth.reports.participant import LIMIT, write_report
from bids_petsynth.settings import Settings
from bids_petsynth.types import Anatomy, Case, ClinicalRecord, Value
from bids_petsynth.workflows.outputs import write_anatomy, write_pet
from bids_petsynth.workflows.steps import description_of

EVIL = "<script>alert(1)</script>"
REASON = f"sub-failed_T1w.nii.gz is cut off {EVIL}; copy it again."


def head() -> Head:
    """An egg of all regions, each a piece of a grid of cubes, with noise like a scan's."""
    rng = np.random.default_rng(0)
    grid = template_grid((48, 56, 48), 4.0)
    places = np.indices(grid.shape).reshape(3, -1).T - np.array(grid.shape) / 2
    inside = (((places / [18, 22, 17]) ** 2).sum(1) < 1).reshape(grid.shape)
    codes = np.array([code for code, *_ in lookup()], np.uint8)
    pieces = (np.indices(grid.shape) // 4 * np.array([31, 17, 7])[:, None, None, None]).sum(0) % len(codes)
    labels = np.where(inside, codes[pieces], 0).astype(np.uint8)
    t1w = (np.where(inside, 1.0, 0.3) + rng.normal(0, 0.05, grid.shape)).astype(np.float32)
    empty = np.zeros((1, *grid.shape), np.float16)
    anatomy = Anatomy(
        t1w, labels, empty, grid, {"label_confidence": 0.7, "brain_volume": 800.0}, (f"Odd {EVIL} head.",)
    )
    tissues = {name: inside.astype(np.float32) for name in ("GM", "WM", "CSF")}
    return Head(anatomy, Volume(t1w, grid.affine), labels, tissues, Alignment(np.eye(4), 1.0, 1.0))


def write_scan(out: Path, case: Case, tracers: tuple[str, ...], values: dict[str, float], record_values=False) -> None:
    """A scan as the workflow writes it."""
    found = head()
    settings = Settings(out.parent / "raw", out, tracers, record_values=record_values, command="bids-petsynth raw out")
    write_anatomy(Sink(out), case, found, settings)
    model, anatomy = description_of(None), found.anatomy
    names = [spec.name for spec in model.recipe.conditioning.variables]
    record = ClinicalRecord(
        {
            name: Value(name, values.get(name), "found" if name in values else "missing", f"participants.tsv, {EVIL}")
            for name in names
        }
    )
    for tracer in tracers:
        spec = tracer_named(tracer)
        draws = np.random.default_rng(1).uniform(0.8, 1.6, (3, *anatomy.grid.shape)).astype(np.float32)
        draws = normalise(draws, anatomy.labels, anatomy.grid, spec)
        result = quantify(draws, anatomy.labels, anatomy.grid, spec)
        used = used_variables(record, model.recipe.conditioning.variables)
        synthesis = synthesis_of(model, 5, 3)
        pet = SyntheticPET(case.label, spec.name, draws, anatomy, record, result, synthesis, used)
        write_pet(Sink(out), case, pet, settings, {})
        record_status(out, case, tracer, DONE)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Two sessions with two tracers, one scan with age alone, one failed participant; all with their reports."""
    folder = tmp_path_factory.mktemp("reports")
    out = folder / "out"
    for session in ("1", "2"):
        case = Case("many", session, folder / "raw" / "t1w.nii.gz", notes=("The first of two runs was taken.",))
        write_scan(out, case, ("AV45", "FDG"), {"age": 71.25, "ptau217_lumipulse": 0.4125})
    table = out / "sub-many/ses-1/pet/sub-many_ses-1_trc-AV45_desc-synthMean_sensitivity.tsv"
    rows = [
        f"{EVIL}\tfound\t\t0.3\t0.2",
        "ptau217_lumipulse\tfound\tpg/mL\t0.1234\t0.2",
        "age\tmissing\tyears\tn/a\t0.01",
        "all_blood_values\tn/a\tn/a\t0.4567\tn/a",
    ]
    table.write_text("\n".join(["variable\tstatus\tunit\tchange\tper_sd", *rows]) + "\n")
    write_scan(out, Case("alone", None, folder / "raw" / "t1w.nii.gz"), ("AV45",), {"age": 71.25}, record_values=True)
    run = run_metadata("bids-petsynth raw out --n-draws 5", 3211)
    record_status(out, Case("failed", None, None), "AV45", FAILED, REASON, run)
    for participant in ("many", "alone", "failed"):
        write_report(out, participant, built_in())
    return out


@pytest.mark.parametrize("participant", ["many", "alone", "failed"])
def test_one_small_file_that_needs_nothing_else_and_escapes_everything(out, participant):
    path = out / f"sub-{participant}.html"
    assert path.stat().st_size < LIMIT
    page = Page(path)
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    kinds = [attributes.get("type") for attributes in scripts]
    assert kinds == (["application/json", "text/plain", None] if participant != "failed" else [None])
    assert EVIL in page.seen
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:", "#")) or not value, (tag, value[:80])
        if tag == "img":
            assert len(attributes["alt"]) > 40 and attributes["src"].startswith("data:image/")


def test_first_screen_answers(out):
    seen = Page(out / "sub-many.html").seen
    first = seen[: seen.index("Interactive viewer", seen.index("Probability"))]
    for text in (
        "SYNTHETIC, not measured",
        "Demonstration model",
        "Session 1",
        "Session 2",
        "Odd <script>",
        "first of two runs",
    ):
        assert text in first, text
    row = next(iter(read_participant(out, "many")[0].pets)).measures
    assert f"{float(row['target_suvr']):.2f}" in first and f"{float(row['centiloid_approximate']):.0f}" in first
    assert f"{float(row['centiloid_low95']):.0f} to {float(row['centiloid_high95']):.0f}" in first
    assert percent_text(float(row["probability_positive"])) in first
    assert "cannot be told" not in first


def test_sessions_tracers_and_what_each_value_did(out):
    seen = Page(out / "sub-many.html").seen
    for title in ("Session 1: AV45", "Session 1: FDG", "Session 2: AV45", "Session 2: FDG"):
        assert title in seen
    assert "+0.12" in seen and "was not computed in this run" in seen
    values = " ".join(seen.split()).split("with all other values kept", 1)[1]
    assert re.search(r"all blood values together \+0\.46 ?n/a", values)
    figures = {path.name for path in (out / "sub-many" / "figures").iterdir()}
    assert "sub-many_ses-1_trc-AV45_desc-sensitivity_pet.svg" in figures
    chart = (out / "sub-many/figures/sub-many_ses-1_trc-AV45_desc-sensitivity_pet.svg").read_text()
    assert "all blood values together" in chart and "+0.46" in chart
    assert "sub-many_ses-2_trc-AV45_desc-sensitivity_pet.svg" not in figures
    assert "sub-many_ses-2_trc-FDG_desc-mosaic_pet.jpg" in figures
    assert not any("FDG_desc-centiloid" in name for name in figures)


def test_every_picture_of_pet_says_that_it_is_synthetic(out, tmp_path, monkeypatch):
    from matplotlib.figure import Figure as Canvas
    from matplotlib.text import Text

    shutil.copytree(out, tmp_path / "out")
    pictures = []

    def saved(canvas, *args, **options):
        texts = [text for text in canvas.findobj(Text) if text.get_text().strip() and text.get_visible()]
        inside = canvas.bbox if options["format"] == "jpeg" else canvas.get_tightbbox().padded(1)
        scale = 1 if options["format"] == "jpeg" else canvas.dpi
        marks = [text for text in texts if "SYNTHETIC" in text.get_text().upper()]
        for mark in marks:
            box = mark.get_window_extent()
            corners = box.corners() / scale
            assert all(inside.contains(*corner) for corner in corners), mark.get_text()
            others = [text.get_window_extent() for text in texts if text is not mark]
            assert not any(box.overlaps(other) for other in others), mark.get_text()
            assert sum(canvas.get_facecolor()[:3]) < 1 or mark.get_color() == "#222222"
        pictures.append([mark.get_text() for mark in marks])
        return save(canvas, *args, **options)

    save = Canvas.savefig
    monkeypatch.setattr(Canvas, "savefig", saved)
    write_report(tmp_path / "out", "many", built_in())
    written = [*(tmp_path / "out" / "sub-many" / "figures").iterdir()]
    pet = [path.name for path in written if path.name.endswith(("_pet.jpg", "_pet.svg"))]
    assert {name.split("desc-")[1].split("_")[0] for name in pet} == {
        *("planes", "mosaic", "uncertainty", "regions", "surface", "centiloid", "sensitivity")
    }
    # each of them once; the outlines on the measured T1w not
    assert sorted(pictures) == [[]] * (len(written) - len(pet)) + [["SYNTHETIC"]] * len(pet)


def test_values_are_shown_only_if_they_were_recorded(out):
    assert "71.25 years" in Page(out / "sub-alone.html").seen
    text = (out / "sub-many.html").read_text()
    assert "71.25" not in text and "0.4125" not in text


def test_age_alone_cannot_tell_amyloid(out):
    assert "Amyloid cannot be told from a T1w and age alone" in Page(out / "sub-alone.html").seen
    sidecar = out / "sub-alone/pet/sub-alone_trc-AV45_space-T1w_res-2_desc-synthMean_pet.json"
    written = next(sidecar.parent.glob("*Mean_pet.json"))
    assert any("cannot be told" in text for text in json.loads(written.read_text())["Warnings"])


def test_tracers_made_from_other_values_are_told_apart(out, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    assert "in different runs" not in Page(copy / "sub-many.html").seen
    (sidecar,) = copy.glob("sub-many/ses-1/pet/*_trc-FDG_space-T1w_*Mean_pet.json")
    about = json.loads(sidecar.read_text())
    about["Conditioning"]["ptau217_lumipulse"] = {"Status": "missing"}
    blood = {"Status": "converted", "Source": "phenotype/blood.tsv", "ConvertedFrom": "ng/L"}
    about["Conditioning"]["nfl_simoa"] = blood
    sidecar.write_text(json.dumps(about | {"InputHash": "another"}))
    seen = " ".join(Page(write_report(copy, "many", built_in())).seen.split())
    first, second = seen.split("not the same")[1].split("Session 2", 1)
    assert re.search(r"ptau217_lumipulse .{0,90} AV45: found; FDG: missing", first)
    assert re.search(r"nfl_simoa .{0,90} AV45: missing; FDG: converted from ng/L to pg/mL", first)
    assert "FDG: phenotype/blood.tsv" in first
    # age is the same of both, and the other session is as it was
    assert re.search(r"age Age at the scan found", first) and "AV45: found" not in second


def test_a_failed_participant_is_told_why(out):
    seen = Page(out / "sub-failed.html").seen
    assert REASON in seen and "No synthetic PET was made" in seen and "Interactive viewer" not in seen
    about = seen[seen.rindex("About this run") :]
    assert "bids-petsynth raw out --n-draws 5" in about and "3211, of the run that failed" in about
    assert f"bids-petsynth {version('bids-petsynth')}" in about and f"torch {version('torch')}" in about
    assert "NiiVue" not in about


def test_what_failed_now_does_not_show_what_an_earlier_run_left(out, tmp_path):
    shutil.copytree(out, tmp_path / "out")
    record_status(tmp_path / "out", Case("alone", None, None), "AV45", FAILED, "It ran out of memory.")
    path = write_report(tmp_path / "out", "alone", built_in())
    seen = Page(path).seen
    assert "It ran out of memory." in seen and "Centiloid" not in seen


def test_a_synthetic_t1w_is_shown_as_such(out, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    case = Case("alone", None, None)
    grid = head().anatomy.grid
    Sink(copy).save_image(output_path("t1w_mean", case, res=4), np.ones(grid.shape, np.float32), grid.affine, {})
    assert "SYNTHETIC T1w, not measured" in Page(write_report(copy, "alone", built_in())).seen
    assert (copy / "sub-alone" / "figures" / "sub-alone_desc-drawn_T1w.jpg").is_file()
    assert "SYNTHETIC T1w" not in Page(copy / "sub-many.html").seen


def test_reports_only_makes_the_same_without_touching_images(out, tmp_path, capsys):
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    (copy / "sub-alone.html").unlink()
    shutil.rmtree(copy / "sub-alone" / "figures")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.nii.gz")}
    words = ["--reports-only", "--participant-label", "sub-alone"]
    assert main([str(tmp_path / "no" / "bids"), str(copy), "participant", *words]) == 0
    assert (copy / "sub-alone.html").read_bytes() == (out / "sub-alone.html").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.nii.gz")} == before
    made = {p.name: p.read_bytes() for p in (copy / "sub-alone" / "figures").iterdir()}
    assert made == {p.name: p.read_bytes() for p in (out / "sub-alone" / "figures").iterdir()}
    text = (copy / "logs" / "CITATION.md").read_text()
    # each cited key once in the list, which says what work it is
    cited = set(re.findall(r"@(\w+)", text))
    listed = dict(re.findall(r"^- (\w+): (.+)$", text.split("## References")[1], re.MULTILINE))
    assert set(listed) == cited and "bids_petsynth" in cited
    assert listed["tustison2010"].startswith("Tustison, Nicholas J.; ") and "10.1109/TMI.2010.2046908" in text
    assert "AV45 and FDG" in text and "random seed 5" in text
    assert main([str(tmp_path), str(copy), "participant", "--reports-only", "--participant-label", "nobody"]) == 2
    assert "sub-nobody" in capsys.readouterr().err


def test_another_models_ranges_are_not_shown_and_the_caption_says_so(out, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    assert "Grey: where the simulated people lie" in Page(copy / "sub-alone.html").seen
    chart = Path("sub-alone", "figures", "sub-alone_trc-AV45_desc-regions_pet.svg")
    assert ">simulated training people," in (out / chart).read_text()
    # of a site's model, which its sidecars tell from a demonstration
    for path in copy.glob("sub-alone/pet/*Mean_pet.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"DemonstrationModel": False}))
    assert "Grey: where the people lie" in Page(write_report(copy, "alone", built_in())).seen
    assert ">training people," in (copy / chart).read_text()
    seen = Page(write_report(copy, "alone", tmp_path / "another model")).seen
    assert "Grey: where" not in seen and "not of the model that made this PET" in seen


def test_methods_name_only_what_ran(out, tmp_path, capsys):
    text = methods(read_participant(out, "alone"))
    assert text is not None
    for part in (
        "N4 [@tustison2010]",
        "whole cerebellum",
        "rectified flow [@liu2023]",
        "3 draws",
        "188.22",
        "[@royse2021]",
    ):
        assert part in text.markdown, part
    for part in ("SyN", "TemplateFlow", "MONAI", "pons", "FDG", "classifier-free", "preprocessed dataset"):
        assert part not in text.markdown, part
    cited = set(re.findall(r"@(\w+)", text.markdown))
    assert cited == set(re.findall(r"^@\w+\{(\w+),", text.bibtex, re.MULTILINE))
    assert {"klunk2015", "amadoru2020"} <= cited and not cited & {"ciric2022", "avants2008", "landau2011"}
    words = [
        "participant",
        "--boilerplate-only",
        "--tracer",
        "FDG",
        "--output-spaces",
        "MNI152NLin2009cAsym",
        "--n-draws",
        "1",
    ]
    assert main([str(tmp_path), str(tmp_path / "new"), *words]) == 0
    planned = (tmp_path / "new" / "logs" / "CITATION.md").read_text()
    for part in ("1 draw was made", "the pons", "[@landau2011]", "SyN", "MNI152NLin2009cAsym"):
        assert part in planned, part
    assert "Centiloid" not in planned and "klunk2015" not in (tmp_path / "new" / "logs" / "CITATION.bib").read_text()
    assert sorted(p.name for p in (tmp_path / "new").rglob("*") if p.is_file()) == ["CITATION.bib", "CITATION.md"]
    capsys.readouterr()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("participant", ["many", "failed"])
def test_chromium_shows_it_without_a_complaint(out, tmp_path, participant):
    with Browser(tmp_path) as browser:
        browser.open((out / f"sub-{participant}.html").as_uri())
        assert browser.value(WHOLE)
        assert not browser.value("typeof alerted !== 'undefined'")
        if participant == "many":
            browser.value("document.getElementById('viewer-open').click()")
            state = "document.getElementById('viewer-state').textContent"
            browser.wait(f"document.body.dataset.viewer === 'ready' || {state}.startsWith('The viewer')")
            assert browser.value(state).startswith("Click to move")
            assert "AV45" in browser.value("document.getElementById('viewer-place').textContent")
            browser.value(
                "(() => { const t = document.getElementById('viewer-tracer'); t.value = 1;"
                "t.dispatchEvent(new Event('change')); })()"
            )
            browser.wait("document.getElementById('viewer-place').textContent.includes('FDG')")
        assert browser.messages == []


#: Texts of a report's main part, as its source has them, but for the viewer's.
TEXTS = (
    "(() => { const w = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT), found = [];"
    "while (w.nextNode()) if (!w.currentNode.parentElement.closest('#Viewer')) found.push(w.currentNode.data);"
    "return found; })()"
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("participant", ["many", "failed"])
def test_a_print_has_all_of_it_but_navigation_and_viewer(out, tmp_path, participant):
    with Browser(tmp_path / "profile") as browser:
        browser.open((out / f"sub-{participant}.html").as_uri())
        browser.pdf(tmp_path / "print.pdf")
        texts = [tight(text) for text in browser.value(TEXTS)]
        captions = browser.value(
            "[...document.querySelectorAll('img[src*=jpeg] ~ figcaption')].map(c => c.textContent)"
        )
    pages = printed(tmp_path / "print.pdf")
    whole = "".join(text for text, _ in pages)
    assert [text for text in texts if text not in whole] == []
    banner = "SYNTHETIC, not measured." if participant == "many" else "No synthetic PET was made of this participant."
    title = tight(f"Synthetic PET of sub-{participant}")
    assert whole.startswith(title + tight(banner))
    # navigation repeats the title, and names the viewer as its heading does
    assert whole.count(title) == 1 and tight("Interactive viewer") not in whole
    # each bitmap is on one page, with its caption; what the others write is in the print as text
    figures = [*(out / f"sub-{participant}").rglob("figures/*")]
    places = [text for text, bitmaps in pages for _ in range(bitmaps)]
    assert [c for c, page in zip(captions, places, strict=True) if tight(c) not in page] == []
    assert len(places) == sum(path.suffix == ".jpg" for path in figures)
    for path in figures:
        if path.suffix == ".svg":
            drawn = re.findall(r"<text[^>]*>([^<]+)<", path.read_text())
            assert drawn and [text for text in drawn if tight(unescape(text)) not in whole] == []


@pytest.mark.parametrize(
    ("change", "told"), [(0.0, "0.00"), (-0.0, "0.00"), (-0.004, "0.00"), (-0.01, "-0.01"), (0.126, "+0.13")]
)
def test_changes_are_told_in_hundredths(change, told):
    assert change_text(change) == told


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (0.0, "under 1 %"),
        (0.002, "under 1 %"),
        (0.01, "1 %"),
        (0.624, "62 %"),
        (0.99, "99 %"),
        (0.998, "over 99 %"),
        (1.0, "over 99 %"),
    ],
)
def test_no_probability_is_told_as_certain(share, told):
    assert percent_text(share) == told


def test_the_first_screen_tells_no_probability_as_certain(out, tmp_path):
    table = tmp_path / "out/sub-alone/pet/sub-alone_trc-AV45_desc-synthMean_measures.tsv"
    shutil.copytree(out, tmp_path / "out")
    names, values = (line.split("\t") for line in table.read_text().splitlines())
    row = dict(zip(names, values, strict=True)) | {"probability_positive": "0.998"}
    table.write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    seen = Page(write_report(tmp_path / "out", "alone", built_in())).seen
    assert "over 99 %" in seen and "100%" not in seen
