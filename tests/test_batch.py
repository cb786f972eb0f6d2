"""``--use-plugin``: its file, and the Slurm plugin with stand-ins for Slurm's commands (real: tests/cluster)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bids_petsynth.cli.main import main
from bids_petsynth.errors import UsageError
from bids_petsynth.workflows import batch

COMMANDS = {
    # runs the job at once and writes what it says where it is told to; one line per call into calls.txt
    "sbatch": """
        n=$(($(grep -c ^sbatch "$CALLS") + 1)); echo "sbatch $n $*" >>"$CALLS"
        out=$(printf '%s\\n' "$@" | sed -n 's/^--output=//p' | sed "s/%j/$n/;s/%%/%/g")
        case " $* " in *" --refused "*) echo "sbatch: error: invalid partition" >&2; exit 1;; esac
        for script; do :; done
        bash "$script" >"$out" 2>&1
        echo "$n;here"
    """,
    "squeue": """
        echo "squeue $*" >>"$CALLS"
        if [ -e "$CALLS.deaf" ]; then rm "$CALLS.deaf"; echo "slurm_load_jobs error: timed out" >&2; exit 1; fi
    """,
    "scancel": 'echo "scancel $*" >>"$CALLS"',
}


def double(number: int) -> int:
    return 2 * number


def die(number: int) -> int:
    import os

    os.kill(os.getpid(), 9)
    return number


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Path:
    """Slurm's commands at the front of PATH; the file in which they note how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    log = tmp_path / "calls.txt"
    log.touch()
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(log))
    monkeypatch.setattr(batch, "LOOK_EVERY", 0.2)
    monkeypatch.delenv("LOGNAME", raising=False)
    return log


def run(base: Path, function, arguments: str = "", ended: list | None = None):
    """A workflow of a node that doubles 4 and, after it, one with this function; the second node."""
    from nipype import Function, config
    from nipype.pipeline import engine as pe

    base.mkdir()
    config.update_config(
        {"execution": {"poll_sleep_duration": "0.1", "job_finished_timeout": "1", "crashdump_dir": str(base)}}
    )
    first, second = (
        pe.Node(Function(["number"], ["number"], function=f), name, n_procs=n, mem_gb=1.5)
        for f, name, n in ((double, "first", 1), (function, "second", 3))
    )
    first.inputs.number = 4
    workflow = pe.Workflow(name="petsynth", base_dir=str(base))
    workflow.connect(first, "number", second, "number")

    def told(node, status):
        if ended is not None and status in ("end", "exception"):
            ended.append((node.name, status))

    options = {"sbatch_args": arguments, "status_callback": told, "max_tries": 0}
    graph = workflow.run(plugin=batch.Slurm(options))
    return next(node for node in graph.nodes() if node.name == "second")


def test_each_node_is_a_job_that_asks_for_what_it_takes(calls, tmp_path):
    calls.with_name("calls.txt.deaf").touch()  # the controller does not answer once
    ended: list = []
    node = run(tmp_path / "a work dir", double, "--time=5 --mem=9G", ended)
    assert node.result.outputs.number == 16 and ended == [("first", "end"), ("second", "end")]
    first, second = (line for line in calls.read_text().splitlines() if line.startswith("sbatch"))
    assert "--cpus-per-task=1 --mem=2048M" in first and "--cpus-per-task=3 --mem=2048M" in second
    assert second.index("--mem=2048M") < second.index("--time=5 --mem=9G") < second.index("batchscript")
    assert "scancel" not in calls.read_text()


def test_a_killed_job_is_lost_alone(calls, tmp_path, caplog):
    ended: list = []
    with pytest.raises(RuntimeError):
        run(tmp_path / "work", die, ended=ended)
    assert ended == [("first", "end"), ("second", "exception")]
    told = next(r.message for r in caplog.records if r.name == "bids_petsynth")
    assert "(petsynth.second) ended without a result: " in told and "Killed" in told


def test_a_refused_job_is_told(calls, tmp_path):
    with pytest.raises(UsageError, match=r"invalid partition.*sbatch_args"):
        run(tmp_path / "work", double, "--refused")


def test_no_slurm_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="sbatch, which is not here"):
        run(tmp_path / "work", double)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("plugin: [SLURM", "is no YAML"),
        ("- SLURM", "another shape"),
        ("plugin_args: {max_jobs: 3}", "another shape"),
        ("plugin: SLURM\nplugin_args: many", "another shape"),
        ("plugin: SGE", "not supported, only Linear, MultiProc, SLURM"),
        ("plugin: !!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_bad_files_end_at_once(example, tmp_path, capsys, text, words):
    path = tmp_path / "plugin.yml"
    if text is not None:
        path.write_text(text)
    command = [str(example), str(tmp_path / "out"), "participant", "--use-plugin", str(path), "-w", str(tmp_path)]
    assert main(command) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("folder", "words"), [(None, "needs a --work-dir"), ("o'hara", "quotes"), ("100%", "a %")])
def test_a_work_dir_that_will_not_do(example, tmp_path, capsys, folder, words):
    (tmp_path / "plugin.json").write_text('{"plugin": "SLURM", "plugin_args": {"max_jobs": 2}}')
    where = [] if folder is None else ["--work-dir", str(tmp_path / folder)]
    command = [str(example), str(tmp_path / "out"), "participant", "--use-plugin", str(tmp_path / "plugin.json")]
    assert main([*command, *where]) == 2
    assert words in capsys.readouterr().err


def test_options_of_the_file():
    assert batch.read_plugin_file(Path(__file__).parents[1] / "docs" / "hpc" / "plugin.yml") == (
        "SLURM",
        {"max_jobs": 100, "sbatch_args": "--time=01:00:00"},
    )
