"""What is told while a level runs: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any


class Progress:
    """Context manager; ``outcome`` is called with every ``workflows.participant.Outcome``."""

    def __init__(self, total: int, verbose: bool = False):
        self.total, self.verbose, self.count, self.began = total, verbose, 0, time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("synthesis"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns)
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, sentence: str) -> None:
        """Print a sentence without disturbing the bar."""
        if self._bar:
            self._bar.console.print(sentence, markup=False, highlight=False)
        else:
            print(sentence, file=sys.stderr, flush=True)

    def outcome(self, outcome: Any) -> None:
        """Say how one scan and tracer ended."""
        self.count += 1
        name = outcome.case.label + (f" {outcome.tracer}" if outcome.tracer else "")
        if outcome.status == "failed":
            text = f"FAILED {outcome.reason}"
        elif outcome.reason == "up to date" or (outcome.reason and self.verbose):
            text = f"{name}: done ({outcome.reason})"
        else:
            text = f"{name}: done" + (", with warnings in its sidecar and status.tsv" if outcome.reason else "")
        self.say(f"[{self.count}, {time.monotonic() - self.began:.0f} s] {text}")
        if self._bar:
            self._bar.advance(self._task)
