"""The example dataset: valid BIDS, whole heads, the same bytes for the same seed, and no harm to other folders."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bids_petsynth.cli.example import main
from bids_petsynth.tables import read_table

VALIDATOR = shutil.which("bids-validator-deno") or shutil.which("bids-validator-deno", path=Path(sys.executable).parent)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example") / "new" / "dataset"
    assert main([str(folder)]) == 0
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def load(example, profile):
    import nibabel

    return nibabel.load(example / f"sub-{profile}" / "anat" / f"sub-{profile}_rec-sim_T1w.nii.gz")


@pytest.mark.skipif(VALIDATOR is None, reason="needs bids-validator-deno")
def test_validator_finds_no_error(example):
    run = subprocess.run([VALIDATOR, str(example), "--json"], capture_output=True, text=True)
    issues = json.loads(run.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert run.returncode == 0


def test_same_seed_same_bytes_and_a_second_run_is_welcome(example, tmp_path):
    before = contents(example)
    assert main([str(example)]) == 0
    assert contents(example) == before


def test_another_seed_makes_other_heads(example, tmp_path):
    assert main([str(tmp_path), "--seed", "7"]) == 0
    mine, theirs = contents(example), contents(tmp_path)
    assert set(mine) == set(theirs)
    changed = {name for name in mine if mine[name] != theirs[name]}
    assert changed == {name for name in mine if name.endswith("T1w.nii.gz")} | {"dataset_description.json"}


def test_a_folder_with_other_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main([str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "dataset_description.json").write_text('{"Name": "another dataset"}')
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "thesis.txt")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_heads_are_whole_and_lie_in_template_orientation(example):
    import nibabel
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
    from nilearn.image import resample_to_img

    for profile in ("negative", "positive"):
        image = load(example, profile)
        data = image.get_fdata()
        assert image.get_data_dtype() == np.int16
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        assert 1.5 <= min(image.header.get_zooms()) <= max(image.header.get_zooms()) <= 2.0
        # A head with face and some neck is three to five litres, of which the brain is about half.
        litres = (data > 300).sum() * np.prod(image.header.get_zooms()) / 1e6
        assert 2.5 < litres < 5.5
        # Air around it on all sides but the bottom.
        faces = [data[0], data[-1], data[:, 0], data[:, -1], data[..., -1]]
        assert max(np.percentile(face, 99) for face in faces) < 150
        # Where the template has its white and grey matter, this head has mostly the same.
        maps = [load(resolution=2) for load in (load_mni152_wm_template, load_mni152_gm_template)]
        white, grey = (
            data[resample_to_img(m, image, copy_header=True, force_resample=True).get_fdata() > 0.9] for m in maps
        )
        assert white.mean() > 1.15 * grey.mean() > 1.15 * 300


def test_the_two_heads_differ(example):
    one, other = (load(example, profile).get_fdata() for profile in ("negative", "positive"))
    inside = (one > 300) | (other > 300)
    assert np.corrcoef(one[inside], other[inside])[0, 1] < 0.9


def test_every_column_says_simulated_and_holds_plausible_values(example):
    columns = json.loads((example / "participants.json").read_text())
    lines = [line.split("\t") for line in (example / "participants.tsv").read_text().splitlines()]
    assert lines[0] == ["participant_id", *columns]
    assert [line[0] for line in lines[1:]] == ["sub-negative", "sub-positive"]
    assert all("simulated" in column["Description"] for column in columns.values())
    plausible = {row["name"]: row for row in read_table("variables.tsv")}
    for number, (name, column) in enumerate(columns.items(), start=1):
        values = [line[number] for line in lines[1:]]
        if "Levels" in column:
            assert set(values) <= set(column["Levels"])
        else:
            row = plausible[name]
            assert all(float(row["plausible_low"]) <= float(v) <= float(row["plausible_high"]) for v in values)
            assert column["Units"] == row["unit"]
        assert ("Assay" in column) == name.endswith(("_lumipulse", "_simoa"))


def test_help_needs_no_heavy_import():
    code = (
        "import sys\ntry:\n    from bids_petsynth.cli.example import main\n    main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('numpy', 'nibabel', 'nilearn', 'scipy', 'torch') if m in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "DIR" in run.stdout
    assert run.stderr.strip() == "[]"
