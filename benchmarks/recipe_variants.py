"""What ``benchmarks/recipes.py`` compares: recipes, their ablations, and models sampled in another way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bids_petsynth.models.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Variant:
    """A recipe with a few fields changed, or another variant's weights sampled otherwise.

    Attributes
    ----------
    recipe
        Name of a recipe in the package.
    fields
        Changed fields as ``part.field``.
    weights
        The variant whose weights are sampled; it trains its own if None.
    plasma
        Whether plasma values are known when drawing.
    missing
        Share of the sources withheld at random when drawing; the T1w alone is given if None.
    """

    recipe: str
    fields: Mapping[str, object] = field(default_factory=dict)
    weights: str | None = None
    plasma: bool = True
    missing: float | None = None


def _petsynth(plasma: bool = True, **process: object) -> Variant:
    fields = {f"process.{name}": value for name, value in process.items()}
    return Variant("petsynth", fields, weights="petsynth", plasma=plasma)


VARIANTS: dict[str, Variant] = {
    "petsynth": Variant("petsynth"),
    **{f"petsynth, {n} steps": _petsynth(steps=n) for n in (2, 4, 8, 16)},
    "petsynth, guidance 2": _petsynth(guidance=2.0),
    "petsynth without plasma": _petsynth(plasma=False),
    "language": Variant("language"),
    "language, numbers as text": Variant("language", {"conditioning.text.style": "numbers"}),
    "language, text by a language model": Variant("language", {"conditioning.text.style": "llm"}),
    "language, template alone": Variant("language", {"conditioning.numeric": False}),
    "language, numbers as text alone": Variant(
        "language", {"conditioning.numeric": False, "conditioning.text.style": "numbers"}
    ),
    "language, text by a language model alone": Variant(
        "language", {"conditioning.numeric": False, "conditioning.text.style": "llm"}
    ),
    "language, numeric alone": Variant("language", {"conditioning.text": None, "losses.alignment": 0.0}),
    "pasta": Variant("pasta"),
    "pasta without cycle": Variant("pasta", {"losses.cycle": 0.0}),
    "pasta without region weights": Variant("pasta", {"losses.regions": "none"}),
    "pasta without clinical": Variant("pasta", {"conditioning.numeric": False}),
    "mri2pet": Variant("mri2pet"),
    "mri2pet without pre-training": Variant("mri2pet", {"pretraining": None}),
    "mri2pet without style": Variant("mri2pet", {"pretraining.style": "none"}),
    "mri2pet without pyramid": Variant("mri2pet", {"losses.laplacian": 0.0}),
    "acadiff": Variant("acadiff", missing=0.0),
    "acadiff, 50 % missing": Variant("acadiff", weights="acadiff", missing=0.5),
    "acadiff, 80 % missing": Variant("acadiff", weights="acadiff", missing=0.8),
    "cldm": Variant("cldm"),
    "regression": Variant("regression"),
    "attention-unet": Variant("attention-unet"),
    "gan": Variant("gan"),
    "ddpm3d": Variant("ddpm3d"),
}


def changed(data: dict, fields: Mapping[str, object]) -> dict:
    """Recipe fields replaced by their dotted names."""
    for name, value in fields.items():
        *path, last = name.split(".")
        part = data
        for step in path:
            part = part[step]
        part[last] = value
    return data


def recipe_of(variant: str, scale: str, tracers: tuple[str, ...], seed: int) -> Recipe:
    """The variant's recipe at a scale; ``small`` for two CPU cores.

    ``tracers`` are the PET that the simulated people have.
    """
    chosen = VARIANTS[variant]
    data = load_recipe(chosen.recipe).model_dump(mode="json")
    data["tracers"] = [name for name in data["tracers"] if name in tracers or name == "T1w"]
    conditioning = data["conditioning"]
    conditioning["sources"] = [name for name in conditioning["sources"] if name in (*tracers, "T1w")]
    data["training"]["seed"] = seed
    if scale == "small":
        net, space = data["network"], data["space"]
        if space["kind"] == "codec" and space["fold"] == 1:
            space["cutoff"] = 0.125
            if net["kind"] == "dual-arm":
                net |= {"slices": 12, "stride": 6}
        if space["kind"] == "autoencoder":
            # twice the voxel and a level less: its latents are of the same place and size
            data["grid"] = {"shape": [n // 2 for n in data["grid"]["shape"]], "voxel_size": 4.0}
            space["channels"] = [max(8, c // 2) for c in space["channels"][1:]]
            # one volume a step: as much is learnt of each as of four
            space |= {"batch": 1, "rate": 2e-3, "adversarial": 0.0}
        net["channels"] = [max(16, c // 2) for c in net["channels"]]
        net["blocks"], net["groups"] = 1, 8
        data["training"] |= {"batch": 4, "rate": 1e-3, "warmup": 20, "ema": 0.98}
        data["process"]["steps"] = min(data["process"]["steps"], 25)
        if data["pretraining"]:
            data["pretraining"]["steps"] = data["training"]["steps"] // 2
        if data["regional"]:
            data["regional"] |= {"people": 600, "training_steps": 3000}
    return Recipe.model_validate(changed(data, chosen.fields))
