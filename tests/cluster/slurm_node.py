"""A real Slurm of one node, started by the tests without systemd: munged, slurmctld, slurmd."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "docs" / "hpc"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
KillWait=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory={memory} Gres=gpu:1 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes={host} MaxTime=INFINITE State=UP
"""


def why_not(config: pytest.Config) -> str:
    """Why no Slurm is started; empty if it is."""
    if "cluster" not in (config.option.markexpr or ""):
        return "starts a real Slurm and takes minutes: run `make test-cluster` (as root, with slurm-wlm and munge)"
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge" if missing else ""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm and the environment in which its commands find it."""

    folder: Path
    environment: dict[str, str]

    def call(self, *words: str | Path, cwd: Path, **environment: str) -> str:
        """Standard output of a command; fails with what it said."""
        done = subprocess.run(
            list(map(str, words)), cwd=cwd, env=self.environment | environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def wait(self, job: str, cwd: Path, timeout: float = 900) -> list[dict[str, str]]:
        """Wait for a job (all tasks of an array); its tasks as scontrol shows them."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            text = self.call("scontrol", "-o", "show", "job", job, cwd=cwd)
            tasks = [dict(p.split("=", 1) for p in line.split() if "=" in p) for line in text.splitlines() if line]
            if all(t["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING") for t in tasks):
                return tasks
            time.sleep(1)
        raise AssertionError(f"job {job} did not end: {text}\n{self.logs()}")

    def logs(self) -> str:
        """Ends of the daemons' logs."""
        return "\n".join(f"{p.name}:\n" + p.read_text()[-3000:] for p in sorted(self.folder.glob("*.log")))


def free_ports(count: int) -> list[int]:
    holders = [socket.socket() for _ in range(count)]
    for holder in holders:
        holder.bind(("127.0.0.1", 0))
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


@pytest.fixture(scope="session", name="slurm")
def started_slurm(request, tmp_path_factory):
    """Slurm with a CPU and a GPU partition on one node; its daemons end with the tests."""
    if why := why_not(request.config):
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=host, folder=folder, ports=free_ports(2), memory=memory)
    )
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/null\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PYTHONPATH": str(ROOT),
        "PETSYNTH": f"{sys.executable} -m bids_petsynth.cli.main",
        "TORCHRUN": f"{sys.executable} -m torch.distributed.run",
    }
    for name in [name for name in environment if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"]:
        del environment[name]
    names = {"key": "key-file", "seed": "seed-file", "socket": "socket", "pid": "pid-file", "log": "log-file"}
    munge = ["munged", "--force", "--foreground", *(f"--{o}={folder / 'munge'}.{n}" for n, o in names.items())]
    cluster = Slurm(folder, environment)
    running = []
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            with (folder / f"{command[0]}.out.log").open("w") as out:
                running.append(
                    subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
                )
            time.sleep(1)
        for _ in range(60):
            done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
            if "idle" in done.stdout:
                break
            time.sleep(1)
        else:
            pytest.fail(f"Slurm did not start: {done.stdout}{done.stderr}\n{cluster.logs()}")
        yield cluster
    finally:
        # what still runs, such as a job that a failed test left, must not outlive the daemons
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
        for _ in range(40):
            if not subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True).stdout.strip():
                break
            time.sleep(1)
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
