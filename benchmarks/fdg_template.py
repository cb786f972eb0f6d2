"""Healthy regional FDG uptake relative to the pons, as ``data/sim_measured.tsv`` holds it for FDG.

    python benchmarks/fdg_template.py HEADS DATA/fdg-template/CN_PET_TEMPLATE.nii.gz

HEADS are the arrays that ``python -m bids_petsynth.training.labelling prepare`` writes. The mean FDG of 116 healthy
adults lies only roughly in template space, so it is registered (affine, then SyN) to an FDG-like image of each of five
training heads: grey to white matter 4 to 1, blurred. The regional means over those heads, divided by the pons, are
printed with their standard deviation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from bids_petsynth.anatomy.regions import n_classes, region_index, regions
from bids_petsynth.anatomy.registration import to_ants
from bids_petsynth.anatomy.segmentation import cut_planes
from bids_petsynth.training.augment import blur
from bids_petsynth.training.labelling import UNSEEN

#: Rough FDG contrast for the registration only; nothing of it enters the result.
CONTRAST = {"gm": 1.0, "deep": 1.0, "wm": 0.25, "csf": 0.05}
SOFT_TISSUE = (0.1, 0.15, 0.2, 0.15)


def fdg_like(classes: torch.Tensor) -> np.ndarray:
    """A head painted with the rough contrast and blurred to about 7 mm."""
    values = torch.zeros(n_classes() + len(SOFT_TISSUE))
    for region in regions():
        values[region.index] = CONTRAST[region.tissue]
    values[n_classes() :] = torch.tensor(SOFT_TISSUE)
    return blur(values[classes], 1.5).numpy()


def regional(head: torch.Tensor, template: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Regional means of the registered template, pons 1."""
    import ants

    own = np.diag([2.0, 2.0, 2.0, 1.0])
    own[:3, 3] = (-90, -116, -100)
    painted = fdg_like(head)
    fixed = to_ants(painted, own)
    first = ants.registration(fixed, to_ants(template, affine), "Affine", aff_metric="mattes", random_seed=1)
    second = ants.registration(
        fixed,
        first["warpedmovout"],
        "SyNOnly",
        syn_metric="mattes",
        reg_iterations=(40, 20, 0),
        flow_sigma=4,
        random_seed=1,
    )
    warped = second["warpedmovout"].numpy()
    classes = head.numpy()
    z = np.broadcast_to(np.arange(classes.shape[2]) * 2.0, classes.shape)
    low, high = cut_planes(classes, z, 1.0)["pons"]
    pons = (classes == region_index()["brainstem"]) & (z >= low) & (z < high)
    print(f"correlation with the painted head: {np.corrcoef(warped.ravel(), painted.ravel())[0, 1]:.3f}")
    return np.array([warped[classes == region.index].mean() for region in regions()]) / warped[pons].mean()


def main() -> None:
    """Command line."""
    import nibabel as nib

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("heads", type=Path)
    parser.add_argument("template", type=Path)
    arguments = parser.parse_args()
    image = nib.as_closest_canonical(nib.load(arguments.template))
    template = np.nan_to_num(image.get_fdata(dtype=np.float32))
    template /= np.percentile(template[template > 0], 99)
    with np.load(arguments.heads, allow_pickle=False) as data:
        seen = [c for c, name in zip(data["classes"], data["names"].tolist(), strict=True) if name not in UNSEEN]
    heads = [torch.from_numpy(classes.astype(np.int64)) for classes in seen[::4][:5]]
    table = np.array([regional(head, template, image.affine) for head in heads])
    for region, mean, sd in zip(regions(), table.mean(0), table.std(0), strict=True):
        print(f"{region.name}\t{mean:.3f}\t{sd:.3f}")


if __name__ == "__main__":
    main()
