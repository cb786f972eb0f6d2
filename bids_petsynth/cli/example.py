"""``bids-petsynth-example DIR``: a tiny BIDS dataset of two phantom heads, one amyloid-negative and one -positive."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bids_petsynth.errors import PetsynthError, UsageError
from bids_petsynth.tables import read_table

DATASET_NAME = "Simulated phantom heads (bids-petsynth example)"
PROFILES = ("negative", "positive")

README = """\
# Simulated phantom heads

Two digital phantom heads for trying bids-petsynth. **Everything here is simulated: no scan and no value belongs to
a person.** The brains are smooth deformations of the MNI ICBM 152 template, each another one; skull, scalp, face
and neck are invented. `sub-negative` carries the clinical and plasma values of a typical amyloid-negative person,
`sub-positive` those of a typical amyloid-positive one (`participants.tsv`, explained in `participants.json`). The
T1w scans know nothing of the profile.

    bids-petsynth THIS_FOLDER OUTPUT_FOLDER participant --tracer AV45

The notice of the ICBM 152 template, from which the T1w scans derive:

> Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill
> University. Permission to use, copy, modify, and distribute this software and its documentation for any purpose and
> without fee is hereby granted, provided that the above copyright notice appear in all copies. The authors and McGill
> University make no representations about the suitability of this software for any purpose. It is provided "as is"
> without express or implied warranty.
"""


def write_example(folder: Path, seed: int = 0) -> list[Path]:
    """Write the example dataset; the same seed writes the same bytes.

    Parameters
    ----------
    folder
        Made if absent; must be empty or hold this example already.
    seed
        Another seed makes other heads.

    Returns
    -------
    The T1w images.

    Raises
    ------
    UsageError
        If the folder holds something else or cannot be written.
    """
    from bids_petsynth.bids.sink import Sink
    from bids_petsynth.simulation.phantom import phantom_head

    folder = Path(folder)
    _check_folder(folder)
    sink = Sink(folder)
    # First of all, so that a run that was stopped is known as an example and can be run again.
    sink.save_json(Path("dataset_description.json"), _description(seed))
    sink.save_text(Path("README.md"), README)
    sink.save_tsv(Path("participants.tsv"), _participants(), sidecar=_columns())
    images = []
    for number, profile in enumerate(PROFILES):
        t1w, affine = phantom_head((seed, number))
        name = Path(f"sub-{profile}", "anat", f"sub-{profile}_rec-sim_T1w.nii.gz")
        sidecar = {"Description": "Simulated T1w of a digital phantom head, not of a person"}
        images.append(sink.save_image(name, t1w, affine, sidecar))
    return images


def _description(seed: int) -> dict[str, object]:
    """``dataset_description.json``."""
    return {
        "Name": DATASET_NAME,
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "License": "See README: derived from the ICBM 152 template, whose notice stands there",
        "Authors": ["bids-petsynth (simulated data)"],
        "GeneratedBy": [
            {
                "Name": "bids-petsynth-example",
                "Description": f"Simulated phantom heads and clinical values, seed {seed}",
            }
        ],
    }


def _check_folder(folder: Path) -> None:
    """Refuse a folder with anything in it but an example."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the example dataset.")
    try:
        if not folder.exists() or not any(folder.iterdir()):
            return
        name = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8"))["Name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    if name != DATASET_NAME:
        raise UsageError(f"{folder} is not empty and holds no such example; name a new or an empty folder.")


def _participants() -> list[dict[str, str]]:
    """Rows of ``participants.tsv``, one per profile of ``data/example.tsv``."""
    table = read_table("example.tsv")
    return [
        {"participant_id": f"sub-{profile}", **{row["column"]: row[profile] for row in table}} for profile in PROFILES
    ]


def _columns() -> dict[str, dict[str, object]]:
    """``participants.json``: what each column means, its unit, assay and levels."""
    columns: dict[str, dict[str, object]] = {}
    for row in read_table("example.tsv"):
        column: dict[str, object] = {"Description": f"{row['description']}. Source of the values: {row['source']}."}
        if row["units"]:
            column["Units"] = row["units"]
        if row["assay"]:
            column["Assay"] = row["assay"]
        if row["levels"]:
            column["Levels"] = dict(level.split("=") for level in row["levels"].split(";"))
        columns[row["column"]] = column
    return columns


def main(argv: Sequence[str] | None = None) -> int:
    """Console script ``bids-petsynth-example``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="bids-petsynth-example",
        description="Write a tiny BIDS dataset of two simulated phantom heads with simulated clinical values.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="new or empty folder for the dataset")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other heads (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.seed < 0:
        parser.error("--seed must be 0 or more")
    try:
        images = write_example(arguments.folder, arguments.seed)
    except PetsynthError as error:
        print(f"bids-petsynth-example: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {len(images)} simulated phantom heads to {arguments.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
