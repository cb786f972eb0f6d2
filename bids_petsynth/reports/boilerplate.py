"""The methods text with its citations: of what ran, as the sidecars tell it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bids_petsynth.bids.sidecars import has_regional_part
from bids_petsynth.models.synthesizer import REGIONAL_DRAWS
from bids_petsynth.reports.content import Pet, Scan, target_label
from bids_petsynth.reports.pages import render
from bids_petsynth.reports.wording import input_words, process_words, sampler_words
from bids_petsynth.tables import data_path, read_table

_CITATION = re.compile(r"\s*\[(@[^\]]+)\]")


@dataclass(frozen=True)
class Reference:
    """An entry of ``data/citations.bib``: its key, its fields without braces, and its BibTeX."""

    key: str
    fields: Mapping[str, str]
    bibtex: str

    @property
    def short(self) -> str:
        """Such as ``Tustison et al. 2010``."""
        authors = self.fields["author"].split(" and ")
        names = [author.split(",")[0] for author in authors]
        who = names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."
        return f"{who} {self.fields['year']}"

    @property
    def full(self) -> str:
        """For the list of references."""
        get = self.fields.get
        authors = get("author", "").replace(" and others", " et al.").replace(" and ", "; ")
        where = get("journal") or get("booktitle") or get("howpublished") or ""
        volume = f" {get('volume')}:{get('pages')}" if get("volume") else ""
        doi = f". doi:{get('doi')}" if get("doi") else ""
        return f"{authors} ({get('year')}). {get('title')}. {where}{volume}{doi}"


@dataclass(frozen=True)
class Methods:
    """The text in Markdown (citations as ``[@key]``), and the works that it cites, in order of their keys."""

    markdown: str
    references: Sequence[Reference]

    @property
    def document(self) -> str:
        """The text with a list of its references, for readers who do not run it through a citation processor."""
        works = "\n".join(f"- {reference.key}: {reference.full}" for reference in self.references)
        return f"{self.markdown}\n## References\n\n{works}\n"

    @property
    def bibtex(self) -> str:
        """The cited works only."""
        return "\n\n".join(reference.bibtex for reference in self.references) + "\n"

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """Headings (``h``) and paragraphs (``p``) as plain text with the citations written out."""
        short = {reference.key: reference.short for reference in self.references}

        def written(match: re.Match[str]) -> str:
            return " (" + "; ".join(short[key] for key in _keys(match.group(1))) + ")"

        blocks = [block.strip() for block in self.markdown.split("\n\n") if block.strip()]
        return [("h" if block.startswith("#") else "p", _CITATION.sub(written, block.lstrip("# "))) for block in blocks]


def methods(scans: Sequence[Scan]) -> Methods | None:
    """What ran for these scans; None if nothing did."""
    abouts = [scan.about for scan in scans if scan.about]
    pets = [pet for scan in scans for pet in scan.pets]
    made = [(pet.tracer.name, pet.about) for pet in pets]
    made += [("T1w", scan.drawn_about) for scan in scans if scan.drawn_about]
    if not abouts or not made:
        return None
    runs = [*abouts, *(about for _, about in made)]
    text = render(
        "methods.md",
        demonstration=any(about.get("DemonstrationModel") for _, about in made),
        corrections=sorted({str(about.get("BiasCorrection", "N4")) for about in abouts}),
        spaces=sorted({space for pet in pets for space in pet.spaces}),
        models=_models(made, (software := _versions(runs))["monai"]),
        tracers=_tracers(pets),
        software=software,
    )
    # lines of a paragraph are joined, as the template's conditions part them
    paragraphs = (re.sub(r"\s+", " ", block).strip() for block in re.split(r"\n\s*\n", text))
    markdown = "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"
    cited = {key for match in _CITATION.finditer(markdown) for key in _keys(match.group(1))}
    return Methods(markdown, [bibliography()[key] for key in sorted(cited)])


def bibliography() -> dict[str, Reference]:
    """All works of ``data/citations.bib`` by key."""
    text = data_path("citations.bib").read_text(encoding="utf-8")
    found = {}
    for match in re.finditer(r"@\w+\{(\w+),\n(.*?)\n\}", text, re.DOTALL):
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", match.group(2), re.MULTILINE))
        plain = {name: re.sub(r"[{}\\]", "", value).replace("--", "–") for name, value in fields.items()}
        found[match.group(1)] = Reference(match.group(1), plain, match.group(0))
    return found


def _keys(text: str) -> list[str]:
    return re.findall(r"@(\w+)", text)


def _models(made: Iterable[tuple[str, Mapping[str, Any]]], monai: str) -> list[dict[str, Any]]:
    """Every way in which images were made, from the tracer (or "T1w") and sidecar of each."""
    found: dict[str, dict[str, Any]] = {}
    for target, about in made:
        model, sampler = about["Model"], about["Sampler"]
        key = json.dumps([model, sampler])
        entry = found.setdefault(
            key,
            {
                "name": model["Name"],
                "version": model["Version"],
                "sha": str(model["WeightsSHA256"])[:12],
                "demonstration": bool(about.get("DemonstrationModel")),
                "process": process_words(model, monai),
                "regional": has_regional_part(str(model.get("Process", ""))),
                "alike": model.get("Process", "") == "direct",
                "sampler": sampler_words(sampler),
                "seed": sampler["Seed"],
                "draws": sampler["Draws"],
                "regional_draws": max(sampler["Draws"], REGIONAL_DRAWS),
                "about": model,
                "targets": set(),
                "variables": set(),
            },
        )
        entry["targets"].add(target)
        entry["variables"] |= set(about.get("Conditioning", {}))
    return [
        entry
        | {"tracers": sorted(entry["targets"] - {"T1w"}), "variables": sorted(entry["variables"])}
        | {"t1w": "T1w" in entry["targets"], "inputs": input_words(entry["about"], entry["targets"])}
        for _, entry in sorted(found.items())
    ]


def _tracers(pets: Iterable[Pet]) -> list[dict[str, Any]]:
    first: dict[str, Pet] = {}
    several = set()
    for pet in pets:
        first.setdefault(pet.tracer.name, pet)
        if pet.about["Sampler"]["Draws"] > 1:
            several.add(pet.tracer.name)
    return [
        {
            "name": name,
            "reference": f"the {pet.about.get('ReferenceRegion', pet.tracer.reference_name)}",
            "target": f"the {target_label(pet)}",
            "equation": pet.centiloid.get("CentiloidEquation"),
            "several": name in several,
            "cutoff": pet.centiloid.get("PositivityCutoff"),
            "cutoff_keys": _works("all", f"cutoff_{pet.centiloid.get('PositivityCutoff', {}).get('Name')}"),
            **{f"{about}_keys": _works(name, about) for about in ("reference", "target", "centiloid")},
        }
        for name, pet in sorted(first.items())
    ]


def _works(tracer: str, about: str) -> str:
    """Citations that the table has of one thing."""
    rows = (row for row in read_table("citations.tsv") if (row["tracer"], row["about"]) == (tracer, about))
    return "; ".join(f"@{row['key']}" for row in rows)


def _versions(abouts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Package → version, several where runs differ."""
    found: dict[str, set[str]] = {}
    for about in abouts:
        for name, version in about.get("Software", {}).items():
            found.setdefault(name, set()).add(str(version))
    names = (
        "bids-petsynth",
        "python",
        "antspyx",
        "monai",
        "nibabel",
        "nipype",
        "pybids",
        "templateflow",
        "torch",
    )
    return {name: " and ".join(sorted(found.get(name, {"(version unknown)"}))) for name in {*names, *found}}
