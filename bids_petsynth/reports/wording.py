"""How a model makes PET, in words with citations, from what sidecars tell of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bids_petsynth.bids.sidecars import has_regional_part

#: What of the sampler is said, by its name.
_SAMPLERS = {
    "ddim": "with the DDIM sampler [@song2020] in {steps} steps",
    "ddpm": "with the ancestral sampler [@ho2020] in {steps} steps",
    "heun": "with the Heun solver in {steps} steps",
    "euler": "with the Euler solver in {steps} steps",
}
_PROCESSES = {
    "regional flow, then image flow": "a rectified flow [@liu2023] over regional uptake, given the tracer and clinical "
    "values, and a second one over the image, given that uptake",
    "rectified-flow": "a rectified flow [@liu2023]",
    "ddpm": "a denoising diffusion model [@ho2020]",
    "direct": "a direct regression in one pass of a network",
    "direct from noise": "an adversarially trained generator that draws from noise in one pass",
}
_SPACES = {
    "codec": "in a band-limited space of cosine coefficients",
    "autoencoder": "in the latent space [@rombach2022] of a trained autoencoder (MONAI {monai}) [@cardoso2022]",
}
_NETWORKS = {
    "unet": "its network is a 3D U-Net [@cicek2016]",
    "dual-arm": "its network is a pair of 2.5D U-Nets, one of which translates the T1w and thereby conditions the "
    "other [@li2024]",
}
_ADDED = {
    "linear attention": "linear attention [@shen2021]",
    "full attention": "self-attention",
    "attention gates": "attention gates on its skips [@oktay2018]",
    "fusion by attention": "attention over whatever scans are there [@zhou2026]",
    "cross-attention to a text": "cross-attention to the text",
}
_INPUTS = {
    "T1w": "the T1w",
    "label probabilities": "the label probabilities",
    "clinical values": "clinical values",
    "text": "a text written from the clinical values",
}
#: What a model that does not tell its inputs is given.
_USUAL = ("T1w", "label probabilities", "clinical values")


def process_words(model: Mapping[str, Any], monai: str) -> str:
    """Process, space and network of the entry ``Model`` of a sidecar."""
    process = model.get("Process", "")
    parts = [_PROCESSES.get(process, process), _SPACES.get(model.get("Space", ""), "").format(monai=monai)]
    text = " ".join(part for part in parts if part)
    kind, *added = model.get("Network", [""])
    if kind in _NETWORKS:
        more = [_ADDED[name] for name in added if name in _ADDED]
        text += "; " + _NETWORKS[kind] + (f" with {listed(more)}" if more else "")
    return text


def input_words(model: Mapping[str, Any], targets: Collection[str]) -> str:
    """What the network was given beside the noise, to draw these tracers or "T1w"."""
    names = list(model.get("Inputs", _USUAL))
    if has_regional_part(str(model.get("Process", ""))):
        # the record is the regional flow's, as is said of the process
        names = [name for name in names if name != "clinical values"]
    words = [
        _INPUTS.get(name, f"the person's real {name}" if name.endswith(" PET") else f"the {name}") for name in names
    ]
    images = [word for word, name in zip(words, names, strict=True) if name not in ("clinical values", "text")]
    wanted = "the modality to be drawn" if "T1w" in targets else "the tracer"
    return listed([*images, wanted, *words[len(images) :]])


def sampler_words(sampler: Mapping[str, Any]) -> str:
    """How draws were made; nothing for a network that is asked once."""
    text = _SAMPLERS.get(sampler["Name"], "").format(steps=sampler["Steps"])
    guidance = sampler["Guidance"]
    return text + (f" and classifier-free guidance of {guidance:g} [@ho2022]" if guidance != 1 else "")


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1] if words else ""
