"""Cores and memory that a scheduler or a container grants, from files as the kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bids_petsynth.resources import available_cores, available_memory_gb

GIB = 2**30
HERE = len(os.sched_getaffinity(0))
V1 = "4:memory:/slurm/job_7/step_0\n3:cpuset:/\n1:cpu,cpuacct:/slurm/job_7/step_0\n0::/\n"
V2 = "0::/system.slice/job_7/step_0\n"


def files(root: Path, content: dict[str, str]) -> Path:
    for name, text in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.fixture
def many(monkeypatch):
    """A machine of 64 cores and 256 GiB."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**26}[name])


@pytest.mark.parametrize(
    ("own", "content", "cores", "gib"),
    [
        (V2, {}, 64, 256),
        (V2, {"cpu.max": "max 100000", "memory.max": "max"}, 64, 256),
        (V2, {"cpu.max": "350000 100000", "memory.max": str(8 * GIB)}, 3, 8),
        (V2, {"cpu.max": "50000 100000"}, 1, 256),
        # the tightest of its own group and those above it
        (V2, {"system.slice/job_7/cpu.max": "200000 50000", "system.slice/cpu.max": "800000 100000"}, 4, 256),
        (V2, {"system.slice/job_7/step_0/memory.max": "max", "system.slice/job_7/memory.max": str(6 * GIB)}, 64, 6),
        (
            V1,
            {
                "cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "600000",
                "cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "memory/slurm/job_7/step_0/memory.limit_in_bytes": "9223372036854771712",
                "memory/slurm/job_7/memory.limit_in_bytes": str(12 * GIB),
            },
            6,
            12,
        ),
        # a container: the group's path is its host's, and its own limits are mounted as the root
        (
            "4:memory:/docker/1f2e\n1:cpu:/docker/1f2e\n",
            {
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": str(5 * GIB),
            },
            2,
            5,
        ),
        # both versions mounted
        (V1.replace("0::/", "0::/job"), {"unified/job/memory.max": str(7 * GIB), "cpu,cpuacct/x": ""}, 64, 7),
        ("", {}, 64, 256),
    ],
)
def test_limits_of_control_groups(many, tmp_path, own, content, cores, gib):
    root = files(tmp_path / "cgroup", content)
    (tmp_path / "own").write_text(own)
    assert available_cores({}, root, tmp_path / "own") == cores
    assert available_memory_gb({}, root, tmp_path / "own") == pytest.approx(gib)


@pytest.mark.parametrize(
    ("environment", "cores", "gib"),
    [
        ({"SLURM_CPUS_PER_TASK": "6", "SLURM_CPUS_ON_NODE": "12", "SLURM_MEM_PER_NODE": "8192"}, 6, 8),
        ({"SLURM_CPUS_ON_NODE": "1", "SLURM_MEM_PER_CPU": "4096"}, 1, 4),
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_MEM_PER_CPU": "4096"}, 4, 16),
        ({"SLURM_CPUS_PER_TASK": "128", "SLURM_MEM_PER_NODE": "0"}, 64, 256),
        ({"SLURM_CPUS_PER_TASK": "", "SLURM_MEM_PER_NODE": "much"}, 64, 256),
    ],
)
def test_limits_of_slurm(many, tmp_path, environment, cores, gib):
    assert available_cores(environment, tmp_path, tmp_path / "none") == cores
    assert available_memory_gb(environment, tmp_path, tmp_path / "none") == pytest.approx(gib)


def test_this_machine():
    assert 1 <= available_cores() <= HERE
    assert 0 < available_memory_gb() * GIB <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_default_of_nprocs_is_what_slurm_grants(monkeypatch):
    from bids_petsynth.cli.common import threads_of
    from bids_petsynth.cli.participant import parser

    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    arguments = parser().parse_args(["bids", "out", "participant"])
    assert arguments.nprocs == 1 and threads_of(arguments) == 1


def test_more_than_is_granted_is_told(monkeypatch, caplog):
    from bids_petsynth.cli.common import threads_of
    from bids_petsynth.cli.participant import parser

    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    arguments = parser().parse_args(["bids", "out", "participant", "--nprocs", "3"])
    assert threads_of(arguments) == 3 and "more than the 1 cores granted" in caplog.text
    caplog.clear()
    threads_of(parser().parse_args(["bids", "out", "participant", "--nprocs", "3", "--use-plugin", "slurm.yml"]))
    assert not caplog.text


@pytest.mark.parametrize(("nprocs", "threads"), [(8, 3), (4, 4), (5, 1)])
def test_nodes_never_take_more_cores_than_there_are(tmp_path, nprocs, threads):
    """What Nipype adds up before it starts a node: the cores of every node that computes are its threads."""
    from bids_petsynth.settings import Settings
    from bids_petsynth.types import Case, ClinicalRecord
    from bids_petsynth.workflows.participant import Job, init_participant_wf

    settings = Settings(tmp_path, tmp_path / "out", ("AV45", "FDG"), nprocs=nprocs, omp_nthreads=threads)
    job = Job(Case("01", None, tmp_path / "x"), ClinicalRecord({}), "a", "b", ("AV45", "FDG"), (), True)
    nodes = {name: init_participant_wf(job, settings).get_node(name) for name in ("anatomy", "synthesis_AV45")}
    assert {node.n_procs for node in nodes.values()} == {threads}
    assert init_participant_wf(job, settings).get_node("report").n_procs == 1


def test_a_step_has_the_threads_of_the_run_but_no_more_than_its_job_was_granted(tmp_path, monkeypatch):
    import torch

    from bids_petsynth.settings import Settings
    from bids_petsynth.workflows.interfaces import attempt

    before, seen = torch.get_num_threads(), []
    settings = Settings(tmp_path, tmp_path / "out", ("AV45",), nprocs=4, omp_nthreads=4)
    try:
        for granted in ("1", "64"):
            monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
            assert attempt(lambda: seen.append(torch.get_num_threads()), settings, "sub-01") == ""
    finally:
        torch.set_num_threads(before)
    assert seen == [1, min(4, available_cores())]
