"""Made-up cohorts for tests of the level group, its command, tables and page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from browser import Page
from cohort_small import Person

from bids_petsynth.cli.main import main

EVIL = "<script>alert(1)</script>"


def people(n: int = 24, seed: int = 0) -> list[Person]:
    """Two diagnoses with loads of about 10 and 60, and a plasma marker that follows the load."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(n):
        ill = number % 2
        load = float((60 if ill else 10) + 8 * rng.normal())
        columns = {
            "age": f"{60 + number % 25}",
            "sex": "FM"[number % 3 % 2],
            "diagnosis": "AD" if ill else f"CN {EVIL}",
            "ptau217_lumipulse": f"{0.1 + load / 200:.4f}",
        }
        out.append(Person(f"{number:03d}", columns, load))
    return out


SMALL = people(1)[0]


def run(bids: Path, out: Path, *options: str) -> int:
    return main([str(bids), str(out), "group", "--nprocs", "1", *options])


def table(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / "group" / f"{name}.tsv", sep="\t", na_values="n/a", keep_default_na=False)


def check_page(out: Path) -> Page:
    """One file without scripts of others, everything with alternative texts, links to reports that are there."""
    page = Page(out / "group.html")
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(name) or ""
            fits = value.startswith(("data:image/", "#")) or not value or (out / value).is_file()
            assert fits, (tag, value[:80])
        if tag == "img":
            assert len(attributes["alt"]) > 30
    return page
