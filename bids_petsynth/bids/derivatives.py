"""Finding what a site's fMRIPrep, sMRIPrep or PETPrep already made of a T1w."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bids_petsynth.bids.naming import entities_of
from bids_petsynth.errors import UsageError

_EXTENSIONS = (".nii.gz", ".nii")


def check_derivatives(derivatives: Mapping[str, Path]) -> None:
    """``UsageError`` naming a folder that does not exist."""
    for name, folder in derivatives.items():
        if not Path(folder).is_dir():
            raise UsageError(f"The derivatives folder {folder} ({name}) does not exist: correct -d {name}=PATH.")


def reusable_files(derivatives: Mapping[str, Path], t1w: Path) -> tuple[dict[str, Path], list[str]]:
    """Preprocessed T1w and brain mask in T1w space, from the first of the datasets that has them.

    They are looked for in the T1w's session, then among the participant's session-less files, where fMRIPrep writes the
    average over sessions. The two belong to one another: the mask is the one with the preprocessed T1w's name.

    Returns
    -------
    files
        ``preproc_t1w`` and ``brain_mask``, those that are there.
    notes
        A sentence on every dataset that lacks one, and on a choice among several.
    """
    entities = entities_of(t1w)
    files: dict[str, Path] = {}
    notes: list[str] = []
    for name, root in derivatives.items():
        found, note = _preprocessed(Path(root), entities)
        if note:
            notes.append(f"{name}: {note}")
        if found is None or files:
            continue
        files["preproc_t1w"] = found
        base = found.name.split("_desc-preproc_T1w")[0]
        masks = [found.with_name(f"{base}_desc-brain_mask{extension}") for extension in _EXTENSIONS]
        if mask := next((path for path in masks if path.exists()), None):
            files["brain_mask"] = mask
        else:
            notes.append(f"{name}: {found.name} has no brain mask beside it, a new one is made.")
    return files, notes


def _preprocessed(root: Path, entities: Mapping[str, str]) -> tuple[Path | None, str]:
    """The preprocessed T1w in its own space that fits an image best, and a note."""
    subject = root / f"sub-{entities['sub']}"
    folders = [subject / "anat"]
    if "ses" in entities:
        folders.insert(0, subject / f"ses-{entities['ses']}" / "anat")
    for folder in folders:
        named = sorted(p for p in folder.glob("*_desc-preproc_T1w.nii*") if p.name.endswith(_EXTENSIONS))
        here = [path for path in named if "space" not in entities_of(path)]
        candidates = [path for path in here if path.exists()]
        if not candidates:
            if here:
                return None, f"{here[0].name} is a link to a file that is not there, the T1w is preprocessed anew."
            continue
        best = max(candidates, key=lambda p: (_agreement(p, entities), p.name))
        if other := _contradicting(best, entities):
            return best, f"{best.name} is used, though its {' and '.join(other)} is not the T1w's: check that it fits."
        if len(candidates) > 1:
            return best, f"of {len(candidates)} preprocessed T1w images {best.name} is used."
        if "ses" in entities and "ses" not in entities_of(best):
            return best, f"{best.name} belongs to no session and may be an average over several."
        return best, ""
    return None, f"no preprocessed T1w of sub-{entities['sub']} in T1w space, the T1w is preprocessed anew."


def _agreement(path: Path, entities: Mapping[str, str]) -> int:
    """Number of entities that a file shares with the image, less those that contradict it."""
    shared = entities_of(path).keys() & entities.keys() - {"suffix"}
    return len(shared) - 2 * len(_contradicting(path, entities))


def _contradicting(path: Path, entities: Mapping[str, str]) -> list[str]:
    """Entities that have another label in a file's name than in the image's."""
    own = entities_of(path)
    return sorted(key for key in own.keys() & entities.keys() - {"suffix"} if own[key] != entities[key])
