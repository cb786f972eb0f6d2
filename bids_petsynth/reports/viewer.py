"""The volumes of the interactive viewer, small enough to be carried inside the page."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.reports.content import Pet, Scan
from bids_petsynth.reports.figures import Upright, display_of, sample, upright
from bids_petsynth.tables import data_path

#: Voxel sizes in mm of the T1w and its labels that are tried until all scans fit.
SPACINGS = (1.5, 2.0, 3.0)
#: Grey levels of the T1w: more cannot be told apart on a screen and cost a third more bytes.
_LEVELS = 63
#: Step of the stored PET in SUVR, far below its uncertainty.
_STEP = 0.03


def bundle() -> str:
    """NiiVue, compressed, in base64."""
    return _text(data_path("reports", "niivue.umd.js").read_bytes())


def payload(scans: Sequence[Scan], room: int) -> tuple[list[dict[str, Any]], str]:
    """What the viewer shows of each scan, and a sentence if something had to be left out.

    Parameters
    ----------
    scans
        All of the participant.
    room
        Bytes that the volumes may take in the page.

    Returns
    -------
    scans
        Per scan ``title``, ``t1w`` and ``labels`` (NIfTI in gzip in base64, uint8), ``names`` of the labels, and
        ``pets``: ``tracer``, ``image``, window (``low``, ``high``) in SUVR and ``colours``.
    note
        Empty if all scans are there.
    """
    ready = [scan for scan in scans if scan.t1w is not None]
    shown: list[dict[str, Any]] = []
    pets = [[_pet(scan, pet) for pet in scan.pets] for scan in ready]
    for spacing in SPACINGS:
        shown = [{**_anatomy(scan, spacing), "pets": images} for scan, images in zip(ready, pets, strict=True)]
        if _size(shown) <= room:
            return shown, ""
    while shown and _size(shown) > room:
        shown.pop()
    return shown, f"The viewer holds {len(shown)} of {len(ready)} sessions; open the files of the others."


def _anatomy(scan: Scan, spacing: float) -> dict[str, Any]:
    scene = _trimmed(upright(scan, spacing))
    grey = np.round(scene.t1w * _LEVELS).astype(np.uint8)
    return {
        "title": scan.title or scan.case.label,
        "t1w": _nifti(grey, scene.affine, 1 / _LEVELS),
        # NiiVue's tables of labels have one row per code up to the largest: consecutive codes keep them small
        "labels": _nifti(_consecutive(scene.labels), scene.affine, intent="label"),
        "names": [name for _, name, _, _ in lookup()],
    }


def _trimmed(scene: Upright) -> Upright:
    """Noise of the air set to 0 beyond the head: it cannot be compressed."""
    from scipy.ndimage import binary_closing, binary_fill_holes, label

    head, count = label(scene.t1w > 0.1)
    if count:
        largest = head == 1 + int(np.argmax(np.bincount(head.ravel())[1:]))
        head = binary_fill_holes(binary_closing(largest, iterations=3)) | (scene.labels > 0)
    return Upright(np.where(head, scene.t1w, 0), scene.labels, scene.affine)


def _consecutive(labels: np.ndarray) -> np.ndarray:
    codes = np.zeros(256, np.uint8)
    for place, (code, *_) in enumerate(lookup(), 1):
        codes[code] = place
    return codes[labels]


def _pet(scan: Scan, pet: Pet) -> dict[str, Any]:
    """The PET of the brain and a voxel beside it: the noise of the air cannot be compressed."""
    from scipy.ndimage import binary_dilation

    image = nib.load(pet.mean)
    low, high = pet.tracer.display
    near = binary_dilation(sample(scan.dseg, image.affine, image.shape, 0) > 0)
    data = np.clip(np.round(np.asanyarray(image.dataobj) * near / _STEP), 0, 255).astype(np.uint8)
    return {
        "tracer": pet.tracer.name,
        "image": _nifti(data, image.affine, _STEP),
        "low": low,
        "high": high,
        "colours": display_of(pet.tracer).viewer,
    }


def _nifti(data: np.ndarray, affine: np.ndarray, slope: float = 1.0, intent: str = "none") -> str:
    """A volume of stored values as NIfTI in gzip in base64; NiiVue draws one of the intent ``label`` as labels."""
    header = nib.Nifti1Image(data, affine).header
    header.set_intent(intent)
    header.set_xyzt_units("mm")
    # nibabel would scale the values anew; those given are the stored ones
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, 0, 352
    return _text(header.binaryblock + bytes(4) + data.tobytes(order="F"))


def _text(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def _size(shown: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(s["t1w"]) + len(s["labels"]) + sum(len(pet["image"]) for pet in s["pets"]) for s in shown)
