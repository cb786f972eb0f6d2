"""What the tests of both containers share: names, commands, and the comparison with a stored list of files."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASKED = "PETSYNTH_TEST_CONTAINER"
IMAGE = "localhost/petsynth:test"
BASE = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
#: For hosts without full privileges: no systemd, no network name spaces for the build, low limits.
CONTAINERS_CONF = """\
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
netns = "host"
default_ulimits = ["nofile=8192:8192", "nproc=8192:8192"]
"""


def call(*words: str | Path, **options) -> subprocess.CompletedProcess[str]:
    """Run a command that has to succeed."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def output_folder(folder: Path) -> Path:
    """A folder of user 1000, in which root itself writes nothing."""
    folder.mkdir(parents=True)
    os.chown(folder, 1000, 1000)
    return folder


def check_listing(out: Path, name: str, before: frozenset[str] = frozenset()) -> None:
    """The files in ``out`` that were not there ``before`` are those of a stored list, all of them user 1000's."""
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    new = [file for file in files if file not in before]
    if os.environ.get(ASKED) == "write":
        (Path(__file__).parent / name).write_text("".join(f"{file}\n" for file in new))
    assert new == (Path(__file__).parent / name).read_text().split("\n")[:-1]
    assert {(out / file).stat().st_uid for file in files} == {1000}
    assert all((out / file).stat().st_size for file in files)


@dataclass
class PipConfiguration:
    """This machine's configuration of pip as one file, with what it refers to, for the time of a build."""

    file: Path
    mounts: dict[Path, Path] = field(default_factory=dict)  # inside → outside

    INSIDE = Path("/etc/petsynth-pip.conf")
