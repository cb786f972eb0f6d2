"""Files of datasets with PET, for tests."""

from __future__ import annotations

import json
from pathlib import Path


def write(path: Path, content: str | dict = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def add(root: Path, name: str, sidecar: dict | None = None, text: str = "x") -> Path:
    """A PET image named ``name`` in the folder of its participant and session."""
    folder = root.joinpath(*[part for part in name.split("_") if part.startswith(("sub-", "ses-"))], "pet")
    if sidecar is not None:
        write(folder / f"{name}.json", sidecar)
    return write(folder / f"{name}.nii.gz", text)


def dataset(folder: Path) -> Path:
    """A dataset with a participant without PET; tests add the scans that they are about."""
    write(folder / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.10.0"})
    write(folder / "sub-00/anat/sub-00_T1w.nii.gz")
    return folder
