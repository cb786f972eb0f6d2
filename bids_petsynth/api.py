"""The whole way of one scan from Python: the command line goes it through the same functions."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_petsynth.anatomy.head import Head, analyse_head
from bids_petsynth.anatomy.regions import class_weights
from bids_petsynth.anatomy.volume import Volume, read_t1w
from bids_petsynth.bids.sidecars import Synthesis, pet_sidecar
from bids_petsynth.bids.sink import Sink
from bids_petsynth.clinical.language import Prompt, TextOptions
from bids_petsynth.clinical.limits import unmeasured, untold
from bids_petsynth.clinical.variables import ALL_BLOOD
from bids_petsynth.clinical.variables import variables as clinical_variables
from bids_petsynth.models.conditioning import is_pet, used_variables
from bids_petsynth.models.folder import Model
from bids_petsynth.models.recipe import DiffusionSpec
from bids_petsynth.models.sensitivity import moved_by
from bids_petsynth.models.synthesizer import Synthesizer as Generator
from bids_petsynth.models.synthesizer import check_tracer, pool_labels
from bids_petsynth.pet.quantification import Quantification, normalise, quantify, suvr_rows
from bids_petsynth.pet.tracers import target_weights
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.types import Anatomy, Case, ClinicalRecord, TableRow


@dataclass(frozen=True)
class SyntheticPET:
    """Synthetic PET of one scan and tracer.

    Attributes
    ----------
    label
        Whose it is, as names begin: ``sub-01`` or ``sub-01_ses-1``.
    draws
        ``(M, X, Y, Z)`` float32, SUVR, on the model grid (``anatomy.grid``).
    anatomy, record
        The head and the values that it was made for.
    quantification
        Regional SUVR, Centiloid and probability of positivity, with their uncertainty.
    synthesis
        Model, sampler and settings.
    used
        Variables that the model is conditioned on, with their status.
    sensitivity
        How much each of them moved the tracer's target SUVR, see :func:`sensitivity`; empty if the model has no
        regional part.
    prompt
        The record in words, of models that read them.
    """

    label: str
    tracer: str
    draws: np.ndarray
    anatomy: Anatomy
    record: ClinicalRecord
    quantification: Quantification
    synthesis: Synthesis
    used: Mapping[str, str]
    sensitivity: Sequence[Mapping[str, float | str | None]] = ()
    prompt: Prompt | None = None

    @property
    def mean(self) -> np.ndarray:
        """``(X, Y, Z)`` mean over the draws."""
        return self.draws.mean(0)

    @property
    def std(self) -> np.ndarray:
        """``(X, Y, Z)`` standard deviation over the draws; zero with a single one."""
        # draws that are centred on their expectation do not deviate from a mean of their own
        ddof = 0 if self.synthesis.centred or len(self.draws) == 1 else 1
        return self.draws.std(0, ddof=ddof)

    @property
    def warnings(self) -> list[str]:
        """Sentences on what is doubtful: values, labels, quantification, what the values or the model cannot tell."""
        limit = untold(self.used, tracer_named(self.tracer).target_class)
        return [
            *([limit] if limit else []),
            *([] if self.synthesis.calibrated else [unmeasured(self.synthesis.model, self.tracer)]),
            *self.record.warnings,
            *([self.prompt.warning] if self.prompt and self.prompt.warning else []),
            *self.anatomy.warnings,
            *self.quantification.notes,
        ]

    def save(self, folder: Path | str) -> list[Path]:
        """Write mean, standard deviation and the table of regions into a folder, with sidecars."""
        sink = Sink(Path(folder))
        grid = self.anatomy.grid
        voxel = float(np.linalg.norm(grid.affine[:3, 0]))
        case = Case(self.label.split("_")[0].removeprefix("sub-"), None, None)
        reference = tracer_named(self.tracer).reference_name
        name = f"{self.label}_trc-{self.tracer}_space-T1w_res-{voxel:g}_desc-synth".replace(".", "p")

        def about(kind: str) -> dict[str, object]:
            return pet_sidecar(
                case,
                kind,
                self.tracer,
                self.synthesis,
                self.record,
                [],
                reference_region=reference,
                spatial_reference="the T1w that was given",
                voxel_mm=voxel,
                used=self.used,
            )

        return [
            sink.save_image(Path(f"{name}Std_pet.nii.gz"), self.std, grid.affine, about("std")),
            sink.save_image(Path(f"{name}Mean_pet.nii.gz"), self.mean, grid.affine, about("mean")),
            sink.save_tsv(Path(f"{self.label}_trc-{self.tracer}_suvr.tsv"), suvr_rows(self.quantification)),
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
    def load(
        cls, folder: Path | str | None = None, device: str = "auto", texts: TextOptions | None = None
    ) -> Synthesizer:
        """Load a model folder, the built-in demonstration model if None.

        ``texts`` say how the texts of recipes with a text are written and read.

        Raises
        ------
        ModelError
            If the folder is incomplete, damaged, or from a newer version.
        UsageError
            If the device does not exist.
        """
        return cls(Generator.load(None if folder is None else Path(folder), device, texts))

    def analyse(
        self, t1w: Volume, who: str, mask: Volume | None = None, corrected: bool = False, seed: int = 0
    ) -> Head:
        """Label and align a T1w on this model's grid; see :func:`bids_petsynth.anatomy.head.analyse_head`."""
        grid = self.generator.model.recipe.grid
        device = self.generator.device
        return analyse_head(t1w, who, grid.shape, grid.voxel_size, mask, corrected, device, seed)

    def draw(
        self,
        anatomy: Anatomy,
        record: ClinicalRecord,
        tracer: str,
        n_draws: int,
        seed: int,
        label: str,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Draws ``(M, X, Y, Z)`` for an analysed head, in SUVR by the head's own reference region.

        The noise depends on the seed and on whose scan it is (``label``), so that people's draws are independent.
        ``tracer`` may be "T1w": then they are in units of white matter.
        """
        if not is_pet(tracer):
            return np.maximum(self.generator.draw(anatomy, record, tracer, n_draws, own_seed(seed, label), given), 0)
        spec = tracer_named(tracer)
        draws = self.generator.draw(anatomy, record, spec.name, n_draws, own_seed(seed, label), given)
        # each draw's reference region is 1, so widening around the mean leaves it 1
        return self.generator.calibrated(normalise(draws, anatomy.labels, anatomy.grid, spec), spec.name)

    def synthesize(
        self,
        t1w: Path | str | Volume,
        record: ClinicalRecord | Mapping[str, float | str],
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

        Warns
        -----
        UserWarning
            What is doubtful about values and labels.
        """
        spec = tracer_named(tracer)
        check_tracer(self.generator.model.recipe, spec.name)
        label = "_".join(re.findall(r"(?:sub|ses)-[A-Za-z0-9]+", Path(t1w).name)) if not isinstance(t1w, Volume) else ""
        volume = t1w if isinstance(t1w, Volume) else read_t1w(Path(t1w), label or Path(t1w).name)
        known = record if isinstance(record, ClinicalRecord) else record_from(record)
        label = label or "sub-unnamed"
        anatomy = self.analyse(volume, label, seed=seed).anatomy
        for sentence in (*known.warnings, *anatomy.warnings):
            warnings.warn(sentence, stacklevel=2)
        draws = self.draw(anatomy, known, spec.name, n_draws, seed, label)
        return summarise(anatomy, draws, known, spec.name, self.generator, seed, label)


def summarise(
    anatomy: Anatomy,
    draws: np.ndarray,
    record: ClinicalRecord,
    tracer: str,
    generator: Generator,
    seed: int,
    label: str,
    given: Collection[str] = (),
) -> SyntheticPET:
    """Draws in SUVR with what is read off them and how they were made; ``given`` are the real scans beside the T1w."""
    spec, model = tracer_named(tracer), generator.model
    synthesis = synthesis_of(model, seed, len(draws), spec.name, given)
    labels = pool_labels(anatomy.probabilities, model.recipe.label_pool)
    own = own_seed(seed, label)
    foreseen = generator.foreseen(labels, anatomy.labels, record, spec.name, len(draws), own)
    result = quantify(draws, anatomy.labels, anatomy.grid, spec, foreseen=foreseen)
    used = used_variables(record, model.recipe.conditioning.variables)
    moved = sensitivity(generator, anatomy, record, spec.name, seed) if model.regional is not None else ()
    prompt = generator.texts.prompt(record, record.notes, label) if generator.texts else None
    if prompt is not None:
        synthesis = replace(synthesis, prompt=prompt.status, text_encoder=model.text_encoder)
    return SyntheticPET(label, spec.name, draws, anatomy, record, result, synthesis, used, moved, prompt)


def own_seed(seed: int, label: str) -> int:
    """Seed of one person's noise."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{label}".encode()).digest()[:6], "little")


def synthesis_of(model: Model, seed: int, n_draws: int, target: str = "", given: Collection[str] = ()) -> Synthesis:
    """How a model makes a target of a person with a T1w and the ``given`` scans, as sidecars tell it."""
    recipe, process = model.recipe, model.recipe.process
    spec, net = recipe.conditioning, recipe.network
    images = [name for name, image in (("T1w", "t1w"), ("label probabilities", "labels")) if image in spec.images]
    scans = model.taken({"T1w", *given}, target)
    values = [("clinical values", spec.numeric and spec.variables), ("text", spec.text is not None)]
    added = [
        (f"{net.attention} attention", net.attention != "none"),
        ("attention gates", net.gates),
        ("fusion by attention", spec.sources and spec.fusion == "attention" and net.kind == "unet"),
        ("cross-attention to a text", spec.text is not None),
    ]
    return Synthesis(
        model=model.recipe.name,
        version=model.version,
        weights_sha256=model.weights_sha256,
        demonstration=model.demonstration,
        sampler=process.sampler if isinstance(process, DiffusionSpec) else process.solver,
        steps=process.steps,
        guidance=process.guidance,
        seed=seed,
        n_draws=n_draws,
        process="regional flow, then image flow"
        if model.regional is not None
        else process.kind + (" from noise" if process.kind == "direct" and process.noise else ""),
        space=recipe.space.kind,
        network=(net.kind, *(name for name, there in added if there)),
        inputs=(
            *dict.fromkeys([*images, *(f"{name} PET" if is_pet(name) else name for name in scans)]),
            *(name for name, there in values if there),
        ),
        calibrated=target in model.spread,
    )


def sensitivity(
    generator: Generator, anatomy: Anatomy, record: ClinicalRecord, tracer: str, seed: int, n: int = 64
) -> list[dict[str, float | str | None]]:
    """How much each variable moves the expected SUVR of the tracer's target region.

    Returns
    -------
    list
        For each variable that the model takes: its name, status, unit, ``change`` and ``per_sd`` (see
        ``models.sensitivity``), None for a missing variable. They are rounded to .01: told exactly, they would give the
        record's values away. Where two or more blood values are known, a last row ``all_blood_values`` has the
        ``change`` by all of them.
    """
    spec, model = tracer_named(tracer), generator.model
    used = used_variables(record, model.recipe.conditioning.variables)
    known = {name: value for name in used if (value := record.get(name)) is not None}
    geometry = generator.geometry(anatomy)
    sizes = geometry.volumes[0].numpy()
    target, reference = target_weights(spec, sizes), class_weights(spec.reference_regions, sizes)
    found = moved_by(generator, known, tracer, geometry, target, reference, seed, n)
    rows: list[dict[str, float | str | None]] = [
        {
            "variable": name,
            "status": status,
            "unit": clinical_variables()[name].unit.name,
            "change": _hundredths(found[name].change) if name in found else None,
            "per_sd": _hundredths(found[name].per_sd) if name in found else None,
        }
        for name, status in used.items()
    ]
    if ALL_BLOOD in found:
        together = {"change": _hundredths(found[ALL_BLOOD].change), "per_sd": None}
        rows.append({"variable": ALL_BLOOD, "status": None, "unit": None, **together})
    return rows


def _hundredths(value: float) -> float:
    """A value rounded to .01, zero without a sign."""
    return round(value, 2) + 0.0


def record_from(values: Mapping[str, float | str]) -> ClinicalRecord:
    """A record from plain values, read with the same rules and checks as a row of participants.tsv.

    Raises
    ------
    UsageError
        If a name is not that of a variable.
    """
    from bids_petsynth.clinical.records import read_record
    from bids_petsynth.errors import UsageError

    unknown = sorted(set(values) - set(clinical_variables()) - {"apoe_genotype"})
    if unknown:
        raise UsageError(f"There is no variable {', '.join(unknown)}; choose from {', '.join(clinical_variables())}.")
    levels = {"sex": {"Levels": {"0": "female", "1": "male"}}}
    return read_record([TableRow("values", {k: str(v) for k, v in values.items()}, levels, None)])
