"""Writes the Boutiques descriptor of ``participant`` from its parser.

    python boutiques/generate.py boutiques/participant.json

``tests/test_release.py`` compares the file with what this makes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bids_petsynth import __version__
from bids_petsynth.cli.participant import parser

#: Paths that a run makes; every other path must exist when it starts.
WRITTEN = ("output_dir", "write_mapping", "work_dir")
#: Defaults that depend on the machine: none is stated.
OF_THE_MACHINE = ("nprocs",)


def descriptor() -> dict[str, Any]:
    """The descriptor, schema 0.5."""
    made = parser()
    actions = [a for a in made._actions if a.dest not in ("help", "level")]
    inputs = [described(action) for action in actions]
    keys = [one["value-key"] for one in inputs]
    return {
        "name": "bids-petsynth participant",
        "tool-version": __version__,
        "author": "The bids_petsynth developers",
        "description": made.description,
        "schema-version": "0.5",
        "command-line": " ".join(["bids-petsynth", *keys[:2], "participant", *keys[2:]]),
        "inputs": inputs,
        "output-files": [
            {
                "id": "output_dataset",
                "name": "OUTPUT_DIR",
                "description": "BIDS derivatives dataset with a report per participant",
                "path-template": "[OUTPUT_DIR]",
            },
            {
                "id": "output_mapping",
                "name": "mapping file",
                "description": "What --write-mapping wrote",
                "path-template": "[WRITE_MAPPING]",
                "optional": True,
            },
        ],
        "error-codes": [
            {"code": 1, "description": "a participant failed; status.tsv tells why"},
            {"code": 2, "description": "wrong arguments, or an unusable dataset, folder, device or model"},
            {"code": 130, "description": "interrupted; the same command goes on"},
        ],
        "suggested-resources": {"cpu-cores": 2, "ram": 4, "walltime-estimate": 120},
        "tags": {"domain": ["neuroinformatics", "bids", "pet", "mri"], "purpose": ["research only"]},
    }


def described(action: argparse.Action) -> dict[str, Any]:
    """One argument of the parser as an input."""
    flag = next((name for name in action.option_strings if name.startswith("--")), None)
    switch = isinstance(action, (argparse._StoreTrueAction, argparse._CountAction))
    of_machine = action.dest in OF_THE_MACHINE
    number = action.type is not None and action.type is not Path and action.metavar in ("N", "DAYS", "SEC")
    out: dict[str, Any] = {
        "id": action.dest,
        "name": flag or action.metavar,
        "description": (action.help or "") % {"default": "those of the machine" if of_machine else action.default},
        "type": "Flag" if switch else "Number" if number else "String",
        "value-key": f"[{action.dest.upper()}]",
        "optional": flag is not None,
    }
    if action.type is Path and action.dest not in WRITTEN:
        out["type"] = "File"
    if flag:
        out["command-line-flag"] = flag
    if number:
        out |= {"integer": True, "minimum": 0 if action.dest == "random_seed" else 1}
    if action.nargs == "+":
        out |= {"list": True, "min-list-entries": 1}
    if not switch and action.default not in (None, []) and not of_machine:
        out["default-value"] = action.default
    return out


def text() -> str:
    """The descriptor as the file holds it."""
    return json.dumps(descriptor(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
