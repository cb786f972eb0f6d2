"""Many runs that share an output folder, as an array's tasks do: nothing is lost, and each reads its own only."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_reports import write_scan

from bids_petsynth.bids.dataset import (
    DONE,
    FAILED,
    record_begun,
    record_status,
    status_notes,
    write_cohort,
    write_status,
)
from bids_petsynth.bids.tables import read_tsv
from bids_petsynth.reports.citation import write_citation
from bids_petsynth.reports.content import participants_of
from bids_petsynth.types import Case

ROOT = Path(__file__).parents[1]


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Names of the files that are opened from here on."""
    names: list[str] = []
    true_open, true_bytes, true_text = builtins.open, Path.read_bytes, Path.read_text

    def note(function):
        def wrapped(path, *arguments, **words):
            names.append(Path(path).name if isinstance(path, str | Path) else str(path))
            return function(path, *arguments, **words)

        return wrapped

    monkeypatch.setattr(builtins, "open", note(true_open))
    monkeypatch.setattr(Path, "read_bytes", note(true_bytes))
    monkeypatch.setattr(Path, "read_text", note(true_text))
    return names


def age(out: Path, seconds: float) -> None:
    """Let everything have been written a while ago."""
    for path in out.rglob("*"):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def both(out: Path) -> list[bytes]:
    """status.tsv and the cohort table."""
    return [(out / name).read_bytes() for name in ("status.tsv", "group_desc-synthMean_regions.tsv")]


def add_table(out: Path, label: str, value: float) -> None:
    folder = out / f"sub-{label}" / "pet"
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / f"sub-{label}_trc-AV45_desc-synthMean"
    Path(f"{name}_seg-petsynth_tacs.tsv").write_text(f"frame_start\tframe_end\tprecuneus\n0\t1\t{value}\n")
    Path(f"{name}_measures.tsv").write_text(f"target\ttarget_suvr\nglobal\t{value}\n")
    record_status(out, Case(label, None, None), "AV45", DONE)


def test_a_task_reads_its_own_files_only(tmp_path, opened):
    labels = [f"{number:02d}" for number in range(30)]
    for label in labels:
        add_table(tmp_path, label, 1.25)
    age(tmp_path, 3600)
    write_status(tmp_path)
    write_cohort(tmp_path)
    add_table(tmp_path, "30", 1.5)  # one more, and one of the others again
    add_table(tmp_path, "07", 1.75)
    record_status(tmp_path, Case("07", None, None), "AV45", DONE, "another warning")
    record_status(tmp_path, Case("08", None, None), "AV45", FAILED, "no memory.")
    opened.clear()
    write_status(tmp_path, anew=False)
    write_cohort(tmp_path, anew=False)
    read = {name[:6] for name in opened if name.startswith("sub-")}
    assert read == {"sub-07", "sub-08", "sub-30"}
    found = both(tmp_path)
    write_status(tmp_path)
    write_cohort(tmp_path)
    assert both(tmp_path) == found
    cohort = {row["participant_id"]: row for row in read_tsv(tmp_path / "group_desc-synthMean_regions.tsv")[0]}
    assert [cohort[f"sub-{label}"]["precuneus"] for label in ("06", "07", "30")] == ["1.25", "1.75", "1.5"]
    status = {row["participant_id"]: row["status"] for row in read_tsv(tmp_path / "status.tsv")[0]}
    assert len(status) == 31 and status["sub-08"] == "failed"


def test_what_is_gone_is_taken_out(tmp_path):
    for label in ("01", "02"):
        add_table(tmp_path, label, 1.25)
    write_status(tmp_path)
    write_cohort(tmp_path)
    (tmp_path / "logs" / "status" / "sub-01_trc-AV45.json").unlink()
    write_status(tmp_path, anew=False)
    write_cohort(tmp_path, anew=False)
    for name in ("status.tsv", "group_desc-synthMean_regions.tsv"):
        assert [row["participant_id"] for row in read_tsv(tmp_path / name)[0]] == ["sub-02"]


@pytest.mark.parametrize("tracer", ["AV45", None])
@pytest.mark.parametrize("anew", [True, False])
def test_a_scan_that_failed_since_is_not_in_the_cohort(tmp_path, tracer, anew):
    """Its tables are those of an earlier run, perhaps of another T1w; None: nothing of the scan could be read."""
    for label in ("01", "02"):
        add_table(tmp_path, label, 1.25)
    age(tmp_path, 3600)
    write_cohort(tmp_path)
    age(tmp_path, 60)
    record_status(tmp_path, Case("01", None, None), tracer, FAILED, "the T1w is cut off.")
    assert [row["participant_id"] for row in read_tsv(write_cohort(tmp_path, anew))[0]] == ["sub-02"]
    record_status(tmp_path, Case("01", None, None), "AV45", DONE, "up to date")
    assert [row["participant_id"] for row in read_tsv(write_cohort(tmp_path, anew))[0]] == ["sub-01", "sub-02"]


@pytest.mark.parametrize("anew", [True, False])
def test_a_folder_that_is_not_named_as_bids_asks_is_nobody_else(tmp_path, anew):
    """Neither its note nor what an earlier version made of it counts as that of sub-01."""
    add_table(tmp_path, "01", 1.25)
    add_table(tmp_path, "01_old", 1.5)
    record_status(tmp_path, Case("01_old", None, None), None, FAILED, "rename the folder.")
    assert [row["precuneus"] for row in read_tsv(write_cohort(tmp_path, anew))[0]] == ["1.25"]
    rows, _ = read_tsv(write_status(tmp_path, anew))
    assert {row["status"] for row in rows if row["participant_id"] == "sub-01"} == {"done"}
    assert [note["status"] for note in status_notes(tmp_path, "01")] == ["done"]
    assert "failed" in [note["status"] for note in status_notes(tmp_path, "01_old")]
    assert set(participants_of(tmp_path)) == {"01", "01_old"}


@pytest.mark.parametrize("damage", ["", "participant_id\n", "nonsense", "participant_id\tsession_id\ttracer\n\t\t\n"])
def test_a_damaged_table_is_made_again(tmp_path, damage):
    add_table(tmp_path, "01", 1.25)
    write_status(tmp_path)
    write_cohort(tmp_path)
    found = both(tmp_path)
    age(tmp_path, 3600)
    for name in ("status.tsv", "group_desc-synthMean_regions.tsv"):
        (tmp_path / name).write_text(damage)
    write_status(tmp_path, anew=False)
    write_cohort(tmp_path, anew=False)
    assert both(tmp_path) == found


def test_racing_tasks_lose_nothing(tmp_path):
    """Each of four processes begins and ends ten scans, and brings the table up to date after every note."""
    code = (
        "import sys; from pathlib import Path; from bids_petsynth.types import Case\n"
        "from bids_petsynth.bids.dataset import DONE, record_begun, record_status, write_status\n"
        "out, start = Path(sys.argv[1]), int(sys.argv[2])\n"
        "for i in range(start, start + 10):\n"
        "    case = Case(f'{i:03d}', None, None)\n"
        "    record_begun(out, case, 'AV45'); write_status(out, anew=False)\n"
        "    record_status(out, case, 'AV45', DONE); write_status(out, anew=False)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, tmp_path, str(10 * i)], cwd=ROOT) for i in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    found = (tmp_path / "status.tsv").read_bytes()
    rows, _ = read_tsv(tmp_path / "status.tsv")
    assert [(row["participant_id"], row["status"]) for row in rows] == [(f"sub-{i:03d}", "done") for i in range(40)]
    assert write_status(tmp_path).read_bytes() == found


def test_the_methods_text_reads_its_own_participants_only(tmp_path, opened):
    out = tmp_path / "out"
    for label in ("one", "two", "three"):
        write_scan(out, Case(label, None, tmp_path / "raw" / "t1w.nii.gz"), ("AV45",), {"age": 71.25})
    age(out, 3600)
    write_citation(out, anew=False)
    text = (out / "logs" / "CITATION.md").read_text()
    assert "AV45" in text and "FDG" not in text
    write_scan(out, Case("four", None, tmp_path / "raw" / "t1w.nii.gz"), ("FDG",), {"age": 71.25})
    opened.clear()
    write_citation(out, anew=False)
    read = {name.split("_")[0] for name in opened if name.startswith("sub-")}
    assert read == {"sub-four"}
    files = {path.name: path.read_bytes() for path in (out / "logs").glob("CITATION.*")}
    assert set(files) == {"CITATION.bib", "CITATION.json", "CITATION.md"} and b"AV45 and FDG" in files["CITATION.md"]
    write_citation(out, anew=True)
    assert {path.name: path.read_bytes() for path in (out / "logs").glob("CITATION.*")} == files
    # facts that participants share stand there once, and no value of theirs
    assert files["CITATION.json"].count(b'"Tracer"') == 2 and b"71.25" not in files["CITATION.json"]
    # the last scan with FDG fails in another run: the text must not go on about it
    record_status(out, Case("four", None, None), "FDG", FAILED, "no memory.")
    write_citation(out, anew=False)
    assert "FDG" not in (out / "logs" / "CITATION.md").read_text()


def test_a_thousand_tasks_are_fast(tmp_path):
    """The end of a task in a folder of 1000 participants and three tracers."""
    folder = tmp_path / "logs" / "status"
    folder.mkdir(parents=True)
    text = '{"participant_id": "sub-%s", "session_id": null, "tracer": "%s", "status": "done", "reason": ""}'
    for number in range(1000):
        for tracer in ("AV45", "FDG", "AV1451"):
            (folder / f"sub-{number:04d}_trc-{tracer}.json").write_text(text % (f"{number:04d}", tracer))
    age(tmp_path, 3600)
    write_status(tmp_path)
    record_status(tmp_path, Case("0500", None, None), "AV45", DONE, "a warning")
    began = time.process_time()
    write_status(tmp_path, anew=False)
    assert time.process_time() - began < 2
    assert len(read_tsv(tmp_path / "status.tsv")[0]) == 3000


KILLED = (
    "import os, signal, sys\n"
    "def die(event, arguments):\n"
    "    if event == 'open' and str(arguments[0]).endswith('sub-negative_rec-sim_T1w.nii.gz'):\n"
    "        if os.path.exists(sys.argv[2] + '/logs/status/sub-negative_trc-AV45.json'):\n"
    "            os.kill(os.getpid(), signal.SIGKILL)\n"
    "sys.addaudithook(die)\n"
    "from bids_petsynth.cli.main import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


def test_a_task_that_is_killed_leaves_its_reason(example, tmp_path):
    """A single participant runs in the process itself; killed for memory, it cannot tell, but its note does."""
    words = ["participant", "--participant-label", "negative", "--n-draws", "1", "--device", "cpu", "--nprocs", "1"]
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, example, out, *words], cwd=ROOT, capture_output=True)
    assert done.returncode == -9
    record_begun(out, Case("other", None, None), "AV45")  # another task is at work meanwhile
    rows, _ = read_tsv(write_status(out, anew=False))
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert rows[0]["reason"].startswith("sub-negative: ") and "memory or time ran out" in rows[0]["reason"]
