"""What stands in the output folder about one participant: the report shows this and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_petsynth.bids.dataset import FAILED, note_times, noted_participant, status_notes
from bids_petsynth.bids.naming import entities_of, natural_order, output_path, sidecar_path
from bids_petsynth.bids.tables import read_json, read_tsv
from bids_petsynth.clinical.limits import untold
from bids_petsynth.clinical.variables import ALL_BLOOD
from bids_petsynth.pet.tracers import Tracer
from bids_petsynth.pet.tracers import targets as all_targets
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.types import Case

Row = Mapping[str, str]


@dataclass(frozen=True)
class Pet:
    """Synthetic PET of one scan and tracer, as written.

    Attributes
    ----------
    mean, std
        Images on the model grid, SUVR.
    about
        Sidecar of the mean.
    regions, measures, sensitivity
        Rows of the tables as text; ``sensitivity`` is empty where it was not written.
    centiloid
        Equation and cut-off as the sidecar of the measures has them; empty for a tracer without Centiloid.
    spaces
        Names of the template spaces that it was resampled into.
    """

    tracer: Tracer
    mean: Path
    std: Path
    about: Mapping[str, Any]
    regions: Sequence[Row]
    measures: Row
    sensitivity: Sequence[Row] = ()
    centiloid: Mapping[str, Any] = field(default_factory=dict)
    spaces: Sequence[str] = ()

    @property
    def conditioning(self) -> Mapping[str, Mapping[str, Any]]:
        """Variable → ``Status``, ``Source`` and, if they were to be recorded, ``Value`` and ``Note``."""
        return self.about.get("Conditioning", {})

    @property
    def untold(self) -> str:
        """The sentence on what these values cannot tell, if there is one to say."""
        used = {name: entry.get("Status", "missing") for name, entry in self.conditioning.items()}
        return untold(used, self.tracer.target_class)


@dataclass(frozen=True)
class Scan:
    """One session of a participant.

    Attributes
    ----------
    t1w, dseg, alignment
        Written anatomy (the rigid map as text file); None where it is not complete.
    about
        Sidecar of the labels.
    pets
        What is done, by tracer.
    failures
        Tracer (empty: the scan as a whole) → the sentence of status.tsv.
    failed_run
        ``Command``, ``Software`` and ``Seed`` of the run of a failure; empty where none failed.
    classes, classifier
        Rows of a classifier's probabilities and their sidecar; empty where none was applied.
    drawn_t1w, drawn_about
        Mean of a synthetic T1w on the model grid, if one was drawn, and its sidecar.
    """

    case: Case
    t1w: Path | None
    dseg: Path | None
    alignment: Path | None
    about: Mapping[str, Any]
    pets: Sequence[Pet]
    failures: Mapping[str, str]
    classes: Sequence[Row] = ()
    classifier: Mapping[str, Any] = field(default_factory=dict)
    drawn_t1w: Path | None = None
    drawn_about: Mapping[str, Any] = field(default_factory=dict)
    failed_run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The session for people, empty in a dataset without sessions."""
        return f"Session {self.case.session}" if self.case.session else ""

    @property
    def warnings(self) -> list[str]:
        """All that is doubtful, every sentence once; what the values cannot tell is said beside the result."""
        found = [*self.about.get("Warnings", []), *(w for pet in self.pets for w in pet.about.get("Warnings", []))]
        said = {pet.untold for pet in self.pets}
        return [text for text in dict.fromkeys(map(str, found)) if text not in said]

    @property
    def notes(self) -> list[str]:
        """What was chosen on the way, such as one of several runs."""
        return list(dict.fromkeys(str(note) for pet in self.pets for note in pet.about.get("Notes", [])))

    @property
    def failed(self) -> dict[str, list[str]]:
        """Sentence → tracers that it stopped."""
        found: dict[str, list[str]] = {}
        for tracer, reason in self.failures.items():
            found.setdefault(reason, []).append(tracer)
        return found

    @property
    def run(self) -> Mapping[str, Any]:
        """The sidecar that tells versions and inputs."""
        return self.pets[0].about if self.pets else self.about or self.failed_run

    @property
    def commands(self) -> list[str]:
        """The commands that made what is there or failed, every one once."""
        abouts = (self.about, *(pet.about for pet in self.pets), self.failed_run)
        return list(dict.fromkeys(about["Command"] for about in abouts if "Command" in about))


def read_participant(out_dir: Path, participant: str) -> list[Scan]:
    """All sessions of a participant that have a status or outputs, in order of their labels."""
    notes = status_notes(out_dir, participant)
    sessions = {(row["session_id"] or "").removeprefix("ses-") or None for row in notes}
    sessions |= {p.parent.name.removeprefix("ses-") for p in out_dir.glob(f"sub-{participant}/ses-*/anat")}
    if (out_dir / f"sub-{participant}" / "anat").is_dir():
        sessions.add(None)
    return [
        _read_scan(out_dir, participant, session, notes)
        for session in sorted(sessions, key=lambda s: natural_order(s or ""))
    ]


def participants_of(out_dir: Path) -> list[str]:
    """Labels of all participants that the output folder knows."""
    known = set(map(noted_participant, note_times(out_dir)))
    return sorted(known | {path.name.removeprefix("sub-") for path in out_dir.glob("sub-*") if path.is_dir()})


def _read_scan(out_dir: Path, participant: str, session: str | None, notes: Sequence[Mapping[str, Any]]) -> Scan:
    case = Case(participant, session, None)
    own = [row for row in notes if (row["session_id"] or "").removeprefix("ses-") == (session or "")]
    failed = [row for row in own if row["status"] == FAILED]
    failures = {row["tracer"] or "": row["reason"] for row in failed}
    last = failed[-1] if failed else {}
    t1w, dseg, xfm = (
        out_dir / output_path(kind, case, **entities)
        for kind, entities in (("t1w", {}), ("dseg", {}), ("xfm", {"to": "petsynth"}))
    )
    about = _json(sidecar_path(dseg))
    whole = bool(about) and "" not in failures
    # what an earlier run left of a tracer that now failed is not shown beside the failure
    means = sorted((out_dir / output_path("regions", case, tracer="x")).parent.glob(f"{case.label}_trc-*Mean_pet.json"))
    here = [path for path in means if entities_of(path).get("space") == "T1w" and whole]
    pets = [_read_pet(out_dir, case, path, means) for path in here if entities_of(path)["trc"] not in failures]
    drawn = sorted(dseg.parent.glob(f"{case.label}_space-T1w_res-*_desc-synthMean_T1w.json"))
    drawn = drawn if whole and "T1w" not in failures else []
    classes = out_dir / output_path("classes", case)
    classifier = _json(sidecar_path(classes)) if whole and classes.is_file() else {}
    return Scan(
        case=case,
        t1w=t1w if whole else None,
        dseg=dseg if whole else None,
        alignment=xfm if whole else None,
        about=about if whole else {},
        pets=sorted((pet for pet in pets if pet is not None), key=lambda pet: natural_order(pet.tracer.name)),
        failures=failures,
        failed_run={key: last[key] for key in ("Command", "Software", "Seed") if key in last},
        classes=read_tsv(classes)[0] if classifier else (),
        classifier=classifier,
        drawn_t1w=drawn[0].with_suffix(".nii.gz") if drawn else None,
        drawn_about=_json(drawn[0]) if drawn else {},
    )


def _read_pet(out_dir: Path, case: Case, sidecar: Path, means: Sequence[Path]) -> Pet | None:
    """One tracer's outputs; None where they are not complete (the sidecar of the mean is written last)."""
    name = entities_of(sidecar)["trc"]
    table = {kind: out_dir / output_path(kind, case, tracer=name) for kind in ("suvr", "measures", "sensitivity")}
    rows = {kind: read_tsv(path)[0] if path.is_file() else [] for kind, path in table.items()}
    mean = sidecar.with_name(sidecar.name.replace(".json", ".nii.gz"))
    std = mean.with_name(mean.name.replace("synthMean", "synthStd"))
    if not (mean.is_file() and std.is_file() and rows["suvr"] and rows["measures"]):
        return None
    others = (entities_of(path) for path in means)
    centiloid = {k: v for k, v in _json(sidecar_path(table["measures"])).items() if re.match("Centiloid|Positivity", k)}
    return Pet(
        tracer=tracer_named(name),
        mean=mean,
        std=std,
        about=_json(sidecar),
        regions=rows["suvr"],
        measures=rows["measures"][0],
        sensitivity=rows["sensitivity"],
        centiloid=centiloid,
        spaces=sorted({e["space"] for e in others if e["trc"] == name and e["space"] != "T1w"}),
    )


def _json(path: Path) -> dict[str, Any]:
    """A sidecar; empty if it is not there or not whole."""
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError:
        return {}


def number(text: str | None) -> float | None:
    """A cell of a table as number; None for n/a."""
    try:
        return float(text) if text not in (None, "", "n/a") else None
    except ValueError:
        return None


def change_text(change: float) -> str:
    """A change of SUVR in the hundredths that the tables tell, zero without a sign."""
    return f"{change:+.2f}" if abs(change) >= 0.005 else "0.00"


def variable_label(name: str) -> str:
    """A row of the table of what each value did, for people."""
    return "all blood values together" if name == ALL_BLOOD else name


def percent_text(share: float) -> str:
    """A probability in whole percent, its ends in words: of no person is anything certain."""
    percent = 100 * share
    return f"{'under 1' if percent < 1 else 'over 99' if percent > 99 else f'{percent:.0f}'} %"


def target_label(pet: Pet) -> str:
    """Name for people of the composite that sums the scan up."""
    name = pet.measures.get("target", "")
    return all_targets()[name].label if name in all_targets() else name
