"""The templates under ``data/reports``, with every value escaped in HTML."""

from __future__ import annotations

from functools import cache
from typing import Any

from bids_petsynth.tables import data_path


@cache
def _environment():
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(data_path("reports")),
        autoescape=lambda name: bool(name) and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Fill a template; in ``.html`` ones whatever is not marked as safe there is escaped."""
    return _environment().get_template(template).render(**values)
