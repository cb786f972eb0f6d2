"""The codec alone, and the built-in model on simulated people whose heads it never saw.

    python benchmarks/generator.py codec ARRAYS
    python benchmarks/generator.py profiles ARRAYS [--picture FILE.png]
    python benchmarks/generator.py operations

ARRAYS are the prepared heads (``python -m bids_petsynth.training.grid heads …``).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_erosion

from bids_petsynth.anatomy.regions import region_index, regions
from bids_petsynth.models.autoencoder import build_space
from bids_petsynth.models.recipe import load_recipe
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.pet.tracers import targets
from bids_petsynth.simulation.person import draw_people
from bids_petsynth.simulation.scanner import simulate_pet
from bids_petsynth.training.labelling import UNSEEN
from bids_petsynth.training.pairs import load_heads
from bids_petsynth.training.simulated import evaluation_cases
from bids_petsynth.training.validation import region_means

WINDOW = 3.0


def unseen(arrays: Path):
    """The five heads that no training saw."""
    return load_heads(arrays, load_recipe("petsynth")).select(lambda name: name in UNSEEN)


def run_codec(arrays: Path) -> None:
    """PSNR in the brain (window 0–3 SUVR) and regional bias of noise-free simulated PET after encoding and decoding."""
    recipe, heads = load_recipe("petsynth"), unseen(arrays)
    space = build_space(recipe)
    for tracer in recipe.tracers:
        psnr, worst = [], []
        for number in range(len(heads)):
            classes = torch.from_numpy(heads.classes[number].astype(np.int64))[None]
            people = draw_people(1, np.random.default_rng(number))
            rng = torch.Generator().manual_seed(number)
            scan = simulate_pet(classes, people, tracer, rng, voxel_size=recipe.grid.voxel_size, noise=False)
            back = space.decode(space.encode(scan))
            brain = (classes > 0) & (classes <= len(regions()))
            psnr.append(10 * torch.log10(WINDOW**2 / (back - scan)[brain].square().mean()).item())
            before, after = (
                region_means(v.numpy(), classes[0].numpy())[0, 1 : len(regions()) + 1] for v in (scan, back)
            )
            worst.append(float(np.nanmax(np.abs(after / before - 1))) * 100)
        print(
            f"{tracer}: PSNR {np.mean(psnr):.1f} dB (worst {min(psnr):.1f}), largest regional bias {max(worst):.2f} %"
        )


def run_profiles(arrays: Path, picture: Path | None) -> None:
    """Target SUVR and inner occipital white matter of synthetic AV45, a negative and a positive record on each head.

    Beside it, the white matter in noise-free simulated scans of people with the same Centiloid.
    """
    heads, model = unseen(arrays), Synthesizer.load()
    cases = evaluation_cases(heads, model.model.recipe, 2)
    index = region_index()
    composite = [index[name] for name in targets()["centiloid_like"].regions]
    cerebellum = [index[name] for name in ("cerebellar_grey", "cerebellar_white", "vermis")]
    rows, shown, crowd = [], [], draw_people(2000, np.random.default_rng(0))
    for number in range(len(heads)):
        classes = heads.measured[number]
        labels = torch.from_numpy(heads.probabilities[number]).float() / 255
        # a voxel from the border, half of a voxel's uptake is the neighbour's
        inner_white = binary_erosion(classes == index["occipital_white"], iterations=2)
        values, made = [], torch.from_numpy(heads.classes[number].astype(np.int64))[None]
        for case in cases:
            rng = torch.Generator().manual_seed(number)
            people = crowd.rows([int(np.abs(crowd.centiloid - case.truth["centiloid"]).argmin())])
            people = replace(people, white_matter=np.ones(1))
            own = simulate_pet(made, people, "AV45", rng, noise=False, measured=torch.from_numpy(classes)[None].long())
            t1w = torch.from_numpy(heads.t1w[number].astype(np.float32))
            mean = model.sample(t1w[None], labels[None], case.record, "AV45", 8, number).mean(0)
            reference = mean[np.isin(classes, cerebellum)].mean()
            target = mean[np.isin(classes, composite)].mean() / reference
            values.append((target, mean[inner_white].mean() / reference, own[0].numpy()[inner_white].mean()))
            shown.append(mean / reference)
        rows.append(values)
        (n, a, c), (p, b, d) = values
        print(
            f"{heads.names[number]}: target {n:.2f} → {p:.2f}, occipital white matter {a:.2f} → {b:.2f} "
            f"(simulation itself {c:.2f} → {d:.2f})"
        )
    table = np.array(rows)
    gain = (table[:, 1] - table[:, 0]).mean(0)
    print(f"mean difference: target {gain[0]:+.2f}, occipital white matter {gain[1]:+.2f} SUVR ({gain[2]:+.2f})")
    if picture:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(2, 5, figsize=(15, 7), facecolor="black")
        for axis, image in zip(axes.T.ravel(), shown, strict=True):
            axis.imshow(np.rot90(image[:, :, 52]), cmap="nipy_spectral", vmin=0, vmax=2.5)
            axis.axis("off")
        figure.tight_layout()
        figure.savefig(picture, dpi=60)


def run_operations() -> None:
    """Floating-point operations of 8 draws (torch's FlopCounterMode), without and with guidance."""
    from torch.utils.flop_counter import FlopCounterMode

    model = Synthesizer.load()
    recipe = model.model.recipe
    shape = recipe.grid.shape
    t1w = torch.zeros(1, *shape)
    labels = torch.zeros(1, model.model.classes, *(n // recipe.label_pool for n in shape))
    for guidance in (1.0, 2.0):
        changed = recipe.model_copy(update={"process": recipe.process.model_copy(update={"guidance": guidance})})
        engine = Synthesizer(replace(model.model, recipe=changed))
        with FlopCounterMode(display=False) as counter:
            engine.sample(t1w, labels, {}, recipe.tracers[0], 8, 0)
        print(f"guidance {guidance:g}: {counter.get_total_flops() / 1e12:.2f} TFLOP for 8 draws")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["codec", "profiles", "operations"])
    parser.add_argument("arrays", type=Path, nargs="?")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "operations":
        run_operations()
    elif arguments.what == "codec":
        run_codec(arguments.arrays)
    else:
        run_profiles(arguments.arrays, arguments.picture)


if __name__ == "__main__":
    main()
