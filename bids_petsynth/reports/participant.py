"""The participant's report: parts made from the written files, put together by nireports into one HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_petsynth.anatomy.quality import checks
from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.sink import write_bytes
from bids_petsynth.clinical.variables import ALL_BLOOD, variables
from bids_petsynth.errors import ModelError
from bids_petsynth.models.folder import training_ranges
from bids_petsynth.pet.tracers import default_cutoff
from bids_petsynth.reports import bars, figures, surface, viewer
from bids_petsynth.reports.boilerplate import methods
from bids_petsynth.reports.canvas import Figure
from bids_petsynth.reports.content import (
    Pet,
    Row,
    Scan,
    change_text,
    number,
    percent_text,
    read_participant,
    target_label,
    variable_label,
)
from bids_petsynth.reports.pages import render
from bids_petsynth.tables import data_path
from bids_petsynth.types import Case

_TYPES = {"jpg": "image/jpeg", "svg": "image/svg+xml"}
#: Bytes that a report may have, and those kept for the page around its pictures and volumes.
LIMIT, _REST = 6_000_000, 150_000
_TITLE = "Synthetic PET of sub-{}"


def report_path(participant: str) -> Path:
    """Where a participant's report lies in the output folder."""
    return output_path("report", Case(participant, None, None))


def write_report(out_dir: Path, participant: str, model: Path) -> Path:
    """Write ``sub-<label>.html`` and its figures from what stands in the output folder.

    Parameters
    ----------
    out_dir
        The output folder.
    participant
        Label without ``sub-``.
    model
        Model folder, for the ranges of the people that it was trained on.

    Returns
    -------
    Path of the report. Where another process writes outputs of the same participant meanwhile, the report is made
    again until it shows them.
    """
    target = out_dir / report_path(participant)
    while True:
        before = _state(out_dir, participant)
        write_bytes(target, _page(out_dir, participant, model).encode())
        if _state(out_dir, participant) == before:
            return target


def try_report(out_dir: Path, participant: str, model: Path) -> str:
    """Write the report; return a sentence if that fails, for a report must not make its participant fail."""
    crash = out_dir / "logs" / f"sub-{participant}_report_crash.txt"
    try:
        write_report(out_dir, participant, model)
    except Exception as error:
        crash.parent.mkdir(parents=True, exist_ok=True)
        crash.write_text(traceback.format_exc())
        return (
            f"sub-{participant}: the results are written but the report could not be made "
            f"({type(error).__name__}); please report logs/{crash.name}, then run with --reports-only."
        )
    crash.unlink(missing_ok=True)
    return ""


def _state(out_dir: Path, participant: str) -> str:
    """Hash of the participant's sidecars, tables and status: what the report depends on."""
    files = [*out_dir.glob(f"logs/status/sub-{participant}[._]*")]
    files += [p for p in (out_dir / f"sub-{participant}").rglob("*") if p.suffix in (".json", ".tsv")]
    digest = hashlib.sha256()
    for path in sorted(files):
        try:
            digest.update(str(path).encode() + path.read_bytes())
        except FileNotFoundError:  # just replaced: the next look sees it
            digest.update(b"?")
    return digest.hexdigest()


def _page(out_dir: Path, participant: str, model: Path) -> str:
    """The whole HTML."""
    from nireports.assembler.report import Report

    scans = read_participant(out_dir, participant)
    with tempfile.TemporaryDirectory(prefix="petsynth_report_") as folder:
        parts = Path(folder) / f"sub-{participant}" / "figures"
        parts.mkdir(parents=True)
        for name, text in _parts(out_dir, participant, scans, model).items():
            # plain ASCII, as nireports reads in the locale's encoding
            (parts / name).write_bytes(text.encode("ascii", "xmlcharrefreplace"))
        report = Report(
            folder,
            None,
            bootstrap_file=data_path("reports", "spec.yml"),
            out_filename="page.html",
            plugins=[],
            subject=participant,
        )
        report.title = _TITLE.format(participant)
        report.template_path = data_path("reports", "page.html")
        style, script = _asset("style.css"), _asset("viewer.js")
        allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        report.header, report.footer = [style, allowed], [script]
        report.generate_report()
        return report.out_filename.read_text(encoding="utf-8")


def _asset(name: str) -> str:
    return data_path("reports", name).read_text(encoding="utf-8")


def _parts(out_dir: Path, participant: str, scans: list[Scan], model: Path) -> dict[str, str]:
    """Parts of the page by the BIDS-like names under which nireports finds them."""
    text = methods(scans)

    def keep(case: Case, figure: Figure | None, tracer: str = "") -> dict[str, str] | None:
        """Write a figure beside the report and return it as the page takes it."""
        if figure is None:
            return None
        entities = {"desc": figure.desc, "extension": figure.extension}
        entities |= {"tracer": tracer} if tracer else {"suffix": "T1w"}
        path = output_path("pet_figure" if tracer else "figure", case, **entities)
        write_bytes(out_dir / path, figure.content)
        data = base64.b64encode(figure.content).decode()
        source = f"data:{_TYPES[figure.extension]};base64,{data}"
        return {"source": source, "alt": figure.alt, "caption": figure.caption, "file": path.as_posix()}

    sub = f"sub-{participant}"
    parts: dict[str, str] = {}
    gauges: dict[tuple[str, str], dict[str, str] | None] = {}
    for scan in scans:
        label = scan.case.label
        if scan.t1w is not None:
            scene = figures.upright(scan)
            parts[f"{label}_desc-anatomy_T1w.html"] = render(
                "part_anatomy.html",
                scan=scan,
                figure=keep(scan.case, figures.contours(scene)),
                drawn=keep(scan.case, figures.drawn_t1w(scene, scan.drawn_t1w)) if scan.drawn_t1w else None,
                quality=_quality(scan),
            )
        for pet in scan.pets:
            name = pet.tracer.name
            ranges = _ranges(pet, model)
            made = (
                figures.planes(scene, pet),
                figures.mosaic(scene, pet),
                figures.uncertainty(scene, pet),
                bars.regional(pet, ranges),
                surface.participant_figure(scan, pet, model),
            )
            gauges[label, name] = keep(scan.case, bars.centiloid(pet), name)
            parts[f"{label}_trc-{name}_desc-synthesis_pet.html"] = render(
                "part_pet.html",
                scan=scan,
                pet=pet,
                figures=[keep(scan.case, figure, name) for figure in made if figure],
            )
        if scan.pets:
            if scan.classifier:
                parts[f"{label}_desc-classifier_T1w.html"] = render(
                    "part_classifier.html", scan=scan, percent_text=percent_text
                )
            moved = [keep(scan.case, bars.sensitivity(pet), pet.tracer.name) for pet in scan.pets]
            parts[f"{label}_desc-variables_T1w.html"] = render(
                "part_variables.html",
                scan=scan,
                rows=_variable_rows(scan),
                differ=_made_from_different_inputs(scan),
                figures=[figure for figure in moved if figure],
            )
    parts[f"{sub}_desc-summary_T1w.html"] = render(
        "part_summary.html",
        participant=participant,
        scans=scans,
        results=[_result(scan, pet, gauges[scan.case.label, pet.tracer.name]) for scan in scans for pet in scan.pets],
        demonstration=any(pet.about.get("DemonstrationModel") for scan in scans for pet in scan.pets),
        cutoff=default_cutoff(),
    )
    bundle = viewer.bundle()
    used = len(bundle) + sum(map(len, parts.values())) + _REST
    volumes, note = viewer.payload(scans, LIMIT - used)
    if volumes:
        content = json.dumps(volumes).replace("<", "\\u003c")
        parts[f"{sub}_desc-viewer_T1w.html"] = render(
            "part_viewer.html", volumes=content, bundle=bundle, note=note, scans=volumes
        )
    if text:
        parts[f"{sub}_desc-methods_T1w.html"] = render(
            "part_methods.html", blocks=text.blocks, references=text.references
        )
    parts[f"{sub}_desc-about_T1w.html"] = render(
        "part_about.html", runs=[scan for scan in scans if scan.run.get("Software")], participant=participant
    )
    return parts


def _ranges(pet: Pet, model: Path) -> Mapping[str, Row]:
    """Regional ranges of the model's training people, if the folder still holds the model that was used."""
    try:
        return training_ranges(model, pet.about["Model"]["WeightsSHA256"]).get(pet.tracer.name, {})
    except ModelError:
        return {}


def _result(scan: Scan, pet: Pet, gauge: Mapping[str, str] | None) -> dict[str, Any]:
    """The few figures of the first screen, as text."""

    def text(name: str, form: str) -> str:
        value = number(pet.measures.get(name))
        return "" if value is None else form.format(value)

    def interval(name: str, form: str) -> str:
        ends = [text(f"{name}_{end}95", form) for end in ("low", "high")]
        return " to ".join(ends) if all(ends) else ""

    probability = number(pet.measures.get("probability_positive"))
    return {
        "scan": scan.title,
        "tracer": pet.tracer,
        "target": target_label(pet),
        "suvr": text("target_suvr", "{:.2f}"),
        "suvr_interval": interval("target_suvr", "{:.2f}"),
        "centiloid": text("centiloid_approximate", "{:.0f}"),
        "centiloid_interval": interval("centiloid", "{:.0f}"),
        "probability": "" if probability is None else percent_text(probability),
        "untold": pet.untold,
        "gauge": gauge,
    }


def _quality(scan: Scan) -> list[dict[str, str]]:
    """The quality figures with their limits and whether they keep to them."""
    rows = []
    for check in checks(scan.about.get("Quality", {})):
        limits = [
            f"{word} {limit:g}"
            for word, limit in (("at least", check.low), ("at most", check.high))
            if limit is not None
        ]
        rows.append(
            {
                "name": check.description,
                "value": f"{check.value:.4g} {check.unit}".strip(),
                "limits": ", ".join(limits),
                "verdict": "unusual: look at the outlines" if check.unusual else "as usual",
            }
        )
    return rows


def _variable_rows(scan: Scan) -> list[dict[str, Any]]:
    """Every variable that the model knows: status, source, recorded value, and what it did per tracer."""
    effects = {pet.tracer.name: {row["variable"]: row for row in pet.sensitivity} for pet in scan.pets}
    rows = []
    for name in dict.fromkeys(name for pet in scan.pets for name in pet.conditioning):
        entries = {pet.tracer.name: pet.conditioning[name] for pet in scan.pets if name in pet.conditioning}
        known = variables().get(name)
        unit = known.unit.name if known else ""
        rows.append(
            {
                "name": name,
                "description": known.description if known else "",
                "missing": all(entry.get("Status") == "missing" for entry in entries.values()),
                "status": _by_tracer({tracer: _status(entry, unit) for tracer, entry in entries.items()}),
                "source": _by_tracer({tracer: entry.get("Source", "") for tracer, entry in entries.items()}),
                "value": _by_tracer({tracer: _recorded(entry, unit) for tracer, entry in entries.items()}),
                "effects": _effects(effects, name),
            }
        )
    rows.sort(key=lambda row: (row["missing"], row["name"]))
    if any(ALL_BLOOD in found for found in effects.values()):
        # first, or the small changes of single values would be read as if blood hardly mattered
        together = dict.fromkeys(("description", "status", "source", "value"), "") | {"missing": False}
        rows.insert(0, together | {"name": variable_label(ALL_BLOOD), "effects": _effects(effects, ALL_BLOOD)})
    return rows


def _by_tracer(told: Mapping[str, str]) -> str:
    """A text once where it is the same of all tracers, else with its tracers: runs may have had different values."""
    tracers: dict[str, list[str]] = {}
    for tracer, text in told.items():
        tracers.setdefault(text, []).append(tracer)
    if len(tracers) == 1:
        return next(iter(tracers))
    return "; ".join(f"{', '.join(names)}: {text or 'n/a'}" for text, names in tracers.items())


def _status(entry: Mapping[str, Any], unit: str) -> str:
    """How a variable came about, with the units of a conversion."""
    status = str(entry.get("Status", ""))
    return f"{status} from {entry['ConvertedFrom']} to {unit}" if "ConvertedFrom" in entry else status


def _recorded(entry: Mapping[str, Any], unit: str) -> str:
    """A value with its note, if they were to be recorded."""
    if "Value" not in entry:
        return ""
    value, note = entry["Value"], entry.get("Note", "")
    return ("n/a" if value is None else f"{value:g} {unit}".strip()) + (f" ({note})" if note else "")


def _effects(effects: Mapping[str, Mapping[str, Row]], name: str) -> list[str]:
    """What a variable did, two cells for each tracer; empty ones of a tracer of which it was not computed."""
    return [
        _signed(rows.get(name, {}), column) if rows else ""
        for rows in effects.values()
        for column in ("change", "per_sd")
    ]


def _made_from_different_inputs(scan: Scan) -> bool:
    """Whether tracers of one model were made from different values or images, as a run of some tracers leaves them."""
    found: dict[str, set[str]] = {}
    for pet in scan.pets:
        found.setdefault(pet.about["Model"]["WeightsSHA256"], set()).add(pet.about.get("InputHash", ""))
    return any(len(hashes) > 1 for hashes in found.values())


def _signed(row: Row, column: str) -> str:
    value = number(row.get(column))
    return "n/a" if value is None else change_text(value)
