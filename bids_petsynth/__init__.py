"""Synthetic brain PET from a T1w MRI and blood biomarkers, as a BIDS App.

From Python the way of one scan is three lines::

    from bids_petsynth import Synthesizer
    pet = Synthesizer.load().synthesize("sub-01_T1w.nii.gz", {"age": 72, "ptau217_lumipulse": 0.31}, tracer="AV45")
    pet.save("out")
"""

from __future__ import annotations

from typing import Any

__all__ = ["Synthesizer", "SyntheticPET", "__version__"]


def __getattr__(name: str) -> Any:
    # torch and the rest are imported when they are used, so that ``bids-petsynth --help`` answers at once
    if name in ("Synthesizer", "SyntheticPET"):
        from bids_petsynth import api

        return getattr(api, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("bids-petsynth")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
