"""Reading text as people type it: names in many spellings, numbers with commas, units and comparison signs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from bids_petsynth.tables import read_table

_GREEK = str.maketrans({"α": "alpha", "β": "beta", "ß": "beta", "ε": "e", "ϵ": "e", "τ": "tau", "μ": "u", "µ": "u"})
_NUMBER = re.compile(r"(?P<number>[+-]?(?:\d[\d.,]*|[.,]\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>.*)", re.DOTALL)
_CENSORED = re.compile(r"^\s*(?:[<>≤≥]|below\b|above\b|under\b|over\b|less\b|more\b)", re.IGNORECASE)


def words(text: str) -> tuple[str, ...]:
    """Lower-case words of a name, Greek letters spelled out: ``"Aβ42/40 (pg/mL)"`` → ``abeta42, 40, pg, ml``."""
    lowered = unicodedata.normalize("NFKC", text).lower().translate(_GREEK).replace("%", " percent ")
    return tuple(re.findall(r"[^\W_]+", lowered))


def normalise(text: str) -> str:
    """A name without case, blanks and punctuation: ``"P-tau 217"`` and ``"ptau217"`` are the same."""
    return "".join(words(text))


def columns_of_kind(names: Iterable[str], kind: str | None = None) -> list[str]:
    """Columns whose name tells that they hold a diagnosis, a site … (``data/group_kinds.tsv``); None for any kind."""
    rows = [row for row in read_table("group_kinds.tsv") if kind in (None, row["kind"])]
    known = {words(text) for row in rows for text in row["words"].split(",")}
    return [name for name in names if words(name) in known]


@cache
def _missing_codes() -> tuple[frozenset[str], frozenset[float]]:
    texts = {row["text"] for row in read_table("clinical_levels.tsv") if row["variable"] == "missing"}
    numbers = frozenset(float(text) for text in texts if re.fullmatch(r"-?\d+", text))
    return frozenset(texts) | {"", "n/a"}, numbers  # read_table turns "n/a" into the empty string


def is_missing(text: str) -> bool:
    """Whether a cell is empty or holds one of the usual codes of a missing value (``n/a``, ``NaN``, ``-4`` …)."""
    texts, numbers = _missing_codes()
    cell = text.strip().lower()
    if cell in texts:
        return True
    try:
        number = float(cell)
    except ValueError:
        return False
    return number in numbers or number != number  # NaN differs from itself


@dataclass(frozen=True)
class Number:
    """A number read from text: its value, the text behind it (a unit), and either a note or the reason it is None."""

    value: float | None
    unit: str = ""
    note: str = ""
    problem: str = ""


def parse_number(text: str) -> Number:
    """Read a number as typed: decimal comma, thousands separators, exponent, a unit behind it.

    A censored value (``<0.05``) and a comma that may be either separator (``1,234``) give no value but a ``problem``.
    """
    cell = unicodedata.normalize("NFKC", text).replace("−", "-").strip()
    if _CENSORED.match(cell):
        return Number(None, problem="is only a bound, such as < the detection limit,")
    match = _NUMBER.fullmatch(cell)
    if match is None:
        return Number(None, problem="is not a number")
    digits, unit = match["number"], match["unit"].strip()
    plain, note, problem = _plain(digits)
    if problem:
        return Number(None, problem=problem)
    try:
        value = float(plain)
    except ValueError:
        return Number(None, problem="is not a number")
    if value in (float("inf"), float("-inf")):
        return Number(None, problem="is not a finite number")
    return Number(value, unit, note)


def _plain(digits: str) -> tuple[str, str, str]:
    """Number text with a decimal point, a note if separators were changed, a problem if they are ambiguous."""
    mantissa = re.split("[eE]", digits)[0].lstrip("+-")
    commas, points = mantissa.count(","), mantissa.count(".")
    if not commas:
        return digits, "", ""
    if points and mantissa.rindex(",") > mantissa.rindex("."):  # 1.234,5
        return digits.replace(".", "").replace(",", "."), "decimal comma", ""
    if points:  # 1,234.5
        return digits.replace(",", ""), "thousands separators removed", ""
    if commas > 1:  # 1,234,567
        return digits.replace(",", ""), "thousands separators removed", ""
    if re.fullmatch(r"[1-9]\d{0,2},\d{3}", mantissa):
        return digits, "", "has a comma that may be a decimal comma or a thousands separator"
    return digits.replace(",", "."), "decimal comma", ""
