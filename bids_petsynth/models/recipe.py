"""The recipe of a generative model: which parts it is made of and how it is trained, as a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bids_petsynth.clinical.language import TextSpec
from bids_petsynth.errors import ModelError
from bids_petsynth.tables import data_path

Triple = tuple[int, int, int]
#: Values of ``kind`` that choose among tables of a recipe.
KINDS = ("codec", "autoencoder", "rectified-flow", "ddpm", "direct")
Probability = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GridSpec(_Part):
    """Shape in voxels and voxel size in mm of the grid on which the PET is born."""

    shape: tuple[Annotated[int, Field(ge=4)], Annotated[int, Field(ge=4)], Annotated[int, Field(ge=4)]]
    voxel_size: float = Field(gt=0)


class CodecSpec(_Part):
    """Band-limited codec: keeps what lies below ``cutoff`` (cycles/mm) and folds ``fold``³ voxels into channels.

    With ``fold = 1`` it is a plain volume of voxels of ``1 / (2 cutoff)`` mm.
    """

    kind: Literal["codec"]
    cutoff: float = Field(gt=0)
    fold: int = Field(default=2, ge=1)


class AutoencoderSpec(_Part):
    """Trained autoencoder; each level after the first halves the resolution.

    Its own phase takes ``training_steps`` steps of ``batch`` whole volumes, as many as later phases take latents if
    None; ``kl`` weighs the Kullback–Leibler divergence, ``adversarial`` the loss by a patch discriminator.
    """

    kind: Literal["autoencoder"]
    channels: tuple[int, ...] = Field(min_length=2)
    latent_channels: int = Field(ge=1)
    blocks: int = Field(default=1, ge=1)
    groups: int = Field(default=8, ge=1)
    training_steps: int = Field(default=2000, ge=1)
    batch: int | None = Field(default=None, ge=1)
    rate: float = Field(default=5e-4, gt=0)
    kl: float = Field(default=1e-6, ge=0)
    adversarial: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _norms_fit(self) -> AutoencoderSpec:
        if any(c % self.groups for c in self.channels):
            raise ValueError("channels: each must be a multiple of groups; change one of them")
        return self


class FlowSpec(_Part):
    """Rectified flow: solver, its steps, shift of the time grid towards noise, and the guidance weight."""

    kind: Literal["rectified-flow"]
    solver: Literal["heun", "euler"] = "heun"
    steps: int = Field(ge=1)
    shift: float = Field(default=1.0, gt=0)
    guidance: float = Field(default=1.0, ge=0)


class DiffusionSpec(_Part):
    """DDPM: noise schedule, what the network predicts, and the sampler with its number of steps.

    ``beta`` are the first and last variance of the linear schedules. ``clamp`` holds the predicted data within ± this
    many standard deviations while sampling. A ``preconditioned`` network returns the velocity v, of which ε is made for
    the loss and the sampler: √(1 − ᾱ) x_t + √ᾱ v, of which the first term is the exact ε of a standard normal.
    """

    kind: Literal["ddpm"]
    schedule: Literal["cosine", "linear", "scaled-linear"] = "cosine"
    beta: tuple[float, float] = (1e-4, 0.02)
    timesteps: int = Field(default=1000, ge=2)
    target: Literal["epsilon", "x0", "velocity"] = "epsilon"
    sampler: Literal["ddim", "ddpm"] = "ddim"
    steps: int = Field(ge=1)
    eta: float = Field(default=0.0, ge=0, le=1)
    clamp: float | None = Field(default=None, gt=0)
    preconditioned: bool = False
    guidance: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _no_more_steps(self) -> DiffusionSpec:
        if self.steps > self.timesteps:
            raise ValueError("steps: no more than timesteps; lower it")
        if not 0 < self.beta[0] <= self.beta[1] < 1:
            raise ValueError("beta: two variances between 0 and 1, the smaller first; correct them")
        if self.preconditioned and self.target != "epsilon":
            raise ValueError('preconditioned: for target "epsilon"; leave it out')
        return self


class DirectSpec(_Part):
    """One pass of the network, as baselines do: a regression, or with ``noise`` an adversarial generator."""

    kind: Literal["direct"]
    noise: bool = False
    steps: Literal[1] = 1
    guidance: float = Field(default=1.0, ge=1, le=1)

    @property
    def solver(self) -> str:
        """As sidecars name it."""
        return "one pass"


class NetworkSpec(_Part):
    """U-Net: width of each level, residual blocks per level and direction, embedding width.

    ``attention`` acts at the coarsest level, ``gates`` on the skips. The kind ``dual-arm`` is PASTA's pair of 2.5D
    U-Nets, which see ``slices`` axial slices at once and move on by ``stride``.
    """

    kind: Literal["unet", "dual-arm"] = "unet"
    channels: tuple[int, ...] = Field(min_length=1)
    blocks: int = Field(default=1, ge=1)
    groups: int = Field(default=8, ge=1)
    embedding: int = Field(default=192, ge=8)
    attention: Literal["none", "linear", "full"] = "none"
    gates: bool = False
    slices: int = Field(default=15, ge=1)
    stride: int = Field(default=5, ge=1)


class RegionalSpec(_Part):
    """Flow over regional means (see ``models.regional``): its network, solver steps, and training.

    ``volumes``: it is given the regions' volumes besides the record. ``gtm``: it draws uptakes, which the geometric
    transfer matrix of the person's own labels makes regional means of. It is trained on ``people`` simulated people
    for ``training_steps`` steps.
    """

    volumes: bool = False
    gtm: bool = False
    width: int = Field(default=256, ge=8)
    blocks: int = Field(default=3, ge=1)
    steps: int = Field(default=24, ge=1)
    people: int = Field(default=3000, ge=2)
    training_steps: int = Field(default=8000, ge=1)
    batch: int = Field(default=256, ge=1)
    rate: float = Field(default=1e-3, gt=0)


class VariableSpec(_Part):
    """A clinical variable by its canonical name, and the transform that makes it roughly normal.

    Variables of one ``group`` are often missing together, as all plasma values are where no blood was drawn.
    """

    name: str
    group: str = ""
    transform: Literal["identity", "log"] = "identity"


class ConditioningSpec(_Part):
    """What the synthesis is conditioned on, and how often it is withheld in training.

    ``images`` are there for every head. ``sources`` are scans in the target's own space, of which any may be missing:
    ``fusion`` "attention" weighs whatever is there, "concatenation" takes one, at random in training. The record enters
    as numbers, as ``text``, or both. ``drop_variable`` is the mean share of a person's variables (see
    ``models.conditioning.withhold``), ``drop_group`` the probability for each group of variables, ``drop_record`` that
    for all of them, ``drop_source`` that for each source.
    """

    images: tuple[Literal["t1w", "labels"], ...] = ("t1w", "labels")
    sources: tuple[str, ...] = ()
    fusion: Literal["attention", "concatenation"] = "attention"
    variables: tuple[VariableSpec, ...] = ()
    numeric: bool = True
    text: TextSpec | None = None
    drop_variable: Probability = 0.15
    drop_group: Probability = 0.0
    drop_record: Probability = 0.1
    drop_source: Probability = 0.0

    @model_validator(mode="after")
    def _named_once(self) -> ConditioningSpec:
        names = [v.name for v in self.variables]
        if len(set(names)) < len(names):
            raise ValueError("a variable is listed twice; list each one once")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError("a source is listed twice; list each one once")
        return self


class LossSpec(_Part):
    """Weights of the losses; all but the first act on the image that the network's output implies.

    ``process`` is the error of what the process asks for (velocity, ε, x₀). ``l1``, ``mse``, ``ssim`` (1 − SSIM),
    ``laplacian`` (MRI2PET, not in pre-training), ``clinical`` (regional means, ACADiff), ``alignment`` (text and image,
    CLIP), ``translation`` and ``cycle`` (PASTA's conditioner task and cycle exchange) and ``adversarial`` are added.
    ``regions`` weighs the voxels of the target's regions in ``l1`` and ``mse`` by ``region_weight``, "learned" changes
    it while training. Losses on images are of one example in ``image_every``, drawn anew in each step, and count so
    many times: where an autoencoder's latents must be decoded for them, they cost more than all else in a step.
    """

    process: float = Field(default=1.0, ge=0)
    l1: float = Field(default=0.0, ge=0)
    mse: float = Field(default=0.0, ge=0)
    ssim: float = Field(default=0.0, ge=0)
    laplacian: float = Field(default=0.0, ge=0)
    clinical: float = Field(default=0.0, ge=0)
    alignment: float = Field(default=0.0, ge=0)
    translation: float = Field(default=0.0, ge=0)
    cycle: float = Field(default=0.0, ge=0)
    adversarial: float = Field(default=0.0, ge=0)
    regions: Literal["none", "fixed", "learned"] = "none"
    region_weight: float = Field(default=10.0, gt=0)
    image_every: int = Field(default=1, ge=1)

    @property
    def of_image(self) -> bool:
        """Whether any loss looks at the predicted image."""
        return any((self.l1, self.mse, self.ssim, self.laplacian, self.clinical, self.alignment, self.adversarial))


class PretrainingSpec(_Part):
    """Steps on pairs of a T1w and a PET-like image made from it by style transfer (MRI2PET's first phase).

    ``style``: "statistics" (slicewise histogram and spectrum of a random PET), "vgg19" (needs ``--vgg19 FILE``), or
    "none", where the T1w itself is drawn.
    """

    steps: int = Field(ge=1)
    style: Literal["statistics", "vgg19", "none"] = "statistics"


class TrainingSpec(_Part):
    """The loop: AdamW with warm-up and cosine decay, exponential moving average, gradient clipping.

    ``pool`` simulated people, each on their own deformed head and scanned with every tracer, are kept; one is replaced
    every ``refresh`` steps. Training stops after ``patience`` validations without improvement (0: never).
    """

    steps: int = Field(ge=1)
    batch: int = Field(default=4, ge=1)
    rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    ema: float = Field(default=0.995, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)
    pool: int = Field(default=100, ge=1)
    refresh: int = Field(default=2, ge=1)
    patience: int = Field(default=0, ge=0)
    tensorboard: bool = True


class Recipe(_Part):
    """All choices that make a model; read one with :func:`load_recipe`."""

    name: str
    title: str
    source: str
    grid: GridSpec
    space: CodecSpec | AutoencoderSpec = Field(discriminator="kind")
    normalisation: Literal["standard", "minmax"] = "standard"
    process: FlowSpec | DiffusionSpec | DirectSpec = Field(discriminator="kind")
    regional: RegionalSpec | None = None
    network: NetworkSpec
    conditioning: ConditioningSpec
    losses: LossSpec = LossSpec()
    pretraining: PretrainingSpec | None = None
    tracers: tuple[str, ...] = Field(min_length=1)
    n_draws: int = Field(default=8, ge=1)
    training: TrainingSpec

    @property
    def fold(self) -> int:
        """Voxels of the band-limited grid per latent voxel and axis (1 for an autoencoder)."""
        return self.space.fold if isinstance(self.space, CodecSpec) else 1

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return self.space.fold**3 if isinstance(self.space, CodecSpec) else self.space.latent_channels

    @property
    def ratio(self) -> int:
        """Voxels of the model grid per latent voxel and axis."""
        if isinstance(self.space, CodecSpec):
            return round(self.space.fold / (2 * self.space.cutoff * self.grid.voxel_size))
        return 2 ** (len(self.space.channels) - 1)

    @property
    def latent_shape(self) -> Triple:
        """Spatial shape of the latent."""
        x, y, z = self.grid.shape
        return x // self.ratio, y // self.ratio, z // self.ratio

    @property
    def label_pool(self) -> int:
        """Model-grid voxels per axis averaged into one voxel of label probabilities (half a folded latent's ratio)."""
        return max(2, self.ratio // 2) if isinstance(self.space, CodecSpec) else 2

    @property
    def draws_alike(self) -> bool:
        """Whether all draws of a scan are the same, so that they tell nothing of uncertainty."""
        return isinstance(self.process, DirectSpec) and not self.process.noise

    @property
    def modalities(self) -> tuple[str, ...]:
        """What is encoded into the latent space: targets, then the sources that are not among them."""
        return tuple(dict.fromkeys((*self.tracers, *self.conditioning.sources)))

    @model_validator(mode="before")
    @classmethod
    def _shown_its_source_alone(cls, data: Any) -> Any:
        """The images that are shown unless a recipe says otherwise: none to a network that takes none."""
        match data:
            case {"network": {"kind": "dual-arm"}, "conditioning": {**spec}} if "images" not in spec:
                return data | {"conditioning": {"images": (), **spec}}
        return data

    @model_validator(mode="after")
    def _holds_together(self) -> Recipe:
        from bids_petsynth.models.recipe_checks import misfits

        for sentence in misfits(self):
            raise ValueError(sentence)
        return self


def parse_recipe(text: str, where: str) -> Recipe:
    """A recipe from TOML text; ``where`` names it in messages.

    Raises
    ------
    ModelError
        With the field and the remedy.
    """
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"{where} is not valid TOML ({error}); correct it there.") from None
    except ValidationError as error:
        first = error.errors()[0]
        # pydantic names the kind that it judged by; the file has no such level
        field = ".".join(str(part) for part in first["loc"] if part not in KINDS)
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "no such field; correct its name or remove it"
        elif first["type"] == "missing":
            message = "the field is missing; add it"
        raise ModelError(f"Recipe {where}: {field + ': ' if field else ''}{message}.") from None


def load_recipe(name: str | Path) -> Recipe:
    """A built-in recipe by name, or one from a TOML file, to be trained.

    Raises
    ------
    ModelError
        If there is none, it does not hold together, or it asks for what a training would not heed.
    """
    from bids_petsynth.models.recipe_checks import unheeded

    path = Path(name)
    if path.suffix != ".toml":
        path = data_path("recipes", f"{name}.toml")
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in data_path("recipes").glob("*.toml")))
        raise ModelError(f"There is no recipe {name}; name one of {known}, or a TOML file.")
    recipe = parse_recipe(path.read_text(encoding="utf-8"), str(name))
    for sentence in unheeded(recipe):
        raise ModelError(f"Recipe {name}: {sentence}.")
    return recipe


def recipe_text(recipe: Recipe) -> str:
    """The recipe as TOML, every default written out."""
    import tomli_w

    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))
