"""Where data lie on real machines: DataLad's links, read-only input, other file systems, paths with odd letters."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from places import SHARED

ROOT = Path(__file__).parents[1]
#: Mounts a folder over itself read-only, in a view of its own, then runs the rest.
READ_ONLY = ["unshare", "--mount", "sh", "-ec"]
READ_ONLY.append('mount --bind "$0" "$0"; mount -o remount,ro,bind "$0"; ! touch "$0/probe" 2>/dev/null; exec "$@"')


def annexed(example: Path, folder: Path) -> Path:
    """The example as DataLad leaves a clone: sub-positive's T1w fetched, sub-negative's not."""
    shutil.copytree(example, folder)
    for image in sorted(folder.rglob("*_T1w.nii.gz")):
        key = f"MD5E-s1--{image.name.split('_')[0]}.nii.gz"
        place = folder / ".git" / "annex" / "objects" / "Xq" / "7P" / key / key
        place.parent.mkdir(parents=True, exist_ok=True)
        if "sub-positive" in image.name:
            image.rename(place)
            place.chmod(0o444)
        else:
            image.unlink()
        image.symlink_to(os.path.relpath(place, image.parent))
    return folder


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in sorted(folder.rglob("*"))}


@pytest.fixture
def elsewhere(tmp_path):
    """A folder on another file system than the temporary one: in memory."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no other file system that can be written to")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_datalad_read_only_another_file_system_and_odd_paths(example, tmp_path, elsewhere):
    bids = annexed(example, tmp_path / "Übung mit Leerzeichen" / "données ☃")
    out = elsewhere / "résultats d'un essai"
    before = state(bids)
    command = [sys.executable, "-m", "bids_petsynth.cli.main", bids, out, "participant", "--n-draws", "1"]
    command += ["--device", "cpu", "--nprocs", "1", "--work-dir", tmp_path]
    alone = os.geteuid() == 0 and subprocess.run([*READ_ONLY, bids, "true"], capture_output=True).returncode == 0
    if not alone:  # without the right to mount, folders are made read-only by their mode
        for path in [bids, *bids.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o555)
    words = [*READ_ONLY, bids, *command] if alone else command
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    for path in [bids, *bids.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    with (out / "status.tsv").open(newline="") as file:
        told = {row["participant_id"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert told["sub-positive"]["status"] == "done"
    assert told["sub-negative"]["status"] == "failed" and "`datalad get`" in told["sub-negative"]["reason"]
    sidecar = next(out.rglob("*space-T1w*synthMean_pet.json")).read_text()
    # the link is the dataset's file, not what it leads to
    assert "bids:raw:sub-positive/anat/sub-positive_rec-sim_T1w.nii.gz" in sidecar and "annex" not in sidecar
    assert (out / "sub-positive.html").stat().st_size > 10_000
    assert state(bids) == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("petsynth_")]


@pytest.mark.skipif(not (SHARED / "templateflow").is_dir(), reason="shared/data/templateflow is not here")
def test_a_prefetched_template_needs_neither_network_nor_a_folder_to_write_to(tmp_path):
    home = Path(shutil.copytree(SHARED / "templateflow", tmp_path / "templates"))
    code = "from bids_petsynth.anatomy.normalisation import find_template\n"
    code += "print(*find_template('MNI152NLin2009cAsym', 2), sep='\\n')"
    words = [sys.executable, "-c", code]
    if os.geteuid() == 0 and subprocess.run([*READ_ONLY, home, "true"], capture_output=True).returncode == 0:
        words = [*READ_ONLY, home, "unshare", "--net", *words]
    else:
        for path in (p for p in home.rglob("*") if p.is_dir()):
            path.chmod(0o555)
    alone = {"PYTHONPATH": str(ROOT), "TEMPLATEFLOW_HOME": str(home), "HOME": "/nonexistent"}
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | alone | nowhere)
    for path in (p for p in home.rglob("*") if p.is_dir()):
        path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines()]
    assert len(files) == 2 and all(file.is_relative_to(home) and file.stat().st_size > 1000 for file in files)
