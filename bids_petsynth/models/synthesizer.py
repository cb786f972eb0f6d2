"""From one head, one record and a tracer to draws of the PET scan that was never made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bids_petsynth.clinical.language import TextOptions, TextReader
from bids_petsynth.devices import fast_autocast
from bids_petsynth.errors import InputError, UsageError
from bids_petsynth.folding import fold, unfold
from bids_petsynth.models.conditioning import (
    Readable,
    is_pet,
    record_matrix,
    standardise,
    tracer_index,
)
from bids_petsynth.models.denoiser import Sources
from bids_petsynth.models.folder import Model, load_model
from bids_petsynth.models.process import centred, guided
from bids_petsynth.models.processes import build_process
from bids_petsynth.models.recipe import Recipe
from bids_petsynth.models.regional import Condition, Geometry, Painting, along, representative
from bids_petsynth.pet.tracers import target_weights
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.tables import data_path
from bids_petsynth.types import Anatomy, ClinicalRecord, Foreseen

#: Draws that go through the network together: bounds the memory, does not change the result's noise.
TOGETHER = 8
#: Draws of the regional means, of which a few become images: enough that their mean and spread are known.
REGIONAL_DRAWS = 256


def choose_device(name: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``; ``auto`` takes a GPU if there is one.

    Raises
    ------
    UsageError
        If a GPU is asked for where there is none, or the name is unknown.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UsageError(f"Unknown device {name}; use cpu, cuda, cuda:N or auto.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"The device {name} was asked for, but torch sees no such GPU here; in a container start Docker "
            "with --gpus all or Apptainer with --nv, or use --device cpu."
        )
    return name


def pool_labels(probabilities: np.ndarray, factor: int) -> Tensor:
    """Label probabilities ``(C, X, Y, Z)`` averaged to ``(1, C, X/factor, …)``, class by class to save memory."""
    classes = (torch.from_numpy(np.ascontiguousarray(p)).float()[None, None] for p in probabilities)
    return torch.cat([F.avg_pool3d(p, factor) for p in classes], dim=1)


def check_tracer(recipe: Recipe, tracer: str) -> None:
    """Raise UsageError if a model of this recipe was not trained to draw ``tracer``, which may be "T1w"."""
    if tracer not in recipe.tracers and not is_pet(tracer):
        raise UsageError(
            f"The model {recipe.name} does not draw a {tracer}: leave --target {tracer} out, or take a model with "
            f'"{tracer}" among its tracers, such as the recipe acadiff gives.'
        )
    if tracer not in recipe.tracers:
        known = ", ".join(recipe.tracers)
        raise UsageError(f"The model {recipe.name} does not know the tracer {tracer}; it knows {known}.")


def built_in() -> Path:
    """Folder of the demonstration model inside the package."""
    return data_path("models", "petsynth-demo")


def _present(codes: np.ndarray) -> np.ndarray:
    """The labels that occur, ascending, without 0."""
    return np.flatnonzero(np.bincount(codes.ravel())[1:]) + 1


def reader_of(model: Model, options: TextOptions | None = None, device: str = "cpu") -> TextReader | None:
    """What reads the texts of a model's recipe, the encoder that it was trained with checked; None if it has none."""
    spec = model.recipe.conditioning
    if spec.text is None:
        return None
    names = [variable.name for variable in spec.variables]
    return TextReader(spec.text, names, options or TextOptions(), device, model.text_encoder or None)


class Synthesizer:
    """A loaded model on a device.

    ``texts`` reads the records of recipes with a text.

    Examples
    --------
    >>> draws = Synthesizer.load().draw(anatomy, record, tracer="AV45")  # doctest: +SKIP
    """

    def __init__(self, model: Model, device: str = "cpu", texts: TextReader | None = None):
        self.model, self.device, self.texts = model, choose_device(device), texts
        self.denoiser = model.denoiser.to(self.device).eval()
        self.space = model.space.to(self.device).eval()
        self.regional = model.regional.to(self.device).eval() if model.regional else None
        self.process = build_process(model.recipe)

    @classmethod
    def load(cls, folder: Path | None = None, device: str = "cpu", options: TextOptions | None = None) -> Synthesizer:
        """Load a model folder; the built-in demonstration model if None.

        ``options`` say how the texts of recipes with a text are written and read.

        Raises
        ------
        ModelError
            If the folder is incomplete, damaged, or from a newer version.
        UsageError
            If the device does not exist.
        """
        device = choose_device(device)
        model = load_model(built_in() if folder is None else Path(folder))
        return cls(model, device, reader_of(model, options, device))

    @property
    def tracers(self) -> tuple[str, ...]:
        """Tracers that the model can synthesise."""
        return tuple(name for name in self.model.recipe.tracers if is_pet(name))

    def draw(
        self,
        anatomy: Anatomy,
        record: ClinicalRecord,
        tracer: str,
        n_draws: int | None = None,
        seed: int = 0,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Draw ``n_draws`` scans (the recipe's number if None).

        Parameters
        ----------
        anatomy
            On the model's grid.
        record
            Missing variables are replaced by the model's learned nulls, which widens the draws.
        seed
            The noise depends on it, the tracer and ``n_draws``, not on the device.
        given
            Other scans of the person on the model's grid ``(X, Y, Z)``, PET in SUVR, by modality; those that are among
            the recipe's sources are used.

        Returns
        -------
        ndarray
            ``(n_draws, X, Y, Z)`` float32, in SUVR up to a scale that the head's own reference region sets; to be
            calibrated in SUVR (see :meth:`calibrated`). One alone from a recipe whose draws are all alike.

        Raises
        ------
        UsageError
            If the model does not know the tracer.
        InputError
            If the anatomy does not lie on the model's grid.
        """
        recipe = self.model.recipe
        check_tracer(recipe, tracer)
        shape = tuple(recipe.grid.shape)
        if anatomy.t1w.shape != shape or anatomy.probabilities.shape != (self.model.classes, *shape):
            raise InputError(
                f"The T1w lies on a grid of {anatomy.t1w.shape} voxels with {len(anatomy.probabilities)} classes, the "
                f"model takes {shape} with {self.model.classes}; align the T1w to the model's grid first."
            )
        t1w = torch.from_numpy(np.ascontiguousarray(anatomy.t1w, dtype=np.float32))[None]
        labels = pool_labels(anatomy.probabilities, recipe.label_pool)
        scans = {name: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for name, v in (given or {}).items()}
        # several equal draws would pass for certainty
        n = 1 if recipe.draws_alike else n_draws or recipe.n_draws
        return self.sample(t1w, labels, record, tracer, n, seed, scans)

    def calibrated(self, draws: np.ndarray, tracer: str) -> np.ndarray:
        """Draws in SUVR whose deviations from their mean are multiplied by the model's spread factor for the tracer.

        Those of a model with a regional part stay as they are: their regional means are calibrated before an image is
        made, and nothing else of an image is in need of it.
        """
        factor = self.model.spread.get(tracer, 1.0)
        if len(draws) < 2 or factor == 1.0 or self.regional is not None:
            return draws
        mean = draws.mean(0)
        return mean + np.float32(factor) * (draws - mean)

    def geometry(self, anatomy: Anatomy) -> Geometry:
        """That of a head on the model's grid, as :meth:`regional_draws` takes it."""
        labels = pool_labels(anatomy.probabilities, self.model.recipe.label_pool)
        return self._geometry(labels, self.denoiser.painting(labels))

    @torch.inference_mode()
    def regional_draws(
        self, record: Readable, tracer: str, geometry: Geometry, seed: int, n: int = REGIONAL_DRAWS
    ) -> Tensor:
        """``(n, classes)`` calibrated draws of regional means in SUVR, as soft labels measure them; no image is made.

        :meth:`sample` paints a few of just these, see :func:`representative`.

        Raises
        ------
        UsageError
            If the model has no regional part.
        """
        if self.regional is None:
            raise UsageError(f"The model {self.model.recipe.name} has no regional part.")
        return self._regional_draws(self._condition(record, tracer, geometry), tracer, n, self._rng(tracer, seed)).cpu()

    @torch.inference_mode()
    def foreseen(
        self, labels: Tensor, codes: np.ndarray, record: Readable, tracer: str, n: int, seed: int
    ) -> Foreseen | None:
        """Regional means of the paintings under ``n`` draws of :meth:`sample` and under all that were drawn.

        Parameters
        ----------
        labels
            As :meth:`sample` takes them.
        codes
            ``(X, Y, Z)`` integer labels of the same head; 0 is left out.

        Returns
        -------
        Foreseen or None
            Calibrated as the draws are; None if the model has no regional part.
        """
        if self.regional is None:
            return None
        painting = self.denoiser.painting(labels.to(self.device))
        many = self.regional_draws(record, tracer, self._geometry(labels, painting), seed, max(n, REGIONAL_DRAWS))
        few = representative(many, n)
        pool = codes.shape[0] // painting.shape[0]
        shares = [F.avg_pool3d(torch.from_numpy(codes == code).float()[None], pool)[0] for code in _present(codes)]
        masks = torch.stack(shares).to(self.device)
        read = [painting.read(draws.to(self.device), masks) for draws in (few, many)]
        return Foreseen(*(means.cpu().double().numpy() for means in read))

    @torch.inference_mode()
    def sample(
        self,
        t1w: Tensor,
        labels: Tensor,
        record: Readable,
        tracer: str,
        n: int,
        seed: int,
        given: Mapping[str, Tensor | None] | None = None,
    ) -> np.ndarray:
        """Draws ``(n, X, Y, Z)`` from prepared images of one head (see ``Denoiser.prepare``).

        ``given`` are further scans by modality ``(X, Y, Z)``, see :meth:`draw`; None withholds one, the T1w too.
        """
        recipe = self.model.recipe
        everything = {"T1w": t1w[0], **(given or {})}
        scans = self._given({name: scan for name, scan in everything.items() if scan is not None}, tracer)
        with fast_autocast(self.device):
            sources = self.denoiser.settled(self.denoiser.prepare(t1w.to(self.device), labels.to(self.device), *scans))
        geometry = None if self.regional is None else self._geometry(labels, sources.painting)
        rng, condition = self._rng(tracer, seed), self._condition(record, tracer, geometry)
        means = None
        if self.regional is not None:
            means = representative(self._regional_draws(condition, tracer, max(n, REGIONAL_DRAWS), rng), n)
        out = np.empty((n, *recipe.grid.shape), np.float32)
        mean, sd = self.model.scale([tracer], self.device)
        noise = torch.randn((n, recipe.latent_channels, *recipe.latent_shape), generator=rng)
        if means is not None:  # as representative() does for the regional means
            noise = centred(noise)
        for first in range(0, n, TOGETHER):
            some = slice(first, min(n, first + TOGETHER))
            painted = None if means is None else self.denoiser.paint(means[some], sources)
            latents = self._drawn(noise[some].to(self.device), sources, condition, painted, rng) * sd + mean
            if painted is not None:
                if tracer in self.model.texture:
                    latents = self.space.textured(painted + latents, self.model.texture[tracer]) - painted
                rest = sources.painting.without_means(unfold(latents, recipe.fold)[:, 0])
                latents = painted + fold(rest[:, None], recipe.fold)
            for i, latent in enumerate(latents, first):
                out[i] = self.space.decode(latent[None])[0].float().cpu().numpy()
        return out

    def _given(self, scans: Mapping[str, Tensor], target: str) -> tuple[Tensor, Tensor] | tuple[()]:
        """The recipe's sources in standardised latents ``(1, S, C, x, y, z)`` and which are taken; none if it has none.

        See :meth:`Model.taken`.
        """
        names = self.model.recipe.conditioning.sources
        if not names:
            return ()
        taken = self.model.taken(scans, target)
        recipe, there = self.model.recipe, [name in taken for name in names]
        latents = torch.zeros(len(names), recipe.latent_channels, *recipe.latent_shape, device=self.device)
        if taken:
            mean, sd = self.model.scale(taken, self.device)
            encoded = self.space.encode(torch.stack([scans[name] for name in taken]).float().to(self.device))
            latents[torch.tensor(there)] = (encoded - mean) / sd
        return latents[None], torch.tensor([there], device=self.device)

    def _geometry(self, labels: Tensor, painting: Painting) -> Geometry:
        recipe = self.model.recipe
        return Geometry.of(labels, recipe.grid.voxel_size * recipe.label_pool, painting)

    def _rng(self, tracer: str, seed: int) -> torch.Generator:
        """Random numbers of a seed and tracer, drawn on the CPU."""
        digest = hashlib.sha256(f"{seed}:{tracer}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    def _condition(self, record: Readable, tracer: str, geometry: Geometry | None) -> Condition:
        """What is known of one person, one row."""
        spec = self.model.recipe.conditioning
        values, mask = standardise(record_matrix([record], spec.variables), self.model.variables)
        tracers = torch.tensor([tracer_index(tracer)])
        text = text_mask = None
        if spec.text is not None:
            if self.texts is None:
                raise UsageError(
                    f"The model {self.model.recipe.name} reads texts and no encoder was loaded; install "
                    "bids-petsynth[language]."
                )
            notes = str(getattr(record, "notes", "") or record.get("notes") or "")
            text, text_mask = map(torch.from_numpy, self.texts([record], [notes]))
            text_mask = text_mask & (mask.any(1, keepdim=True) | bool(notes))
        of_head = {} if geometry is None else vars(geometry)
        return Condition(values, mask, tracers, **of_head, text=text, text_mask=text_mask).to(self.device)

    def _regional_draws(self, condition: Condition, tracer: str, n: int, rng: torch.Generator) -> Tensor:
        draws = self.regional.sample(n, condition, self.model.recipe.process.guidance, rng)
        if tracer not in self.model.spread:
            return draws
        weights = torch.from_numpy(target_weights(tracer_named(tracer), condition.volumes[0].cpu().numpy()))
        common, rest = along(draws, weights.to(draws))
        return draws.mean(0) + self.model.target_spread.get(tracer, 1.0) * common + self.model.spread[tracer] * rest

    def _drawn(
        self, noise: Tensor, sources: Sources, condition: Condition, painted: Tensor | None, rng: torch.Generator
    ) -> Tensor:
        guidance = self.model.recipe.process.guidance
        condition = condition.repeated(len(noise))
        # with a regional part the record, and so its guidance, is the regional flow's
        guide = guidance != 1.0 and painted is None

        def output(x: Tensor, t: Tensor) -> Tensor:
            times = t.float().to(x.device).expand(len(x))

            def given(condition: Condition) -> Tensor:
                with fast_autocast(self.device):
                    return self.process.output(lambda z, s: self.denoiser(z, s, sources, condition, painted), x, times)

            out = given(condition)
            return guided(out, given(condition.without_record()), guidance) if guide else out

        return self.process.draw(output, noise, rng)
