"""The methods text that reports and ``CITATION.md`` carry: what ran, in whole sentences, with its references."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_petsynth.api import synthesis_of
from bids_petsynth.bids.sidecars import synthesis_metadata
from bids_petsynth.cli.main import main
from bids_petsynth.models.folder import Model
from bids_petsynth.models.recipe import load_recipe
from bids_petsynth.pet.tracers import centiloid_equation
from bids_petsynth.pet.tracers import tracer as tracer_named
from bids_petsynth.reports.boilerplate import bibliography, methods
from bids_petsynth.reports.citation import facts_of, methods_of
from bids_petsynth.reports.content import Pet, Scan
from bids_petsynth.tables import read_table
from bids_petsynth.types import Case, ClinicalRecord
from bids_petsynth.workflows.outputs import centiloid_metadata
from bids_petsynth.workflows.steps import description_of

#: Recipes without chance, whose one image has no interval.
DIRECT = ("regression", "attention-unet")


def model_of_recipe(name: str) -> Model:
    """The built-in model as if it had that recipe and had seen all of its sources in training."""
    recipe = load_recipe(name)
    seen = dict.fromkeys(recipe.conditioning.sources, ((0.0,), (1.0,)))
    model = replace(description_of(None), recipe=recipe, scaling=seen)
    return model if name == "petsynth" else replace(model, regional=None)


@pytest.mark.parametrize(
    ("name", "given", "said", "unsaid"),
    [
        (
            "regression",
            (),
            "a direct regression in one pass of a network in a band-limited space of cosine coefficients; its network "
            "is a 3D U-Net [@cicek2016]. It was given the T1w, the label probabilities, the tracer and clinical values",
            ("liu2023", "ho2020", "sampler", "solver", "MONAI"),
        ),
        ("attention-unet", (), "a 3D U-Net [@cicek2016] with attention gates on its skips [@oktay2018]", ("shen2021",)),
        ("gan", (), "an adversarially trained generator that draws from noise", ("solver", "regression")),
        ("ddpm3d", (), "with the DDIM sampler [@song2020] in 50 steps", ("liu2023", "Heun")),
        (
            "pasta",
            (),
            "conditions the other [@li2024]. It was given the T1w, the tracer and clinical values",
            ("label probabilities,", "zhou2026"),
        ),
        (
            "acadiff",
            ("FDG",),
            "attention over whatever scans are there [@zhou2026] and cross-attention to the text. It was given the "
            "T1w, the person's real FDG PET, the tracer, clinical values and a text written from the clinical values",
            ("label probabilities,", "liu2023"),
        ),
        ("acadiff", (), "given the T1w, the tracer, clinical values and a text", ("real FDG",)),
        (
            "cldm",
            ("FDG", "FBB"),
            "It was given the person's real FBB PET, the tracer and clinical values",
            ("the T1w,",),
        ),
        ("mri2pet", (), "a 3D U-Net [@cicek2016] with linear attention [@shen2021]. It was given the T1w, the tr", ()),
        ("petsynth", (), "given that uptake in a band", ("ho2020",)),
    ],
)
def test_methods_tell_what_a_recipe_is_given_and_how_it_draws(name, given, said, unsaid):
    model = model_of_recipe(name)
    about = synthesis_metadata(synthesis_of(model, 0, 8, "AV45", given), ClinicalRecord({}), ["age"])
    pet = Pet(tracer_named("AV45"), Path(), Path(), about, (), {"target": "amyloid_cortex"})
    found = methods([Scan(Case("01", None, None), None, None, None, {"BiasCorrection": "N4"}, [pet], {})])
    (text,) = (part for part in found.markdown.split("\n\n") if part.startswith("PET of AV45"))
    assert said in text
    assert not [word for word in unsaid if word in text]
    assert set(re.findall(r"@(\w+)", text)) <= {reference.key for reference in found.references}
    # the last two sentences are of intervals, which rest on what the recipe draws
    rest = [words for words in ("all of its regional draws", "spread of the draws") if words in found.markdown]
    assert rest == (
        ["all of its regional draws"] if name == "petsynth" else [] if name in DIRECT else ["spread of the draws"]
    )


@pytest.mark.parametrize("draws", [1, 8, 400])
@pytest.mark.parametrize("recipe", ["petsynth", "ddpm3d", "regression"])
@pytest.mark.parametrize("tracers", [("FDG",), ("AV45", "FDG", "AV1451")])
def test_methods_are_text_without_a_template_left_in_them(recipe, tracers, draws):
    about = synthesis_metadata(synthesis_of(model_of_recipe(recipe), 0, draws), ClinicalRecord({}), ["age", "sex"])
    pets = [
        Pet(
            tracer_named(name),
            Path(),
            Path(),
            about,
            (),
            {"target": tracer_named(name).default_target},
            centiloid=centiloid_metadata(centiloid_equation(name)),
            spaces=["MNI152NLin2009cAsym"],
        )
        for name in tracers
    ]
    for anatomy in ("N4", "by the preprocessed dataset"):
        found = methods([Scan(Case("01", None, None), None, None, None, {"BiasCorrection": anatomy}, pets, {})])
        assert not re.search(r"[{}]|\| max", found.markdown)
        # docs/architecture.md: 256 regional draws, or as many as images if these are more
        said = re.findall(r"spread of (\S+) regional draws", found.markdown)
        # a single image tells of no interval and no probability
        one = draws == 1 or recipe == "regression"
        assert ("from which no interval" in found.markdown) == one and ("Student-t" in found.markdown) != one
        if draws == 1:
            assert "probability of positivity" not in found.markdown
        elif "AV45" in tracers:
            assert "The probability of positivity is that of more than 20 Centiloid" in found.markdown
        assert said == ([str(max(draws, 256))] if recipe == "petsynth" and draws > 1 else [])


@pytest.mark.parametrize(
    ("slope", "intercept", "said"),
    [(188.22, -189.16, "188.22 × SUVR − 189.16 ["), (100.0, 5.5, "100 × SUVR + 5.5 [")],
)
def test_methods_write_equation_and_target_as_people_do(slope, intercept, said):
    about = synthesis_metadata(synthesis_of(description_of(None), 0, 8), ClinicalRecord({}), ["age"])
    equation = {"CentiloidEquation": {"Slope": slope, "Intercept": intercept}}
    amyloid = Pet(tracer_named("AV45"), Path(), Path(), about, (), {"target": "centiloid_like"}, centiloid=equation)
    glucose = Pet(tracer_named("FDG"), Path(), Path(), about, (), {"target": "fdg_metaroi_like"})
    found = methods([Scan(Case("01", None, None), None, None, None, {"BiasCorrection": "N4"}, [amyloid, glucose], {})])
    assert f"the equation {said}" in found.markdown
    assert "mean of the FDG MetaROI-like region [" in found.markdown


@pytest.mark.parametrize("preprocessed", [(), ("positive",), ("negative", "positive")])
def test_planned_methods_tell_of_preprocessed_scans_only_where_they_are(tmp_path, example, preprocessed):
    folder = tmp_path / "fmriprep"
    folder.mkdir()
    for label in preprocessed:
        anat = folder / f"sub-{label}" / "anat"
        anat.mkdir(parents=True)
        t1w = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
        t1w.to_filename(anat / f"sub-{label}_desc-preproc_T1w.nii.gz")
    words = ["participant", "--boilerplate-only", "-d", f"fmriprep={folder}"]
    assert main([str(example), str(tmp_path / "out"), *words]) == 0
    text = (tmp_path / "out" / "logs" / "CITATION.md").read_text()
    assert ("N4 [@tustison2010]" in text) == (len(preprocessed) < 2)
    told = {0: "", 1: "Other scans were taken with their bias", 2: "Scans were taken with their bias"}
    assert ("preprocessed dataset" in text) == bool(preprocessed) and told[len(preprocessed)] in text


def test_methods_tell_of_a_synthetic_t1w_beside_pet_and_alone():
    model = model_of_recipe("acadiff")
    about = synthesis_metadata(synthesis_of(model, 0, 8, "T1w", ("FDG",)), ClinicalRecord({}), ["age"])
    scan = Scan(Case("01", None, None), None, None, None, {"BiasCorrection": "N4"}, [], {}, drawn_about=about)
    alone = methods([scan]).markdown
    assert "A T1w was synthesised, not measured, with the model acadiff" in alone
    assert "the person's real FDG PET, the modality to be drawn, clinical values" in alone
    assert "Quantification" not in alone and "  " not in alone
    pet = Pet(tracer_named("AV45"), Path(), Path(), about, (), {"target": "amyloid_cortex"})
    both = methods([replace(scan, pets=[pet])])
    assert "PET of AV45 and a T1w were synthesised" in both.markdown
    # through the facts that logs/CITATION.json keeps
    assert methods_of(facts_of(replace(scan, pets=[pet]))).markdown == both.markdown


def test_every_cited_key_exists_and_every_tracer_can_be_shown():
    keys = {row["key"] for row in read_table("citations.tsv")}
    assert keys <= set(bibliography())
    assert {row["tracer"] for row in read_table("tracer_display.tsv")} == {
        row["name"] for row in read_table("tracers.tsv")
    }
    import matplotlib

    for row in read_table("tracer_display.tsv"):
        for column in ("planes", "overlay"):
            # lightness must rise or fall evenly, so that every reader sees the same order
            colours = matplotlib.colormaps[row[column]](np.linspace(0, 1, 64))[:, :3] @ [0.2126, 0.7152, 0.0722]
            steps = np.diff(colours)
            assert (steps > -0.005).all() or (steps < 0.005).all(), row[column]
