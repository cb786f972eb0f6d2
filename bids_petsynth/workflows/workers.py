"""Nipype's MultiProc plugin with workers that start afresh, and that may die without hanging the run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

from nipype.pipeline.plugins.base import DistributedPluginBase
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

#: Nipype prints nothing: what users need to know is told by the level that runs.
QUIET = dict.fromkeys(("workflow_level", "interface_level", "utils_level"), "CRITICAL")


class GoesOn(DistributedPluginBase):
    """Goes on after a node was lost."""

    def _remove_node_dirs(self):
        while True:
            try:
                return super()._remove_node_dirs()
            except FileNotFoundError:  # the folder of a node that never ran: it counts as removed now, go on
                continue


class Workers(GoesOn, MultiProcPlugin):
    """MultiProc for nodes that use torch.

    Workers are spawned: a forked one inherits OpenMP's and CUDA's state from this process and can hang. A
    worker that is killed, most often for memory, breaks the whole pool; its node and those beside it are then reported
    as failed, and a new pool takes the rest. (Nipype itself would wait for the lost result for ever.)
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None):
        super().__init__(plugin_args=plugin_args)
        self.pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self.processors,
            initializer=_start,
            initargs=(self._cwd,),
            mp_context=multiprocessing.get_context("spawn"),
        )

    def _submit_job(self, node, updatehash=False):
        self._taskid += 1
        task = (run_node, node, updatehash, self._taskid)
        try:
            future = self.pool.submit(*task)
        except BrokenProcessPool:
            self.pool = self._new_pool()
            future = self.pool.submit(*task)
        self._task_obj[self._taskid] = future
        future.add_done_callback(partial(self._done, self._taskid))
        return self._taskid

    def _done(self, taskid: int, future: Future) -> None:
        error = future.exception()
        lost = {"result": None, "traceback": [f"the worker was lost: {error}\n"], "taskid": taskid}
        self._taskresult[taskid] = future.result() if error is None else lost


def _start(folder: str) -> None:
    """First thing in a worker: as Nipype does, and no log lines of Nipype's."""
    process_initializer(folder)
    configure({"logging": QUIET})


def configure(settings: Mapping[str, Mapping[str, str]]) -> None:
    """Set these of Nipype's settings, by section, for the whole process."""
    from nipype import config, logging

    config.update_config(settings)
    logging.update_logging(config)


@contextmanager
def configured(settings: Mapping[str, Mapping[str, str]]) -> Iterator[None]:
    """:func:`configure` for a while: a program that calls this may have workflows of its own."""
    from nipype import config

    before = {name: {key: config.get(name, key) for key in section} for name, section in settings.items()}
    configure(settings)
    try:
        yield
    finally:
        configure(before)
