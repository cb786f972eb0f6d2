"""Adapting the built-in model to a site with few scans, by the command lines that a site would use.

    python benchmarks/adaptation.py DATASET OUT [--people 20] [--minutes 8]

DATASET holds T1w scans (``data/ixi``). A site with SIMULATED PET on ``--people`` of the training heads, smoothed as by
a coarser scanner (``--fwhm``), adapts the model (``train --init-from``). Both models then draw simulated people on the
heads that no training saw, and ``group`` compares both with these people's own smoothed scans. ``OUT`` keeps every
step; what is there is not made again.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pandas as pd

from bids_petsynth.cli.main import main as command
from bids_petsynth.models.synthesizer import built_in
from bids_petsynth.training.labelling import UNSEEN

TRACER = "AV45"


def call(*words: object) -> None:
    """One command line, shown before it runs."""
    line = [str(word) for word in words]
    print("bids-petsynth", shlex.join(line), flush=True)
    if code := command(line):
        raise SystemExit(f"It ended with {code}.")


def figures(out: Path) -> dict[str, str]:
    """What ``group`` found of the synthetic scans."""
    image, whole, regional = (
        pd.read_csv(out / "group" / f"{name}.tsv", sep="\t") for name in ("image", "global", "regionalsummary")
    )
    found = {}
    for name in ("mae_brain", "psnr_brain", "ssim_brain"):
        row = image[(image.figure == name) & (image.get("method", "synthetic PET") == "synthetic PET")].iloc[0]
        found[name] = f"{row['mean']:.3f} [{row.mean_low:.3f}, {row.mean_high:.3f}]"
    for row in whole[whole.method == "synthetic PET"].itertuples():
        found[f"{row.figure}: MAE"] = f"{row.mae:.3f} [{row.mae_low:.3f}, {row.mae_high:.3f}]"
        found[f"{row.figure}: bias"] = f"{row.bias:+.3f}"
    ours = regional[regional.method == "synthetic PET"].iloc[0]
    return found | {f"regions: {name}": f"{ours[name]:.3f}" for name in ("mae", "bias") if name in regional.columns}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--per-head", type=int, default=2, help="people on each unseen head")
    parser.add_argument("--fwhm", type=float, default=8.0, help="what the site's scanner blurs more, in mm")
    parser.add_argument("--minutes", type=int, default=8)
    arguments = parser.parse_args()
    names = sorted(path.name.removeprefix("sub-") for path in arguments.dataset.glob("sub-*"))
    seen = [name for name in names if name not in UNSEEN][: arguments.people]
    unseen = [name for name in names if name in UNSEEN]
    site, others, trained, out = (arguments.out / name for name in ("site", "others", "trained", "drawn"))
    smooth = ("--pet-fwhm", arguments.fwhm)
    simulate = ("simulate", "--tracer", TRACER, "--participant-label")
    if not site.is_dir():
        call(arguments.dataset, site, *simulate, *seen)
    if not others.is_dir():
        per_head = ("--people-per-head", arguments.per_head, "--random-seed", 1)
        call(arguments.dataset, others, *simulate, *unseen, *per_head)
    budget = ("--time-budget", arguments.minutes)
    call(site, trained, "train", "--name", "adapted", "--init-from", built_in(), *smooth, *budget)
    table = {}
    for name, model in (("built-in", built_in()), ("adapted", trained / "models" / "adapted")):
        call(others, out / name, "participant", "--tracer", TRACER, "--model", model)
        call(others, out / name, "group", "--model", model, *smooth)
        table[name] = figures(out / name)
    print(f"| figure | {' | '.join(table)} |\n|---|---|---|")
    for figure in table["built-in"]:
        print(f"| {figure} | {' | '.join(found[figure] for found in table.values())} |")


if __name__ == "__main__":
    main()
