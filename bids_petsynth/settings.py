"""The settings of one run: made once by the command line or by Python code, then handed down unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help answers without it
    from bids_petsynth.clinical.language import TextOptions


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
    tracers
        What is drawn: tracers, and "T1w" where that is asked for.
    model
        Model folder; None is the built-in demonstration model.
    n_draws
        Draws per scan.
    classifier
        Folder of a classifier whose probabilities are written; None writes none.
    work_dir
        Folder in which intermediate files lie while a run lasts; None is the system's temporary one.
    plugin, plugin_args
        Nipype's plugin of ``--use-plugin`` and its options; empty chooses between a process and workers.
    memory_gb
        Memory that all workers share; None is nine tenths of what this process may use.
    texts
        How records are put into words, for models that read them; None is the model's own way.
    command
        The command line, for sidecars and reports; nothing depends on it.
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
    classifier: Path | None = None
    record_values: bool = False
    nprocs: int = 1
    omp_nthreads: int = 1
    work_dir: Path | None = None
    plugin: str = ""
    plugin_args: Mapping[str, object] = field(default_factory=dict)
    memory_gb: float | None = None
    stop_on_first_crash: bool = False
    texts: TextOptions | None = None
    command: str = ""

    def __post_init__(self) -> None:
        # workers change their folder, and links may lead to the same place under two names: paths are made full once
        for name in ("bids_dir", "out_dir", "model", "mapping", "classifier", "work_dir"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(path).resolve())
        full = {name: Path(path).resolve() for name, path in self.derivatives.items()}
        object.__setattr__(self, "derivatives", full)

    def of_anatomy(self) -> dict[str, object]:
        """What of the settings the anatomical outputs depend on."""
        return {"seed": self.seed, "derivatives": sorted(self.derivatives)}

    def of_synthesis(self, tracer: str) -> dict[str, object]:
        """What of the settings one tracer's outputs depend on."""
        return {
            **self.of_anatomy(),
            "tracer": tracer,
            "n_draws": self.n_draws,
            "save_draws": self.save_draws,
            "record_values": self.record_values,
            "spaces": [f"{space.name}:{space.resolution}" for space in self.spaces],
        }
