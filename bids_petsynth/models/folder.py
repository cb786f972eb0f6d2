"""The model folder: recipe, weights, card, calibration, and ``model.json`` with checksums. No pickle is ever read."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from bids_petsynth.errors import ModelError
from bids_petsynth.models.autoencoder import build_space
from bids_petsynth.models.conditioning import Standardisation, taken_sources
from bids_petsynth.models.denoiser import Denoiser, DualDenoiser, build_denoiser
from bids_petsynth.models.recipe import Recipe, parse_recipe, recipe_text
from bids_petsynth.models.regional import RegionalFlow

#: Version that is written; folders of all versions from :data:`OLDEST` on are read.
FORMAT, OLDEST = 3, 2
#: What ``model.json`` holds only of models that were given PET that was prepared in another way than usual.
SOURCE_PET = ("source_window", "source_fwhm")
#: Largest weight file in bytes, so that a model can live in a git repository.
SHARD_BYTES = 14_000_000


@dataclass(frozen=True)
class Model:
    """A trained model: its recipe, networks and everything that turns their numbers into SUVR.

    Attributes
    ----------
    latent_mean, latent_sd
        Per latent channel; the denoiser works on ``(latent − mean) / sd``, where there is a ``regional`` flow after the
        painting of the regional means was taken off.
    scaling
        Mean and SD of modalities that have their own, see :meth:`scale`.
    text_encoder
        Identity of the encoder that texts were read with in training, empty in recipes without text.
    source_window, source_fwhm
        How PET was prepared that the network was given: minutes after injection that were averaged (the tracer's usual
        ones if None) and mm that it was smoothed by (None: not at all).
    variables
        Mean and SD of the conditioning variables after their transform.
    spread
        Per tracer, the factor on the draws' deviations from their mean that makes them calibrated.
    target_spread
        The same of what goes with the mean of the tracer's target regions, where the recipe has a ``regional`` flow;
        ``spread`` is then that of the rest (see :func:`bids_petsynth.models.regional.along`).
    texture
        Per tracer, where the recipe has a ``regional`` flow, gains by band of frequency that give draws the power of
        scans, their regional means aside (see :meth:`bids_petsynth.models.codec.BandLimitedCodec.textured`).
    heads
        Names of the heads that it was trained on.
    ranges
        Rows of ``regions.tsv`` (see :func:`training_ranges`); empty in a loaded model, which does without them.
    surface
        Content of ``surface.safetensors`` (see ``evaluation.normative``); empty in a loaded model.
    demonstration
        True if it was trained on simulated PET.
    weights_sha256, fingerprint
        Of a loaded model: checksum of its weights (over their checksums where there are several files), and of
        ``model.json``, which changes with any of its files.
    """

    recipe: Recipe
    denoiser: Denoiser | DualDenoiser
    regional: RegionalFlow | None
    space: nn.Module
    latent_mean: tuple[float, ...]
    latent_sd: tuple[float, ...]
    variables: Standardisation
    classes: int
    version: str
    heads: tuple[str, ...] = ()
    demonstration: bool = False
    spread: Mapping[str, float] = field(default_factory=dict)
    target_spread: Mapping[str, float] = field(default_factory=dict)
    texture: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    ranges: tuple[Mapping[str, str], ...] = ()
    surface: bytes = b""
    card: str = ""
    weights_sha256: str = ""
    fingerprint: str = ""
    scaling: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    text_encoder: str = ""
    source_window: tuple[float, float] | None = None
    source_fwhm: float | None = None

    def scale(self, modalities: Sequence[str], device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Mean and SD ``(N, C, 1, 1, 1)`` that latents of these modalities are standardised by."""
        shared = (self.latent_mean, self.latent_sd)
        pairs = [self.scaling.get(name, shared) for name in modalities]
        return tuple(torch.tensor(part, device=device)[..., None, None, None] for part in zip(*pairs, strict=True))

    def taken(self, there: Collection[str], target: str) -> tuple[str, ...]:
        """Which of the scans that a person has the network is given to draw ``target``, in the recipe's order.

        Those of :func:`~bids_petsynth.models.conditioning.taken_sources` among the modalities that training saw.
        """
        return taken_sources(self.recipe.conditioning, [name for name in there if name in self.scaling], target)


def build_regional(recipe: Recipe, classes: int) -> RegionalFlow | None:
    """The recipe's flow over regional means, if it has one."""
    variables = len(recipe.conditioning.variables)
    return RegionalFlow(variables, classes, recipe.regional) if recipe.regional else None


def _parts(model: Model) -> dict[str, nn.Module]:
    """The networks by the prefix of their tensors."""
    parts = {"denoiser": model.denoiser, "regional": model.regional, "space": model.space}
    return {name: net for name, net in parts.items() if net is not None}


def _tensors(model: Model) -> dict[str, Tensor]:
    return {f"{part}.{name}": v for part, net in _parts(model).items() for name, v in net.state_dict().items()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _weights_sum(sums: Mapping[str, str]) -> str:
    """Checksum of all weight files: a single file's own, else that of their checksums in order."""
    files = [sums[name] for name in sorted(sums) if name.startswith("weights-")]
    return files[0] if len(files) == 1 else hashlib.sha256("".join(files).encode()).hexdigest()


def _shards(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in tensors.items():
        half = value.detach().cpu().half().contiguous()
        if shards[-1] and size + half.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = half
        size += half.nbytes
    return shards


def save_model(model: Model, folder: Path) -> None:
    """Write the folder; ``model.json`` comes last, so that a folder without it is known to be incomplete."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "model.json", *folder.glob("weights-*.safetensors")):
        old.unlink(missing_ok=True)
    for name, content in weights_files(model):
        (folder / name).write_bytes(content)
    (folder / "recipe.toml").write_text(recipe_text(model.recipe), encoding="utf-8")
    (folder / "MODEL_CARD.md").write_text(model.card, encoding="utf-8")
    (folder / "calibration.json").write_text(calibration_text(model), encoding="utf-8")
    names = ["recipe.toml", "MODEL_CARD.md", "calibration.json", *sorted(p.name for p in folder.glob("weights-*"))]
    (folder / "regions.tsv").unlink(missing_ok=True)
    if model.ranges:
        _write_ranges(folder / "regions.tsv", model.ranges)
        names.append("regions.tsv")
    (folder / "surface.safetensors").unlink(missing_ok=True)
    if model.surface:
        (folder / "surface.safetensors").write_bytes(model.surface)
        names.append("surface.safetensors")
    about = {
        "format": FORMAT,
        "name": model.recipe.name,
        "version": model.version,
        "demonstration": model.demonstration,
        "tracers": list(model.recipe.tracers),
        "grid": model.recipe.grid.model_dump(mode="json"),
        "classes": model.classes,
        "latent_mean": list(model.latent_mean),
        "latent_sd": list(model.latent_sd),
        "scaling": {name: [list(part) for part in pair] for name, pair in model.scaling.items()},
        "text_encoder": model.text_encoder,
        **{name: getattr(model, name) for name in SOURCE_PET if getattr(model, name) is not None},
        "variables": {
            spec.name: {"mean": mean, "sd": sd}
            for spec, mean, sd in zip(
                model.recipe.conditioning.variables, model.variables.mean, model.variables.sd, strict=True
            )
        },
        "heads": list(model.heads),
        "sha256": {name: _sha256(folder / name) for name in names},
    }
    (folder / "model.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def weights_files(model: Model) -> Iterator[tuple[str, bytes]]:
    """The weights as a model folder keeps them: name and content of each of its files."""
    from safetensors.torch import save

    for number, shard in enumerate(_shards(_tensors(model)), 1):
        yield f"weights-{number:05d}.safetensors", save(shard)


def put_files(folder: Path, files: Mapping[str, bytes], **fields: str) -> None:
    """Put files into a complete model folder, in place of those that it has, and their checksums into ``model.json``.

    ``fields`` of ``model.json`` are set, too. Nothing else may use the folder meanwhile.

    Raises
    ------
    ModelError
        If the folder is incomplete or damaged.
    """
    about = verified(folder)
    about |= fields
    about["sha256"] |= {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    contents = {**files, "model.json": (json.dumps(about, indent=2) + "\n").encode()}
    parts = {name: folder / f".{name}.part" for name in contents}
    for name, content in contents.items():
        parts[name].write_bytes(content)
    for name, part in parts.items():  # at once, so that a kill hardly ever falls between
        part.replace(folder / name)


def calibration_text(model: Model) -> str:
    """Content of ``calibration.json``: the model's ``spread``, ``target_spread`` and ``texture``."""
    known = {name: dict(getattr(model, name)) for name in ("spread", "target_spread", "texture")}
    return json.dumps(known, indent=2) + "\n"


def _write_ranges(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(
            file, ["tracer", "name", "mean", "sd", "p05", "p95"], delimiter="\t", lineterminator="\n"
        )
        table.writeheader()
        table.writerows(rows)


def _read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object: the model is damaged; copy its folder again.")
    return found


def verified(folder: Path) -> dict:
    """``model.json`` after checks of the folder, the format version and every file's checksum."""
    if not folder.is_dir():
        raise ModelError(f"There is no model folder {folder}; check the path.")
    if not (folder / "model.json").is_file():
        raise ModelError(f"{folder} has no model.json, so it is not a complete model folder; copy it again.")
    about = _read_json(folder / "model.json")
    version = about.get("format")
    if not isinstance(version, int) or version < 1:
        raise ModelError(f"{folder}/model.json names no format version: the model is damaged; copy its folder again.")
    if version < OLDEST:
        raise ModelError(
            f"The model {folder} was made by an older version of bids-petsynth (format {version}, this one reads "
            f"{OLDEST} to {FORMAT}); train it again, or use that version."
        )
    if version > FORMAT:
        raise ModelError(
            f"The model {folder} was made by a newer version of bids-petsynth (format {version}, this one reads "
            f"{FORMAT}); update bids-petsynth."
        )
    sums = about.get("sha256")
    needed = {"recipe.toml", "MODEL_CARD.md", "calibration.json", "weights-00001.safetensors"}
    if not isinstance(sums, dict) or not needed <= set(sums):
        raise ModelError(f"{folder}/model.json lists no checksums of its files: the model is damaged; copy it again.")
    for name, expected in sums.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ModelError(f"The model {folder} lacks its file {name}; copy the folder again.")
        if _sha256(path) != expected:
            raise ModelError(f"{path} is damaged or was changed (its checksum differs); copy the model folder again.")
    return about


def optional_file(folder: Path, name: str, weights_sha256: str) -> Path | None:
    """A file of a model folder that not every model has; None if it is not there or belongs to other weights.

    Raises
    ------
    ModelError
        If the file is there but the folder is incomplete or damaged.
    """
    if not (folder / name).is_file():
        return None
    sums = verified(folder)["sha256"]
    return folder / name if _weights_sum(sums) == weights_sha256 and name in sums else None


def training_ranges(folder: Path, weights_sha256: str) -> dict[str, dict[str, dict[str, str]]]:
    """Regional SUVR over the people that a model was trained on, from the optional ``regions.tsv`` of its folder.

    Parameters
    ----------
    folder
        The model folder.
    weights_sha256
        Of the model whose ranges are asked for: another model's would mislead.

    Returns
    -------
    By tracer and region name the row's ``mean``, ``sd``, ``p05`` and ``p95`` as text; empty if the folder holds
    another model or no such table.

    Raises
    ------
    ModelError
        If the folder has such a table but is incomplete or damaged.
    """
    path = optional_file(Path(folder), "regions.tsv", weights_sha256)
    if path is None:
        return {}
    ranges: dict[str, dict[str, dict[str, str]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            ranges.setdefault(row["tracer"], {})[row["name"]] = row
    return ranges


def _load_weights(folder: Path, files: list[str], model: Model) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for name in files:
        try:
            found.update(load_file(folder / name))
        except SafetensorError:
            raise ModelError(f"{folder / name} is not a safetensors file; copy the model folder again.") from None
    expected = _tensors(model)
    for name, value in expected.items():
        if name not in found:
            raise ModelError(f"The weights in {folder} lack the tensor {name} of the recipe; the two do not match.")
        if found[name].shape != value.shape:
            raise ModelError(
                f"The tensor {name} in {folder} has the shape {tuple(found[name].shape)} where the recipe asks for "
                f"{tuple(value.shape)}; recipe and weights do not match."
            )
    extra = sorted(set(found) - set(expected))
    if extra:
        raise ModelError(f"The weights in {folder} hold {extra[0]}, which the recipe lacks; the two do not match.")
    for part, net in _parts(model).items():
        mine = {k.removeprefix(f"{part}."): v.float() for k, v in found.items() if k.startswith(f"{part}.")}
        net.load_state_dict(mine)


def _window(found: Sequence[float] | None) -> tuple[float, float] | None:
    if found is None:
        return None
    low, high = found
    return float(low), float(high)


def load_model(folder: Path) -> Model:
    """Read and check a model folder.

    Raises
    ------
    ModelError
        If something is missing, damaged, from a newer version, or recipe and weights do not match.
    """
    folder = Path(folder)
    about = verified(folder)
    recipe = parse_recipe((folder / "recipe.toml").read_text(encoding="utf-8"), str(folder / "recipe.toml"))
    calibration = _read_json(folder / "calibration.json")
    try:
        variables = [about["variables"][spec.name] for spec in recipe.conditioning.variables]
        classes = int(about["classes"])
        # a random start is drawn and replaced: it must not move the caller's random numbers
        with torch.random.fork_rng(devices=[]):
            denoiser, space = build_denoiser(recipe, classes), build_space(recipe)
            regional = build_regional(recipe, classes)
        model = Model(
            recipe=recipe,
            denoiser=denoiser.eval(),
            regional=regional.eval() if regional else None,
            space=space.eval(),
            latent_mean=tuple(float(v) for v in about["latent_mean"]),
            latent_sd=tuple(float(v) for v in about["latent_sd"]),
            variables=Standardisation(
                tuple(float(v["mean"]) for v in variables), tuple(float(v["sd"]) for v in variables)
            ),
            classes=classes,
            version=str(about["version"]),
            heads=tuple(about["heads"]),
            demonstration=bool(about["demonstration"]),
            spread={str(k): float(v) for k, v in calibration["spread"].items()},
            target_spread={
                str(k): float(v) for k, v in calibration.get("target_spread", calibration["spread"]).items()
            },
            texture={str(k): tuple(float(g) for g in v) for k, v in calibration.get("texture", {}).items()},
            card=(folder / "MODEL_CARD.md").read_text(encoding="utf-8"),
            weights_sha256=_weights_sum(about["sha256"]),
            fingerprint=_sha256(folder / "model.json"),
            scaling={
                str(name): tuple(tuple(float(v) for v in part) for part in pair)
                for name, pair in about.get("scaling", {}).items()
            },
            text_encoder=str(about.get("text_encoder", "")),
            source_window=_window(about.get("source_window")),
            source_fwhm=float(about["source_fwhm"]) if "source_fwhm" in about else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder}/model.json does not fit its recipe ({error}); copy the model folder again."
        ) from None
    pairs = [(model.latent_mean, model.latent_sd), *model.scaling.values()]
    if any(len(part) != recipe.latent_channels for pair in pairs for part in pair):
        raise ModelError(f"{folder}/model.json standardises another number of latent channels than the recipe has.")
    _load_weights(folder, sorted(n for n in about["sha256"] if n.startswith("weights-")), model)
    return model
