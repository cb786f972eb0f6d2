"""Where tests look for what they share, and how they call a training."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Real scans for development; tests that need them skip where they are absent.
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def as_ours(recipe: Path) -> list[str]:
    """Options that train ``ours``."""
    return ["--recipe", str(recipe), "--name", "ours", "--held-out", ".34"]


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` that ``make`` fills; the processes of a run of tests share it, and one of them makes it.

    What takes minutes is then made once, whichever processes the files that need it fall to.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a folder in that of the run
        base = base.parent
    folder, done = base / f"shared-{name}", base / f"shared-{name}.done"
    with (base / f"shared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            make(folder)
            done.touch()
    return folder


@contextmanager
def quick_labels() -> Iterator[None]:
    """Heads are labelled from two looks at them and not refined: a third of the time, where labels are not the point.

    In this process alone; what ``participant`` writes and the labels of real heads are tested as users get them.
    """
    from bids_petsynth.anatomy import segmentation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "PLACEMENTS", segmentation.PLACEMENTS[:1])
        patch.setattr(segmentation, "sharpened", lambda net, image, logits: logits)
        yield
