"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

import bids_petsynth.anatomy.registration  # noqa: F401  (fixes ANTs' threads before a test uses ants by itself)

#: Real scans for development; tests that need them skip where they are absent.
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def example(tmp_path_factory) -> Path:
    """The phantom example dataset."""
    from bids_petsynth.cli.example import write_example

    folder = tmp_path_factory.mktemp("example") / "bids"
    write_example(folder)
    return folder


@pytest.fixture(scope="session")
def ixi() -> Path:
    """26 real heads with DLMUSE segmentations."""
    if not (SHARED / "ixi").is_dir():
        pytest.skip("the real scans of shared/data/ixi are not here")
    return SHARED / "ixi"
