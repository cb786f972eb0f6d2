"""The documentation keeps up with the code: names, options, columns and examples in it are compared with them."""

from __future__ import annotations

import argparse
import ast
import json
import re
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import bids_petsynth
from bids_petsynth.anatomy.regions import lookup, n_classes
from bids_petsynth.bids import sidecars
from bids_petsynth.bids.dataset import STATUS_COLUMNS
from bids_petsynth.bids.naming import PATTERNS
from bids_petsynth.bids.tables import dataset_rows
from bids_petsynth.cli.main import LEVELS, overview
from bids_petsynth.clinical.columns import Column, active_presets, known_presets, resolve_column
from bids_petsynth.clinical.mapping import HEADER
from bids_petsynth.clinical.records import read_record
from bids_petsynth.clinical.text import is_missing
from bids_petsynth.clinical.units import find_unit, units
from bids_petsynth.clinical.values import read_cell
from bids_petsynth.clinical.variables import assays, find_assays, variables
from bids_petsynth.pet.tracers import centiloid_equation, default_cutoff, tracers
from bids_petsynth.tables import data_path, read_table
from bids_petsynth.types import Case, ClinicalRecord, TableRow, Value

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
INPUTS, OUTPUTS = TEXTS["docs/inputs.md"], TEXTS["docs/outputs.md"]
#: Pages about the app alone; others also name options of development scripts.
FOR_USERS = ("README.md", "docs/inputs.md", "docs/outputs.md", "docs/limits.md", "docs/report.md")
#: Lines of command blocks that call another program, whose options are its own.
OTHERS = re.compile(r"^ *(pip|uv|python -m pytest|docker|podman|apptainer|singularity|sbatch|srun|git) .*$", re.M)
#: Options of Docker and Apptainer that pages speak of.
CONTAINER = {
    "--nproc_per_node",
    "--cleanenv",
    "--cap-drop",
    "--containall",
    "--cpus",
    "--env",
    "--gpus",
    "--memory",
    "--network",
    "--nv",
    "--read-only",
    "--rm",
    "--tmpfs",
    "--user",
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
CODE = re.compile(r"`([^`]+)`")


def table(text: str, first: str) -> list[list[str]]:
    """Cells of the rows of the table whose header begins with ``first``."""
    lines = text.split(f"\n| {first} |", 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert rows, f"no rows under {first}"
    return rows


def codes(cell: str) -> list[str]:
    return CODE.findall(cell)


def parsers() -> dict[str, argparse.ArgumentParser]:
    return {level: import_module(f"bids_petsynth.cli.{level}").parser() for level in LEVELS} | {"": overview()}


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings if name.startswith("--")}


@cache
def options_in_source(path: Path) -> set[str]:
    """Options that a script adds to a parser."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    adding = (call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument")
    words = (arg.value for call in adding for arg in call.args if isinstance(arg, ast.Constant))
    return {word for word in words if isinstance(word, str) and word.startswith("--")}


# options, links


@pytest.mark.parametrize("level", LEVELS)
def test_every_option_is_mentioned(level):
    named = set(OPTION.findall("\n".join(TEXTS.values())))
    assert sorted(options_of(parsers()[level]) - named) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_page_names_exists(page):
    known = set().union(*map(options_of, parsers().values()))
    known |= options_in_source(ROOT / "bids_petsynth/cli/example.py")
    if page not in FOR_USERS:
        scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "bids_petsynth").rglob("*.py")]
        known = known.union(*map(options_in_source, scripts))
    assert sorted(set(OPTION.findall(OTHERS.sub("", TEXTS[page]))) - known - CONTAINER) == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", TEXTS[page])
    inner = [link.split("#") for link in links if not re.match(r"[a-z]+:", link)]
    assert [file for file, *_ in inner if file and not (PAGES[page].parent / file).exists()] == []
    headings = {
        re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", TEXTS[page], re.M)
    }
    assert [part for file, *parts in inner for part in parts if not file and part not in headings] == []


def test_every_page_is_linked_from_the_readme_or_stands_in_the_sites_contents():
    trees = re.findall(r"```\{toctree\}\n(.*?)```", TEXTS["docs/index.md"], re.S)
    contents = {f"docs/{line}.md" for tree in trees for line in tree.splitlines()}
    linked = {page for page in PAGES if f"({page})" in TEXTS["README.md"]}
    assert set(PAGES) - linked - contents - {"README.md"} == set()
    assert "docs/index.md" in linked


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    sphinx = pytest.importorskip("sphinx.cmd.build")
    words = ["-W", "--keep-going", "-q", "-b", "dirhtml", "-d", f"{tmp_path}/trees", f"{ROOT}/docs", f"{tmp_path}/site"]
    assert sphinx.build_main(words) == 0
    page = (tmp_path / "site/api/index.html").read_text()
    assert all(f'id="bids_petsynth.{name}"' in page for name in bids_petsynth.__all__ if name != "__version__")


# inputs


def test_the_table_of_variables():
    rows = [line.strip("|").split("|") for line in INPUTS.splitlines() if line.count("|") == 6]
    found = {codes(row[0])[0]: [cell.strip() for cell in row[2:]] for row in rows if codes(row[0])}
    recipe = tomllib.loads(data_path("models", "petsynth-demo", "recipe.toml").read_text())
    used = {variable["name"] for variable in recipe["conditioning"]["variables"]}
    expected = {
        v.name: [v.unit.name, f"{v.low:g} to {v.high:g}", "**yes**" if v.name in used else "no"]
        for v in variables().values()
    }
    assert found == expected


def test_example_names_of_columns_are_understood():
    for target, names in table(INPUTS, "variable | some of the names"):
        for name in codes(names):
            column = resolve_column(TableRow("participants.tsv", {name: "1"}), name)
            assert (name, column.target, column.problem) == (name, codes(target)[0], "")


def test_presets():
    told = {codes(row[0])[0]: codes(row[1]) for row in table(INPUTS, "preset")}
    telling = [(row["preset"], row["column"]) for row in read_table("synonyms.tsv") if row["signature"] == "yes"]
    assert told == {preset: [c for p, c in telling if p == preset] for preset in known_presets()}
    for preset, names in told.items():
        assert all(active_presets([TableRow("participants.tsv", {name: "1"})]) == (preset,) for name in names)


def test_assays():
    told = table(INPUTS, "assay | recognised by")
    for name, phrases in told:
        assert all(find_assays(f"plasma {phrase}") == (codes(name)[0],) for phrase in phrases.split(", "))
    with_variable = {variable.assay for variable in variables().values() if variable.assay}
    assert {codes(row[0])[0] for row in told} == with_variable
    assert [name for name in set(assays()) - with_variable if f"`{name}`" not in INPUTS] == []


def test_units():
    rows = table(INPUTS, "canonical")
    convertible = {name for name, unit in units().items() if unit.dimension in ("concentration", "time", "fraction")}
    assert {word for row in rows for word in codes(row[1])} | {"pg/mL", "years"} == convertible
    for canonical, others in rows:
        for word in codes(others):
            assert find_unit(word).dimension == find_unit(canonical.split(",")[0]).dimension


def test_spellings_of_apoe():
    for texts, *counts in table(INPUTS, "text in the cell"):
        for text in codes(texts):
            values = read_cell(text, Column("participants.tsv", "APOE", "apoe_genotype")).values
            assert (text, [f"{values[n]:g}" if n in values else "n/a" for n in ("apoe4", "apoe2")]) == (text, counts)


def test_spellings_of_missing_values_and_numbers():
    rows = {row[0]: row[1] for row in table(INPUTS, "cell")}
    silent = next(cell for cell, what in rows.items() if what == "missing, silently")
    listed = {row["text"] for row in read_table("clinical_levels.tsv") if row["variable"] == "missing"} | {"n/a"}
    assert {text.lower() for text in codes(silent)} == listed - {""}
    assert all(map(is_missing, codes(silent)))
    nfl, age = Column("t.tsv", "nfl_simoa", "nfl_simoa"), Column("t.tsv", "age", "age")
    for cell, what in rows.items():
        for text in codes(cell):
            if re.fullmatch(r"[\d.]+", what):
                assert read_cell(text, nfl).values == {"nfl_simoa": float(what)}
            elif what.endswith("missing, with a warning"):
                assert not read_cell(text, nfl).values and read_cell(text, nfl).warning
    cell, what = next(row for row in rows.items() if row[0].startswith("age"))
    bounds = re.search(r"\(([\d, ]+)\)", what)[1].split(", ")
    assert [read_cell(text, age).values["age"] for text in codes(cell)] == [float(bound) for bound in bounds]


def test_limits_of_dates():
    limits = {row["name"]: row["value"] for row in read_table("clinical_limits.tsv")}
    assert f"More than {limits['blood_scan_interval']} days" in INPUTS
    assert f"{limits['blood_scan_interval']} days" in TEXTS["docs/limits.md"]
    assert f"Years before {limits['shifted_date_year']}" in INPUTS


def test_columns_of_the_mapping_file():
    assert [codes(row[0])[0] for row in table(INPUTS, "column of the mapping file")] == list(HEADER)


def test_the_worked_example_is_read_as_told(tmp_path):
    blocks = dict(re.findall(r"```(tsv|json)\n(.*?)```", INPUTS, re.S))
    (tmp_path / "participants.tsv").write_text(blocks["tsv"])
    (tmp_path / "participants.json").write_text(blocks["json"])
    told = table(INPUTS, "variable | sub-01")
    for column, label in enumerate(("01", "02"), 1):
        values = read_record(dataset_rows(tmp_path, label)[0]).values
        expected = {codes(row[0])[0]: row[column] for row in told}
        found = {name: f"{values[name].value:.3g}" if values[name].value is not None else "n/a" for name in expected}
        assert found == expected
        assert {name for name, value in values.items() if value.value is not None} <= set(expected)
    (tmp_path / "participants.json").unlink()
    bare = read_record(dataset_rows(tmp_path, "01")[0]).values
    assert not [name for name, value in bare.items() if value.value is not None and variables()[name].kind == "plasma"]


# outputs


def documented() -> dict[str, bool]:
    """Name patterns of all tables of files → whether a JSON lies beside."""
    rows = [line.strip("|").split("|") for line in OUTPUTS.splitlines() if re.match(r"\| `[^|]*\| (yes|no) \|", line)]
    return {name: row[1].strip() == "yes" for row in rows for name in codes(row[0])}


def as_regex(pattern: str) -> str:
    """``<x>`` stands for a label, ``[…]`` for what may be absent."""
    text = re.escape(pattern).replace("<folder>", r"sub-\w+(/ses-\w+)?").replace("<label>", r"sub-[^_/]+(_ses-[^_/]+)?")
    text = re.sub(r"<\w+>", "[A-Za-z0-9+]+", text)
    return text.replace(r"\[", "(").replace(r"\]", ")?")


@pytest.mark.parametrize("kind", PATTERNS)
def test_every_pattern_is_documented(kind):
    assert re.sub(r"\{(\w+)[^}]*\}", r"<\1>", PATTERNS[kind]) in documented()


def test_every_documented_file_is_written_by_something():
    known = {re.sub(r"\{(\w+)[^}]*\}", r"<\1>", pattern) for pattern in PATTERNS.values()}
    source = "".join(path.read_text() for path in (ROOT / "bids_petsynth").rglob("*.py"))
    others = [name for name in documented() if name not in known]
    assert [name for name in others if "<" not in name and f'"{name}"' not in source] == []
    assert all(name.startswith("logs/") for name in others if "<" in name)


def test_every_file_of_a_run_is_documented():
    patterns = documented()
    names = [re.compile(as_regex(name)) for name in patterns]
    beside = [
        re.compile(re.sub(r"\\\.(nii\\\.gz|tsv)$", r"\\.json", as_regex(n))) for n, json_ in patterns.items() if json_
    ]
    files = (ROOT / "tests/participant_outputs.txt").read_text().split()
    assert len(files) > 50
    assert [file for file in files if not any(p.fullmatch(file) for p in (*names, *beside))] == []
    # and a JSON that is promised is there
    for pattern, promised in zip(names, patterns.values(), strict=True):
        for file in filter(pattern.fullmatch, files if promised else ()):
            assert re.sub(r"\.(nii\.gz|tsv)$", ".json", file) in files


def test_every_json_key_is_documented():
    told = {name for row in table(OUTPUTS, "key") for name in codes(row[0])}
    text = "\n".join("|".join(row) for row in table(OUTPUTS, "key"))
    case = Case("01", None, None, notes=("a note",))
    synthesis = sidecars.Synthesis("m", "1", "0" * 64, True, "heun", 5, 1.0, 0, 8)
    record = ClinicalRecord({"age": Value("age", 70.0, "found", "participants.tsv, column age", "note")})
    run = sidecars.run_metadata("a command")
    from bids_petsynth.workflows.outputs import centiloid_metadata

    pet = sidecars.pet_sidecar(
        case,
        "draw",
        "AV45",
        synthesis,
        record,
        [],
        reference_region="x",
        spatial_reference="x",
        voxel_mm=2,
        draw=1,
        record_values=True,
        warnings=["a warning"],
        run=run,
    )
    written = [
        sidecars.t1w_sidecar(case, []),
        sidecars.mask_sidecar([]),
        sidecars.dseg_sidecar([], {"rotation": 1.0}, ["a warning"], bias_correction="N4", run=run),
        sidecars.probseg_sidecar("GM", []),
        pet,
        sidecars.table_sidecar({}, "AV45", synthesis, record, []),
        centiloid_metadata(centiloid_equation("AV45")),
        {"InputHash": "", "SettingsHash": ""},
    ]
    assert told == {key for about in written for key in about}
    inner = [*pet["Model"], *pet["Sampler"], *pet["Conditioning"]["age"]]
    inner += [key for part in centiloid_metadata(centiloid_equation("AV45")).values() for key in part]
    assert [key for key in inner if f"`{key}`" not in text] == []


def test_columns_of_tables():
    from bids_petsynth.api import SyntheticPET, record_from, sensitivity
    from bids_petsynth.models.recipe import load_recipe
    from bids_petsynth.pet.quantification import quantify, suvr_rows
    from bids_petsynth.pet.tracers import tracer
    from bids_petsynth.types import Anatomy, Grid
    from bids_petsynth.workflows.outputs import columns_of, measures

    # one voxel of 100 ml for each region
    labels = np.array([code for code, *_ in lookup()], np.uint8).reshape(-1, 1, 1)
    grid = Grid(labels.shape, np.diag([100.0, 100.0, 10.0, 1.0]))
    result = quantify(np.ones((2, *labels.shape), np.float32), labels, grid, tracer("AV45"))
    pet = SyntheticPET("sub-01", "AV45", np.ones((2, 1, 1, 1)), None, None, result, None, {})
    anatomy = Anatomy(np.ones(labels.shape), labels, np.zeros(0), grid)
    flow = SimpleNamespace(
        model=SimpleNamespace(
            classes=n_classes(),
            recipe=load_recipe("petsynth"),
            variables=SimpleNamespace(sd=[1.0] * len(load_recipe("petsynth").conditioning.variables)),
        ),
        geometry=lambda anatomy: SimpleNamespace(volumes=torch.ones(1, n_classes())),
        regional_draws=lambda values, tracer, geometry, seed, n: torch.ones(n, n_classes()),
    )
    moved = sensitivity(flow, anatomy, record_from({"age": 70}), "AV45", 0, 2)
    told = {codes(row[0])[0]: codes(row[1]) for row in table(OUTPUTS, "table")}
    for name, columns in {
        "*_suvr.tsv": list(suvr_rows(result)[0]),
        "*_measures.tsv": list(measures(pet)),
        "*_tacs.tsv": list(columns_of("tacs")),
        "status.tsv": list(STATUS_COLUMNS),
        "*_sensitivity.tsv": list(moved[0]),
    }.items():
        assert [column for column in columns if column not in told[name]] == [], name
        if name.startswith("*"):
            assert list(columns_of(name[2:-4])) == columns, "the table's JSON describes its columns"
    assert f"({default_cutoff().centiloid:g})" in OUTPUTS


def test_tracers():
    told = {name: row[1:] for row in table(OUTPUTS, "tracers") for name in codes(row[0])}
    expected = {
        t.name: [t.reference_name, f"`{t.default_target}`", "yes" if centiloid_equation(t.name) else "no"]
        for t in tracers()
    }
    assert told == expected


def test_json_blocks_are_json():
    blocks = [block for text in TEXTS.values() for block in re.findall(r"```json\n(.*?)```", text, re.S)]
    assert blocks and all(json.loads(block) for block in blocks)
