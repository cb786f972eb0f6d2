"""Labels on heads that no training saw, and how volumes hold when the same head is scanned otherwise.

python benchmarks/anatomy.py dice DATA/ixi
python benchmarks/anatomy.py volumes DATA/highres/sub-hanke/anat/sub-hanke_T1w.nii.gz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_petsynth.anatomy.head import analyse_head
from bids_petsynth.anatomy.regions import LEFT, RIGHT, codes_of, n_classes, regions
from bids_petsynth.anatomy.volume import Volume, read_t1w, resample, smoothed_for
from bids_petsynth.pet.tracers import targets
from bids_petsynth.training.labelling import UNSEEN, merge_dlmuse
from bids_petsynth.types import Grid

GROUPS = {
    "whole cerebellum": ("cerebellar_grey", "cerebellar_white", "vermis"),
    "brainstem": ("brainstem",),
    "ventricles": ("lateral_ventricle", "third_ventricle", "fourth_ventricle"),
    "hippocampus": ("hippocampus",),
    "Centiloid-like target": tuple(targets()["centiloid_like"].regions),
}


def sideless(labels: np.ndarray) -> np.ndarray:
    """Codes without sides, cut regions given back to their parents."""
    plain = np.where(labels >= RIGHT, labels - RIGHT, np.where(labels >= LEFT, labels - LEFT, labels))
    for region in (48, 46), (49, 43):
        plain = np.where(plain == region[0], region[1], plain)
    return plain


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two masks."""
    return 2 * float((a & b).sum()) / max(1, int(a.sum() + b.sum()))


def members(names: tuple[str, ...]) -> list[int]:
    """Side-less classes of a group."""
    return [code for code in codes_of(*names) if code < LEFT] + [
        c - LEFT for c in codes_of(*names) if LEFT <= c < RIGHT
    ]


def run_dice(dataset: Path) -> None:
    """Brain mask, regions and groups on the five unseen heads, on the scan's own grid."""
    brains, tables, groups = [], [], {name: [] for name in GROUPS}
    for name in UNSEEN:
        path = dataset / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz"
        head = analyse_head(read_t1w(path, name), name)
        truth = next((dataset / "derivatives" / "dlmuse" / f"sub-{name}" / "anat").glob("*_dseg.nii.gz"))
        merged = merge_dlmuse(np.asarray(nib.load(truth).dataobj).astype(np.uint8))
        found = sideless(head.labels)
        brains.append(dice(found > 0, merged > 0))
        tables.append([dice(found == k, merged == k) for k in range(1, n_classes())])
        for group, names in GROUPS.items():
            groups[group].append(dice(np.isin(found, members(names)), np.isin(merged, members(names))))
        print(f"{name}: brain {brains[-1]:.3f}, mean of regions {np.mean(tables[-1]):.3f}", flush=True)
    print(f"brain mask: mean {np.mean(brains):.3f}, worst {min(brains):.3f}")
    print(f"mean over regions: {np.mean(tables):.3f}")
    for group, values in groups.items():
        print(f"{group}: mean {np.mean(values):.3f}, worst {min(values):.3f}")
    worst = sorted(zip(np.mean(tables, 0), (r.name for r in regions()), strict=True))[:8]
    print("lowest:", ", ".join(f"{name} {value:.2f}" for value, name in worst))


def variants(scan: Volume) -> dict[str, Volume]:
    """The same head as other scanners and positions would give it."""

    def at(spacing: tuple[float, float, float]) -> Volume:
        own = scan.spacing
        sigma = np.sqrt(np.maximum(0, (np.array(spacing) / own) ** 2 - 1)) / 2.3548
        soft = Volume(ndimage.gaussian_filter(scan.data, sigma), scan.affine)
        factor = np.array(spacing) / own
        shape = tuple(int(n) for n in np.array(scan.data.shape) / factor)
        grid = Grid(shape, scan.affine @ np.diag([*factor, 1.0]))
        return Volume(resample(soft, grid, order=1), grid.affine)

    out = {"as it is": scan, "1 mm": at((1, 1, 1)), "2 mm": at((2, 2, 2))}
    superior = int(np.argmax(np.abs(scan.affine[2, :3])))
    thick = [1.0, 1.0, 1.0]
    thick[superior] = 3.0
    out["3 mm slices"] = at(tuple(thick))
    base = smoothed_for(scan, 1.0)
    centre = scan.affine @ [*((np.array(scan.data.shape) - 1) / 2), 1]
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (12, -8, 10), degrees=True).as_matrix()
    turn[:3, 3] = centre[:3] - turn[:3, :3] @ centre[:3]
    grid = out["1 mm"].grid
    wide = Grid(tuple(n + 40 for n in grid.shape), turn @ grid.affine @ shifted(-20))
    out["rotated"] = Volume(resample(base, wide, order=1), turn @ grid.affine @ shifted(-20))
    out["rotated"] = Volume(out["rotated"].data, turn_header(out["rotated"].affine))
    top = np.percentile(scan.data, 99)
    out["contrast"] = Volume((np.clip(out["1 mm"].data / top, 0, None) ** 0.7 * top).astype(np.float32), grid.affine)
    return out


def shifted(voxels: float) -> np.ndarray:
    """Affine of a grid that starts some voxels earlier."""
    matrix = np.eye(4)
    matrix[:3, 3] = voxels
    return matrix


def turn_header(affine: np.ndarray) -> np.ndarray:
    """The same voxel size without the turn: the head then lies turned in the scanner."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    order = np.abs(affine[:3, :3] / spacing).argmax(0)
    plain = np.eye(4)
    plain[:3, :3] = 0
    for axis, world in enumerate(order):
        plain[world, axis] = np.sign(affine[world, axis]) * spacing[axis]
    plain[:3, 3] = affine[:3, 3]
    return plain


def run_volumes(path: Path) -> None:
    """Volumes of the groups relative to those of the scan as it is."""
    first: dict[str, float] = {}
    for name, scan in variants(read_t1w(path, path.name)).items():
        head = analyse_head(scan, name)
        plain = sideless(head.labels)
        ml = head.t1w.grid.voxel_volume / 1000
        volumes = {"brain": float((plain > 0).sum() * ml)}
        for group in ("whole cerebellum", "ventricles", "hippocampus", "Centiloid-like target"):
            volumes[group] = float(np.isin(plain, members(GROUPS[group])).sum() * ml)
        first = first or volumes
        parts = ", ".join(f"{k} {v:.1f} ml ({100 * (v / first[k] - 1):+.1f} %)" for k, v in volumes.items())
        print(f"{name}: {parts}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["dice", "volumes"])
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    (run_dice if arguments.what == "dice" else run_volumes)(arguments.path)


if __name__ == "__main__":
    main()
