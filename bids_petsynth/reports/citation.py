"""``logs/CITATION.md`` and ``.bib``: the methods text of all that stands in the output folder.

What the text depends on is the same for nearly all participants. ``logs/CITATION.json`` holds each such set of facts
once, and which participants have it: a run then reads its own participants and not those of everybody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bids_petsynth.bids.collected import bring_up_to_date
from bids_petsynth.bids.dataset import note_times, noted_participant
from bids_petsynth.bids.naming import output_path
from bids_petsynth.bids.sink import hash_settings, json_text, write_bytes
from bids_petsynth.bids.tables import read_json
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.reports.boilerplate import Methods, methods
from bids_petsynth.reports.content import Pet, Scan, participants_of, read_participant
from bids_petsynth.types import Case

#: Keys of sidecars that the methods text depends on.
_OF_ANATOMY = ("BiasCorrection", "Software")
_OF_PET = ("DemonstrationModel", "Model", "ReferenceRegion", "Sampler", "Software")

Facts = Mapping[str, Any]


def write_citation(out_dir: Path, anew: bool) -> None:
    """Write the methods text of all that stands in the output folder; no text where no scan is done.

    Parameters
    ----------
    anew
        Read every participant, not only those with something new.
    """
    path = out_dir / output_path("citation", extension="json")

    def sources() -> dict[str, float]:
        times: dict[str, float] = {}
        for name, written in note_times(out_dir).items():
            label = noted_participant(name)
            times[label] = max(written, times.get(label, written))
        return {label: times.get(label, 0.0) for label in participants_of(out_dir)}

    bring_up_to_date(
        path,
        sources=sources,
        read=lambda label: [facts for scan in read_participant(out_dir, label) for facts in facts_of(scan)],
        load=_load,
        text_of=_text,
        anew=anew,
    )
    if found := methods_of([facts for participant in _load(path).values() for facts in participant]):
        write_methods(out_dir, found)


def write_methods(out_dir: Path, found: Methods) -> None:
    """Write a methods text and its bibliography into the output folder."""
    for text, extension in ((found.document, "md"), (found.bibtex, "bib")):
        write_bytes(out_dir / output_path("citation", extension=extension), text.encode())


def facts_of(scan: Scan) -> list[Facts]:
    """What the methods text depends on, of each image drawn for a scan; no value of a person is among it."""
    found = [
        _of_image(scan, pet.tracer.name, pet.about)
        | {"Target": pet.measures.get("target", ""), "Centiloid": dict(pet.centiloid), "Spaces": list(pet.spaces)}
        for pet in scan.pets
    ]
    return found + ([_of_image(scan, "T1w", scan.drawn_about)] if scan.drawn_about else [])


def _of_image(scan: Scan, target: str, about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Tracer": target,
        "Anatomy": {key: scan.about[key] for key in _OF_ANATOMY if key in scan.about},
        "PET": {key: about[key] for key in _OF_PET if key in about},
        "Variables": sorted(about.get("Conditioning", {})),
    }


def methods_of(all_facts: Sequence[Facts]) -> Methods | None:
    """The methods text of these facts; None if there are none."""
    nowhere, scans = Path(), []
    for facts in {hash_settings(facts): facts for facts in all_facts}.values():
        about = {**facts["PET"], "Conditioning": {name: {} for name in facts["Variables"]}}
        scan = Scan(Case("any", None, None), None, None, None, facts["Anatomy"], (), {})
        if facts["Tracer"] == "T1w":
            scans.append(replace(scan, drawn_about=about))
            continue
        pet = Pet(
            tracer=tracer_named(facts["Tracer"]),
            mean=nowhere,
            std=nowhere,
            about=about,
            regions=(),
            measures={"target": facts["Target"]},
            centiloid=facts["Centiloid"],
            spaces=facts["Spaces"],
        )
        scans.append(replace(scan, pets=[pet]))
    return methods(scans)


def _text(participants: Mapping[str, Sequence[Facts]]) -> str:
    """Content of the file that holds the facts."""
    facts = {hash_settings(each)[:16]: each for found in participants.values() for each in found}
    keys = {label: sorted({hash_settings(each)[:16] for each in found}) for label, found in participants.items()}
    return json_text({"Facts": dict(sorted(facts.items())), "Participants": keys})


def _load(path: Path) -> dict[str, list[Facts]]:
    """Participant → facts."""
    content = read_json(path)
    return {label: [content["Facts"][key] for key in keys] for label, keys in content["Participants"].items()}
