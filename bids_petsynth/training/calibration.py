"""Calibrating the draws of a model folder anew: ``python -m bids_petsynth.training.calibration ARRAYS MODEL``.

The spread factors and the texture gains (:mod:`bids_petsynth.training.validation`) are those that a training on ARRAYS
ends with. They replace the model's own, in its card too, and the card's figures are made anew. With ``--regional`` the
regional flow is trained anew before; nothing else is trained.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from datetime import date
from pathlib import Path

from bids_petsynth.errors import UsageError
from bids_petsynth.models.folder import Model, calibration_text, put_files, weights_files
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.training.card import figures_section, sensitivity_figures, sensitivity_section, spread_section
from bids_petsynth.training.ground import Ground
from bids_petsynth.training.regional import fit_part, with_fresh_regional
from bids_petsynth.training.simulated import SimulatedGround
from bids_petsynth.training.validation import CARD_DRAWS, calibration, evaluate


def recalibrate(
    folder: Path, model: Synthesizer, ground: Ground, regional: bool = False, keep: str | None = None
) -> Model:
    """Calibrate a model with a regional part anew, on the ground's held-out people, and put that into its folder.

    ``regional`` has the regional flow of the model's recipe trained from the start before, on the ground's people.
    What ``keep`` names, the factors (``"spread"``) or the gains on detail (``"texture"``), stays as it is: the
    first are the regional flow's, the second the image flow's.

    Returns
    -------
    Model
        With the new factors, gains and regional flow.

    Raises
    ------
    UsageError
        If the model has no regional part, or a new one is to keep the factors of the old one.
    """
    if model.regional is None:
        raise UsageError(f"The model {folder} has no regional part; its draws are calibrated when it is trained.")
    if regional and keep == "spread":
        raise UsageError("Spread factors are those of one regional flow; leave out --keep spread to train it anew.")
    people, files, sensitivity = None if keep == "spread" else ground.held_people(), {}, {}
    if regional:
        fresh = replace(with_fresh_regional(model.model), version=date.today().isoformat())
        fit_part(fresh, ground.people())
        model = Synthesizer(fresh, model.device, model.texts)
        files, sensitivity = dict(weights_files(fresh)), sensitivity_figures(model, people)
    cases = None if keep == "texture" else ground.texture_cases
    found = replace(model.model, **calibration(model, people, cases))
    # what is drawn depends on the gains, so that the figures come after them
    figures, _ = evaluate(
        Synthesizer(found, model.device, model.texts),
        ground.held_cases(),
        CARD_DRAWS,
        found.recipe.grid.voxel_size,
    )
    card = with_regional_origin(found) if regional else found.card
    card = with_section(card, figures_section(figures, ground.demonstration))
    card = with_section(card, spread_section(found, ground.demonstration))
    if sensitivity:
        card = with_section(card, sensitivity_section(sensitivity))
    texts = {"calibration.json": calibration_text(found), "MODEL_CARD.md": card}
    put_files(folder, files | {name: text.encode() for name, text in texts.items()}, version=found.version)
    return found


def with_regional_origin(model: Model) -> str:
    """The card, whose last section, on training, tells that the regional flow is newer than the rest."""
    before = re.sub(r"\nIts regional flow was trained[^\n]*", "", model.card.rstrip())
    told = f"Its regional flow was trained from the start, on {model.recipe.regional.people:,} people"
    return f"{before}\n{told}, on {model.version} (`training.calibration --regional`).\n"


def with_section(card: str, section: str) -> str:
    """A card with the section in place of the one of that heading which it has, up to the end of its table."""
    title = section.partition("\n")[0]
    if title not in card:
        return f"{card.rstrip()}\n\n{section}\n"
    return re.sub(rf"{re.escape(title)}\n[^|]*(\|.*(\n|\Z))+", lambda _: f"{section}\n", card)


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--regional", action="store_true", help="train the regional flow anew before")
    parser.add_argument(
        "--keep", choices=("spread", "texture"), help="leave the spread factors, or the gains on detail, as they are"
    )
    args = parser.parse_args(argv)
    model = Synthesizer.load(args.model, args.device)
    if not model.model.demonstration:
        raise UsageError(
            f"{args.model} was trained on real PET: simulated people must not calibrate it; train it anew."
        )
    ground = SimulatedGround(args.arrays, model.model.recipe)
    print(spread_section(recalibrate(args.model, model, ground, args.regional, args.keep), True))


if __name__ == "__main__":
    main()
