"""A classifier on disk: one JSON file of plain numbers with what has to be known about them.

Coefficients and trees of a table's columns are a few thousand numbers at most. As JSON they can be read, compared and
checked by eye and by any program, and reading them builds nothing but numbers and text; an archive of Python objects,
even a restricted one, would have to be trusted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bids_petsynth.bids.sink import hash_file, json_text, write_bytes
from bids_petsynth.errors import UsageError
from bids_petsynth.evaluation.classifier import KINDS, LOGISTIC, Classifier, Scaling, Tree

FILE, FORMAT, VERSION = "classifier.json", "bids_petsynth classifier", 1
CAVEATS = (
    "Research only: not a medical device, not a diagnosis, and not to be used for decisions about a person.",
    "Any PET that it is given here is synthetic: made from the T1w and clinical values, not measured.",
    "The probability holds for people like those it was trained on, at their share of each class.",
    "Its cross-validated figures are those of the best of several candidates, and so a little too good.",
)
_SCALING = ("median", "mean", "sd")
_TREE = ("left", "right", "column", "threshold", "value")
_COUNTS = ("left", "right", "column")


def save_classifier(classifier: Classifier, folder: Path) -> Path:
    """Write a classifier into a folder (made if need be); return the file."""
    content: dict[str, Any] = {
        "Format": FORMAT,
        "FormatVersion": VERSION,
        "Caveats": list(CAVEATS),
        "About": classifier.about,
        "Kind": classifier.kind,
        "Classes": list(classifier.classes),
        "Columns": [{"Source": source, "Name": name} for source, name in classifier.columns],
        "ClassShares": classifier.share,
        # a column without spread is divided by infinity, which JSON has no word for
        "Scaling": {name: getattr(classifier.scaling, name) for name in _SCALING},
        "Start": classifier.start,
    }
    if classifier.coefficients is not None:
        content["Coefficients"] = classifier.coefficients
    else:
        content["Rate"] = classifier.rate
        content["Trees"] = [[{n: getattr(tree, n) for n in _TREE} for tree in stage] for stage in classifier.trees]
    return write_bytes(Path(folder) / FILE, json_text(content).encode())


def load_classifier(folder: Path) -> Classifier:
    """Read what :func:`save_classifier` wrote.

    Raises
    ------
    UsageError
        If the folder holds no classifier, a damaged one, or one of a newer version.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise UsageError(
            f"{folder} is no classifier: it has no {FILE}; give a folder that `group --diagnosis` has written."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(
            f"{path} cannot be read as JSON: write the classifier again with `group --diagnosis`."
        ) from None
    if not isinstance(content, dict) or content.get("Format") != FORMAT:
        raise UsageError(
            f"{path} was not written by this software: give a folder that `group --diagnosis` has written."
        )
    if content.get("FormatVersion") != VERSION:
        raise UsageError(
            f"{path} has format {content.get('FormatVersion')}, which this version does not know: "
            "update the software, or write the classifier again."
        )
    try:
        return _classifier(content)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise UsageError(f"{path} is damaged: write the classifier again with `group --diagnosis`.") from None


def fingerprint(folder: Path) -> str:
    """Hash of a classifier's file."""
    return hash_file(Path(folder) / FILE)


def _classifier(content: Mapping[str, Any]) -> Classifier:
    """A classifier from its JSON; ``ValueError`` and the like if its parts do not fit together."""
    classes = tuple(str(name) for name in content["Classes"])
    columns = tuple((str(c["Source"]), str(c["Name"])) for c in content["Columns"])
    k, f, kind = len(classes), len(columns), content["Kind"]
    if kind not in KINDS or k < 2 or not isinstance(content["About"], dict):
        raise ValueError("kind, classes or description")
    spread = [math.inf if value is None else value for value in content["Scaling"]["sd"]]
    scaling = Scaling(
        *(_numbers(v, f) for v in (content["Scaling"]["median"], content["Scaling"]["mean"])), _sd(spread, f)
    )
    known = {"kind": kind, "classes": classes, "columns": columns, "scaling": scaling, "about": content["About"]}
    known |= {"share": _numbers(content["ClassShares"], k), "start": _numbers(content["Start"], k)}
    if kind == LOGISTIC:
        return Classifier(**known, coefficients=_numbers(content["Coefficients"], k, f))
    trees = tuple(tuple(_tree(tree, f) for tree in stage) for stage in content["Trees"])
    if any(len(stage) != (1 if k == 2 else k) for stage in trees):
        raise ValueError("trees")
    return Classifier(**known, trees=trees, rate=float(content["Rate"]))


def _numbers(values: Any, *shape: int) -> np.ndarray:
    found = np.array(values, float)
    if found.shape != shape or not np.isfinite(found).all():
        raise ValueError("numbers")
    return found


def _sd(values: Any, n: int) -> np.ndarray:
    found = np.array(values, float)
    if found.shape != (n,) or not (found > 0).all():
        raise ValueError("spread")
    return found


def _tree(parts: Mapping[str, Any], n_columns: int) -> Tree:
    """A tree whose every node leads to later nodes and known columns, so that walking it comes to an end."""
    size = len(parts["value"])
    arrays = {name: _numbers(parts[name], size) for name in _TREE}
    arrays |= {name: arrays[name].astype(int) for name in _COUNTS}
    inner = arrays["left"] >= 0
    ahead = np.arange(size)[inner]
    for side in ("left", "right"):
        if (arrays[side][inner] <= ahead).any() or (arrays[side][inner] >= size).any():
            raise ValueError("children")
    if (arrays["column"][inner] < 0).any() or (arrays["column"][inner] >= n_columns).any():
        raise ValueError("columns")
    return Tree(**arrays)
