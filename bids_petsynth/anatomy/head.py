"""The anatomy of one scan: from a T1w to labels, masks and the model grid. The order of steps is told here, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from bids_petsynth.anatomy import alignment as align
from bids_petsynth.anatomy.bias import bias_field
from bids_petsynth.anatomy.network import LABEL_SHAPE, LABEL_SPACING, LOCATE_SPACING
from bids_petsynth.anatomy.quality import checks
from bids_petsynth.anatomy.regions import all_regions, codes_of, n_classes, regions, white_matter
from bids_petsynth.anatomy.segmentation import brain_mask, class_probabilities, sided_codes
from bids_petsynth.anatomy.volume import Volume, canonical, own_grid, resample, smoothed_for
from bids_petsynth.errors import InputError
from bids_petsynth.tables import read_table
from bids_petsynth.types import Anatomy, Grid


@dataclass(frozen=True)
class Head:
    """What is known of one head.

    Attributes
    ----------
    anatomy
        The head on the model grid.
    t1w
        Bias-corrected T1w on the scan's own grid.
    labels
        ``dseg`` codes on the scan's own grid, uint8.
    tissues
        ``GM``, ``WM``, ``CSF`` → probability on the scan's own grid, float32.
    alignment
        Scanner to template, rigid.
    """

    anatomy: Anatomy
    t1w: Volume
    labels: np.ndarray
    tissues: Mapping[str, np.ndarray]
    alignment: align.Alignment

    @property
    def mask(self) -> np.ndarray:
        """Brain mask on the scan's own grid, uint8."""
        return (self.labels > 0).astype(np.uint8)


def analyse_head(
    t1w: Volume,
    who: str,
    shape: tuple[int, int, int] = LABEL_SHAPE,
    spacing: float = LABEL_SPACING,
    mask: Volume | None = None,
    corrected: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> Head:
    """Label, correct and align one T1w.

    Parameters
    ----------
    t1w
        The scan on its own axes, as :func:`anatomy.volume.read_t1w` returns it.
    who
        Name of the participant for messages.
    shape, spacing
        The model grid, from the model folder.
    mask
        A brain mask that somebody made already (fMRIPrep, sMRIPrep); it then replaces the network's.
    corrected
        The scan is bias-corrected already: N4 is left out.

    Raises
    ------
    InputError
        If no brain is found in the image, or it stands so that left, right, up and down cannot be told.
    """
    source = smoothed_for(canonical(t1w), LABEL_SPACING)
    blurred = smoothed_for(source, LOCATE_SPACING)
    coarse_grid = own_grid(blurred, LOCATE_SPACING)
    coarse = resample(blurred, coarse_grid)
    classes = class_probabilities(coarse, "locating", device).argmax(0)
    given = None if mask is None else resample(canonical(mask), coarse_grid, order=1) > 0.5
    brain = brain_mask(classes) if given is None else given
    if brain.sum() * LOCATE_SPACING**3 < 200_000:
        raise InputError(
            f"{who}: no brain was found in the T1w; check that it is a T1-weighted head scan and that its header "
            "tells the orientation rightly (open it in a viewer: the nose must point to A)."
        )
    field = np.ones_like(coarse) if corrected else bias_field(coarse, coarse_grid.affine, brain)
    found = align.align_centroids(np.where(brain, classes, 0), coarse_grid.affine)
    _check_orientation(found, who)
    found = align.refine(
        found,
        _brain_on(found, source, coarse_grid, field, brain, shape, spacing),
        align.template_grid(shape, spacing),
        seed,
    )
    grid = found.grid(shape, spacing)
    image = _corrected_on(grid, source, field, coarse_grid)
    probabilities = _probabilities_on(grid, image, source, field, coarse_grid, found, device)
    inside = None if mask is None else resample(canonical(mask), grid, order=1) > 0.5
    labels, probabilities = _label_grid(probabilities, grid, found, inside)
    white = white_matter(labels)
    if white.sum() < 1000:
        raise InputError(f"{who}: no white matter was recognised in the T1w; check that it is T1-weighted.")
    unit = float(np.median(image[white]))
    quality = _quality(labels, probabilities, grid, found)
    anatomy = Anatomy(
        t1w=(image / unit).astype(np.float32),
        labels=labels,
        probabilities=probabilities,
        grid=grid,
        quality=quality,
        warnings=tuple(_warnings(quality)),
    )
    own = t1w.grid
    native_bias = resample_field(field, coarse_grid, own)
    own_labels, tissues = carry_labels(anatomy, own, found)
    return Head(anatomy, Volume(t1w.data / native_bias, t1w.affine), own_labels, tissues, found)


def _probabilities_on(grid, image, source, field, coarse_grid, found, device) -> np.ndarray:
    """Class probabilities on the model grid; one that is not the labelling network's gets them interpolated."""
    own = found.grid(LABEL_SHAPE, LABEL_SPACING)
    if own.shape == grid.shape and np.allclose(own.affine, grid.affine):
        return class_probabilities(image, "labelling", device)
    found_there = class_probabilities(_corrected_on(own, source, field, coarse_grid), "labelling", device)
    # beyond the network's grid everything is what its rim is: background
    parts = (resample_field(p.astype(np.float32), own, grid) for p in found_there)
    return np.stack([part.astype(np.float16) for part in parts])


def _check_orientation(found: align.Alignment | None, who: str) -> None:
    """Refuse a head whose regions do not lie as a head's regions do under any small turn."""
    limits = {row["name"]: row for row in read_table("quality.tsv")}
    if found is not None:
        angle = align.rotation_degrees(found.to_template)
        if angle <= float(limits["rotation"]["fail_high"]) and found.residual <= float(
            limits["alignment_residual"]["fail_high"]
        ):
            return
    raise InputError(
        f"{who}: the brain in the T1w does not stand as its header says (upside down, front to back, or no brain); "
        "correct the orientation in the header and check it in a viewer."
    )


def _brain_on(found, source, coarse_grid, field, brain, shape, spacing) -> np.ndarray:
    """Brain-only T1w at the current alignment, white matter about 1: what the refinement registers."""
    grid = found.grid(shape, spacing)
    image = _corrected_on(grid, source, field, coarse_grid)
    inside = resample(Volume(brain.astype(np.float32), coarse_grid.affine), grid, order=1) > 0.5
    image = np.where(inside, image, 0)
    return image / np.percentile(image[inside], 90)


def _corrected_on(grid: Grid, source: Volume, field: np.ndarray, coarse_grid: Grid) -> np.ndarray:
    """The T1w on a grid, divided by the bias field."""
    return resample(source, grid) / resample_field(field, coarse_grid, grid)


def resample_field(field: np.ndarray, grid: Grid, target: Grid) -> np.ndarray:
    """A smooth field on another grid; beyond its own field of view its edge is continued."""
    matrix = np.linalg.inv(grid.affine) @ target.affine
    return ndimage.affine_transform(
        field, matrix[:3, :3], matrix[:3, 3], output_shape=target.shape, order=1, mode="nearest", output=np.float32
    )


def _coordinates(grid: Grid, to_template: np.ndarray, axes: tuple[int, ...]) -> list[np.ndarray]:
    """Template coordinates (mm) of every voxel of a grid along some axes, each ``grid.shape`` float32."""
    matrix = (to_template @ grid.affine).astype(np.float32)
    i, j, k = (np.arange(n, dtype=np.float32) for n in grid.shape)
    return [
        matrix[a, 0] * i[:, None, None]
        + matrix[a, 1] * j[None, :, None]
        + matrix[a, 2] * k[None, None, :]
        + matrix[a, 3]
        for a in axes
    ]


def _label_grid(
    probabilities: np.ndarray, grid: Grid, found: align.Alignment, inside: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sided labels on the model grid; what lies outside the brain (``inside`` or else found) is background in both."""
    classes = probabilities.argmax(0)
    inside = brain_mask(classes) if inside is None else inside
    probabilities = np.where(inside, probabilities, 0)
    probabilities[0][~inside] = 1
    # what the mask calls brain and the network does not (a filled hole) takes its most likely region
    filled = inside & (classes == 0)
    rest = probabilities[1:, filled].astype(np.float32) + 1e-6
    probabilities[0][filled] = 0
    probabilities[1:, filled] = rest / rest.sum(0)
    x, z = _coordinates(grid, found.to_template, (0, 2))
    return sided_codes(probabilities.argmax(0), x, z, found.scale), probabilities


def carry_labels(anatomy: Anatomy, target: Grid, found: align.Alignment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels and tissue probabilities on another grid: each voxel takes the class most likely after interpolation.

    Probabilities are interpolated rather than labels, so that borders stay smooth on a finer grid. Only voxels near
    the brain are computed.
    """
    near = ndimage.binary_dilation(anatomy.labels > 0, iterations=2).astype(np.float32)
    matrix = np.linalg.inv(anatomy.grid.affine) @ target.affine
    close = ndimage.affine_transform(near, matrix[:3, :3], matrix[:3, 3], output_shape=target.shape, order=0) > 0.5
    where = np.argwhere(close)
    points = where @ matrix[:3, :3].T + matrix[:3, 3]
    size = np.array(anatomy.labels.shape) - 1
    scaled = torch.from_numpy((2 * points / size - 1)[:, ::-1].astype(np.float32).copy())
    source = torch.from_numpy(anatomy.probabilities.astype(np.float32))[None]
    codes = {"csf": 0, "gm": 1, "deep": 1, "wm": 2}
    fold = torch.zeros(3, n_classes())
    for region in regions():
        fold[codes[region.tissue], region.index] = 1
    classes = np.zeros(target.shape, np.uint8)
    tissues = [np.zeros(target.shape, np.float32) for _ in range(3)]
    for start in range(0, len(where), 400_000):
        piece = scaled[start : start + 400_000]
        p = F.grid_sample(source, piece[None, None, None], "bilinear", "border", align_corners=True)[0, :, 0, 0]
        index = tuple(where[start : start + 400_000].T)
        classes[index] = p.argmax(0).numpy().astype(np.uint8)
        for tissue, values in zip(tissues, (fold @ p).numpy(), strict=True):
            tissue[index] = values
    x, z = _coordinates(target, found.to_template, (0, 2))
    return sided_codes(classes, x, z, found.scale), dict(zip(("CSF", "GM", "WM"), tissues, strict=True))


def _quality(labels: np.ndarray, probabilities: np.ndarray, grid: Grid, found: align.Alignment) -> dict[str, float]:
    """Figures that say whether the labels can be believed; volumes in ml."""
    inside = labels > 0
    ml = grid.voxel_volume / 1000
    counts = np.bincount(labels.ravel(), minlength=256)
    quality = {
        "label_confidence": float(probabilities.max(0)[inside].astype(np.float32).mean()),
        "alignment_residual": found.residual,
        "rotation": align.rotation_degrees(found.to_template),
        "brain_volume": float(inside.sum() * ml),
    }
    for region in all_regions():
        # a region's volume includes what is cut from it
        quality[f"volume_{region.name}"] = float(counts[list(codes_of(region.name))].sum() * ml)
    return quality


def _warnings(quality: Mapping[str, float]) -> list[str]:
    """A sentence for each unusual figure."""
    out = []
    for check in filter(lambda check: check.unusual, checks(quality)):
        low, high = ("…" if limit is None else f"{limit:g}" for limit in (check.low, check.high))
        limits = f"{low} to {high} {check.unit}".strip()
        out.append(f"{check.description} is {check.value:.3g}, outside {limits}: look at the labels before use.")
    return out
