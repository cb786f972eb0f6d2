"""One synthetic scan against the real one of the same tracer: both in SUVR, on the same grid, by the same labels.

The real scan is prepared as for training (``pet.preparation``), on the head that ``participant`` wrote. What is kept of
a comparison are a few hundred numbers and, for maps over people, the difference in template space; volumes are read one
at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from bids_petsynth.anatomy.alignment import template_grid
from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.anatomy.volume import Volume, resample
from bids_petsynth.bids.sidecars import has_regional_part
from bids_petsynth.errors import InputError
from bids_petsynth.evaluation.groups import numbers
from bids_petsynth.evaluation.image import image_figures
from bids_petsynth.evaluation.surface import project_person, template_brain
from bids_petsynth.evaluation.template import landmark_warp, places, sample_at
from bids_petsynth.evaluation.voxelwise import atrophy_measures
from bids_petsynth.pet.quantification import Quantification, quantify
from bids_petsynth.pet.tracers import targets
from bids_petsynth.types import Anatomy, Grid, PetScan

if TYPE_CHECKING:
    from bids_petsynth.reports.content import Pet, Scan


#: Voxels around the brain that are kept where volumes are cut to it.
_MARGIN = 8


@dataclass(frozen=True)
class Comparison:
    """What is known of one synthetic scan and its real counterpart.

    Attributes
    ----------
    image
        Figures of :func:`~bids_petsynth.evaluation.image.image_figures`.
    synthetic, real
        Region or composite → SUVR, by the same labels; regions that the real field of view misses are left out.
    centiloid
        Of the real scan by the equation that the synthetic one has in its sidecar; None for a tracer without.
    draws
        Region → SUVR of every draw, where single draws were written.
    atrophy
        Figures of :func:`~bids_petsynth.evaluation.voxelwise.atrophy_measures` of the head.
    features
        ``synthetic``, ``real`` → features of the network that the user named, see ``evaluation.perception``.
    quality, notes
        Of the preparation.
    """

    image: Mapping[str, float]
    synthetic: Mapping[str, float]
    real: Mapping[str, float]
    centiloid: float | None
    draws: Mapping[str, list[float]] = field(default_factory=dict)
    atrophy: Mapping[str, float] = field(default_factory=dict)
    features: Mapping[str, list[float]] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def written_anatomy(scan: Scan, pet: Pet, with_t1w: bool = True) -> Anatomy:
    """The head on the model grid, from the files that ``participant`` wrote.

    Parameters
    ----------
    with_t1w
        False leaves the T1w away (an empty array): a scan that lies on it already needs the labels alone.

    Raises
    ------
    InputError
        If one of them is missing or cannot be read.
    """
    mean = load(pet.mean, scan.case.label)
    grid = Grid(tuple(mean.shape), np.asarray(mean.affine, float))
    who = scan.case.label
    labels = resample(Volume(voxels(scan.dseg, who), load(scan.dseg, who).affine), grid, 0)
    labels = labels.round().astype(np.uint8)
    if not with_t1w:
        return Anatomy(np.zeros(0, np.float32), labels, np.zeros(0), grid)
    head = resample(Volume(voxels(scan.t1w, who), load(scan.t1w, who).affine), grid)
    white = np.isin(labels, [code for code, _, _, region in lookup() if region.tissue == "wm"])
    level = float(np.median(head[white])) if white.any() else float(head.max())
    return Anatomy(head / max(level, 1e-6), labels, np.zeros(0), grid)


def load(path: Path | None, who: str):
    """An image of the output folder."""
    try:
        return nib.load(path)
    except Exception:
        name = path.name if path else "its anatomy"
        raise InputError(
            f"{who}: {name} of the output folder cannot be read; run the level participant again."
        ) from None


def voxels(path: Path, who: str) -> np.ndarray:
    """``(X, Y, Z)`` float32 of an image of the output folder."""
    image = load(path, who)
    try:
        return np.asarray(image.dataobj, dtype=np.float32)
    except Exception:
        raise InputError(f"{who}: {path.name} is damaged; remove it and run the level participant again.") from None


def compare(
    scan: Scan,
    pet: Pet,
    real: PetScan,
    window_min: tuple[float, float] | None,
    fwhm: float | None,
    seed: int,
    network: tuple[str, Path] | None = None,
) -> tuple[Comparison, dict[str, np.ndarray]]:
    """Prepare the real scan and compare.

    Parameters
    ----------
    network
        Name and weights of a network whose features are wanted.

    Returns
    -------
    The figures, and by name, for maps over people: in the voxels of :func:`maps_brain` ``difference`` (synthetic minus
    real SUVR, NaN where the real scan has no data), ``uptake`` (the real SUVR) and ``labels`` (``dseg`` codes), and
    ``synthetic``, ``real`` (values on the surface of the cortex, see ``evaluation.surface``). There are no maps of a
    head with too few labelled regions.

    Raises
    ------
    InputError
        If the real scan or a file of the output folder is unusable.
    """
    from bids_petsynth.pet.preparation import prepare_pet

    anatomy = written_anatomy(scan, pet, with_t1w=not real.prepared)
    made = prepare_pet(real, anatomy, pet.tracer, window_min=window_min, fwhm=fwhm, seed=seed)
    mean = voxels(pet.mean, scan.case.label)
    brain = anatomy.labels > 0
    names = {code: name for code, name, _, _ in lookup()}
    seen = covered_codes(anatomy.labels, made.covered)
    # the real scan is 0 beyond its field of view: where that cuts a region, both are measured in what is left of it
    labels = np.where(made.covered, anatomy.labels, 0)

    def measured(volume: np.ndarray) -> dict[str, float]:
        return regional(quantify(volume[None], labels, anatomy.grid, pet.tracer), seen)

    synthetic, true = measured(mean), measured(made.suvr)
    draws: dict[str, list[float]] = {}
    for path in drawn(pet):
        for name, value in measured(voxels(path, scan.case.label)).items():
            draws.setdefault(name, []).append(value)
    missing = [names[code] for code in np.unique(anatomy.labels) if code and code not in seen]
    notes = (*made.notes, f"Not in the real field of view: {', '.join(missing)}.") if missing else made.notes
    looked = {}
    if network is not None:
        from bids_petsynth.evaluation import perception

        net = perception.network(*network)
        # where the real scan has no data, neither has
        seen_by = {"synthetic": np.where(made.covered, mean, 0), "real": made.suvr}
        looked = {n: perception.features(net, v, pet.tracer.display).tolist() for n, v in seen_by.items()}
    found = Comparison(
        image=image_figures(mean, made.suvr, brain, pet.tracer.display, made.covered),
        synthetic=synthetic,
        real=true,
        centiloid=centiloid_of(pet, true.get(pet.tracer.default_target)),
        draws=draws,
        atrophy=atrophy_measures(anatomy.labels, anatomy.grid.voxel_volume),
        features=looked,
        quality={name: float(value) for name, value in made.quality.items()},
        notes=tuple(notes),
    )
    return found, maps_of(mean, np.where(made.covered, made.suvr, np.nan), anatomy, pet.tracer.name)


def maps_grid() -> Grid:
    """The grid in template space on which differences are summed up over people."""
    return template_grid((96, 112, 96), 2.0)


@cache
def maps_brain() -> np.ndarray:
    """``(X, Y, Z)`` bool on :func:`maps_grid`: the template's brain, where differences are kept."""
    return template_brain(maps_grid())


def maps_volume(values: np.ndarray) -> np.ndarray:
    """Values ``(V,)`` of :func:`maps_brain` as a volume on :func:`maps_grid`, NaN outside."""
    out = np.full(maps_brain().shape, np.nan, np.float32)
    out[maps_brain()] = values
    return out


def maps_of(synthetic: np.ndarray, real: np.ndarray, anatomy: Anatomy, tracer: str) -> dict[str, np.ndarray]:
    """What :func:`compare` keeps for maps over people; empty if the labels hold too few regions."""
    labels, affine, (synthetic, real) = _cropped(anatomy, (synthetic, real))
    try:
        warp = landmark_warp(labels, affine)
    except ValueError:
        return {}
    points = places(warp, maps_grid(), maps_brain())
    uptake = sample_at(real, affine, points)
    out = {"difference": sample_at(synthetic, affine, points) - uptake, "uptake": uptake}
    out["labels"] = sample_at(labels, affine, points, order=0)
    for name, volume in (("synthetic", synthetic), ("real", real)):
        out[name] = project_person(volume, labels, affine, tracer, warp).values
    return out


def _cropped(anatomy: Anatomy, volumes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Labels, affine and volumes cut to the brain with a margin wider than any smoothing here."""
    found = np.nonzero(anatomy.labels)
    if not len(found[0]):
        return anatomy.labels, anatomy.grid.affine, list(volumes)
    low = [max(int(axis.min()) - _MARGIN, 0) for axis in found]
    box = tuple(slice(start, int(axis.max()) + _MARGIN + 1) for start, axis in zip(low, found, strict=True))
    affine = anatomy.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    return anatomy.labels[box], affine, [volume[box] for volume in volumes]


def centiloid_of(pet: Pet, suvr: float | None) -> float | None:
    """Centiloid of a target SUVR by the equation that was used for the synthetic scan, None if there is none."""
    equation = pet.centiloid.get("CentiloidEquation")
    if suvr is None or not equation:
        return None
    return float(equation["Slope"]) * suvr + float(equation["Intercept"])


def drawn(pet: Pet) -> list[Path]:
    """Images of the single draws, where they were written and are independent of each other.

    Those of a model with a regional part are not (``models.regional.representative``), and a score that takes them as
    such would be up to a fifth too small.
    """
    if has_regional_part(pet.about.get("Model", {}).get("Process", "")):
        return []
    return sorted(pet.mean.parent.glob(pet.mean.name.replace("synthMean", "synth[0-9]*")))


def covered_codes(labels: np.ndarray, covered: np.ndarray) -> set[int]:
    """``dseg`` codes of which the field of view holds enough (``region_coverage`` of ``data/group.tsv``)."""
    size = np.bincount(labels.ravel(), minlength=256)
    seen = np.bincount(labels.ravel(), covered.ravel(), minlength=256)
    return {code for code in np.flatnonzero(size) if code and seen[code] >= numbers()["region_coverage"] * size[code]}


def regional(result: Quantification, seen: set[int]) -> dict[str, float]:
    """SUVR of regions and composites by name; a region that is not seen, and composites with such a one, left out."""
    out = {row.name: row.suvr.mean for row in result.regions if row.suvr is not None and row.index in seen}
    present = {row.index for row in result.regions if row.suvr is not None}
    for row in result.composites:
        codes = set(targets()[row.name].codes) & present
        if row.suvr is not None and codes and codes <= seen:
            out.setdefault(row.name, row.suvr.mean)
    return out


def as_json(found: Comparison) -> dict[str, Any]:
    """A comparison as JSON has it."""
    return {name: getattr(found, name) for name in found.__dataclass_fields__}


def from_json(content: Mapping[str, Any]) -> Comparison:
    """The inverse of :func:`as_json`.

    Raises
    ------
    KeyError
        If a part is missing.
    """
    parts = {name: content[name] for name in Comparison.__dataclass_fields__}
    return Comparison(**{**parts, "notes": tuple(parts["notes"])})
