"""``participant --classifier``: the same features as in training, caveats in table and report, sentences for misuse."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_reports import EVIL, write_scan

from bids_petsynth.bids.dataset import DONE, record_status
from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.tables import read_json, read_tsv
from bids_petsynth.cli.main import main
from bids_petsynth.errors import InputError, UsageError
from bids_petsynth.evaluation.classifier import LOGISTIC
from bids_petsynth.evaluation.classifier_folder import save_classifier
from bids_petsynth.evaluation.features import clinical_features, sources, volume_features
from bids_petsynth.evaluation.folds import fit
from bids_petsynth.evaluation.study import BLOOD, REAL, SYNTHETIC, T1W
from bids_petsynth.models.synthesizer import built_in
from bids_petsynth.reports.participant import write_report
from bids_petsynth.settings import Settings
from bids_petsynth.types import Case, ClinicalRecord, Value
from bids_petsynth.workflows import participant, steps
from bids_petsynth.workflows.classification import classifier_of, classify, tracers_of
from bids_petsynth.workflows.interfaces import WriteReport

CASE = Case("01", None, None)
REGIONS = ["Left-Hippocampus", "Right-Hippocampus", "Brain-Stem"]
MARKER = "ptau217_lumipulse"


def classifier(pet=SYNTHETIC, tracer="AV45"):
    """Of people whose hippocampi, marker and SUVR differ between classes."""
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    volumes = pd.DataFrame(
        rng.normal([3500, 3500, 20000], 200, (80, 3)) - 300 * y[:, None] * [1, 1, 0], columns=REGIONS
    )
    records = pd.DataFrame({MARKER: np.exp(rng.normal(size=80) * 0.3 - 2 + y)})
    suvr = pd.DataFrame(rng.normal(1.2, 0.1, (80, 3)) + 0.2 * y[:, None], columns=REGIONS)
    found = sources(volumes, records, {tracer: suvr})
    columns = [(source, name) for source in (T1W, BLOOD, SYNTHETIC) for name in found[source]]
    x = np.column_stack([found[source][name] for source, name in columns])
    columns = [(pet if source == SYNTHETIC else source, name) for source, name in columns]
    made = fit(x, y, np.arange(80), ["CN", "AD"], columns, LOGISTIC)
    about = {
        "Label": "dx",
        "People": 80,
        "PeopleByClass": {"CN": 40, "AD": 40},
        "CrossValidated": {"auc": 0.9, "auc_low": 0.8, "auc_high": 0.95},
        "Leakage": [{"column": f"mmse {EVIL}", "class": "AD", "auc": 0.97}],
    }
    return replace(made, about=about)


def outputs(out: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The two tables that a classifier reads, a composite with a region's name included."""
    volumes, suvr = (dict(zip(REGIONS, values, strict=True)) for values in ([3100, 3200, 20100], [1.3, 1.4, 1.5]))
    for kind, column, values in (("morph", "volume-mm3", volumes), ("suvr", "suvr", suvr)):
        path = out / output_path(kind, CASE, **({"tracer": "AV45"} if kind == "suvr" else {}))
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{i}\t{name}\t{value}" for i, (name, value) in enumerate(values.items())]
        rows += ["n/a\tBrain-Stem\t9.9"] if kind == "suvr" else []
        path.write_text("\n".join([f"index\tname\t{column}", *rows]) + "\n")
    return volumes, suvr


def record(**values):
    return ClinicalRecord({name: Value(name, value, "found", "participants.tsv") for name, value in values.items()})


def settings(tmp_path, made):
    save_classifier(made, tmp_path / "clf")
    return Settings(tmp_path / "raw", tmp_path / "out", ("AV45",), classifier=tmp_path / "clf")


def test_probability_is_that_of_the_same_features(tmp_path):
    made = classifier()
    chosen = settings(tmp_path, made)
    volumes, suvr = outputs(tmp_path / "out")
    assert classify(CASE, record(**{MARKER: 0.4}), chosen)
    total = sum(volumes.values())
    x = [*(v / total for v in volumes.values()), np.log(0.4), *suvr.values()]
    rows = read_tsv(tmp_path / "out" / output_path("classes", CASE))[0]
    assert [row["class"] for row in rows] == ["CN", "AD"]
    said = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(said, made.probability(np.array([x]))[0], atol=1e-5)
    about = read_json(tmp_path / "out" / "sub-01/pet/sub-01_desc-synthMean_classes.json")
    assert about["Synthetic"] is True
    assert "Research only" in about["Caveats"][0]
    assert about["Classifier"]["People"] == 80
    assert about["Classifier"]["Leakage"][0]["column"].startswith("mmse")
    assert about["MissingColumns"] == []
    assert "0.4" not in json.dumps(about).replace("0.40", "")


def test_it_is_written_again_only_when_something_changed(tmp_path):
    chosen = settings(tmp_path, classifier())
    outputs(tmp_path / "out")
    assert classify(CASE, record(**{MARKER: 0.4}), chosen)
    assert not classify(CASE, record(**{MARKER: 0.4, "age": 70}), chosen)
    assert classify(CASE, record(**{MARKER: 0.5}), chosen)
    assert classify(CASE, record(), chosen)
    about = read_json(tmp_path / "out" / "sub-01/pet/sub-01_desc-synthMean_classes.json")
    assert about["MissingColumns"] == ["log " + MARKER]


def test_a_classifier_of_real_pet_is_carried_to_synthetic_pet(tmp_path):
    outputs(tmp_path / "out")
    found = []
    for pet in (SYNTHETIC, REAL):
        folder = tmp_path / pet.replace(" ", "_")
        save_classifier(classifier(pet), folder)
        chosen = Settings(tmp_path / "raw", tmp_path / "out", ("AV45",), classifier=folder)
        assert classify(CASE, record(), chosen)
        found.append(read_tsv(tmp_path / "out" / output_path("classes", CASE))[0])
    assert found[0] == found[1]
    about = read_json(tmp_path / "out" / "sub-01/pet/sub-01_desc-synthMean_classes.json")
    assert about["Classifier"]["TrainedOnRealPET"] is True


def test_without_outputs_or_values_there_is_no_probability(tmp_path):
    chosen = settings(tmp_path, classifier())
    assert not classify(CASE, record(), chosen)
    outputs(tmp_path / "out")
    foreign = replace(
        classifier(), columns=tuple((s, f"AV45 other{i}") for i, (s, _) in enumerate(classifier().columns))
    )
    save_classifier(foreign, tmp_path / "foreign")
    with pytest.raises(InputError, match="sub-01: has no value that the classifier takes"):
        classify(CASE, record(), replace(chosen, classifier=tmp_path / "foreign"))
    assert not (tmp_path / "out" / output_path("classes", CASE)).exists()


def test_what_a_classifier_takes_must_be_made(tmp_path):
    save_classifier(classifier(tracer="FDG"), tmp_path / "fdg")
    with pytest.raises(UsageError, match="takes FDG: give --tracer FDG"):
        tracers_of(tmp_path / "fdg", Settings(tmp_path, tmp_path, ("AV45",)))
    save_classifier(classifier(pet="fMRI"), tmp_path / "strange")
    with pytest.raises(UsageError, match="takes fMRI, which this level does not make"):
        tracers_of(tmp_path / "strange", Settings(tmp_path, tmp_path, ("AV45",)))


def test_a_wrong_folder_ends_the_command_at_once(tmp_path, capsys):
    raw = tmp_path / "raw"
    (raw / "sub-01" / "anat").mkdir(parents=True)
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    (raw / "sub-01" / "anat" / "sub-01_T1w.nii.gz").write_bytes(b"")
    words = [str(raw), str(tmp_path / "out"), "participant", "--classifier", str(tmp_path)]
    assert main(words) == 2
    assert "is no classifier: it has no classifier.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def quiet(monkeypatch):
    """The workflow without its slow parts; lists who was reported, and whether with probabilities."""
    told = []

    def report(chosen, participant):
        (chosen.out_dir / f"sub-{participant}.html").write_text("a report")
        told.append((participant, (chosen.out_dir / output_path("classes", CASE)).exists()))
        return ""

    monkeypatch.setattr(steps, "record_of", lambda case, chosen: record(**{MARKER: 0.4}))
    monkeypatch.setattr(steps, "report", report)
    monkeypatch.setattr("bids_petsynth.reports.citation.write_citation", lambda out_dir, anew: None)
    return told


def test_the_last_node_classifies_before_it_reports(tmp_path, quiet):
    chosen = settings(tmp_path, classifier())
    outputs(tmp_path / "out")
    found = WriteReport(case=CASE, settings=chosen, after=[""]).run()
    assert found.outputs.failure == ""
    assert quiet == [("01", True)]


def test_what_is_up_to_date_is_classified_again_by_another_classifier(tmp_path, quiet, monkeypatch):
    chosen = settings(tmp_path, classifier())
    outputs(tmp_path / "out")
    job = participant.Job(CASE, record(), "", "", (), ("AV45",), False)
    monkeypatch.setattr(participant, "plan", lambda case, chosen: job)

    def run():
        quiet.clear()
        participant.run([CASE], chosen)
        return quiet

    assert run() == [("01", True)]
    assert run() == []
    save_classifier(classifier(REAL), tmp_path / "clf")
    classifier_of.cache_clear()
    assert run() == [("01", True)]


def test_a_broken_table_is_a_sentence_and_the_report_is_made(tmp_path, quiet, caplog):
    chosen = settings(tmp_path, classifier())
    outputs(tmp_path / "out")
    (tmp_path / "out" / output_path("suvr", CASE, tracer="AV45")).write_text("a\tb\n1\t2\n")
    found = WriteReport(case=CASE, settings=chosen, after=[""]).run()
    assert found.outputs.failure == ""
    assert quiet == [("01", False)]
    assert "sub-01: regional tables cannot be read" in caplog.text


def test_the_report_has_a_part_with_caveats_and_escapes_all(tmp_path):
    out = tmp_path / "out"
    write_scan(out, CASE, ("AV45",), {"age": 71.0})
    names = [row["name"] for row in read_tsv(out / output_path("suvr", CASE, tracer="AV45"))[0]][:3]
    made = classifier()
    columns = tuple((SYNTHETIC, f"AV45 {name}") for name in names)
    keep = [i for i, (s, _) in enumerate(made.columns) if s == SYNTHETIC]
    scaling = type(made.scaling)(*(part[keep] for part in vars(made.scaling).values()))
    some = replace(made, columns=columns, scaling=scaling, coefficients=made.coefficients[:, keep])
    assert classify(CASE, record(), settings(tmp_path, some))
    record_status(out, CASE, "AV45", DONE)
    page = write_report(out, "01", built_in()).read_text()
    assert "Research only: not a medical device" in page
    assert "AUC of 0.90 (0.80 to 0.95)" in page
    assert "Beware of leakage" in page
    assert EVIL not in page


def test_a_classifier_of_plain_volumes_and_values_is_served_as_well(tmp_path):
    volumes, suvr = outputs(tmp_path / "out")
    made = classifier()
    plain = [name.removeprefix("share of ").removeprefix("log ") for _, name in made.columns]
    made = replace(made, columns=tuple((source, name) for (source, _), name in zip(made.columns, plain, strict=True)))
    assert classify(CASE, record(**{MARKER: 0.4}), settings(tmp_path, made))
    x = [*volumes.values(), 0.4, *suvr.values()]
    rows = read_tsv(tmp_path / "out" / output_path("classes", CASE))[0]
    np.testing.assert_allclose(
        [float(row["probability"]) for row in rows], made.probability(np.array([x]))[0], atol=1e-5
    )


def test_features_are_shares_and_logarithms():
    volumes = pd.DataFrame({"a": [1.0, 2.0, 0.0], "b": [3.0, 6.0, 0.0]})
    found = volume_features(volumes)
    assert list(found) == ["share of a", "share of b"]
    np.testing.assert_allclose(found.iloc[:2], [[0.25, 0.75]] * 2)
    assert found.iloc[2].isna().all()
    records = pd.DataFrame({MARKER: [np.e, 0.0], "mmse": [29.0, 20.0], "unknown": [1.0, 2.0]})
    found = clinical_features(records)
    assert list(found) == ["log " + MARKER]
    assert found["log " + MARKER][0] == pytest.approx(1)
    assert np.isnan(found["log " + MARKER][1])
    assert list(clinical_features(records, ("cognition",))) == ["mmse"]
