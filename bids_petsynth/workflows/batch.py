"""``--use-plugin``: the file that names a Nipype plugin, and Nipype's Slurm plugin, mended."""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nipype.pipeline.plugins.slurm import SLURMPlugin

from bids_petsynth.errors import UsageError
from bids_petsynth.workflows.workers import GoesOn

log = logging.getLogger("bids_petsynth")

#: Plugins that the file may name.
PLUGINS = ("Linear", "MultiProc", "SLURM")
#: Seconds between two looks at the queue, which tell of all jobs at once.
LOOK_EVERY = 5.0


class Slurm(GoesOn, SLURMPlugin):
    """Every node is a job that asks for the cores and the memory that the node takes.

    Beside that, other than in Nipype: one look at the queue is for all jobs; a controller that does not answer for a
    while loses no job; no text goes through a shell; jobs that are left when the run is broken off are cancelled.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None):
        super().__init__(plugin_args=plugin_args)
        self._looked, self._queued, self._since = -math.inf, set(), {}

    def run(self, graph, config, updatehash=False):
        try:
            return super().run(graph, config, updatehash)
        except BaseException:
            if self._pending:
                _call("scancel", *map(str, self._pending))
            raise

    def _submit_batchtask(self, scriptfile, node):
        # half a gigabyte for Python and its libraries, which each job loads anew
        memory = math.ceil(1024 * (node.mem_gb + 0.5))
        output = str(Path(scriptfile).parent / "slurm-").replace("%", "%%") + "%j.out"
        words = ["--parsable", f"--cpus-per-task={node.n_procs}", f"--mem={memory}M", f"--output={output}"]
        # of options that are given twice, the last holds
        words += [f"--job-name=petsynth-{node.name}", *shlex.split(self._sbatch_args or ""), scriptfile]
        for last in (*[False] * self._max_tries, True):
            done = _call("sbatch", *words)
            if done.returncode == 0:
                break
            if last:
                raise UsageError(
                    f"sbatch did not take a job ({_end(done.stderr)}); correct sbatch_args in the plugin file, "
                    "or try again later."
                )
            time.sleep(self._retry_timeout)
        job = int(done.stdout.split(";")[0])
        self._pending[job] = node.output_dir()
        self._since[job] = (time.monotonic(), node.fullname, output.replace("%%", "%").replace("%j", str(job)))
        return job

    def _is_pending(self, taskid):
        if time.monotonic() - self._looked > LOOK_EVERY:
            began = time.monotonic()
            done = _call("squeue", "--noheader", "--format=%A", f"--user={os.getuid()}")
            if done.returncode != 0:
                log.warning("Slurm does not answer (%s); asking again.", _end(done.stderr))
                self._looked = began
                return True
            self._looked, self._queued = began, {int(line) for line in done.stdout.split()}
        return taskid in self._queued or self._since[taskid][0] >= self._looked

    def _get_result(self, taskid):
        result = super()._get_result(taskid)
        if result and result["traceback"]:
            _, name, output = self._since[taskid]
            said = Path(output).read_text(errors="replace") if Path(output).is_file() else ""
            log.warning("Slurm job %s (%s) ended without a result: %s", taskid, name, _end(said))
            # Nipype adds lines to it, and so stops the whole run where it is one text, as for a lost job
            result["traceback"] = "".join(result["traceback"]).splitlines(keepends=True)
        return result


def _call(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm.

    Raises
    ------
    UsageError
        If it is not installed here.
    """
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        raise UsageError(
            f"The plugin SLURM needs the command {words[0]}, which is not here: start the run on a machine that "
            "submits jobs (not in a container), or run an array job, a participant per task."
        ) from None


def _end(text: str) -> str:
    """Last line of what a command said."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")[-300:]


def read_plugin_file(path: Path) -> tuple[str, dict[str, Any]]:
    """Name and options of the plugin in a file of YAML or JSON, as fMRIPrep takes it.

    Raises
    ------
    UsageError
        If the file cannot be read, has another shape, or names a plugin that is not supported.
    """
    import yaml

    shape = "it must hold a name and options, such as `plugin: SLURM` and `plugin_args: {max_jobs: 100}`"
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The plugin file {path} cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UsageError(f"The plugin file {path} is no YAML: {shape}.") from None
    arguments = (content.get("plugin_args") or {}) if isinstance(content, Mapping) else None
    if not isinstance(arguments, Mapping) or not isinstance(content.get("plugin"), str):
        raise UsageError(f"The plugin file {path} has another shape: {shape}.")
    if content["plugin"] not in PLUGINS:
        raise UsageError(
            f"The plugin {content['plugin']} of {path} is not supported, only {', '.join(PLUGINS)} are; "
            "on other batch systems run an array job, a participant per task."
        )
    return content["plugin"], dict(arguments)


def check_work_dir(work_dir: Path | None) -> None:
    """Refuse a work directory through which jobs on other machines could not hand files on.

    Raises
    ------
    UsageError
        If there is none, or its path has signs that break the scripts that Nipype writes.
    """
    if work_dir is None:
        raise UsageError(
            "The plugin SLURM needs a --work-dir that every node sees; the system's temporary folder is no such."
        )
    if re.search(r"[\'\"\\\n]", str(work_dir)):
        raise UsageError(f"The work directory {work_dir} has quotes or backslashes in its path; choose another.")
