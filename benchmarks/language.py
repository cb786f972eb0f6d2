"""What text vectors tell of a record: amyloid positivity of simulated people, read from prompts and from numbers.

python benchmarks/language.py [--people 400] [--encoder minilm hashed FOLDER …] [--recorded ARRAYS OUT]

With ``--recorded`` it is about the 120 people whom ``recipes.py run ARRAYS OUT`` trains on, to whose records a large
chat model's words are kept (``recorded_chat.py``).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from recipe_people import TRACER, Crowd
from recorded_chat import RECORDED

from bids_petsynth.clinical.encoders import load_encoder
from bids_petsynth.clinical.language import encode_texts
from bids_petsynth.clinical.prompts import llm_request, write_prompt
from bids_petsynth.models.conditioning import fit_standardisation, record_matrix, standardise
from bids_petsynth.models.recipe import load_recipe
from bids_petsynth.pet.tracers import default_cutoff
from bids_petsynth.training.pairs import draw_records


def auc(features: np.ndarray, positive: np.ndarray, strength: float) -> float:
    """Area under the curve of ten-fold predictions by logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    return roc_auc_score(positive, cross_val_predict(model, features, positive, cv=10, method="decision_function"))


@cache
def replies() -> dict[str, str]:
    """What the chat model wrote, by what it was told."""
    return json.loads(RECORDED.read_text())


def written(style: str, record: Mapping[str, float], names: Sequence[str]) -> str:
    """The text of a record."""
    known = {name: record[name] for name in names if record.get(name) is not None}
    if style != "llm":
        return write_prompt(style, known, names)
    return replies()[llm_request(known, names)[-1]["content"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--encoder", nargs="+", default=["minilm", "hashed"])
    parser.add_argument("--recorded", nargs=2, type=Path, metavar=("ARRAYS", "OUT"))
    arguments = parser.parse_args()
    if arguments.recorded:
        arrays, out = arguments.recorded
        crowd = Crowd(arrays, out / "crowd", (TRACER, "FDG"), 0, 120)
        # no case is kept: each takes 100 MB
        known = [(case.record, case.truth["centiloid"]) for case in map(crowd.case, range(crowd.size))]
        records = [record for record, _ in known]
        positive = np.array([load > default_cutoff().centiloid for _, load in known]).astype(int)
    else:
        people, records = draw_records(arguments.people, np.random.default_rng(5))
        positive = np.asarray(people.positive).astype(int)
    specs = load_recipe("language" if arguments.recorded else "petsynth").conditioning.variables
    names = [spec.name for spec in specs]
    matrix = record_matrix(records, specs)
    values = np.hstack([part.numpy() for part in standardise(matrix, fit_standardisation(matrix))])
    print("| what is read | whole text's vector | all vectors | ms per text |\n|---|---|---|---|")
    print(f"| numeric vector | {auc(values, positive, 1.0):.3f} | | |")
    for name in arguments.encoder:
        encoder = load_encoder(name)
        for style in ("numbers", "template", *(["llm"] if arguments.recorded else [])):
            start = time.perf_counter()
            tokens, _ = encode_texts([written(style, record, names) for record in records], encoder)
            each = (time.perf_counter() - start) / len(records) * 1000
            whole, all_of_it = (auc(x.reshape(len(x), -1), positive, 0.01) for x in (tokens[:, 0], tokens))
            print(f"| `{name}`, {style} | {whole:.3f} | {all_of_it:.3f} | {each:.1f} |")


if __name__ == "__main__":
    main()
