"""Base image, pip's configuration, the built image and sandbox. All of it is made only for ``make test-container``."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from containers import ASKED, BASE, CONTAINERS_CONF, IMAGE, ROOT, PipConfiguration, call
from definition import build, parse


@pytest.fixture(scope="session")
def tools(tmp_path_factory) -> None:
    """The Debian packages, root, and a wish to wait; else the test is skipped and says what is missing."""
    if not os.environ.get(ASKED):
        pytest.skip("builds images for minutes, as root: run `make test-container`")
    missing = [name for name in ("podman", "runc", "mmdebstrap", "bwrap") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.fail(f"needs root and Debian's podman, runc, mmdebstrap, bubblewrap (absent: {missing or 'none'})")
    conf = tmp_path_factory.mktemp("containers") / "containers.conf"
    conf.write_text(CONTAINERS_CONF)
    os.environ["CONTAINERS_CONF"] = str(conf)


@pytest.fixture(scope="session")
def pip(tmp_path_factory) -> PipConfiguration:
    """``pip config list``, with the local files and folders that it names."""
    lines = call(sys.executable, "-m", "pip", "config", "list").stdout.splitlines()
    values = {}  # pip lists what overrides last
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        values[key.rpartition(".")[2]] = ast.literal_eval(value)
    made = PipConfiguration(tmp_path_factory.mktemp("pip") / "pip.conf")
    made.file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()))
    made.mounts[made.INSIDE] = made.file
    for word in " ".join(map(str, values.values())).split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            # the pages of an index may link to files beside it
            path = path.parent if word.startswith("file://") else path
            made.mounts[path] = path
    return made


@pytest.fixture(scope="session")
def base(tools) -> str:
    """The Dockerfile's base image: the one in podman's store, or Debian 12 under its name."""
    if subprocess.run(["podman", "image", "exists", BASE], check=False).returncode:
        with subprocess.Popen(
            ["mmdebstrap", "--variant=minbase", "--include=ca-certificates,python3,python3-venv", "bookworm", "-"],
            stdout=subprocess.PIPE,
        ) as tar:
            call("podman", "import", "-", BASE, stdin=tar.stdout)
        assert tar.returncode == 0
    return BASE


@pytest.fixture(scope="session")
def build_arguments() -> dict[str, str]:
    """No templates, so that the build needs no other host than the package index; torch's index if one is named."""
    index = os.environ.get("TORCH_INDEX", "")
    return {"TEMPLATES": ""} | ({"TORCH_INDEX": index} if index else {})


@pytest.fixture(scope="session")
def image(base, pip, build_arguments) -> str:
    """The image of ``Dockerfile``."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    arguments = build_arguments | {"VERSION": version, "PIP_CONFIG_FILE": str(pip.INSIDE)}
    call(
        *("podman", "build", "--isolation", "chroot", "--pull=never", "--tag", IMAGE),
        *(f"--volume={outside}:{inside}:ro" for inside, outside in pip.mounts.items()),
        *(f"--build-arg={name}={value}" for name, value in arguments.items()),
        ROOT,
    )
    return IMAGE


@pytest.fixture(scope="session")
def sandbox(base, pip, build_arguments, tmp_path_factory) -> Path:
    """The folder that ``singularity/petsynth.def`` makes."""
    arguments = build_arguments | {"PIP_CONFIG_FILE": str(pip.INSIDE)}
    definition = parse((ROOT / "singularity/petsynth.def").read_text(), **arguments)
    root = tmp_path_factory.mktemp("sandbox") / "root"
    build(definition, root, ROOT, pip.mounts)
    yield root
    shutil.rmtree(root)
