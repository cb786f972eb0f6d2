"""Whether synthetic scans of people who have no real one help to train a classifier of real scans.

The experiment of MRI2PET (its tables 2 and 3): pairs of T1w and real PET, alone and together with synthetic PET of
people who have a T1w only, always judged on held-out people with real scans.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bids_petsynth.evaluation.classifier import LOGISTIC, rebalanced, shares
from bids_petsynth.evaluation.decisions import FIGURES, figures, intervals, performance_rows
from bids_petsynth.evaluation.folds import Table, predict, splits
from bids_petsynth.evaluation.study import REAL, SYNTHETIC, T1W, admit, numbers

#: What a classifier is trained on, in the order of the table.
REAL_T1W, ALL_T1W, REAL_PET, SYNTHETIC_PET = "T1w of pairs", "T1w of all", "real PET", "synthetic PET of pairs"
PAIRED, AUGMENTED = "pairs", "pairs and synthetic PET of the others"


def augment(
    t1w: pd.DataFrame,
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    label: pd.Series,
    clusters: pd.Series,
    *,
    seeds: int = 25,
    folds: int = 5,
    kind: str = LOGISTIC,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, list[str]]:
    """Classifiers trained on real pairs with and without synthetic scans of people without real PET.

    Parameters
    ----------
    t1w, real, synthetic
        Features of each, one row per person; ``real`` and ``synthetic`` share columns. People with a class and rows in
        all three are the pairs, those without a row in ``real`` the others.
    label, clusters, folds, kind
        As in ``diagnosis.diagnose``.
    seeds
        Repetitions of the cross-validation (25 in the paper).

    Returns
    -------
    table
        Per training set: people that a fold is trained on, figures with 95 % intervals over judged people, and
        ``<figure>_sd`` over the repetitions.
    sentences
        Why nothing could be done, or who was left out; the table is then empty.

    Notes
    -----
    Whoever shares an independent unit with a held-out person is not trained on, real or synthetic.
    """
    shared = [name for name in real if name in synthetic]
    study, _, sentences = admit({T1W: t1w, REAL: real[shared], SYNTHETIC: synthetic[shared]}, label, clusters)
    if study is None:
        return pd.DataFrame(), sentences
    # people without real PET are what this is about, not a shortcoming
    sentences = [sentence for sentence in sentences if f"no value of {REAL}:" not in sentence]
    index = study.sources[T1W].index
    classes = {name: code for code, name in enumerate(study.classes)}
    others = label[~label.index.duplicated()].dropna().drop(index, errors="ignore").astype(str)
    others = others[others.isin(classes) & others.index.isin(synthetic.index) & others.index.isin(t1w.index)]
    # who has real PET but was not admitted is no person without a scan
    others = others[~others.index.isin(real.dropna(how="all").index)]
    if others.empty:
        sentences.append("Nobody has a class and synthetic PET but no real PET: there is nothing to add to the pairs.")
        return pd.DataFrame(), sentences
    names = [name for name in shared if name in study.sources[REAL] and name in study.sources[SYNTHETIC]]
    mri = list(study.sources[T1W])
    pair = {source: frame[mri if source == T1W else names].to_numpy(float) for source, frame in study.sources.items()}
    more = {
        source: numbers(source, frame.loc[~frame.index.duplicated()].reindex(others.index), [], keep=columns)
        for source, frame, columns in ((T1W, t1w, mri), (SYNTHETIC, synthetic, names))
    }
    more = {source: frame.to_numpy(float) for source, frame in more.items()}
    y, y_more = study.y, others.map(classes).to_numpy(int)
    units = clusters[~clusters.index.duplicated()].astype(str)
    unit, unit_more = units.reindex(index).to_numpy(), units.reindex(others.index).to_numpy()
    both = np.hstack([pair[T1W], pair[REAL]])
    # training features, what is added to them, judged features
    ways = {
        REAL_T1W: (pair[T1W], None, pair[T1W]),
        ALL_T1W: (pair[T1W], more[T1W], pair[T1W]),
        REAL_PET: (pair[REAL], None, pair[REAL]),
        SYNTHETIC_PET: (pair[SYNTHETIC], None, pair[REAL]),
        PAIRED: (both, None, both),
        AUGMENTED: (both, np.hstack([more[T1W], more[SYNTHETIC]]), both),
    }
    said = np.zeros((len(ways), seeds, len(y), len(classes)))
    trained = np.zeros(len(ways))
    for s in range(seeds):
        plan = splits(y, study.clusters, folds, seed + s)
        for train, test in plan:
            free = ~np.isin(unit_more, unit[test])
            for w, (x, extra, judged) in enumerate(ways.values()):
                x_train, y_train, u_train = x[train], y[train], unit[train]
                if extra is not None:
                    x_train = np.vstack([x_train, extra[free]])
                    y_train, u_train = np.r_[y_train, y_more[free]], np.r_[u_train, unit_more[free]]
                found = predict(Table(x_train), y_train, u_train, judged[test], kind, seed + s, len(classes))
                said[w, s, test] = rebalanced(found, shares(y_train, len(classes)))
                trained[w] += len(y_train) / seeds / len(plan)
    mean = said.mean(1)
    rows, _ = performance_rows(
        [
            {"trained_on": name, "classifier": kind, "trained_people": round(n)}
            for name, n in zip(ways, trained, strict=True)
        ],
        intervals(mean, y, study.clusters, n_bootstrap, seed),
        y,
        study.clusters,
        study.classes,
    )
    for row, one in zip(rows, said, strict=True):
        spread = figures(one, y).std(0, ddof=1 if seeds > 1 else 0)
        row |= {f"{figure}_sd": float(spread[f]) for f, figure in enumerate(FIGURES)}
    return pd.DataFrame(rows), sentences
