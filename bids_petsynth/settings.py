"""The settings of one run: made once by the command line or by Python code, then handed down unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Space:
    """An output space of ``--output-spaces``: ``T1w``, or a TemplateFlow template with its resolution in mm."""

    name: str
    resolution: int = 2

    @property
    def is_native(self) -> bool:
        """Whether it is the T1w's own space."""
        return self.name == "T1w"


@dataclass(frozen=True)
class Settings:
    """What ``participant`` does; every field is an option of the command line.

    Attributes
    ----------
    model
        Model folder; None is the built-in demonstration model.
    n_draws
        Draws per scan; None takes the model's own number.
    work_dir
        Folder for intermediate files; None is a temporary one.
    """

    bids_dir: Path
    out_dir: Path
    tracers: tuple[str, ...]
    model: Path | None = None
    device: str = "auto"
    n_draws: int = 8
    save_draws: bool = False
    seed: int = 0
    spaces: tuple[Space, ...] = (Space("T1w"),)
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    mapping: Path | None = None
    record_values: bool = False
    nprocs: int = 1
    omp_nthreads: int = 1
    work_dir: Path | None = None
    stop_on_first_crash: bool = False

    def of_anatomy(self) -> dict[str, object]:
        """What the anatomical outputs depend on, beside the scan itself."""
        return {"seed": self.seed, "derivatives": sorted(self.derivatives)}

    def of_synthesis(self, tracer: str, model: str) -> dict[str, object]:
        """What one tracer's outputs depend on, beside the scan, the anatomy and the record."""
        return {
            **self.of_anatomy(),
            "tracer": tracer,
            "model": model,
            "n_draws": self.n_draws,
            "save_draws": self.save_draws,
            "record_values": self.record_values,
            "spaces": [f"{space.name}:{space.resolution}" for space in self.spaces],
        }
