"""What text vectors tell of a record: amyloid positivity of simulated people, read from prompts and from numbers.

python benchmarks/language.py [--people 400] [--encoder minilm hashed FOLDER …]
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from bids_petsynth.clinical.encoders import load_encoder
from bids_petsynth.clinical.language import PromptWriter, encode_records
from bids_petsynth.models.conditioning import fit_standardisation, record_matrix, standardise
from bids_petsynth.models.recipe import load_recipe
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--encoder", nargs="+", default=["minilm", "hashed"])
    arguments = parser.parse_args()
    people, records = draw_records(arguments.people, np.random.default_rng(5))
    positive = np.asarray(people.positive).astype(int)
    specs = load_recipe("petsynth").conditioning.variables
    matrix = record_matrix(records, specs)
    values = np.hstack([part.numpy() for part in standardise(matrix, fit_standardisation(matrix))])
    print("| what is read | whole text's vector | all vectors | ms per text |\n|---|---|---|---|")
    print(f"| numeric vector | {auc(values, positive, 1.0):.3f} | | |")
    for name in arguments.encoder:
        encoder = load_encoder(name)
        for style in ("numbers", "template"):
            start = time.perf_counter()
            tokens, _ = encode_records(records, PromptWriter(style, [spec.name for spec in specs]), encoder)
            each = (time.perf_counter() - start) / len(records) * 1000
            whole, all_of_it = (auc(x.reshape(len(x), -1), positive, 0.01) for x in (tokens[:, 0], tokens))
            print(f"| `{name}`, {style} | {whole:.3f} | {all_of_it:.3f} | {each:.1f} |")


if __name__ == "__main__":
    main()
