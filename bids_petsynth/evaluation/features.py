"""Columns of people for classifiers, made alike from a cohort's tables and from one participant's files.

Every column's name says what it is, so that a classifier finds it again: ``<region>`` and ``share of <region>`` from
the T1w, ``<variable>`` and ``log <variable>`` from the blood, ``<tracer> <region>`` from PET.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from bids_petsynth.clinical.variables import variables
from bids_petsynth.evaluation.study import BLOOD, SYNTHETIC, T1W


def volume_features(volumes: pd.DataFrame) -> pd.DataFrame:
    """Shares of the regions' whole volume, so that head size is left out, from their volumes in mm³."""
    return volumes.div(volumes.sum(axis=1).replace(0, np.nan), axis=0).add_prefix("share of ")


def clinical_features(records: pd.DataFrame, kinds: Collection[str] = ("plasma",)) -> pd.DataFrame:
    """Variables of some kinds (``data/variables.tsv``), those that are spread by factors as logarithms.

    ``records`` has columns of canonical names in canonical units.
    """
    known, out = variables(), {}
    for name in records:
        if name in known and known[name].kind in kinds:
            values = records[name].astype(float)
            log = known[name].transform == "log"
            out["log " + name if log else name] = np.log(values.where(values > 0)) if log else values
    return pd.DataFrame(out, index=records.index)


def pet_features(suvr: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Regional SUVR by tracer, as ``*_suvr.tsv`` names regions and composites."""
    return pd.concat([frame.add_prefix(f"{tracer} ") for tracer, frame in suvr.items()], axis=1)


def sources(volumes: pd.DataFrame, records: pd.DataFrame, suvr: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The features of T1w, blood and synthetic PET of people (rows, by one index): see the functions above."""
    return {T1W: volume_features(volumes), BLOOD: clinical_features(records), SYNTHETIC: pet_features(suvr)}
