"""``train`` as its users call it: from a BIDS dataset with T1w and PET to a model that ``participant`` takes."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from places import as_ours, quick_labels

from bids_petsynth.api import own_seed
from bids_petsynth.cli.main import main
from bids_petsynth.cli.train import has_sources, parser, split_with_tracers, told_command
from bids_petsynth.errors import UsageError
from bids_petsynth.models.folder import load_model, training_ranges
from bids_petsynth.models.recipe import load_recipe
from bids_petsynth.models.regional import Geometry
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.training.real import Stored, load_alone, load_case
from bids_petsynth.training.site import describe


@pytest.fixture(autouse=True, scope="module")
def labels_as_those_of_the_site():
    with quick_labels():
        yield


def table(out: Path) -> list[dict[str, str]]:
    with (out / "models" / "ours-training" / "pairs.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def people(site: Path) -> dict[str, dict[str, str]]:
    with (site / "participants.tsv").open() as file:
        return {row["participant_id"]: row for row in csv.DictReader(file, delimiter="\t")}


def test_a_dataset_becomes_a_model_folder(site, trained_site):
    model = load_model(trained_site / "models" / "ours")
    assert model.recipe.name == "ours" and model.recipe.tracers == ("AV45",) and not model.demonstration
    rows = table(trained_site)
    assert {row["participant_id"] for row in rows} == set(people(site)) and {r["status"] for r in rows} == {"used"}
    assert "Trained on 4 people; 4 AV45 scans" in model.card and "Held out, by participant: 2 people" in model.card
    assert model.spread == {} and "| AV45 | not measured: too few scans were held out | | |" in model.card
    assert "demonstration" not in model.card and "Licence of the data: not stated" in model.card
    page = (trained_site / "models" / "ours-training" / "pairs.html").read_text()
    for row in rows:
        assert row["participant_id"] in page and f'src="{row["picture"]}"' in page
        picture = (trained_site / "models" / "ours-training" / row["picture"]).read_bytes()
        assert picture.startswith(b"\xff\xd8") and 10_000 < len(picture) < 200_000
    # a participant's label or value has no place in what may be shared
    for participant, row in people(site).items():
        assert participant.removeprefix("sub-") not in model.card and row["ptau217_lumipulse"] not in model.card
    assert "`bids-petsynth BIDS_DIR OUTPUT_DIR train --recipe" in model.card
    assert str(site) not in model.card and str(trained_site) not in model.card and "women" not in model.card
    ranges = training_ranges(trained_site / "models" / "ours", model.weights_sha256)
    assert set(ranges) == {"AV45"} and len(ranges["AV45"]) > 60


def test_what_is_learned_is_the_dataset(site, trained_site):
    """Regional draws for each person trained on lie nearer to their own scan's than to the others'."""
    engine = Synthesizer.load(trained_site / "models" / "ours")
    scans = sorted((trained_site / "models" / "ours-training" / "scans").glob("*.npz"))
    assert len(scans) == 6
    known = people(site)
    drawn, load = [], []
    for path in scans:
        row = known[path.name.split("_")[0]]
        names = [spec.name for spec in engine.model.recipe.conditioning.variables]
        record = {n: float(row[n]) for n in names if n in row and n not in ("sex", "apoe4")}
        k = engine.model.classes
        head = Geometry(torch.ones(1, k), torch.eye(k)[None])
        drawn.append(engine.regional_draws(record, "AV45", head, seed=0, n=64)[:, 1:].mean().item())
        load.append(float(row["simulated_centiloid"]))
    assert np.corrcoef(drawn, load)[0, 1] > 0.5


def test_participant_draws_with_a_trained_folder(site, trained_site, tmp_path):
    """What the folder's weights draw on the head that ``train`` prepared, with tables and sidecars that name them."""
    folder, who = trained_site / "models" / "ours", min(people(site))
    options = ["--model", str(folder), "--participant-label", who, "--n-draws", "2", "--device", "cpu"]
    assert main([str(site), str(tmp_path), "participant", *options]) == 0
    stem = tmp_path / who / "pet" / f"{who}_trc-AV45"
    image = nib.load(f"{stem}_space-T1w_res-2_desc-synthMean_pet.nii.gz")
    about = json.loads(Path(f"{stem}_space-T1w_res-2_desc-synthMean_pet.json").read_text())
    (weights,) = folder.glob("weights-*.safetensors")
    assert about["Model"]["Name"] == "ours" and about["DemonstrationModel"] is False
    # two held-out scans are too few to measure how sure it may be
    (doubt,) = (text for text in about["Warnings"] if "never compared with scans" in text)
    assert "model ours is of AV45" in doubt and doubt in (tmp_path / f"{who}.html").read_text()
    assert about["Model"]["WeightsSHA256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    pet = image.get_fdata()
    (head,) = (trained_site / "models" / "ours-training" / "heads").glob(f"{who}_*.npz")
    case, known = load_case(Stored(who, head, {}, {})), people(site)[who]
    record = {name: float(value) for name, value in known.items() if value.replace(".", "", 1).isdigit()}
    draws = Synthesizer.load(folder).sample(case.t1w[None], case.labels[None], record, "AV45", 2, own_seed(0, who))
    drawn, brain = draws.mean(0), case.measured.numpy() > 0
    # each is in SUVR by its own labels; the built-in model's draws are 0.04 from these
    assert np.abs(drawn * pet[brain].mean() / drawn[brain].mean() - pet)[brain].mean() < 0.01
    with Path(f"{stem}_desc-synthMean_suvr.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    with np.load(head, allow_pickle=False) as file:
        codes = file["codes"]  # those of the model grid, in which the scan was measured
    regions = {float(row["index"]): float(row["suvr"]) for row in rows if row["index"] != "n/a"}
    large = [code for code in regions if (codes == code).sum() > 1000]
    assert [pet[codes == code].mean() for code in large] == pytest.approx([regions[code] for code in large], rel=0.03)
    assert len(large) > 20 and next(float(row["suvr"]) for row in rows if row["name"] == "whole_cerebellum") == 1


def test_the_same_command_goes_on_where_it_stopped(site, tiny_recipe, trained_site, tmp_path, capsys):
    weights = load_model(trained_site / "models" / "ours").weights_sha256
    out = Path(shutil.copytree(trained_site, tmp_path / "out", ignore=shutil.ignore_patterns("ours")))
    assert main([str(site), str(out), "train", *as_ours(tiny_recipe)]) == 0
    assert load_model(out / "models" / "ours").weights_sha256 == weights
    assert "anew" not in capsys.readouterr().err


def test_a_model_is_adapted_to_other_scans(site, tiny_recipe, trained_site, tmp_path, capsys):
    out, start = tmp_path / "out", trained_site / "models" / "ours"
    shutil.copytree(trained_site / "models" / "ours-training" / "heads", out / "models" / "theirs-training" / "heads")
    shutil.copytree(trained_site / "models" / "ours-training" / "scans", out / "models" / "theirs-training" / "scans")
    command = [str(site), str(out), "train", "--name", "theirs", "--held-out", ".34", "--random-seed", "5"]
    assert main([*command, "--init-from", str(start)]) == 0
    before, after = load_model(start), load_model(out / "models" / "theirs")
    # its units stay, its weights move from where they were
    assert after.latent_sd == before.latent_sd and after.variables == before.variables
    old, new = (torch.cat([p.flatten() for p in m.denoiser.parameters()]) for m in (before, after))
    assert 0 < (new - old).norm() < 0.5 * old.norm()
    changed = tmp_path / "other.toml"
    changed.write_text(tiny_recipe.read_text().replace("embedding = 32", "embedding = 48"))
    assert main([*command, "--init-from", str(start), "--recipe", str(changed)]) == 2
    assert "another `network` than the recipe" in capsys.readouterr().err


def test_scans_that_cannot_be_used_are_told_and_the_others_go_on(site, tiny_recipe, trained_site, tmp_path, capsys):
    copy = tmp_path / "bids"
    shutil.copytree(site, copy, symlinks=True)
    first, second = sorted(copy.glob("sub-*/pet/*_pet.nii.gz"))[:2]
    first.write_bytes(b"")
    shutil.rmtree(second.parents[1] / "anat")
    out = tmp_path / "out"
    (out / "models").mkdir(parents=True)
    # what was prepared is found again by its content, wherever the dataset lies
    shutil.copytree(trained_site / "models" / "ours-training", out / "models" / "ours-training")
    assert main([str(copy), str(out), "train", *as_ours(tiny_recipe)]) == 0
    told = {row["participant_id"]: row for row in table(out)}
    page = (out / "models" / "ours-training" / "pairs.html").read_text()
    assert page.index("Left out:") < page.index("<img") and page.count("<img") == 4
    assert (
        told[first.name.split("_")[0]]["status"] == "left out" and "empty" in told[first.name.split("_")[0]]["reason"]
    )
    assert "no T1w" in told[second.name.split("_")[0]]["reason"]
    assert sum(row["status"] == "used" for row in told.values()) == 4
    assert "anew" in capsys.readouterr().err


def test_a_person_with_pet_alone_lends_its_style_to_pretraining(
    site, tiny_recipe, trained_site, tmp_path, capsys, monkeypatch
):
    copy, out = tmp_path / "bids", tmp_path / "out"
    shutil.copytree(site, copy, symlinks=True)
    who = min(people(site))
    shutil.rmtree(copy / who / "anat")
    shutil.copytree(trained_site / "models" / "ours-training", out / "models" / "ours-training")
    recipe = tmp_path / "styled.toml"
    recipe.write_text(tiny_recipe.read_text() + '\n[pretraining]\nsteps = 2\nstyle = "statistics"\n')
    read = []
    monkeypatch.setattr("bids_petsynth.training.site.load_alone", lambda path: read.append(path) or load_alone(path))
    assert main([str(copy), str(out), "train", *as_ours(recipe)]) == 0
    assert f"{who}_trc-AV45: ready, for pre-training alone" in capsys.readouterr().err
    row = next(row for row in table(out) if row["participant_id"] == who)
    assert row["status"] == "used" and "no T1w" in row["notes"] and row["reason"] in ("", "n/a")
    picture = (out / "models" / "ours-training" / row["picture"]).read_bytes()
    assert picture.startswith(b"\xff\xd8") and 10_000 < len(picture) < 200_000
    card = load_model(out / "models" / "ours").card
    assert "Trained on 3 people" in card and "Held out, by participant: 2 people" in card
    assert "In pre-training besides: 1 PET scans without T1w" in card
    assert {path.name for path in read} == {Path(row["picture"]).with_suffix(".npz").name}
    # a model that goes on from another is not pre-trained, and takes none
    again = [*as_ours(recipe), "--name", "more", "--init-from", str(out / "models" / "ours")]
    shutil.copytree(out / "models" / "ours-training", out / "models" / "more-training")
    assert main([str(copy), str(out), "train", *again]) == 0
    with (out / "models" / "more-training" / "pairs.tsv").open() as file:
        rows = {row["participant_id"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert rows[who]["status"] == "left out" and "no T1w" in rows[who]["reason"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pet-window", "70", "50"], "the first before the second"),
        (["--tracer", "AV1451"], "no PET of AV1451; it has AV45"),
        (["--tracer", "nonsense"], "nonsense"),
        (["--name", "a/b"], "no folder name"),
        (["--name", ".."], "no folder name"),
        (["--name", "."], "no folder name"),
        (["--recipe", "nothing"], "There is no recipe nothing"),
    ],
)
def test_wrong_options_get_a_sentence(site, tmp_path, capsys, options, said):
    assert main([str(site), str(tmp_path / "out"), "train", *options]) in (1, 2)
    assert said in capsys.readouterr().err


def test_too_few_people_get_a_sentence_before_any_scan_is_prepared(site, tmp_path, capsys):
    copy = tmp_path / "bids"
    shutil.copytree(site, copy)
    folders = sorted(copy.glob("sub-*"))[:3]
    for folder in folders[:2]:
        shutil.rmtree(folder / "pet")
    some = [folder.name for folder in folders]
    assert main([str(copy), str(tmp_path / "out"), "train", "--participant-label", *some]) == 2
    told = capsys.readouterr().err
    assert "Only 1 participants" in told and "pairs.tsv" not in told
    assert not list((tmp_path / "out").rglob("*.npz"))


def crowd(*scanned: str) -> list[Stored]:
    """People with these tracers each."""
    return [
        Stored(f"{n:02d}", Path(f"h{n}"), {t: Path(f"{n}{t}") for t in tracers.split()}, {})
        for n, tracers in enumerate(scanned)
    ]


def test_a_tracer_of_a_single_person_is_left_out_and_said():
    people = crowd(*["AV45"] * 8, "FDG", "AV45 AV1451", "AV45 FDG")
    inside, outside, lone = split_with_tracers(people, 0.3, 0)
    assert "AV1451" in lone and "had it" in lone["AV1451"] and "--held-out" in lone["AV1451"]
    everyone = {stored.participant for stored in (*inside, *outside)}
    for tracer in {t for stored in inside for t in stored.scans}:
        assert tracer not in lone and sum(tracer in stored.scans for stored in inside) >= 2
    # nobody is lost but those who had nothing else
    assert everyone >= {f"{n:02d}" for n in range(8)} | {"09", "10"} and outside and inside
    # two scans of one person do not tell how people differ either
    twice = [*crowd(*["AV45"] * 6), *[replace(crowd("FDG")[0], participant="x")] * 2]
    assert set(split_with_tracers(twice, 0.2, 0)[2]) == {"FDG"}


def test_where_no_tracer_has_two_people_each_is_named():
    with pytest.raises(UsageError, match=r"AV45 is left out.*FDG is left out|FDG is left out.*AV45 is left out"):
        split_with_tracers(crowd("AV45", "FDG", "AV1451", "FBB"), 0.2, 0)


def test_a_share_that_leaves_nobody_to_train_on_gets_a_sentence(site, tiny_recipe, trained_site, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"--held-out 0.95 keeps 5 of 5 participants out"):
        split_with_tracers(crowd(*["AV45"] * 5), 0.95, 0)
    out = tmp_path / "out"
    for part in ("heads", "scans"):
        shutil.copytree(trained_site / "models" / "ours-training" / part, out / "models" / "ours-training" / part)
    command = [str(site), str(out), "train", "--recipe", str(tiny_recipe), "--name", "ours", "--held-out", ".95"]
    assert main(command) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("bids-petsynth: --held-out 0.95 keeps 6 of 6 participants out") and told.endswith(".")


def test_the_card_tells_nobodys_label_path_or_value():
    words = ["BIDS", "OUT", "train", "--participant-label", "0815", "--recipe", "/home/me/own.toml", "--pet-window"]
    told = told_command(parser().parse_args([*words, "50", "70", "--tracer", "AV45", "FDG", "--licence", "mine"]))
    assert told == (
        "bids-petsynth BIDS_DIR OUTPUT_DIR train --recipe own.toml --tracer AV45 FDG --held-out 0.2 "
        "--pet-window 50.0 70.0 --max-gap 365"
    )
    recipe = load_recipe("petsynth")
    known = {"age": 70.0, "sex": 1.0}
    crowds = [[replace(one, record=known) for one in crowd(*n * ["AV45"])] for n in (5, 4)]
    many, few = describe(*crowds, recipe, "none").split("Held out")
    assert "age 70 ± 0 years; 0 women, 5 men" in many
    none = ", 0 FBB scans, 0 FDG scans, 0 AV1451 scans"
    assert f"4 people; 4 AV45 scans{none}; of fewer than five people no more is told.\n" in few and "men" not in few


def test_a_t1w_is_not_trained_where_nobody_has_what_it_is_drawn_from():
    recipe = load_recipe("acadiff")
    assert has_sources("T1w", recipe, crowd("AV45")) and has_sources("T1w", recipe, crowd("FBB", "FDG"))
    assert not has_sources("T1w", recipe, crowd("FBB", "FBB"))
    shown = recipe.conditioning.model_copy(update={"images": ("labels",)})
    assert has_sources("T1w", recipe.model_copy(update={"conditioning": shown}), crowd("FBB"))


def test_the_card_counts_the_t1w_of_everyone_where_t1w_are_drawn():
    recipe = load_recipe("acadiff")
    told = describe(crowd("AV45", "FDG", "AV45 FDG"), crowd("FDG"), recipe, "none")
    assert "Trained on 3 people; 2 AV45 scans, 2 FDG scans, 3 T1w scans" in told
    assert "1 people; 0 AV45 scans, 1 FDG scans, 1 T1w scans" in told


@pytest.mark.parametrize("level", ["train", "group"])
@pytest.mark.parametrize("width", ["0", "-3", "nan", "wide"])
def test_a_width_that_is_none_is_refused(tmp_path, capsys, level, width):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), str(tmp_path / "out"), level, "--pet-fwhm", width])
    assert (
        ended.value.code == 2 and f"--pet-fwhm: {width} is no number of millimetres above 0" in capsys.readouterr().err
    )
