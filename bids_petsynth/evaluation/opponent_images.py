"""Simple methods' images beside the synthetic PET's, voxel by voxel in template space.

Nobody's scan is learned from and predicted in one fold (``pairs.weighted_folds``). All images, the synthetic PET's too,
are compared where ``comparison.maps_of`` put them, so that the warp is the same for all. Every second voxel along each
axis is enough for a mean error and keeps a cohort in memory: some 60 kB per person.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.evaluation.comparison import maps_brain, maps_grid, maps_volume
from bids_petsynth.evaluation.groups import numbers
from bids_petsynth.evaluation.pairs import MODEL, Fold
from bids_petsynth.evaluation.statistics import bootstrap
from bids_petsynth.evaluation.surface import smoothed_within

#: Name of the opponent that is painted, and whose regional values it paints.
PAINTED, PAINTED_FROM = "painted regions", "ridge with volumes"
#: What each method's image is, for the reader.
IMAGES = {
    "population mean": "mean scan of the other people, in template space",
    "blood-matched mean": "mean scan of the people with the nearest record",
    "ridge": "ridge regression of every voxel on the record",
    PAINTED: "regional SUVR by ridge on record and volumes, painted on the person's own labels and blurred",
}


def kept_voxels() -> np.ndarray:
    """``(V,)`` bool: of the voxels of ``maps_brain`` those with even indices along all axes."""
    return np.all([index % 2 == 0 for index in np.nonzero(maps_brain())], axis=0)


def image_errors(
    read: Sequence[Callable[[], Mapping[str, np.ndarray]]],
    dealt: Sequence[Fold],
    regional: pd.DataFrame,
) -> dict[str, np.ndarray]:
    """Errors of every method's image for every person.

    Parameters
    ----------
    read
        For each of N people a function that reads what ``comparison.maps_of`` made; people are read one at a time.
    dealt
        Folds over these people.
    regional
        ``(N, R)`` regional SUVR to paint, columns named as regions.

    Returns
    -------
    Method → ``(N, 2)`` mean absolute and mean squared error over the person's labelled brain; NaN where there are no
    maps.
    """
    kept, codes = kept_voxels(), {name: code for code, name, _, _ in lookup()}
    people, size = len(read), int(kept.sum())
    truth, judged = np.full((people, size), np.nan, np.float16), np.zeros((people, size), bool)
    out = {name: np.full((people, 2), np.nan) for name in (MODEL, *IMAGES)}
    painted = regional[[name for name in regional if name in codes]]
    table = np.zeros((people, 256), np.float32)
    table[:, [codes[name] for name in painted]] = painted.to_numpy(float)
    known = np.zeros(256, bool)
    known[[codes[name] for name in painted]] = True
    for i, one in enumerate(read):
        maps = one()
        if "labels" not in maps:
            continue
        labels = np.nan_to_num(maps["labels"]).astype(np.uint8)
        truth[i] = maps["uptake"][kept]
        judged[i] = (known[labels] & np.isfinite(maps["uptake"]))[kept]
        out[MODEL][i] = _errors(maps["difference"][kept], judged[i])
        painting = _painted(labels, table[i], known)[kept]
        out[PAINTED][i] = _errors(painting - truth[i], judged[i])
    have = judged.any(1)
    for fold in dealt:
        learned, mine = have[fold.learned], fold.judged[have[fold.judged]]
        rest = truth[fold.learned[learned]].astype(np.float32)
        if not len(rest) or not len(mine):
            continue
        seen = np.isfinite(rest)
        mean = np.where(seen, rest, 0).sum(0) / np.maximum(seen.sum(0), 1)
        rest = np.where(seen, rest, mean)
        for name, weights in fold.weights.items():
            some = weights[have[fold.judged]][:, learned].astype(np.float32)
            # people without maps are missing: the weights of the others still sum to what they did
            images = some @ rest + (weights[have[fold.judged]].sum(1) - some.sum(1))[:, None].astype(np.float32) * mean
            for i, image in zip(mine, images, strict=True):
                out[name][i] = _errors(image - truth[i], judged[i])
    return {name: errors for name, errors in out.items() if np.isfinite(errors).any()}


def image_table(tracer: str, errors: Mapping[str, np.ndarray], width: float, clusters: np.ndarray) -> pd.DataFrame:
    """One row per method: errors over people with intervals, and how often the synthetic PET is nearer.

    ``width`` is that of the tracer's window, the peak of the PSNR; ``clusters (N,)`` the independent unit.
    """
    rows = []
    least, n = numbers()["least_clusters"], int(numbers()["resamples"])
    for name, found in errors.items():
        there = np.isfinite(found[:, 0])
        mae, mse = found[there].T
        figures = {"mae_template": mae, "mse_template": mse}
        figures["psnr_template"] = 10 * np.log10(width**2 / np.maximum(mse, 1e-12))
        row: dict[str, object] = {
            "tracer": tracer,
            "method": name,
            "what": IMAGES.get(name, "the synthetic PET of this folder"),
            "n": int(there.sum()),
        }
        for figure, values in figures.items():
            row[figure] = float(values.mean())
            if len(np.unique(clusters[there])) >= least:
                found_ = bootstrap(lambda i, values=values: values[i].mean(), clusters[there], n)
                row |= {f"{figure}_low": float(found_.low), f"{figure}_high": float(found_.high)}
        both = there & np.isfinite(errors[MODEL][:, 0])
        nearer = errors[MODEL][both, 0] < found[both, 0]
        row["synthetic_nearer"] = float(nearer.mean()) if name != MODEL and both.any() else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _errors(difference: np.ndarray, judged: np.ndarray) -> tuple[float, float]:
    some = difference[judged].astype(float)
    return float(np.abs(some).mean()), float(np.square(some).mean())


def _painted(labels: np.ndarray, values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """``(V,)`` values of each voxel's region, blurred within the brain by ``paint_fwhm`` of ``data/group.tsv``."""
    inside = np.zeros(maps_brain().shape, bool)
    inside[maps_brain()] = known[labels]
    volume = smoothed_within(maps_volume(values[labels]), inside, maps_grid().affine, numbers()["paint_fwhm"])
    return volume[maps_brain()]
