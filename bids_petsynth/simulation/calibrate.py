"""Solving the tissue values of ``data/sim_uptake.tsv``, so that simulated scans measure what was published.

``python -m bids_petsynth.simulation.calibrate ARRAYS OUT`` takes the arrays that ``training.grid heads`` wrote (the
heads that no training sees are left out) and writes the table. Published values are measured: after blur and
spill-over. Blur is linear, so a region's measured mean is a fixed mixture of the tissues' values; the mixture is
measured on real heads, in the labelling network's regions, and inverted by non-negative least squares with a pull
towards effective values known beforehand.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import lsq_linear

from bids_petsynth.anatomy.regions import regions
from bids_petsynth.pet.tracers import tracer as tracer_of
from bids_petsynth.simulation.parameters import class_names, members, parameters
from bids_petsynth.simulation.scanner import FWHM, gaussian_blur
from bids_petsynth.simulation.uptake import grey, reference_mask, target_mask, with_choroid_plexus
from bids_petsynth.tables import read_table

TRACERS = ("AV45", "FBB", "FDG", "AV1451")


def mixtures(
    heads: torch.Tensor, measured: torch.Tensor, voxel_size: float = 2.0
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """How much of each tissue a measured region holds, averaged over heads.

    Parameters
    ----------
    heads, measured
        ``(N, X, Y, Z)`` int64 classes that scans are made from, and those in which they are measured.

    Returns
    -------
    regions
        ``(K, K)``: row r says what the mean of class r is made of.
    special
        ``(K,)`` for ``reference <tracer>`` and ``target <tracer>``.
    volumes
        ``(K,)`` mean number of voxels of a class.
    """
    count = len(class_names())
    p = parameters("sim_scanner.tsv")
    sigma = torch.tensor([(p["fwhm_min"] + p["fwhm_max"]) / 2 / FWHM / voxel_size])
    rows, special, volumes = [], {}, []
    for head, found in zip(heads, measured, strict=True):
        labels, found = head[None], found[None]
        painted = with_choroid_plexus(labels, voxel_size).flatten()
        masks = {f"reference {t}": reference_mask(found, t, voxel_size).flatten() for t in TRACERS}
        masks |= {f"target {t}": target_mask(found, t, voxel_size).flatten() for t in TRACERS}
        size = torch.bincount(found.flatten(), minlength=count).double()
        table, extra = np.zeros((count, count)), {name: np.zeros(count) for name in masks}
        for k in torch.unique(painted).tolist():
            blurred = gaussian_blur((painted == k).float().view(labels.shape), sigma).flatten()
            total = torch.bincount(found.flatten(), weights=blurred.double(), minlength=count)
            table[:, k] = torch.where(size > 0, total / size.clamp(min=1), torch.nan).numpy()
            for name, mask in masks.items():
                extra[name][k] = float(blurred[mask].mean())
        rows.append(table)
        volumes.append(size.numpy())
        for name, row in extra.items():
            special.setdefault(name, []).append(row)
    # a class that no head has (the choroid plexus is never measured) gets a row of zeros
    found = np.isfinite(rows)
    mean = np.where(found, rows, 0).sum(0) / found.sum(0).clip(1)
    return mean, {name: np.mean(each, axis=0) for name, each in special.items()}, np.mean(volumes, axis=0)


def prior(tracer: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Effective values known beforehand and how far a solution may lie from them, ``(K,)`` each.

    Florbetapir takes florbetaben's.
    """
    out = np.full(len(class_names()), np.nan)
    stiffness = np.full(len(out), parameters("sim_calibration.tsv")["stiffness"])
    for row in read_table("sim_prior.tsv"):
        if row["tracer"] == ("FBB" if tracer == "AV45" else tracer):
            out[members(row["regions"])] = float(row[column])
            if row["stiffness"]:
                stiffness[members(row["regions"])] = float(row["stiffness"])
    if np.isnan(out).any():
        raise ValueError(f"sim_prior.tsv lacks {tracer} of {np.array(class_names())[np.isnan(out)]}")
    return out, stiffness


def solve(
    rows: np.ndarray, wanted: np.ndarray, sd: np.ndarray, start: np.ndarray, stiffness: np.ndarray, floor: np.ndarray
) -> np.ndarray:
    """Values ``t`` of at least ``floor``, near ``start`` (``stiffness``), with ``rows @ t`` near ``wanted``."""
    a = np.concatenate([rows / sd[:, None], np.diag(1 / stiffness)])
    b = np.concatenate([wanted / sd, start / stiffness])
    return lsq_linear(a, b, bounds=(floor, np.inf)).x


def calibrate(heads: torch.Tensor, measured: torch.Tensor) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows of ``sim_uptake.tsv``, and a comparison of what is measured then with what was wanted."""
    mixture, special, volumes = mixtures(heads, measured)
    p = parameters("sim_calibration.tsv")
    names = class_names()
    uptake, report = [], []
    given = members("extra_axial_csf,choroid_plexus")
    takers = [region.name for region in regions() if region.tissue == "gm" and region.lobe != "cerebellum"]
    takers += ["caudate", "putamen", "accumbens", "pallidum", "hippocampus", "amygdala"]
    floor = np.where(grey(), p["grey_floor"], 0.0)
    for tracer in TRACERS:
        measured = [row for row in read_table("sim_measured.tsv") if row["tracer"] == tracer]
        rows = [special[f"reference {tracer}"]]
        for row in measured:
            if row["regions"] == "target":
                rows.append(special[f"target {tracer}"])
            else:
                which = members(row["regions"])
                rows.append(np.average(mixture[which], axis=0, weights=volumes[which]))
        rows = np.array(rows)
        moved = {
            names[k]: (row["driver"], row["onset"])
            for row in measured
            if row["regions"] != "target"
            for k in members(row["regions"])
        }
        if tracer_of(tracer).target_class == "amyloid":
            moved = dict.fromkeys(takers, ("amyloid", "0"))
        spared = [k for k, name in enumerate(names) if moved.get(name, ("none", "0"))[0] == "none"]
        solution: dict[str, np.ndarray] = {}
        for column in ("low", "high"):
            wanted = np.array([1.0] + [float(row[column]) for row in measured])
            sd = [
                p["target_sd"] if row["regions"] == "target" else p["tightness"] * float(row[f"{column}_sd"])
                for row in measured
            ]
            sd = np.array([p["reference_sd"], *sd])
            start, stiffness = prior(tracer, column)
            stiffness[given] = p["given_stiffness"]
            if column == "high":
                # what is not part of the disease is the same in both states
                start[spared], stiffness[spared] = solution["low"][spared], p["given_stiffness"]
            t = solve(rows, wanted, sd, start, stiffness, np.minimum(floor, start - 1e-6))
            solution[column] = t / (rows[0] @ t)
            for row, got in zip(measured, rows[1:] @ solution[column], strict=True):
                report.append(
                    {
                        "tracer": tracer,
                        "state": column,
                        "name": row["name"],
                        "wanted": row[column],
                        "sd": row[f"{column}_sd"],
                        "got": round(float(got), 3),
                    }
                )
        for k, name in enumerate(names):
            driver, onset = moved.get(name, ("none", "0"))
            uptake.append(
                {
                    "tracer": tracer,
                    "region": name,
                    "low": round(float(solution["low"][k]), 4),
                    "high": round(float(solution["high"][k]), 4),
                    "driver": driver,
                    "onset": onset,
                    "source": "solved by simulation.calibrate from sim_measured.tsv and sim_prior.tsv on 21 real heads",
                }
            )
    return uptake, report


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    from bids_petsynth.training.labelling import UNSEEN

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    data = np.load(args.arrays)
    seen = np.array([name not in UNSEEN for name in data["names"].tolist()])
    made, measured = (torch.from_numpy(data[name][seen].astype(np.int64)) for name in ("classes", "measured"))
    uptake, report = calibrate(made, measured)
    with args.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(uptake[0]), delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(uptake)
    for row in report:
        print("\t".join(str(value) for value in row.values()))


if __name__ == "__main__":
    main()
