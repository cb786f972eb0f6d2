"""An Apptainer definition file, executed without Apptainer: its sections by chroot, its ``run`` by bubblewrap.

Knows the sections and header keywords that ``singularity/petsynth.def`` has and refuses every other one, so that
nothing of the file goes untested.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HEADER = ("bootstrap", "from")
SECTIONS = ("arguments", "files", "post", "environment", "runscript", "test", "labels", "help")
#: Where Apptainer keeps a container's own scripts.
META = Path(".singularity.d")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class DefinitionError(ValueError):
    """The file has something that this converter does not execute."""


@dataclass(frozen=True)
class Definition:
    """Header keywords (lower case) and the text of each section, template arguments filled in."""

    header: Mapping[str, str]
    sections: Mapping[str, str]

    @property
    def files(self) -> list[tuple[str, str]]:
        """Source and destination of each line of ``%files``."""
        pairs = [tuple(line.split()) for line in self.sections["files"].splitlines() if line.strip()]
        if any(len(pair) != 2 for pair in pairs):
            raise DefinitionError("a line of %files is not `source destination`")
        return pairs


def parse(text: str, **arguments: str) -> Definition:
    """Read a definition file; ``arguments`` are those of ``apptainer build --build-arg``.

    Raises
    ------
    DefinitionError
        On an unknown or repeated section or keyword, an option of a section, an argument that is not declared, or a
        placeholder without an argument.
    """
    head, *parts = re.split(r"^%", text, flags=re.MULTILINE)
    raw: dict[str, str] = {}
    for part in parts:
        title, _, body = part.partition("\n")
        if title.strip() not in SECTIONS:
            raise DefinitionError(f"%{title.strip()} is not a section that is known here: {', '.join(SECTIONS)}")
        if title.strip() in raw:
            raise DefinitionError(f"%{title.strip()} stands twice")
        raw[title.strip()] = body
    values = dict(_pair(line) for line in raw.pop("arguments", "").splitlines() if line.strip())
    if unknown := set(arguments) - set(values):
        raise DefinitionError(f"no such argument: {', '.join(sorted(unknown))}")
    values |= arguments

    def fill(body: str) -> str:
        missing = set(re.findall(r"{{\s*(\w+)\s*}}", body)) - set(values)
        if missing:
            raise DefinitionError(f"no argument for {', '.join(sorted(missing))}")
        return re.sub(r"{{\s*(\w+)\s*}}", lambda found: values[found[1]], body)

    header = {}
    for line in fill(head).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        key, colon, value = line.partition(":")
        if not colon or key.lower() not in HEADER or key.lower() in header:
            raise DefinitionError(f"the header's line {line!r} is not known here or stands twice")
        header[key.lower()] = value.strip()
    return Definition(header, {name: fill(body) for name, body in raw.items()})


def _pair(line: str) -> tuple[str, str]:
    key, sign, value = line.strip().partition("=")
    if not sign:
        raise DefinitionError(f"{line.strip()!r} of %arguments is not NAME=VALUE")
    return key.strip(), value.strip()


def build(definition: Definition, root: Path, context: Path, mounts: Mapping[Path, Path]) -> None:
    """Make the sandbox folder ``root`` of a definition, whose base image lies in podman's store, as root.

    Parameters
    ----------
    context
        The folder that the sources of ``%files`` are relative to.
    mounts
        Read-only mounts (inside → outside) while ``%post`` runs, such as pip's configuration.
    """
    if definition.header["bootstrap"] != "docker":
        raise DefinitionError("only `Bootstrap: docker` is known here")
    root.mkdir(parents=True)
    container = _run(["podman", "create", "--pull=never", definition.header["from"], "true"]).stdout.strip()
    try:
        with subprocess.Popen(["podman", "export", container], stdout=subprocess.PIPE) as export:
            subprocess.run(["tar", "-x", "-C", root], stdin=export.stdout, check=True)
        if export.returncode:
            raise RuntimeError("podman export failed")
    finally:
        _run(["podman", "rm", container])
    for source, destination in definition.files:
        inside = root / destination.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (context / source).is_dir() else shutil.copy2
        copy(context / source, inside)
    (root / META / "env").mkdir(parents=True)
    for name, path in {"environment": "env/90-environment.sh", "runscript": "runscript", "test": "test"}.items():
        (root / META / path).write_text(definition.sections[name], encoding="utf-8")
    _run(
        ["bwrap", "--bind", root, "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
        + ["--ro-bind", "/etc/resolv.conf", "/etc/resolv.conf"]
        + [word for inside, outside in mounts.items() for word in ("--ro-bind", outside, inside)]
        + _clean({"HOME": "/root"})
        + ["/bin/sh", "-ec", definition.sections["post"]]
    )


def run(root: Path, script: str, words: Sequence[str], binds: Mapping[str, tuple[Path, bool]], uid: int = 1000):
    """``apptainer run`` (``runscript``) or ``apptainer test`` (``test``) with ``--cleanenv --containall``, no network.

    The container is read-only and there is no home; ``/tmp`` is as small as Apptainer makes it by default (64 MiB).

    Parameters
    ----------
    binds
        Folder inside → (folder outside, whether it may be written to).
    """
    memory = [
        word
        for folder in ("/tmp", "/dev/shm")
        for word in ("--perms", "1777", "--size", str(64 << 20), "--tmpfs", folder)
    ]
    return _run(
        # Root makes the mounts, wherever they lie, and gives up its rights inside.
        ["bwrap", "--unshare-net", "--unshare-ipc", "--unshare-pid", "--die-with-parent", "--ro-bind", root, "/"]
        + ["--dev", "/dev", "--proc", "/proc", *memory]
        + [
            word
            for inside, (outside, writable) in binds.items()
            for word in ("--bind" if writable else "--ro-bind", outside, inside)
        ]
        + ["--chdir", "/", *_clean({"HOME": "/home/user"})]
        + ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]
        + ["/bin/sh", "-c", f'. /{META}/env/90-environment.sh; exec /bin/sh /{META}/{script} "$@"', script, *words],
        check=False,
    )


def _clean(environment: Mapping[str, str]) -> list[str]:
    variables = {"PATH": SYSTEM_PATH, **environment}
    return ["--clearenv", *(word for name, value in variables.items() for word in ("--setenv", name, value))]


def _run(words: Sequence[str | os.PathLike], check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done
