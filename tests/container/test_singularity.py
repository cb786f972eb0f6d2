"""``singularity/petsynth.def``, executed section by section and run as ``apptainer run --cleanenv --containall``."""

from __future__ import annotations

from pathlib import Path

import pytest
from containers import ROOT, call, check_listing, output_folder
from definition import DefinitionError, parse, run

TEXT = (ROOT / "singularity/petsynth.def").read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("%test", "%setup\n    true\n%test"),
        ("%test", "%appinstall other\n    true\n%test"),
        ("%test", "%post\n    true\n%test"),
        ("%post", "%post -c /bin/bash"),
        ("Bootstrap: docker", "Bootstrap: docker\nStage: build"),
        ("    EXTRAS=\n", ""),
        ("    EXTRAS=\n", "    EXTRAS\n"),
    ],
)
def test_what_the_converter_does_not_execute_is_refused(old, new):
    assert parse(TEXT)
    assert old in TEXT
    with pytest.raises(DefinitionError):
        parse(TEXT.replace(old, new, 1))


def test_arguments_are_filled_in():
    assert parse(TEXT, BASE="other:1").header == {"bootstrap": "docker", "from": "other:1"}
    with pytest.raises(DefinitionError, match="OTHER"):
        parse(TEXT, OTHER="1")


def test_the_test_section(sandbox):
    done = run(sandbox, "test", (), {})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bids-petsynth" in done.stdout and "torch" in done.stdout


def test_the_same_packages_as_in_the_image(sandbox, image):
    words = ("podman", "run", "--rm", "--network=none", "--entrypoint=/bin/sh", image, "-c")
    inside = call(*words, "cd /opt/petsynth/lib/python3*/site-packages && ls -d *.dist-info").stdout.split()
    assert inside == sorted(path.name for path in sandbox.glob("opt/petsynth/lib/python3*/site-packages/*.dist-info"))
    assert len(inside) > 50


@pytest.fixture(scope="module")
def done(sandbox, example, tmp_path_factory) -> Path:
    """The line of ``singularity/README.md`` on the example dataset."""
    folder = tmp_path_factory.mktemp("apptainer")
    out, work = output_folder(folder / "out"), output_folder(folder / "work")
    binds = {"/bids": (example, False), "/out": (out, True), "/work": (work, True)}
    ended = run(sandbox, "runscript", ("/bids", "/out", "participant", "-w", "/work"), binds)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return out


def test_participant(done):
    check_listing(done, "outputs_participant.txt")


def test_group(sandbox, done, example, tmp_path):
    out = tmp_path / "out"
    call("cp", "-a", done, out)
    before = frozenset(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    ended = run(sandbox, "runscript", ("/bids", "/out", "group"), {"/bids": (example, False), "/out": (out, True)})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    check_listing(out, "outputs_group.txt", before)
