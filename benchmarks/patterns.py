"""Mean negative and positive scans in template space, simulated and synthetic side by side, as a picture for the docs.

    python benchmarks/patterns.py ARRAYS OUT PICTURE --people 10

ARRAYS are the prepared heads; OUT keeps the registrations of ``benchmarks/model.py`` (the same folder may be given).
The people live on the heads that no training saw; they are clearly amyloid-negative or clearly positive.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from model import Bench

from bids_petsynth.evaluation import baselines as base
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.pet.quantification import normalise
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.reports.figures import display_of
from bids_petsynth.training.labelling import UNSEEN
from bids_petsynth.training.pairs import dseg_codes, load_heads
from bids_petsynth.training.simulated import evaluation_cases

GROUPS = ("negative", "positive")


def mean_scans(bench: Bench, model: Synthesizer, people: int, draws: int) -> dict[tuple[str, str, str], np.ndarray]:
    """(tracer, group, ``simulated`` or ``synthetic``) → mean scan in template space, SUVR."""
    unseen = bench.heads.select(lambda name: name in UNSEEN)
    totals: dict[tuple[str, str, str], np.ndarray] = {}
    for number, case in enumerate(evaluation_cases(unseen, bench.recipe, 2 * people)):
        back = base.inverse(bench.to_template(case))
        codes = dseg_codes(case.measured.numpy(), bench.grid)
        for name in bench.tracers:
            drawn = model.sample(case.t1w[None], case.labels[None], case.record, name, draws, number)
            pair = {"simulated": case.pet[name][None].numpy(), "synthetic": drawn}
            for kind, volumes in pair.items():
                mean = normalise(volumes, codes, bench.grid, tracer_named(name)).mean(0)
                key = (name, GROUPS[number % 2], kind)
                totals[key] = totals.get(key, 0) + base.pulled(mean, back) / people
    return totals


def draw(scans: dict[tuple[str, str, str], np.ndarray], tracers: tuple[str, ...], path: Path) -> None:
    """An axial and a sagittal slice of each mean scan: tracers down, groups and kinds across."""
    from matplotlib.figure import Figure

    kinds = [(group, kind) for group in GROUPS for kind in ("simulated", "synthetic")]
    canvas = Figure(figsize=(11, 2.05 * len(tracers) + 0.3), facecolor="white")
    axes = canvas.subplots(len(tracers), len(kinds), squeeze=False)
    for axis, (group, kind) in zip(axes[0], kinds, strict=True):
        axis.set_title(f"{group}, {kind}", fontsize=10)
    for row, name in zip(axes, tracers, strict=True):
        tracer = tracer_named(name)
        (low, high), colours = tracer.display, display_of(tracer).overlay
        for axis, (group, kind) in zip(row, kinds, strict=True):
            scan = scans[name, group, kind]
            flat = np.rot90(scan[:, :, 50]), np.rot90(scan[46, :, :])
            height = max(view.shape[0] for view in flat)
            views = [np.pad(view, ((0, height - view.shape[0]), (0, 0))) for view in flat]
            shown = axis.imshow(np.hstack(views), cmap=colours, vmin=low, vmax=high)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name, fontsize=11)
        canvas.colorbar(shown, ax=list(row), fraction=0.012, pad=0.01, label="SUVR")
    canvas.savefig(path, dpi=80, bbox_inches="tight")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--people", type=int, default=10, help="in each group")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = Synthesizer.load(arguments.model)
    recipe = model.model.recipe
    bench = Bench(load_heads(arguments.arrays, recipe), recipe, recipe.tracers, arguments.out)
    scans = mean_scans(bench, model, arguments.people, arguments.draws)
    draw(scans, recipe.tracers, arguments.picture)
    for name in recipe.tracers:
        for group in GROUPS:
            a, b = (scans[name, group, kind][bench.kept] for kind in ("simulated", "synthetic"))
            print(f"{name}, {group}: r {np.corrcoef(a, b)[0, 1]:.3f}, mean difference {np.mean(b - a):+.3f} SUVR")


if __name__ == "__main__":
    main()
