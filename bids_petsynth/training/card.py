"""The model card, filled from the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bids_petsynth.anatomy.regions import class_weights
from bids_petsynth.clinical.variables import ALL_BLOOD
from bids_petsynth.models.conditioning import is_pet
from bids_petsynth.models.denoiser import parameters_in_millions
from bids_petsynth.models.folder import Model
from bids_petsynth.models.sensitivity import Moved, moved_by
from bids_petsynth.models.synthesizer import Synthesizer
from bids_petsynth.pet.tracers import target_weights
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.training.ground import Ground
from bids_petsynth.training.regional import RegionalPeople

#: People with whom the sensitivity is measured, at most.
SENSITIVITY_PEOPLE = 60


def sensitivity_figures(synthesizer: Synthesizer, people: RegionalPeople) -> dict[str, dict[str, tuple[float, float]]]:
    """By tracer and variable: mean change of the target SUVR per SD, and mean absolute change when it is dropped."""
    out, people = {}, people.first(SENSITIVITY_PEOPLE)
    for name in synthesizer.tracers:
        spec = tracer_named(name)
        moved: list[dict[str, Moved]] = []
        for number, (record, head) in enumerate(people.one_by_one()):
            sizes = head.volumes[0].numpy()
            weights = target_weights(spec, sizes), class_weights(spec.reference_regions, sizes)
            moved.append(moved_by(synthesizer, record, name, head, *weights, seed=number))
        out[name] = {}
        variables = [spec.name for spec in synthesizer.model.recipe.conditioning.variables]
        if any(ALL_BLOOD in m for m in moved):
            variables.append(ALL_BLOOD)
        for variable in variables:
            known = [m[variable] for m in moved if variable in m]
            figures = ([m.per_sd for m in known], [abs(m.change) for m in known])
            out[name][variable] = tuple(float(np.mean(f)) if known else float("nan") for f in figures)
    return out


def model_card(
    model: Model,
    ground: Ground,
    figures: dict[str, dict[str, float]],
    others: dict[str, dict[str, float]],
    sensitivity: Mapping[str, Mapping[str, tuple[float, float]]],
    minutes: float,
    steps: int,
    note: str = "",
    start: Model | None = None,
) -> str:
    """``MODEL_CARD.md`` filled from the run.

    ``others`` are the figures of what is drawn beside PET, ``note`` tells whose all of them are, ``start`` what the
    training began with.
    """
    recipe = model.recipe
    others_drawn = [name for name in recipe.tracers if not is_pet(name)]
    alone = "".join(f", and {name} with white matter at 1," for name in others_drawn)
    grid = f"{' × '.join(map(str, recipe.grid.shape))} voxels of {recipe.grid.voxel_size:g} mm"
    return f"""# Model card: {recipe.name}{" (demonstration)" if ground.demonstration else ""}

{ground.standing}

## What it is
{recipe.title}. {parameters_in_millions(model.denoiser):.1f} million parameters. Sources: {recipe.source}.

## Training data
{ground.data()}

## Tracers
{", ".join(filter(is_pet, recipe.tracers))}, in SUVR{alone} on a grid of {grid}.

## Conditioning
{conditioning(model, any(record.get("notes") for record in ground.records()))}

{figures_section(figures, ground.demonstration)}{others_section(others)}

{" ".join(filter(None, (ground.figures_note, note)))}

{spread_section(model, ground.demonstration)}

{sensitivity_section(sensitivity)}{chr(10) * 2 if sensitivity else ""}## Training
`{ground.command(minutes)}`: {steps} steps of
{recipe.training.batch} examples in {minutes:.0f} minutes, seed {recipe.training.seed},
finished {model.version}.{_origin(start)}
"""


def conditioning(model: Model, notes: bool) -> str:
    """What the network is given, and in which form the record; ``notes`` tells whether it was trained with any."""
    spec = model.recipe.conditioning
    names = {"t1w": "T1w", "labels": "label probabilities"}
    given = [names[image] for image in spec.images]
    if seen := [name for name in spec.sources if name in model.scaling]:
        one = len(seen) == 1
        given.append(seen[0] if one else f"{'any' if spec.fusion == 'attention' else 'one'} of {', '.join(seen)}")
    given.append("tracer" if all(map(is_pet, model.recipe.tracers)) else "target")
    numeric, told = spec.numeric or model.regional is not None, ""
    if spec.text is not None:
        # the name of an encoder's folder tells enough
        encoder, noted = Path(spec.text.encoder).name, "with" if notes else "without"
        told = f" (prompt style `{spec.text.style}`, encoder `{encoder}`, {noted} notes)"
    if not spec.variables or not (numeric or told):
        return f"{', '.join(given)}{told and f', and a text{told}'}."
    told = told and f" {'as numbers and in words' if numeric else 'in words alone'}{told}"
    columns = "\n".join(f"- `{variable.name}` ({variable.transform})" for variable in spec.variables)
    return f"""\
{", ".join(given)}, and of the record{told} (any may be missing; on the named assay's scale):

{columns}"""


def _origin(start: Model | None) -> str:
    """What the card says of the model that a training began with."""
    if start is None:
        return ""
    return f"""
It began with the weights of the model {start.recipe.name} of {start.version} (`--init-from`, SHA-256 of its weights
{start.weights_sha256}): what that model's card says of data and licence holds for these weights too. Where it
was trained on people of the same dataset, some of them may be among those who are held out here."""


def figures_section(figures: Mapping[str, Mapping[str, float]], simulated: bool) -> str:
    """The card's section on figures of held-out people, of ``training.validation.evaluate``; as ``spread_section``."""

    def cell(f: Mapping[str, float], name: str, form: str) -> str:
        return format(f[name], form) if name in f else "n/a"

    def cortex(f: Mapping[str, float], group: str) -> str:
        return f"{cell(f, f'true_{group}', '.2f')} / {cell(f, f'synthetic_{group}', '.2f')}"

    rows = [
        f"| {tracer} | {f['mae']:.3f} | {cell(f, 'mae_of_mean', '.3f')} | {f['bias']:+.3f} | {f['voxel_r']:.3f} | "
        f"{cortex(f, 'negative')} | {cortex(f, 'positive')} | {f['people']:.0f} |"
        for tracer, f in figures.items()
    ]
    return f"""## Figures on held-out {"simulated " if simulated else ""}people
Regional SUVR over all regions; the baseline predicts every region's mean over the other people.
What one person alone would tell is n/a.

| tracer | MAE | baseline | bias | voxel r | cortex, negative: true / synthetic | positive: the same | people |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}"""


def others_section(others: Mapping[str, Mapping[str, float]]) -> str:
    """What follows on figures of drawn images that are no PET, of ``training.validation.evaluate_others``."""
    rows = [
        f"| {target} | {f['mae']:.3f} | {f['psnr']:.1f} | {f['ssim']:.3f} | {f['people']:.0f} |"
        for target, f in others.items()
    ]
    if not rows:
        return ""
    return f"""

In the brain, the mean of draws beside the measured scan, white matter at 1:

| target | MAE | PSNR (dB) | SSIM | people |
|---|---|---|---|---|
{chr(10).join(rows)}"""


def spread_section(model: Model, simulated: bool) -> str:
    """The card's section on how the draws of a model were calibrated; a last line without its end."""
    people = "simulated people" if simulated else "people"
    # without a regional part they hold for draws that are given what those of the figures were
    how = "" if model.target_spread else " (draws made as those of the figures were)"
    if model.texture:
        how += ", and gains on detail by its frequency, up to .1 cycles/mm, by which draws have the texture of scans"
    rows = []
    for name, factor in model.spread.items():
        gains = model.texture.get(name)
        detail = f"{min(gains):.2f} to {max(gains):.2f}" if gains else "as drawn"
        rows.append(f"| {name} | {factor:.2f} | {model.target_spread.get(name, factor):.2f} | {detail} |")
    for name in filter(is_pet, model.recipe.tracers):
        if name not in model.spread:
            rows.append(f"| {name} | not measured: too few scans were held out | | |")
    return f"""## Spread factors
Factors on the deviations of the draws from their mean, by which intervals cover what they say on held-out
{people}{how}:

| tracer | regions | target | detail |
|---|---|---|---|
{chr(10).join(rows)}"""


def sensitivity_section(sensitivity: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """The card's section on what each variable does, of :func:`sensitivity_figures`; nothing of none."""
    if not sensitivity:
        return ""

    def cell(per_sd: float, change: float) -> str:
        told = zip((per_sd, change), ("+.3f", ".3f"), strict=True)
        return " / ".join("n/a" if np.isnan(value) else format(value, form) for value, form in told)

    tracers = list(sensitivity)
    lines = [
        f"| {variable} | " + " | ".join(cell(*sensitivity[t][variable]) for t in tracers) + " |"
        for variable in sensitivity[tracers[0]]
    ]
    table = "\n".join(lines)
    return f"""## What each variable does
Change of the target SUVR when a value rises by one SD / mean absolute change when it is missing, all others known.
Blood values go along with one another, so that each alone moves little; `{ALL_BLOOD}` is all of them missing at once:

| variable | {" | ".join(tracers)} |
|---|{"---|" * len(tracers)}
{table}"""
