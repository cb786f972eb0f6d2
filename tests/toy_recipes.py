"""The built-in recipes shrunk, and a site's preparation on their coarse grid, made from that on the usual one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bids_petsynth.bids.index import find_cases
from bids_petsynth.bids.others import find_others
from bids_petsynth.bids.pets import find_pets
from bids_petsynth.models.recipe import Recipe, load_recipe
from bids_petsynth.pet.tracers import canonical
from bids_petsynth.training.preparing import Preparation, head_path, other_path, scan_path

RECIPES = (
    "petsynth",
    "language",
    "pasta",
    "mri2pet",
    "acadiff",
    "cldm",
    "regression",
    "attention-unet",
    "gan",
    "ddpm3d",
)


def shrunk(name: str) -> Recipe:
    """A built-in recipe with tiny networks on voxels of 4 mm; all its choices but sizes and steps stay.

    The regional flow costs little and has steps enough to learn what blood says. ACADiff takes a T2w, too.
    """
    data = load_recipe(name).model_dump(mode="json")
    data["grid"] = {"shape": [48, 56, 48], "voxel_size": 4.0}
    data["network"] |= {"channels": [8, 16], "groups": 4, "embedding": 16, "blocks": 1, "slices": 12, "stride": 6}
    if data["space"]["kind"] == "codec":
        # plain volumes and latents alike are of 12 × 14 × 12 voxels
        data["space"]["cutoff"] = 0.0625 if data["space"]["fold"] == 2 else 0.03125
    else:
        data["space"] |= {"channels": [2, 4, 4], "groups": 2, "latent_channels": 2, "training_steps": 1}
    data["process"]["steps"] = min(3, data["process"]["steps"])
    if data["conditioning"]["text"]:
        # no packaged encoder is needed for this one
        data["conditioning"]["text"] |= {"encoder": "hashed", "width": 32, "tokens": 8}
    if data["regional"]:
        data["regional"] |= {"width": 16, "blocks": 1, "steps": 4, "training_steps": 400, "batch": 16, "rate": 3e-3}
    if name == "acadiff":
        data["conditioning"]["sources"].append("T2w")
    if data["pretraining"]:
        data["pretraining"]["steps"] = 2
    batch = 1 if data["space"]["kind"] == "autoencoder" else 2  # it works on full volumes
    data["training"] |= {"steps": 4, "batch": batch, "warmup": 0, "ema": 0.5, "rate": 3e-3, "tensorboard": False}
    return Recipe.model_validate(data)


def coarse_preparation(site: Path, prepared: Path, recipe: Recipe, out: Path) -> None:
    """Put what ``train`` would prepare of a dataset into ``out``: what was ``prepared`` of it, averaged over 2³ voxels.

    The names are those under which ``train`` looks for what it has prepared, so labelling is not paid again.
    """
    how = Preparation(out)
    for part in ("heads", "scans"):
        (out / part).mkdir(parents=True)
    for case in find_cases(site):
        (old,) = (prepared / "heads").glob(f"{case.label}_*.npz")
        with np.load(old, allow_pickle=False) as file:
            head = {name: file[name] for name in file.files}
        affine = head["affine"] @ np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = head["affine"][:3, :3] @ np.full(3, 0.5) + head["affine"][:3, 3]
        head["labels"] = _pooled(head["labels"]).round().astype(np.uint8)
        head["t1w"] = _pooled(head["t1w"][None])[0].astype(np.float16)
        head |= {name: head[name][::2, ::2, ::2] for name in ("measured", "codes")} | {"affine": affine}
        np.savez(head_path(case, recipe, how), **head)
        for other in find_others(site, recipe.conditioning.sources, [case.participant]):
            path = other_path(other, affine, how)
            np.savez(path, suvr=np.clip(1.8 - head["t1w"], 0, None).astype(np.float16))
            path.with_suffix(".jpg").write_bytes(b"\xff\xd8")
        for pet in find_pets(site, [case.participant], canonical=canonical):
            (old,) = (prepared / "scans").glob(f"{pet.label}_*.npz")
            path = scan_path(pet, affine, how)
            with np.load(old, allow_pickle=False) as file:
                np.savez(path, suvr=_pooled(file["suvr"][None])[0].astype(np.float16))
            path.with_suffix(".json").write_text(json.dumps({"notes": ""}))
            path.with_suffix(".jpg").write_bytes(b"\xff\xd8")


def _pooled(image: np.ndarray) -> np.ndarray:
    """``(C, X, Y, Z)`` averaged over blocks of 2³."""
    return F.avg_pool3d(torch.from_numpy(image.astype(np.float32))[None], 2)[0].numpy()
