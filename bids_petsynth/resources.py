"""Cores and memory that this process may use: of the machine, of Slurm, and of control groups (version 1 and 2)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_cores(environment: Mapping[str, str] = os.environ, root: Path = _ROOT, own: Path = _OWN) -> int:
    """Cores that the machine, the scheduler and the container grant, at least 1.

    A fraction of a core that is left over does not count: a thread more than there are cores costs more than it brings.
    """
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1))
    # without --cpus-per-task Slurm tells only what the job has on this machine
    granted = _number(environment.get("SLURM_CPUS_PER_TASK") or environment.get("SLURM_CPUS_ON_NODE"))
    cores = min(cores, granted or cores)
    for folder in _groups("", root, own):
        limit, period, *_ = [*_words(folder / "cpu.max"), "", ""]
        if (quota := _number(limit)) is not None:
            cores = min(cores, quota / (_number(period) or 100_000))
    for folder in _groups("cpu", root, own):
        quota = _number("".join(_words(folder / "cpu.cfs_quota_us")))  # -1 where there is none
        period = _number("".join(_words(folder / "cpu.cfs_period_us")))
        if quota and period:
            cores = min(cores, quota / period)
    return max(1, int(cores))


def available_memory_gb(environment: Mapping[str, str] = os.environ, root: Path = _ROOT, own: Path = _OWN) -> float:
    """Memory in GiB that the machine, the scheduler and the container grant."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if (node := _number(environment.get("SLURM_MEM_PER_NODE"))) is not None:
        granted = node
    else:
        granted = (_number(environment.get("SLURM_MEM_PER_CPU")) or 0) * available_cores(environment, root, own)
    if granted:  # in MiB; 0 asks for the whole machine
        total = min(total, granted * 2**20)
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in _groups(controller, root, own):
            if (limit := _number("".join(_words(folder / name)))) is not None:
                total = min(total, limit)
    return total / 2**30


def _groups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """Folders of the control group that this process is in and of those above it; no controller means version 2.

    In a container the path may be the one that its host sees. What lies above the container's own group is then
    mounted as the root, which is looked at last in any case.
    """
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, inner = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        mounts = [root / "unified", root] if not controller else [root / controllers, root / controller]
        mount = next((path for path in mounts if path.is_dir()), root)
        folder = mount / inner.lstrip("/")
        while folder.is_relative_to(mount):
            yield folder
            folder = folder.parent


def _words(path: Path) -> list[str]:
    """Words of a small file; none if it cannot be read."""
    try:
        return path.read_text().split()
    except OSError:
        return []


def _number(text: str | None) -> float | None:
    """A whole number from 0, else None (``max``, ``-1``, nothing)."""
    return float(text) if text and text.isdigit() else None
