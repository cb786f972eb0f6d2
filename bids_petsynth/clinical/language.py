"""The text side of conditioning, from a record and its notes to the vectors that a network attends to.

A recipe's choices are a :class:`TextSpec`, those of a run a :class:`TextOptions`. A :class:`PromptWriter` writes the
prompts, :func:`encode_texts` turns them into vectors. In training, what is withheld from the numeric vector is withheld
from the prompt by ``without``, or the text would tell it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from bids_petsynth.clinical.cache import ContentCache, content_key
from bids_petsynth.clinical.columns import NOTES, ColumnMapping
from bids_petsynth.clinical.encoders import TextEncoder, load_encoder
from bids_petsynth.clinical.llm import ChatModel, Endpoint, Messages, ReplyError
from bids_petsynth.clinical.prompts import STYLES, Record, llm_request, notes_text, write_prompt
from bids_petsynth.clinical.text import is_missing, words
from bids_petsynth.errors import UsageError
from bids_petsynth.tables import read_table
from bids_petsynth.types import TableRow


class TextSpec(BaseModel):
    """Prompt and text encoder of a recipe.

    ``style`` is how prompts are written, ``encoder`` a name or folder of :func:`load_encoder`, ``tokens`` the vectors
    per text at most (the first is the whole text's), ``width`` their length.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    style: Literal["numbers", "template", "llm"] = "template"
    encoder: str = "minilm"
    tokens: Annotated[int, Field(ge=2)] = 64
    width: Annotated[int, Field(ge=1)] = 384


@dataclass(frozen=True)
class TextOptions:
    """What a run says of prompts; None leaves it to the recipe.

    Attributes
    ----------
    style
        How prompts are written.
    notes_columns
        Columns with free text, in any table.
    encoder
        Name or folder of a text encoder.
    endpoint
        Where a language model is asked.
    cache
        Folder for replies and vectors.
    prompts
        Folder for what comes of asking a language model, failures too: while it lasts, a record has the same prompt.
    """

    style: str | None = None
    notes_columns: tuple[str, ...] = ()
    encoder: str | None = None
    endpoint: Endpoint | None = None
    cache: Path | None = None
    prompts: Path | None = None

    def __post_init__(self) -> None:
        # workers change their folder
        if self.cache is not None:
            object.__setattr__(self, "cache", Path(self.cache).resolve())
        if self.encoder is not None and Path(self.encoder).is_dir():
            object.__setattr__(self, "encoder", str(Path(self.encoder).resolve()))

    @property
    def identity(self) -> dict[str, object]:
        """What a result depends on."""
        asked = (self.endpoint.url, self.endpoint.model) if self.endpoint else None
        return {"style": self.style, "notes": self.notes_columns, "encoder": self.encoder, "endpoint": asked}

    def chosen(self, spec: TextSpec) -> TextSpec:
        """The recipe's choices as this run makes them."""
        return spec.model_copy(update={"style": self.style or spec.style, "encoder": self.encoder or spec.encoder})

    def kept(self) -> ContentCache | None:
        """The cache, if there is one."""
        return ContentCache(self.cache) if self.cache else None

    def writer(self, spec: TextSpec, variables: Sequence[str]) -> PromptWriter:
        """Writer of the prompts; errors as in :class:`PromptWriter`."""
        model = ChatModel(self.endpoint, self.kept()) if self.endpoint else None
        kept = ContentCache(self.prompts) if self.prompts else None
        return PromptWriter(self.chosen(spec).style, variables, model, kept)

    def load_encoder(self, spec: TextSpec, device: str = "cpu", identity: str | None = None) -> TextEncoder:
        """The encoder; errors as in :func:`bids_petsynth.clinical.encoders.load_encoder`."""
        return load_encoder(self.chosen(spec).encoder, spec.tokens, spec.width, device, identity)

    def planned(self, spec: TextSpec) -> list[str]:
        """Sentences for a dry run: what would be written, encoded and asked, without a value."""
        chosen = self.chosen(spec)
        told = [f"prompt: {chosen.style}, encoded by {chosen.encoder}"]
        if self.notes_columns:
            told.append(f"notes: column {', '.join(self.notes_columns)}, identifiers removed")
        if chosen.style == "llm" and self.endpoint:
            told.append(f"clinical values and notes would be sent to {self.endpoint.model} at {self.endpoint.host}")
        else:
            told.append("no language model would be asked")
        return told


@dataclass(frozen=True)
class Prompt:
    """A prompt and how it came about.

    ``status`` is ``numbers``, ``template``, ``llm``, or ``template (…)`` with one of ``llm.PROBLEMS`` where no language
    model's text could be had; ``warning`` then is a sentence.
    """

    text: str
    status: str
    warning: str = ""


class PromptWriter:
    """Writes the prompts of records in one style.

    Parameters
    ----------
    style
        One of ``prompts.STYLES``.
    variables
        Those that prompts speak of, by canonical name.
    model
        The chat model that is asked; only for the style ``llm``.
    kept
        Where what comes of asking is kept, for writers in other processes, too; None asks each time.

    Raises
    ------
    UsageError
        If there is no such style, or ``llm`` is asked for and no endpoint is named.
    """

    def __init__(
        self, style: str, variables: Sequence[str], model: ChatModel | None = None, kept: ContentCache | None = None
    ):
        if style not in STYLES:
            raise UsageError(f"There is no prompt style {style}; choose from {', '.join(STYLES)}.")
        if style == "llm" and model is None:
            raise UsageError(
                "The recipe asks for prompts that a language model writes, and none is asked unless you name it: give "
                "--llm-endpoint and --llm-model, or --prompt template."
            )
        self.style, self.variables, self._model, self._kept = style, tuple(variables), model, kept

    def write(self, record: Record, notes: str = "", who: str = "", without: Collection[str] = ()) -> Prompt:
        """The prompt of one record.

        Parameters
        ----------
        record
            Values in canonical units.
        notes
            Free text without identifiers, from :func:`read_notes`.
        who
            Label for the warning; it is not written into the prompt nor sent.
        without
            Variables that count as missing; a prompt says that they are not available.
        """
        values = {name: record.get(name) for name in self.variables if name not in without}
        known = {name: value for name, value in values.items() if value is not None}
        if self.style != "llm":
            return Prompt(write_prompt(self.style, known, self.variables, notes), self.style)
        found = self._outcome(llm_request(known, self.variables, notes))
        if "reply" in found:
            return Prompt(found["reply"], "llm")
        text = write_prompt("template", known, self.variables, notes)
        sentence = f"{found['problem']}; the template prompt is used instead, and the next run asks again."
        sentence = f"{who}: {sentence}" if who else sentence[0].upper() + sentence[1:]
        return Prompt(text, f"template ({found['kind']})", sentence)

    def _outcome(self, request: Messages) -> dict[str, str]:
        """What comes of asking, see :meth:`_ask`: what is kept of it, if anything is."""
        if self._kept is None:
            return self._ask(request)
        key = content_key("prompt", json.dumps(request))
        text = self._kept.get_text(key)
        if text is None:
            found = json.dumps(self._ask(request))
            # of two that ask at the same time, what came first holds for both
            text = self._kept.get_text(key) or found
            self._kept.put_text(key, text)
        return json.loads(text)

    def _ask(self, request: Messages) -> dict[str, str]:
        """A ``reply``, or the ``kind`` of a ``problem`` and a sentence on it."""
        try:
            return {"reply": self._model.describe(request)}
        except ReplyError as problem:
            return {"kind": problem.kind, "problem": str(problem)}


class EncodedText(NamedTuple):
    """Vectors ``tokens (N, T, D)`` float32, zero behind a text's end, and ``mask (N, T)``, True where there is one.

    ``tokens[:, 0]`` is the vector of the whole text; its mask is always True.
    """

    tokens: np.ndarray
    mask: np.ndarray


def encode_texts(texts: Sequence[str], encoder: TextEncoder, kept: ContentCache | None = None) -> EncodedText:
    """Vectors of texts, each different text encoded once; T is ``encoder.tokens``, D is ``encoder.width``."""
    keys = {text: content_key(encoder.identity, str(encoder.tokens), text) for text in texts}
    found: dict[str, np.ndarray] = {}
    for text, key in keys.items():
        rows = kept.get_array(key) if kept else None
        if rows is not None and _fits(rows, encoder):
            found[text] = rows
    absent = [text for text in keys if text not in found]
    for text, rows in zip(absent, encoder.encode(absent) if absent else (), strict=True):
        found[text] = rows
        if kept:
            kept.put_array(keys[text], rows)
    tokens = np.zeros((len(texts), encoder.tokens, encoder.width), np.float32)
    mask = np.zeros(tokens.shape[:2], bool)
    for index, text in enumerate(texts):
        tokens[index, : len(found[text])] = found[text]
        mask[index, : len(found[text])] = True
    return EncodedText(tokens, mask)


def encode_records(
    records: Sequence[Record],
    writer: PromptWriter,
    encoder: TextEncoder,
    kept: ContentCache | None = None,
    notes: Sequence[str] | None = None,
) -> EncodedText:
    """Vectors of the records' prompts; see :meth:`PromptWriter.write` where their status is wanted, too."""
    notes = notes or [""] * len(records)
    prompts = [writer.write(record, text) for record, text in zip(records, notes, strict=True)]
    return encode_texts([prompt.text for prompt in prompts], encoder, kept)


class TextReader:
    """Records → vectors, as a recipe and a run ask for them.

    Parameters
    ----------
    spec, variables
        The recipe's.
    options
        The run's.
    identity
        Of the encoder that a model was trained with; another one is an error. None takes any.
    """

    def __init__(
        self,
        spec: TextSpec,
        variables: Sequence[str],
        options: TextOptions,
        device: str = "cpu",
        identity: str | None = None,
    ):
        self.writer, self.kept = options.writer(spec, variables), options.kept()
        self.encoder = options.load_encoder(spec, device, identity)

    @property
    def style(self) -> str:
        """How prompts are written."""
        return self.writer.style

    def prompt(self, record: Record, notes: str = "", who: str = "") -> Prompt:
        """The prompt of a record."""
        return self.writer.write(record, notes, who)

    def __call__(self, records: Sequence[Record], notes: Sequence[str] | None = None) -> EncodedText:
        """Vectors and mask, see :func:`encode_texts`."""
        return encode_records(records, self.writer, self.encoder, self.kept, notes)


def _fits(rows: np.ndarray, encoder: TextEncoder) -> bool:
    right = rows.ndim == 2 and rows.dtype == np.float32 and rows.shape[1] == encoder.width
    return right and 1 <= len(rows) <= encoder.tokens and bool(np.isfinite(rows).all())


# notes


def read_notes(
    rows: Sequence[TableRow],
    participant: str,
    session: str | None = None,
    columns: Collection[str] = (),
    mapping: ColumnMapping | None = None,
) -> str:
    """A person's free text without identifiers, of all columns that ``columns`` or a mapping file name; "" if none.

    Taken out are what :func:`bids_petsynth.clinical.prompts.notes_text` finds by itself, the labels, and whatever the
    person's rows hold in columns that are named like identifiers (``data/identifier_columns.tsv``). Rows of other
    sessions are not read.
    """
    texts = []
    wanted = session.removeprefix("ses-") if session else None
    for row in rows:
        if row.session and row.session.removeprefix("ses-") != wanted:
            continue
        texts += [text for name, text in row.columns.items() if _holds_notes(row.file, name, columns, mapping)]
    texts = list(dict.fromkeys(text.strip() for text in texts if text and not is_missing(text)))
    if not texts:
        return ""
    return notes_text(" ".join(texts), identifiers_of(rows, participant, session))


def _holds_notes(file: str, name: str, columns: Collection[str], mapping: ColumnMapping | None) -> bool:
    override = mapping.find(file, name) if mapping else None
    return name in columns or (override is not None and override.variable == NOTES)


def absent_columns(rows: Sequence[TableRow], columns: Collection[str]) -> list[str]:
    """Columns of ``columns`` that no row has, for a message about the whole dataset."""
    there = {name for row in rows for name in row.columns}
    return [name for name in columns if name not in there]


@cache
def _identifying() -> dict[str, str]:
    return {row["word"]: row["kind"] for row in read_table("identifier_columns.tsv")}


def identifiers_of(rows: Sequence[TableRow], participant: str, session: str | None = None) -> list[str]:
    """Texts by which a person could be known: labels, and cells of columns that are named like identifiers.

    Cells of one or two characters that are no labels are left out, and numbers without a digit: as whole words they
    would take too much out of a text. Names and places count by their parts, too.
    """
    found = [participant, *([session] if session else [])]
    for row in rows:
        found += [row.columns.get("participant_id", ""), row.columns.get("session_id", "")]
        for name, text in row.columns.items():
            kinds = {_identifying()[word] for word in _words(name) if word in _identifying()}
            if is_missing(text or "") or (kinds == {"number"} and not re.search(r"\d", text)):
                continue
            found += [text] if kinds and len(text.strip()) > 2 else []
            shortest = 2 if "name" in kinds else 4  # not the "of" in the name of a hospital
            found += re.findall(rf"[^\W\d_]{{{shortest},}}", text) if kinds & {"name", "place"} else []
    return [text for text in dict.fromkeys(text.strip() for text in found) if text and not is_missing(text)]


def _words(name: str) -> tuple[str, ...]:
    """Words of a column's name, those of ``FirstName`` apart and together."""
    return (*words(name), *words(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)))
