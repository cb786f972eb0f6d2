"""What is released: wheel, public interface, descriptor, versions, and the workflows that build them."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import bids_petsynth
from bids_petsynth.reports.boilerplate import bibliography

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}


def run(*words: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# wheel and sdist


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """Wheel and sdist of what git tracks."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the project cannot be told")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in run("git", "ls-files", "-z").split("\0")[:-1]:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    wheel, sdist = next(out.glob("*.whl")), next(out.glob("*.tar.gz"))
    return {"wheel": wheel, "sdist": sdist, "source": source}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(built["wheel"]).namelist()
    inside = {name for name in names if not re.match(r"bids_petsynth-[\d.]+\.dist-info/", name)}
    package = built["source"] / "bids_petsynth"
    assert inside == {p.relative_to(built["source"]).as_posix() for p in package.rglob("*") if p.is_file()}
    assert {"bids_petsynth/py.typed", "bids_petsynth/data/models/petsynth-demo/model.json"} <= inside
    licences = [name for name in names if "/licenses/" in name and not name.endswith("/")]
    assert len(licences) == 1 + len(list(package.rglob("*LICENSE")))  # the code's, and of every part that has another


def test_the_sdist_builds_the_same_and_holds_no_tests(built):
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    package = built["source"] / "bids_petsynth"
    assert {p.relative_to(built["source"]).as_posix() for p in package.rglob("*")} <= names
    assert {"pyproject.toml", "LICENSE", "CHANGELOG.md", "constraints.txt"} <= names
    assert [name for name in names if name.startswith(("tests", "docs", "benchmarks", ".github", "boutiques"))] == []


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_size(built, kind):
    assert 1e6 < built[kind].stat().st_size < 60e6


def test_the_installed_wheel_answers(built, tmp_path):
    where = tmp_path / "site"
    zipfile.ZipFile(built["wheel"]).extractall(where)
    version = run(
        sys.executable, "-m", "bids_petsynth.cli.main", "--version", cwd=tmp_path, PYTHONPATH=str(where)
    ).strip()
    assert version == f"bids-petsynth {PROJECT['project']['version']}"
    load = "import bids_petsynth as b; print(b.__file__, *b.Synthesizer.load(device='cpu').generator.tracers)"
    file, *tracers = run(sys.executable, "-c", load, cwd=tmp_path, PYTHONPATH=str(where)).split()
    assert file.startswith(str(where)) and "AV45" in tracers


# the public interface


def test_public_names_exist_and_are_documented():
    for name in bids_petsynth.__all__:
        found = getattr(bids_petsynth, name)
        assert name == "__version__" or found.__doc__, name
        assert name in dir(bids_petsynth)
    with pytest.raises(AttributeError, match="no_such_name"):
        bids_petsynth.no_such_name  # noqa: B018


def test_type_checkers_see_what_the_interpreter_sees():
    tree = ast.parse(Path(bids_petsynth.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    homes = {name: f"bids_petsynth.{module}" for module, names in bids_petsynth._HOMES.items() for name in names}
    assert seen == homes and {*homes, "__version__"} == set(bids_petsynth.__all__)
    assert {name for name in homes if not hasattr(import_module(homes[name]), name)} == set()


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, bids_petsynth; print(*[m for m in ('torch', 'numpy', 'nipype', 'bids') if m in sys.modules])"
    assert run(sys.executable, "-c", code).strip() == ""


@pytest.mark.slow
def test_the_public_interface_is_typed(tmp_path):
    cache = str(tmp_path / "cache")
    run(sys.executable, "-m", "mypy", "--cache-dir", cache)
    use = tmp_path / "use.py"
    use.write_text(
        "from bids_petsynth import SyntheticPET, Synthesizer\n"
        'pet = Synthesizer.load().synthesize("sub-01_T1w.nii.gz", {"age": 72}, tracer="AV45")\n'
        "reveal_type(pet)\n"
        "reveal_type(pet.save)\n"
    )
    told = run(sys.executable, "-m", "mypy", "--cache-dir", cache, "--follow-imports", "silent", use)
    assert "bids_petsynth.api.SyntheticPET" in told and "list[pathlib.Path]" in told
    use.write_text("from bids_petsynth import Synthesizer\nSynthesizer.load(1)\n")
    done = subprocess.run([sys.executable, "-m", "mypy", "--cache-dir", cache, use], capture_output=True, text=True)
    assert done.returncode == 1 and 'incompatible type "int"' in done.stdout


# the Boutiques descriptor

DESCRIPTOR = json.loads((ROOT / "boutiques/participant.json").read_text(encoding="utf-8"))


def test_the_descriptor_is_what_the_parser_says(tmp_path):
    run(sys.executable, ROOT / "boutiques/generate.py", tmp_path / "fresh.json", SLURM_CPUS_PER_TASK="1")
    same = (tmp_path / "fresh.json").read_bytes() == (ROOT / "boutiques/participant.json").read_bytes()
    assert same, "the options have changed: run python boutiques/generate.py boutiques/participant.json"


def test_the_descriptor_and_the_help_have_the_same_options():
    told = run(sys.executable, "-m", "bids_petsynth.cli.main", "participant", "--help", COLUMNS="200")
    options = set(re.findall(r"^  (?:-\w(?: [^ ,]+(?: \[[^]]+\])?)?, )?(--[a-z-]+)", told, re.M)) - {"--help"}
    options |= {"--derivatives", "--work-dir", "--verbose"}
    assert {one["command-line-flag"] for one in DESCRIPTOR["inputs"] if "command-line-flag" in one} == options


def test_the_descriptor_is_valid_and_its_command_lines_are_understood(tmp_path):
    boutiques = pytest.importorskip("boutiques")
    from bids_petsynth.cli.participant import parser

    boutiques.validate(str(ROOT / "boutiques/participant.json"))
    (tmp_path / "bids").mkdir()
    for name in ("filter.json", "map.tsv", "model", "plugin.yml"):
        (tmp_path / name).write_text("{}")
    invocation = {
        "bids_dir": str(tmp_path / "bids"),
        "output_dir": "out",
        "participant_label": ["01", "02"],
        "session_label": ["1"],
        "bids_filter_file": str(tmp_path / "filter.json"),
        "tracer": ["AV45", "FDG"],
        "model": str(tmp_path / "model"),
        "n_draws": 4,
        "save_draws": True,
        "output_spaces": ["T1w", "MNI152NLin2009cAsym:res-2"],
        "record_values": True,
        "derivatives": ["fmriprep=/data/fmriprep"],
        "mapping": str(tmp_path / "map.tsv"),
        "write_mapping": "guesses.tsv",
        "dry_run": True,
        "device": "cpu",
        "nprocs": 4,
        "omp_nthreads": 2,
        "random_seed": 0,
        "verbose": True,
        "work_dir": "work",
        "use_plugin": str(tmp_path / "plugin.yml"),
        "mem": "16G",
        "max_gap": 90,
        "target": "T1w",
        "classifier": str(tmp_path / "model"),
        "prompt": "template",
        "notes_column": ["remarks"],
        "text_encoder": "hashed",
        "llm_endpoint": "http://localhost:1/v1",
        "llm_model": "name",
        "llm_timeout": 30,
        "text_cache": "texts",
        "stop_on_first_crash": True,
        "reports_only": True,
        "boilerplate_only": True,
        "skip_bids_validation": True,
    }
    missing = {one["id"] for one in DESCRIPTOR["inputs"]} - set(invocation)
    assert missing == set(), "give the new option a value here"
    (tmp_path / "invocation.json").write_text(json.dumps(invocation))
    done = boutiques.execute(
        "simulate", str(ROOT / "boutiques/participant.json"), "-i", str(tmp_path / "invocation.json")
    )
    words = shlex.split(done.shell_command)
    assert words[0] == "bids-petsynth"
    read = vars(parser().parse_args(words[1:]))
    for name, value in invocation.items():
        expected = 16.0 if name == "mem" else value
        assert read[name] == expected or str(read[name]) == str(value), name


# one version everywhere


def test_versions_agree():
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    found = [str(citation["version"]), zenodo["version"], DESCRIPTOR["tool-version"], bids_petsynth.__version__]
    assert found == [version] * 4
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == zenodo["license"] == PROJECT["project"]["license"]
    assert citation["title"] == zenodo["title"]
    # the methods text cites the software by the same title
    assert bibliography()["bids_petsynth"].fields["title"] == citation["title"]


def test_constraints_lie_in_the_ranges():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().split()
    exact = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    extras = PROJECT["project"]["optional-dependencies"]
    for text in (*PROJECT["project"]["dependencies"], *(text for texts in extras.values() for text in texts)):
        wanted = Requirement(text)
        if wanted.name not in ("bids-petsynth", "setuptools"):
            assert exact[canonicalize_name(wanted.name)] in wanted.specifier, text
            assert any(s.operator == ">=" for s in wanted.specifier), f"{text}: without a lower bound"


# workflows


def steps() -> list[tuple[str, dict]]:
    return [
        (f"{name}.{job}", step)
        for name, flow in WORKFLOWS.items()
        for job, about in flow["jobs"].items()
        for step in about["steps"]
    ]


def test_actions_are_pinned_by_commit():
    used = [
        line.strip()
        for p in (ROOT / ".github/workflows").glob("*.yml")
        for line in p.read_text().splitlines()
        if "uses:" in line
    ]
    assert used
    assert [line for line in used if not re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*$", line)] == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_permissions_are_least(name):
    flow = WORKFLOWS[name]
    assert flow["permissions"] in ({"contents": "read"}, {})
    for job, about in flow["jobs"].items():
        assert "timeout-minutes" in about, job
        extra = {key for key, value in about.get("permissions", {}).items() if value == "write"}
        if extra:  # only a job that publishes may write, from an environment, and it runs no code of the repository
            assert "environment" in about and not any("run" in step for step in about["steps"])
            assert extra <= {"id-token", "pages", "packages", "attestations"}


def test_checkouts_keep_no_credentials_and_no_secret_is_used():
    checkouts = [step for _, step in steps() if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts and all(step["with"]["persist-credentials"] is False for step in checkouts)
    text = "".join(path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml"))
    assert re.findall(r"secrets\.(?!GITHUB_TOKEN)\w+", text) == []
    # what a stranger writes (titles, branch names) reaches a shell only through the environment
    assert [where for where, step in steps() if "${{" in step.get("run", "")] == []


def test_every_python_that_is_promised_is_tested():
    promised = {c.split(" :: ")[-1] for c in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)}
    matrix = WORKFLOWS["tests"]["jobs"]["test"]["strategy"]["matrix"]["include"]
    assert {row["python"] for row in matrix if row["versions"] == "exact"} == promised
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["project"]["requires-python"]).groups()
    assert promised == {f"3.{minor}" for minor in range(int(low), int(high))}
    assert {"oldest", "newest"} <= {row["versions"] for row in matrix}


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_issue_forms(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        return
    assert form["name"] and form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) and all("label" in f["attributes"] for f in fields)
