"""Preparing heads for the generator: the template's centroids and mean T1w, and heads on the model grid.

``python -m bids_petsynth.training.grid template HEADS`` makes ``data/template_centroids.tsv`` and
``data/templates/mean_T1w.nii.gz`` from labelled heads; ``… heads DATASET HEADS OUT`` runs every head of a dataset
through the anatomy room as ``participant`` does and keeps what the generator's training reads.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bids_petsynth.anatomy import alignment as align
from bids_petsynth.anatomy.bias import bias_field
from bids_petsynth.anatomy.network import LABEL_SHAPE, LABEL_SPACING
from bids_petsynth.anatomy.regions import n_classes
from bids_petsynth.anatomy.registration import register_affine, to_ants
from bids_petsynth.anatomy.volume import Volume, read_t1w, resample
from bids_petsynth.tables import data_path
from bids_petsynth.training.labelling import UNSEEN


def _seen_heads(heads: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(T1w, classes, affine) of the training heads on their own RAS grid (affine with the image centre at 0)."""
    data = np.load(heads)
    out = []
    for image, classes, name in zip(data["images"], data["classes"], data["names"].tolist(), strict=True):
        if name in UNSEEN:
            continue
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = -(np.array(image.shape) - 1)
        out.append((image.astype(np.float32) / 170, np.where(classes < n_classes(), classes, 0), affine))
    return out


def make_template(heads: Path) -> None:
    """Register the heads' brains affinely to the MNI template, average their centroids; then align and average T1w."""
    import nibabel as nib
    from nilearn.datasets import load_mni152_template

    mni = load_mni152_template(resolution=2)
    fixed = to_ants(mni.get_fdata(dtype=np.float32), mni.affine)
    right = np.array([1.0, 0, 0])
    sums: dict[tuple[str, str], list[np.ndarray]] = {}
    for image, classes, affine in _seen_heads(heads):
        brain = (classes > 0) & (classes != 47)
        to_head = register_affine(fixed, to_ants(np.where(brain, image, 0), affine), "Affine", seed=0)
        to_mni = np.linalg.inv(to_head)
        for key, (centre, _) in align.sided_centroids(classes, to_mni @ affine, right, np.zeros(3)).items():
            sums.setdefault(key, []).append(centre)
    # a mirrored head is as good a head: the template is made symmetric
    flip = np.array([-1.0, 1, 1])
    other = {"L": "R", "R": "L", "B": "B"}
    with data_path("template_centroids.tsv").open("w", newline="") as file:
        out = csv.writer(file, delimiter="\t", lineterminator="\n")
        out.writerow(["name", "hemisphere", "x", "y", "z", "source"])
        for name, side in sums:
            both = np.array(sums[(name, side)]).mean(0) + flip * np.array(sums[(name, other[side])]).mean(0)
            source = (
                "mean of 21 IXI heads (DLMUSE labels) after affine registration to MNI152 (nilearn), made symmetric"
            )
            out.writerow([name, side, *(f"{v:.2f}" for v in both / 2), source])
    from bids_petsynth.tables import read_table

    read_table.cache_clear()
    grid = align.template_grid(LABEL_SHAPE, LABEL_SPACING)
    aligned = [(h, align.align_centroids(h[1], h[2])) for h in _seen_heads(heads)]
    for turn in range(2):
        total = np.zeros(LABEL_SHAPE, np.float32)
        for number, ((image, classes, affine), found) in enumerate(aligned):
            brain = classes > 0
            image = np.where(brain, image / bias_field(image, affine, brain), 0) if turn == 0 else image
            image = image / np.median(image[np.isin(classes, (34, 35, 36, 37))])
            aligned[number] = ((image, classes, affine), found)
            on_grid = resample(Volume(image, affine), found.grid(LABEL_SHAPE, LABEL_SPACING), order=1)
            if turn:
                found = align.refine(found, on_grid, grid, 0)
                aligned[number] = ((image, classes, affine), found)
                on_grid = resample(Volume(image, affine), found.grid(LABEL_SHAPE, LABEL_SPACING), order=1)
            total += on_grid
        mean = total / len(aligned)
        mean = (mean + mean[::-1]) / 2
        # written twice: the second turn registers to the mean of the first
        path = data_path("templates", "mean_T1w.nii.gz")
        path.parent.mkdir(exist_ok=True)
        picture = nib.Nifti1Image((np.clip(mean / 1.5, 0, 1) * 255).round().astype(np.uint8), grid.affine)
        picture.header.set_slope_inter(1.5 / 255, 0)
        nib.save(picture, path)


def prepare_heads(dataset: Path, heads: Path, out: Path) -> None:
    """Write ``out`` (npz): T1w, DLMUSE classes with soft-tissue clusters, the network's classes and probabilities.

    All on the model grid.
    """
    from bids_petsynth.anatomy.head import analyse_head
    from bids_petsynth.simulation.uptake import classes_of

    stored = np.load(heads)
    by_name = dict(zip(stored["names"].tolist(), stored["classes"], strict=True))
    t1ws, classes, measured, probabilities, names = [], [], [], [], []
    for path in sorted(dataset.glob("sub-*/anat/*_T1w.nii.gz")):
        name = path.name.split("_")[0].removeprefix("sub-")
        head = analyse_head(read_t1w(path, f"sub-{name}"), f"sub-{name}", LABEL_SHAPE, LABEL_SPACING)
        t1ws.append(head.anatomy.t1w.astype(np.float16))
        p = torch.from_numpy(head.anatomy.probabilities.astype(np.float32))[None]
        probabilities.append((F.avg_pool3d(p, 2)[0] * 255).round().byte().numpy())
        measured.append(classes_of(torch.from_numpy(head.anatomy.labels)).numpy().astype(np.uint8))
        classes.append(_classes_on(by_name[name], path, head.anatomy.grid))
        names.append(name)
        print(name, {k: round(v, 3) for k, v in list(head.anatomy.quality.items())[:4]}, flush=True)
    arrays = {"t1w": t1ws, "classes": classes, "measured": measured, "probabilities": probabilities, "names": names}
    np.savez_compressed(out, **{name: np.stack(values) for name, values in arrays.items()})


def _classes_on(classes: np.ndarray, path: Path, grid) -> np.ndarray:
    """Classes of the scan's RAS grid on the model grid: the class with the largest interpolated share."""
    import nibabel as nib

    affine = nib.as_closest_canonical(nib.load(path)).affine
    best = np.zeros(grid.shape, np.float32)
    out = np.zeros(grid.shape, np.uint8)
    for value in np.unique(classes):
        share = resample(Volume((classes == value).astype(np.float32), affine), grid, order=1)
        better = share > best
        out[better], best[better] = value, share[better]
    return out


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("template")
    one.add_argument("heads", type=Path)
    two = verbs.add_parser("heads")
    two.add_argument("dataset", type=Path)
    two.add_argument("heads", type=Path)
    two.add_argument("out", type=Path)
    args = vars(parser.parse_args(argv))
    if args.pop("verb") == "template":
        make_template(**args)
    else:
        prepare_heads(**args)


if __name__ == "__main__":
    main()
