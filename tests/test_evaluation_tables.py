"""The benchmark's tables on fabricated people: a perfect model meets the bars, a bad one misses them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bids_petsynth.models.recipe import load_recipe
from bids_petsynth.pet.tracers import centiloid_equation

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
REGIONS, BANDS, DRAWS, PEOPLE = 6, 25, 8, 240


@pytest.fixture
def tables(monkeypatch):
    """The module of the tables, with a small crowd for the oracle and few resamples."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import model_tables

    from bids_petsynth.evaluation import statistics

    monkeypatch.setattr(model_tables, "TABULAR_PEOPLE", 600)
    monkeypatch.setattr(model_tables, "bootstrap", lambda f, clusters: statistics.bootstrap(f, clusters, n=30))
    yield model_tables
    sys.modules.pop("model_tables")


def fabricate(out: Path, good: bool) -> None:
    """People whose scans are one more of their draws, or whose draws ignore them and vary too little."""
    from bids_petsynth.evaluation import baselines
    from bids_petsynth.models.conditioning import record_matrix

    specs = load_recipe("petsynth").conditioning.variables
    heads = np.full((2, 47), 6.0)
    records, volumes, centiloid = baselines.tabular_people(heads, PEOPLE, 77)
    equation = centiloid_equation("AV45")
    rng = np.random.default_rng(0)
    (out / "people").mkdir(parents=True)
    np.savez(out / "heads.npz", volumes=heads)
    np.savez(out / "population.npz", AV45=np.ones(REGIONS))
    plan = {"draws": DRAWS, "heads": "unseen", "tracers": ["AV45"], "variables": ["age"], "model": "fabricated"}
    (out / "plan.json").write_text(json.dumps(plan))
    for number, (record, volume, load) in enumerate(zip(records, volumes, centiloid, strict=True)):
        target = (load - equation.intercept) / equation.slope
        spectrum = rng.gamma(20, 0.05, BANDS)
        file = {
            "head": np.array(f"head{number % 4}"),
            "values": record_matrix([record], specs)[0].numpy(),
            "volumes": volume,
            "AV45/target": target,
            "AV45/regional": target + 0.05 * rng.standard_normal(REGIONS),
            "AV45/spectrum": spectrum,
            "AV45/spectrum_draws": spectrum * (1.02 if good else 0.6),
            "AV45/spectrum_mean": spectrum * 0.5,
        }
        for variant, sd in (("plasma", 0.05), ("no_plasma", 0.1)):
            # the true value is one more draw around what the model knows
            known = target + sd * rng.standard_normal() if good else 1.2
            drawn = known + (sd if good else 0.01) * rng.standard_normal(DRAWS)
            error = rng.standard_normal(REGIONS) * np.hypot(sd, 0.05)
            own = drawn[:, None] + 0.05 * rng.standard_normal((DRAWS, REGIONS))
            file |= {f"AV45/{variant}/target_draws": drawn, f"AV45/{variant}/draws": own}
            for method in ("model", "mean", "matched", "ridge", "painted", *["codec"] * (variant == "plasma")):
                better = 0.5 if good and method == "model" else 1.0
                key = f"AV45/{variant}/{method}"
                file[f"{key}/regional"] = file["AV45/regional"] + better * error
                file |= {f"{key}/{n}": better * 0.1 for n in ("mae_brain", "mae_fov", "psnr_brain", "ssim_brain")}
                file |= {f"{key}/{n}": 1.0 for n in ("psnr_minmax", "ssim_minmax")}
        np.savez(out / "people" / f"{number:05d}.npz", **file)


def verdicts(text: str) -> dict[str, str]:
    """Name of each figure with a bar → its verdict."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[3] for row in rows if len(row) == 4 and row[1] and row[3].startswith(("met", "missed"))}


def test_a_perfect_model_meets_the_bars(tables, tmp_path, capsys):
    fabricate(tmp_path, good=True)
    tables.print_tables(tmp_path, load_recipe("petsynth"))
    text = capsys.readouterr().out
    assert "240 simulated people on 4 unseen heads" in text and "nothing about patients" in text
    found = verdicts(text)
    assert len(found) == 22
    # these people's draws know the amyloid better than any record, which is just what this row must denounce
    assert found.pop("r minus the oracle's, no_plasma").startswith("missed")
    # fabricated spread: regions and target share the person's error only
    wrong = {name for name, verdict in found.items() if verdict.startswith("missed") and "covers" not in name}
    assert not {name for name in wrong if "ECE" not in name}
    assert found["Centiloid: 80 % covers, plasma"].startswith("met")
    assert found["MAE brain over that of painted"] == found["regional MAE over that of their own mean, plasma"] == "met"


def test_a_bad_model_misses_them(tables, tmp_path, capsys):
    fabricate(tmp_path, good=False)
    tables.print_tables(tmp_path, load_recipe("petsynth"))
    found = verdicts(capsys.readouterr().out)
    bad = [
        "r over the oracle's, plasma",
        "MAE brain over that of mean",
        "Centiloid: 80 % covers, plasma",
        "Centiloid: 95 % covers, plasma",
        "positivity: AUC minus the oracle's, plasma",
    ]
    assert all(found[name].startswith("missed") for name in bad)
    assert any(verdict == "missed" for name, verdict in found.items() if name.startswith("power of a draw"))


def test_verdict_says_when_the_interval_crosses_the_bar(tables):
    from bids_petsynth.evaluation.statistics import Interval

    def verdict(estimate: float, low: float, high: float) -> str:
        return tables.row("x", Interval(*map(np.array, (estimate, low, high))), "≥ .95", 0.95).split("|")[4].strip()

    assert verdict(0.97, 0.96, 0.98) == "met" and verdict(0.9, 0.8, 0.94) == "missed"
    assert verdict(0.97, 0.9, 0.98) == "met, interval crosses"
    assert verdict(0.94, 0.9, 0.98) == "missed, interval crosses"
