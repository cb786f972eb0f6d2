"""A small three-dimensional network that tells classes of people apart by their whole scans.

Where features are regions, somebody has chosen them; here the network looks for itself. It is small, takes scans at a
few millimetres, and has no options to choose, so that cross-validation needs no inner folds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from bids_petsynth.evaluation.classifier import rebalanced, shares
from bids_petsynth.evaluation.decisions import better_than_chance, compare, intervals, performance_rows
from bids_petsynth.evaluation.folds import Fold
from bids_petsynth.evaluation.study import Study

#: Voxels along the longest axis that scans are averaged down to, at most.
LONGEST = 32
#: Name of the classifier in tables.
NETWORK = "3D network"


def diagnose_volumes(
    study: Study,
    scans: Mapping[str, Callable[[Hashable], np.ndarray]],
    *,
    epochs: int = 40,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Tables as of ``diagnosis.diagnose``, by whole scans in the place of columns.

    Parameters
    ----------
    study
        People with classes and folds (``study.admit``, then ``Study.planned``); one seed is enough for a first look.
    scans
        Kind of scan → a function that reads a person's (an entry of the study's index) as ``(X, Y, Z)``, all on one
        grid. Scans are read one at a time and kept averaged down.
    epochs
        Passes over the training people.

    Returns
    -------
    ``performance``, ``performance_by_class`` and, of two kinds or more, ``comparison``.
    """
    index = next(iter(study.sources.values())).index
    said = []
    for read in scans.values():
        small = np.stack([averaged(read(person)) for person in index])
        runs = [out_of_fold(small, study.y, plan, epochs, seed + s) for s, plan in enumerate(study.plans)]
        said.append(np.mean(runs, axis=0))
    every = np.array(said)
    names = [{"features": f"whole {name}", "classifier": NETWORK} for name in scans]
    found = intervals(every, study.y, study.clusters, n_bootstrap, seed)
    rows, areas = performance_rows(names, found, study.y, study.clusters, study.classes)
    chance = better_than_chance(every, study.y, study.clusters, len(study.plans[0]))
    by_class = pd.DataFrame(areas).assign(p_chance=chance.ravel())
    tables = {"performance": pd.DataFrame(rows), "performance_by_class": by_class}
    titles = [name["features"] for name in names]
    differ = compare(titles, every, study.y, study.clusters, study.classes, len(study.plans[0]))
    if differ:
        tables["comparison"] = pd.DataFrame([{"classifier": NETWORK, **row} for row in differ])
    return tables


def averaged(scan: np.ndarray) -> np.ndarray:
    """A scan ``(X, Y, Z)`` as float16 means of whole cubes of voxels, the remainder at the far sides cut off.

    What is not finite counts as 0.
    """
    factor = -(-max(scan.shape) // LONGEST)
    size = [n // factor for n in scan.shape]
    cut = np.nan_to_num(scan[tuple(slice(n * factor) for n in size)], posinf=0, neginf=0)
    cubes = cut.reshape(size[0], factor, size[1], factor, size[2], factor)
    return cubes.mean((1, 3, 5), dtype=np.float32).astype(np.float16)


def out_of_fold(scans: np.ndarray, y: np.ndarray, folds: Sequence[Fold], epochs: int, seed: int) -> np.ndarray:
    """``(N, K)`` probabilities of everybody by networks that did not see them, as if classes were equally common.

    ``scans (N, X, Y, Z)``, ``y (N,)`` codes of K classes.
    """
    k = int(y.max()) + 1
    out = np.full((len(y), k), np.nan)
    for fold in folds:
        found = _trained(scans[fold.train], y[fold.train], scans[fold.test], k, epochs, seed)
        out[fold.test] = rebalanced(found, shares(y[fold.train], k))
    return out


def _network(n_classes: int):
    """Three convolutions that halve the grid each, then the mean over the grid: some 18,000 numbers."""
    from torch import nn

    widths, layers = (1, 8, 16, 32), []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv3d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, n_classes))


def _trained(
    x: np.ndarray, y: np.ndarray, held: np.ndarray, n_classes: int, epochs: int, seed: int, batch: int = 16
) -> np.ndarray:
    """``(M, K)`` probabilities of the held-out scans, by a network trained on the others."""
    import torch
    from torch.nn import functional

    # voxels are standardised by the training people's mean and spread over people and grid
    mean, sd = x.mean(0, dtype=np.float32), float(x.astype(np.float32).std()) + 1e-6

    def prepared(scans: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((scans.astype(np.float32) - mean) / sd)[:, None]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, target = _network(n_classes), torch.from_numpy(y)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
        steps = epochs * -(-len(y) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        network.train()
        for _ in range(epochs):
            for some in torch.randperm(len(y)).split(batch):
                loss = functional.cross_entropy(network(prepared(x[some.numpy()])), target[some])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        network.eval()
        with torch.inference_mode():
            parts = [network(prepared(held[i : i + batch])).softmax(1) for i in range(0, len(held), batch)]
        return torch.cat(parts).double().numpy()
