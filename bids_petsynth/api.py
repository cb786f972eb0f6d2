"""The whole way of one scan from Python: the command line goes it through the same functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_petsynth.anatomy.head import Head, analyse_head
from bids_petsynth.anatomy.volume import Volume, read_t1w
from bids_petsynth.bids.sink import Sink
from bids_petsynth.models.synthesizer import Synthesizer as Generator
from bids_petsynth.pet.quantification import Quantification, normalise, quantify, suvr_rows
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.types import Anatomy, ClinicalRecord, TableRow


@dataclass(frozen=True)
class SyntheticPET:
    """Synthetic PET of one scan and tracer.

    Attributes
    ----------
    draws
        ``(M, X, Y, Z)`` float32, SUVR, on the model grid (``anatomy.grid``).
    anatomy
        The head that it was made for.
    quantification
        Regional SUVR, Centiloid and probability of positivity, with their uncertainty.
    """

    tracer: str
    draws: np.ndarray
    anatomy: Anatomy
    quantification: Quantification

    @property
    def mean(self) -> np.ndarray:
        """``(X, Y, Z)`` mean over the draws."""
        return self.draws.mean(0)

    @property
    def std(self) -> np.ndarray:
        """``(X, Y, Z)`` standard deviation over the draws; zero with a single one."""
        return self.draws.std(0, ddof=1) if len(self.draws) > 1 else np.zeros_like(self.draws[0])

    def save(self, folder: Path | str, prefix: str = "sub-01") -> list[Path]:
        """Write mean, standard deviation and the regional table into a folder.

        Parameters
        ----------
        folder
            Made if it is not there.
        prefix
            First part of the names, such as ``sub-01_ses-1``.
        """
        sink = Sink(Path(folder))
        affine = self.anatomy.grid.affine
        about = {"Synthetic": True, "TracerName": self.tracer, "Units": "unitless"}
        name = f"{prefix}_trc-{self.tracer}_space-T1w_desc-synth"
        return [
            sink.save_image(Path(f"{name}Mean_pet.nii.gz"), self.mean, affine, about),
            sink.save_image(Path(f"{name}Std_pet.nii.gz"), self.std, affine, about),
            sink.save_tsv(Path(f"{name}Mean_suvr.tsv"), suvr_rows(self.quantification)),
        ]


class Synthesizer:
    """The engine for scripts and notebooks.

    Examples
    --------
    >>> model = Synthesizer.load()  # doctest: +SKIP
    >>> record = {"age": 72, "ptau217_lumipulse": 0.31}
    >>> pet = model.synthesize("sub-01_T1w.nii.gz", record, tracer="AV45")  # doctest: +SKIP
    >>> pet.save("out")  # doctest: +SKIP
    """

    def __init__(self, generator: Generator):
        self.generator = generator

    @classmethod
    def load(cls, folder: Path | str | None = None, device: str = "auto") -> Synthesizer:
        """Load a model folder, the built-in demonstration model if None.

        Raises
        ------
        ModelError
            If the folder is incomplete, damaged, or from a newer version.
        UsageError
            If the device does not exist.
        """
        return cls(Generator.load(None if folder is None else Path(folder), device))

    def analyse(
        self, t1w: Volume, who: str, mask: Volume | None = None, corrected: bool = False, seed: int = 0
    ) -> Head:
        """Label and align a T1w on this model's grid; see :func:`bids_petsynth.anatomy.head.analyse_head`."""
        grid = self.generator.model.recipe.grid
        device = self.generator.device
        return analyse_head(t1w, who, tuple(grid.shape), grid.voxel_size, mask, corrected, device, seed)

    def draw(self, anatomy: Anatomy, record: ClinicalRecord, tracer: str, n_draws: int, seed: int) -> np.ndarray:
        """Draws ``(M, X, Y, Z)`` for an analysed head, in SUVR by the head's own reference region."""
        spec = tracer_named(tracer)
        draws = self.generator.draw(anatomy, record, spec.name, n_draws, seed)
        return normalise(draws, anatomy.labels, anatomy.grid, spec)

    def synthesize(
        self,
        t1w: Path | str | Volume,
        record: ClinicalRecord | Mapping[str, float],
        tracer: str = "AV45",
        n_draws: int = 8,
        seed: int = 0,
    ) -> SyntheticPET:
        """Synthesise the PET of one scan.

        Parameters
        ----------
        t1w
            Path of a NIfTI file, or a volume.
        record
            Clinical values by canonical name and unit (see ``data/variables.tsv``); what is not given is missing.

        Raises
        ------
        InputError
            If the T1w cannot be used.
        UsageError
            If the model does not know the tracer, or the record has a name that no variable has.
        """
        self.generator.check_tracer(tracer_named(tracer).name)
        volume = t1w if isinstance(t1w, Volume) else read_t1w(Path(t1w), Path(t1w).name.split("_")[0])
        known = record if isinstance(record, ClinicalRecord) else record_from(record)
        anatomy = self.analyse(volume, "the scan", seed=seed).anatomy
        return summarise(anatomy, self.draw(anatomy, known, tracer, n_draws, seed), tracer)


def summarise(anatomy: Anatomy, draws: np.ndarray, tracer: str) -> SyntheticPET:
    """Draws in SUVR with what is read off them."""
    spec = tracer_named(tracer)
    return SyntheticPET(spec.name, draws, anatomy, quantify(draws, anatomy.labels, anatomy.grid, spec))


def record_from(values: Mapping[str, float | str]) -> ClinicalRecord:
    """A record from plain values, read with the same rules and checks as a row of participants.tsv.

    Raises
    ------
    UsageError
        If a name is not that of a variable.
    """
    from bids_petsynth.clinical.records import read_record
    from bids_petsynth.clinical.variables import variables
    from bids_petsynth.errors import UsageError

    unknown = sorted(set(values) - set(variables()) - {"apoe_genotype"})
    if unknown:
        raise UsageError(f"There is no variable {', '.join(unknown)}; choose from {', '.join(variables())}.")
    levels = {"sex": {"Levels": {"0": "female", "1": "male"}}}
    return read_record([TableRow("values", {k: str(v) for k, v in values.items()}, levels, None)])
