"""What cannot be told from the values that a person has, or by a model of few people."""

from __future__ import annotations

from collections.abc import Mapping

from bids_petsynth.clinical.variables import variables

#: Analytes of injured neurons, (N) of the AT(N) scheme (Jack 2018, Alzheimers Dement 14:535), whatever injures them.
INJURY = ("nfl", "ttau")


def untold(used: Mapping[str, str], target_class: str) -> str:
    """A sentence if amyloid or tau is asked of a T1w with no value that tells of them, else nothing.

    Those that do not are demographics, tests of cognition and the analytes of :data:`INJURY`.

    Parameters
    ----------
    used
        Variables that the model is conditioned on → status (``missing`` where there is no value).
    target_class
        Of the tracer: ``amyloid``, ``tau`` or ``metabolism``.
    """
    known = [variables()[name] for name, status in used.items() if status != "missing" and name in variables()]
    telling = [v for v in known if v.kind not in ("demographic", "cognition") and v.analyte not in INJURY]
    if target_class not in ("amyloid", "tau") or telling:
        return ""
    rest = "age alone" if all(v.kind == "demographic" for v in known) else "the values that are known"
    return (
        f"{target_class.capitalize()} cannot be told from a T1w and {rest}: with no p-tau, amyloid beta or GFAP in "
        "plasma and no APOE genotype this estimate stays near the average of the people that the model was trained "
        "on, whoever the person is. Read its wide interval; neither its middle nor a probability of positivity says "
        "anything of them."
    )


def unmeasured(model: str, tracer: str) -> str:
    """The sentence on a model whose spread was not measured on held-out scans, as there were too few."""
    return (
        f"How sure the model {model} is of {tracer} was never compared with scans, as too few were held out in its "
        "training: intervals and probabilities may be far too narrow and too certain."
    )
