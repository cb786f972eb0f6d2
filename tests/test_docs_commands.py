"""Every command block of README and docs is run by a test, or a comment right before it says where or why not.

The ordinary suite reads them: levels' parsers, files, syntax, public names. ``make test-slow`` runs them, page by page,
on the example dataset. Marks, invisible on a rendered page: ``<!-- not run: reason -->``, ``<!-- run: tests/… -->``.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

import bids_petsynth
from bids_petsynth.cli.main import LEVELS

ROOT = Path(__file__).parents[1]
#: In the order in which they are run: the first makes the datasets that the others use.
FIRST = ("docs/first_run.md", "README.md")
FOUND = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("singularity/*.md")]
PAGES = [*FIRST, *sorted({p.relative_to(ROOT).as_posix() for p in FOUND} - set(FIRST))]
#: Languages of blocks that are commands or code; tsv, json and diff have tests of their own, text is output.
SHELL, PYTHON = ("sh", "bash", "shell", "console"), ("python",)
NO_COMMANDS = ("tsv", "json", "text", "diff", "toml", "mermaid", "{toctree}", "{include}", "{eval-rst}")
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$|(?:(?<=\n\n)|\A)((?:    [^\n]+\n|\n(?=    ))+)", re.M | re.S)
MARK = re.compile(r"<!-- (run|not run): ((?:(?!-->).)+) -->\s*\Z", re.S)
OPTIONAL = re.compile(r" *\[[^]]*\]")


@dataclass(frozen=True)
class Block:
    """A block of commands; ``mark`` is ``run``, ``not run`` or empty, with its reason or test."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""
    reason: str = ""

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command line; lines that end in a backslash go on."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [
            words for line in lines if (words := shlex.split(line.replace("[", " ").replace("]", " "), comments=True))
        ]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> list[Block]:
    """Blocks of commands and code of a page."""
    found = []
    for match in BLOCK.finditer(text):
        fenced = match[2] is not None
        language = (match[1].split() or [""])[0] if fenced else "sh"
        if fenced and language in NO_COMMANDS:
            continue
        body = match[2] if fenced else re.sub(r"^    ", "", match[3], flags=re.M)
        mark = MARK.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, language, body, *(mark.groups() if mark else ())))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page, (ROOT / page).read_text(encoding="utf-8"))]
OWN = [block for block in BLOCKS if not block.mark]


def test_blocks_are_found():
    text = "<!-- run: x -->\n\na\n\n    one --x  # note\n    two \\\n      more\n\n<!-- not run: why -->\n\n"
    text += "```sh\nthree\n```\n\n```json\n{}\n```\nb\n"
    first, second = blocks("page", text)
    assert first.commands == [["one", "--x"], ["two", "more"]] and first.mark == ""
    assert second.commands == [["three"]] and (second.mark, second.reason, second.line) == ("not run", "why", 11)
    assert len(BLOCKS) > 15 and {b.page for b in OWN} >= {"README.md", "docs/first_run.md", "docs/inputs.md"}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_code_that_a_test_knows_how_to_run_or_says_why_not(block):
    assert block.language in (*SHELL, *PYTHON), f"what is a block of {block.language or 'no language'}?"
    if block.mark == "run":
        assert (ROOT / block.reason).exists(), f"{block.reason} is not there"
    elif block.mark == "not run":
        assert len(block.reason) > 10
    elif block.language in SHELL:
        others = [words for words in block.commands if words[0] not in ("bids-petsynth", "bids-petsynth-example")]
        assert others == [], "put <!-- run: the test's file --> or <!-- not run: why --> right before the block"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in SHELL], ids=str)
def test_commands_are_understood(block):
    makefile = (ROOT / "Makefile").read_text()
    for words in block.commands:
        if words[0] == "bids-petsynth" and len(words) > 2:
            level = next(word for word in words if word in LEVELS)
            import_module(f"bids_petsynth.cli.{level}").parser().parse_args(words[1:])
        elif words[:2] == ["python", "-m"] and words[2].startswith("bids_petsynth"):
            assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file()
        elif words[0] == "python" and not words[1].startswith("-"):
            assert (ROOT / words[1]).is_file()
        elif words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.M)] == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in PYTHON], ids=str)
def test_python_uses_public_names(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module == "bids_petsynth":
            assert {alias.name for alias in node.names} <= set(bids_petsynth.__all__)


@pytest.mark.slow
def test_python_passes_a_type_checker(tmp_path):
    pytest.importorskip("mypy")
    texts = [block.text for block in BLOCKS if block.language in PYTHON]
    files = [tmp_path / f"block{number}.py" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    words = ["-m", "mypy", "--strict", "--follow-imports", "silent", "--cache-dir", tmp_path / "cache", *files]
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The folder ``demo`` of the first run: made by its own blocks, shared by all pages."""
    return tmp_path_factory.mktemp("docs") / "demo"


def call(words: list[str], cwd: Path) -> None:
    module = {"bids-petsynth": "bids_petsynth.cli.main", "bids-petsynth-example": "bids_petsynth.cli.example"}[words[0]]
    done = subprocess.run([sys.executable, "-m", module, *words[1:]], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


def prepared(words: list[str], demo: Path) -> list[str]:
    """The same command on the example: its folders in place of the placeholders, and a minute of training."""
    level = next((word for word in words if word in LEVELS), "")
    bids = demo / ("site" if level == "train" else "bids")
    own_model = "train" if any("/models/" in word for word in words) else level
    out = demo / "out" if level in ("participant", "group") else demo / f"out-{level}"
    places = {"BIDS_DIR": str(bids), "OUTPUT_DIR": str(out)}
    words = [places.get(word, word) for word in words]
    words = [word.replace("OUTPUT_DIR/models", f"{demo}/out-{own_model}/models") for word in words]
    if level == "train":
        if "--time-budget" in words:
            words[words.index("--time-budget") + 1] = "1"
        else:
            words += ["--time-budget", "1"]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("block", OWN, ids=str)
def test_run(block, demo, tmp_path_factory):
    folder = demo.parent / re.sub(r"\W", "_", block.page)
    folder.mkdir(exist_ok=True)
    if not (folder / "demo").exists():
        demo.mkdir(exist_ok=True)
        (folder / "demo").symlink_to(demo)
    if not (demo / "bids").exists():
        call(["bids-petsynth-example", "demo/bids"], folder)
    if block.language in PYTHON:
        t1w = demo / "bids/sub-positive/anat/sub-positive_rec-sim_T1w.nii.gz"
        if not (folder / "sub-01_T1w.nii.gz").exists():
            (folder / "sub-01_T1w.nii.gz").symlink_to(t1w)
        done = subprocess.run([sys.executable, "-c", block.text], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if ".save(" in block.text:
            images = [*folder.rglob("*desc-synthMean_pet.nii.gz"), *(demo / "python").glob("*Mean_pet.nii.gz")]
            assert images
        return
    plain = Block(block.page, block.line, block.language, OPTIONAL.sub("", block.text))
    for words in plain.commands:
        ready = prepared(words, demo)
        if "train" in ready and not (demo / "site").exists():
            options = ["simulate", "--people-per-head", "2", "--tracer", "AV45", "FDG"]
            call(["bids-petsynth", str(demo / "bids"), str(demo / "site"), *options], folder)
        call(ready, folder)
