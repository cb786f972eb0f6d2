"""Synthetic brain PET from a T1w MRI and blood biomarkers, as a BIDS App.

From Python the way of one scan is three lines::

    from bids_petsynth import Synthesizer
    pet = Synthesizer.load().synthesize("sub-01_T1w.nii.gz", {"age": 72, "ptau217_lumipulse": 0.31}, tracer="AV45")
    pet.save("out")

The names in ``__all__`` are the public interface; what lies in the rooms below may change with any version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bids_petsynth.anatomy.volume import Volume, read_t1w
    from bids_petsynth.api import Synthesizer, SyntheticPET, record_from
    from bids_petsynth.clinical.variables import variables
    from bids_petsynth.errors import InputError, ModelError, PetsynthError, UsageError
    from bids_petsynth.models.recipe import Recipe, load_recipe
    from bids_petsynth.pet.quantification import Quantification
    from bids_petsynth.pet.tracers import tracers
    from bids_petsynth.types import Anatomy, ClinicalRecord

    __version__: str

__all__ = [
    "Anatomy",
    "ClinicalRecord",
    "InputError",
    "ModelError",
    "PetsynthError",
    "Quantification",
    "Recipe",
    "SyntheticPET",
    "Synthesizer",
    "UsageError",
    "Volume",
    "__version__",
    "load_recipe",
    "read_t1w",
    "record_from",
    "tracers",
    "variables",
]

#: Where each public name lives. torch and the rest are imported when a name is used, so that ``bids-petsynth --help``
#: answers at once.
_HOMES = {
    "anatomy.volume": ("Volume", "read_t1w"),
    "api": ("SyntheticPET", "Synthesizer", "record_from"),
    "clinical.variables": ("variables",),
    "errors": ("InputError", "ModelError", "PetsynthError", "UsageError"),
    "models.recipe": ("Recipe", "load_recipe"),
    "pet.quantification": ("Quantification",),
    "pet.tracers": ("tracers",),
    "types": ("Anatomy", "ClinicalRecord"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("bids-petsynth")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
