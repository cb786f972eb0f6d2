"""What cannot be told from the values that a person has."""

from __future__ import annotations

from collections.abc import Mapping

from bids_petsynth.clinical.variables import variables


def untold(used: Mapping[str, str], target_class: str) -> str:
    """A sentence if amyloid or tau is asked of a T1w with demographics (age, sex, education) at most, else nothing.

    Parameters
    ----------
    used
        Variables that the model is conditioned on → status (``missing`` where there is no value).
    target_class
        Of the tracer: ``amyloid``, ``tau`` or ``metabolism``.
    """
    known = {variables()[name].kind for name, status in used.items() if status != "missing" and name in variables()}
    if target_class not in ("amyloid", "tau") or known - {"demographic"}:
        return ""
    return (
        f"{target_class.capitalize()} cannot be told from a T1w and age alone: with no plasma value and no APOE "
        "genotype this estimate stays near the average of the people that the model was trained on, whoever the "
        "person is. Read its wide interval; neither its middle nor a probability of positivity says anything of them."
    )
