"""Where tests look for what they share, and how they call a training."""

from __future__ import annotations

from pathlib import Path

#: Real scans for development; tests that need them skip where they are absent.
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def as_ours(recipe: Path) -> list[str]:
    """Options that train ``ours``."""
    return ["--recipe", str(recipe), "--name", "ours", "--held-out", ".34"]
