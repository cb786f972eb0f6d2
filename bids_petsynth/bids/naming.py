"""Every name that is written, in one table.

``{folder}`` is ``sub-<label>[/ses-<label>]`` and ``{label}`` is ``sub-<label>[_ses-<label>]``. Entities follow BIDS'
order: sub, ses, trc, rec, run, from, to, mode, space, res, label, desc; only the regional tables put ``desc`` before
``seg``, as PETPrep does, so that software which reads PETPrep's tables reads these too.
"""

from __future__ import annotations

import re
from pathlib import Path

from bids_petsynth.types import Case

PATTERNS: dict[str, str] = {
    # anatomy, on the T1w's own grid
    "t1w": "{folder}/anat/{label}_desc-preproc_T1w.nii.gz",
    "brain_mask": "{folder}/anat/{label}_desc-brain_mask.nii.gz",
    "dseg": "{folder}/anat/{label}_dseg.nii.gz",
    "dseg_table": "{folder}/anat/{label}_dseg.tsv",
    "probseg": "{folder}/anat/{label}_label-{tissue}_probseg.nii.gz",
    "morph": "{folder}/anat/{label}_desc-preproc_seg-petsynth_morph.tsv",
    "xfm": "{folder}/anat/{label}_from-T1w_to-{to}_mode-image_xfm.{extension}",
    # a synthetic T1w, on the model grid
    "t1w_mean": "{folder}/anat/{label}_space-{space}_res-{res}_desc-synthMean_T1w.nii.gz",
    "t1w_std": "{folder}/anat/{label}_space-{space}_res-{res}_desc-synthStd_T1w.nii.gz",
    "t1w_draw": "{folder}/anat/{label}_space-{space}_res-{res}_desc-synth{draw:02d}_T1w.nii.gz",
    # synthetic PET; space T1w is the model grid, which lies on the T1w in scanner space
    "pet_mean": "{folder}/pet/{label}_trc-{tracer}_space-{space}_res-{res}_desc-synthMean_pet.nii.gz",
    "pet_std": "{folder}/pet/{label}_trc-{tracer}_space-{space}_res-{res}_desc-synthStd_pet.nii.gz",
    "pet_draw": "{folder}/pet/{label}_trc-{tracer}_space-{space}_res-{res}_desc-synth{draw:02d}_pet.nii.gz",
    "regions": "{folder}/pet/{label}_trc-{tracer}_desc-synthMean_seg-petsynth_tacs.tsv",
    "regions_std": "{folder}/pet/{label}_trc-{tracer}_desc-synthStd_seg-petsynth_tacs.tsv",
    "suvr": "{folder}/pet/{label}_trc-{tracer}_desc-synthMean_suvr.tsv",
    "measures": "{folder}/pet/{label}_trc-{tracer}_desc-synthMean_measures.tsv",
    "sensitivity": "{folder}/pet/{label}_trc-{tracer}_desc-synthMean_sensitivity.tsv",
    "classes": "{folder}/pet/{label}_desc-synthMean_classes.tsv",
    # for people
    "report": "sub-{participant}.html",
    "figure": "sub-{participant}/figures/{label}_desc-{desc}_{suffix}.{extension}",
    "pet_figure": "sub-{participant}/figures/{label}_trc-{tracer}_desc-{desc}_pet.{extension}",
    "citation": "logs/CITATION.{extension}",
    "hash_key": "logs/hashes.key",
    "group_regions": "group_desc-synthMean_regions.tsv",
    "status": "status.tsv",
    "group_report": "group.html",
    "group_table": "group/{table}.tsv",
    "group_figure": "group/figures/{desc}.{extension}",
    "classifier": "group/classifier/classifier.json",
    "comparison": "group/work/{label}_trc-{tracer}_comparison.json",
    "comparison_maps": "group/work/{label}_trc-{tracer}_maps.npz",
    # raw data, written by the simulation only
    "raw_t1w": "{folder}/anat/{label}_rec-{rec}_T1w.nii.gz",
    "raw_pet": "{folder}/pet/{label}_trc-{tracer}_rec-{rec}_pet.nii.gz",
}

DEFAULTS: dict[str, str | int] = {"space": "T1w", "res": 2, "rec": "sim", "extension": "txt"}

_EXTENSION = re.compile(r"\.(nii\.gz|nii|tsv|json|txt|h5|svg|jpg|html)$")


def output_path(kind: str, case: Case | None = None, **entities: str | int) -> Path:
    """Path of an output relative to the output folder.

    Parameters
    ----------
    kind
        A key of ``PATTERNS``.
    case
        Whose output it is; None for files of the whole dataset.
    **entities
        What the pattern asks for: ``tracer``, ``space`` (default ``T1w``), ``res`` (default 2), ``draw`` (from 1),
        ``tissue`` (GM, WM, CSF), ``to``, ``desc``, ``suffix``, ``rec`` (default ``sim``), ``extension``.

    Raises
    ------
    ValueError
        If an entity is missing, unknown to the pattern, or holds something other than letters, digits and ``+``.
    """
    pattern = PATTERNS[kind]
    if unknown := [name for name in entities if "{" + name not in pattern]:
        raise ValueError(f"Outputs of kind {kind} take no entity {', '.join(unknown)}.")
    values = DEFAULTS | entities
    for name, value in values.items():
        if not re.fullmatch(r"[A-Za-z0-9+]+(\.gz)?", str(value)):
            raise ValueError(f"The label {value!r} of entity {name} holds more than letters and digits.")
    if case is not None:
        session = f"/ses-{case.session}" if case.session else ""
        values |= {"participant": case.participant, "label": case.label, "folder": f"sub-{case.participant}{session}"}
    try:
        return Path(pattern.format(**values))
    except KeyError as missing:
        raise ValueError(f"Outputs of kind {kind} need the entity {missing}.") from None


def sidecar_path(path: Path) -> Path:
    """The JSON beside an image or table."""
    return path.with_name(_EXTENSION.sub("", path.name) + ".json")


def stem(path: Path) -> str:
    """File name without its (double) extension."""
    return _EXTENSION.sub("", path.name)


def entities_of(path: Path) -> dict[str, str]:
    """Entities of a BIDS name by their short keys; the last part, the suffix, has the key ``suffix``."""
    *pairs, suffix = stem(path).split("_")
    return dict(pair.split("-", 1) for pair in pairs if "-" in pair) | {"suffix": suffix}


def natural_order(label: str) -> list[tuple[int, str]]:
    """Key that sorts ses-M6 before ses-M12 and AV45 before AV1451, as nireports does."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", label)]
