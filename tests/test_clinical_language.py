"""From tables on disk to vectors: what notes lose, what leaves the building, what is encoded and kept."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from chat_server import completion, echo, serving
from models_small import CLASSES, SHAPE, small_model, small_recipe
from pydantic import ValidationError

from bids_petsynth.anatomy.regions import lookup
from bids_petsynth.bids.naming import sidecar_path
from bids_petsynth.bids.tables import dataset_rows, read_json
from bids_petsynth.cli.common import add_language, language_from, warn_of_absent_notes
from bids_petsynth.clinical.cache import ContentCache
from bids_petsynth.clinical.encoders import HashedEncoder
from bids_petsynth.clinical.language import (
    EncodedText,
    PromptWriter,
    TextOptions,
    TextSpec,
    absent_columns,
    encode_records,
    encode_texts,
    identifiers_of,
    read_notes,
)
from bids_petsynth.clinical.llm import PROBLEMS, ChatModel, Endpoint
from bids_petsynth.clinical.mapping import read_mapping, write_mapping
from bids_petsynth.clinical.prompts import template_prompt, write_prompt
from bids_petsynth.clinical.records import read_record
from bids_petsynth.clinical.variables import variables
from bids_petsynth.errors import ModelError, UsageError
from bids_petsynth.models.folder import save_model
from bids_petsynth.models.recipe import load_recipe
from bids_petsynth.settings import Settings
from bids_petsynth.tables import read_table
from bids_petsynth.training.pairs import draw_records
from bids_petsynth.types import Anatomy, Case, Grid, TableRow
from bids_petsynth.workflows import steps
from bids_petsynth.workflows.outputs import last_of

NAMES = ("age", "sex", "mmse", "nfl_simoa")
#: Texts of a person's rows that nobody outside may see.
SECRETS = ("XK47", "Rosalind", "Okonkwo", "Marigold", "Whitby", "778-20-114", "2021-06-03", "3 June 2021", "1931")
PARTICIPANTS = (
    "participant_id\tage\tsex\tMMSE\tNfL_Simoa\tFirstName\tsurname\thospital\tMRN\tbirth_date\tblood_date\tremarks\n"
    "sub-XK47\t93.2\tF\t24\t21.5\tRosalind\tOkonkwo\tMarigold House of Whitby\t778-20-114\t1931-01-15\t2021-06-03\t"
    "Rosalind (XK47, 93 years old) of marigold house saw Dr. Ambrose Hale on 3 June 2021; record 778-20-114. "
    "Forgets names of friends.\n"
)


@pytest.fixture
def person(tmp_path):
    """Rows of a person whose notes name her, from files."""
    (tmp_path / "participants.tsv").write_text(PARTICIPANTS)
    (tmp_path / "participants.json").write_text(json.dumps({"sex": {"Levels": {"F": "female"}}}))
    return dataset_rows(tmp_path, "XK47")[0]


@dataclass
class Counting:
    """An encoder that keeps what it was asked for."""

    inner: HashedEncoder = field(default_factory=lambda: HashedEncoder(8, 16))
    asked: list[str] = field(default_factory=list)

    @property
    def tokens(self):
        return self.inner.tokens

    @property
    def width(self):
        return self.inner.width

    @property
    def identity(self):
        return self.inner.identity

    def encode(self, texts):
        self.asked += texts
        return self.inner.encode(texts)


# notes


def test_notes_lose_whatever_the_rows_say_of_the_person(person):
    notes = read_notes(person, "XK47", columns=["remarks"])
    assert notes == (
        "[removed] ([removed], over 89 years old) of [removed] [removed] saw [removed] on [removed]; "
        "record [removed]. Forgets names of friends."
    )
    assert read_notes(person, "XK47") == "", "no column is read unless it is named"


def test_nothing_but_the_described_record_is_sent(person):
    """All that leaves for the language model, byte for byte, holds no identifier, no exact age and no date."""
    record = read_record(person)
    assert record.get("age") == 93.2 and record.get("nfl_simoa") == 21.5
    notes = read_notes(person, "XK47", columns=["remarks"])
    with serving() as server:
        prompt = PromptWriter("llm", NAMES, ChatModel(Endpoint(server.url, "tiny"))).write(record, notes, "sub-XK47")
    assert prompt.status == "llm"
    [request] = server.requests
    headers = {name: value for name, value in request["headers"].items() if name not in ("Host", "Content-Length")}
    sent = request["raw"].decode() + request["path"] + json.dumps(headers)
    found = [
        secret for secret in (*SECRETS, "Hale", "house", "93", "participants.tsv") if secret.lower() in sent.lower()
    ]
    assert found == []
    facts = json.loads(request["raw"])["messages"][1]["content"].split("\n")[0]
    assert facts == "Facts: An over 89-year-old woman, MMSE 24. Plasma NfL (Simoa) 21.5 pg/mL (normal)."


def test_local_prompts_have_the_notes_behind_them(person):
    notes = read_notes(person, "XK47", columns=["remarks"])
    prompt = PromptWriter("template", NAMES).write(read_record(person), notes)
    assert prompt.text.startswith("A 93-year-old woman") and prompt.text.endswith(f"Notes: {notes}")
    assert not any(secret in prompt.text for secret in SECRETS)


def test_notes_named_by_a_mapping_file(person, tmp_path):
    path = write_mapping(tmp_path / "mapping.tsv", person)
    assert "\tnotes\t" not in path.read_text().split("\n", 1)[1], "free text is never taken without being asked for"
    path.write_text("column\tvariable\nremarks\tnotes\n")
    mapping = read_mapping(path)
    assert "Forgets names" in read_notes(person, "XK47", mapping=mapping)
    plain, mapped = read_record(person), read_record(person, mapping)
    assert {n: v.value for n, v in mapped.values.items()} == {n: v.value for n, v in plain.values.items()}


def test_notes_of_sessions():
    rows = [
        TableRow("participants.tsv", {"participant_id": "sub-1x", "text": "Sleeps badly."}),
        TableRow("phenotype/a.tsv", {"session_id": "ses-m00", "text": "First visit."}, session="m00"),
        TableRow("phenotype/a.tsv", {"session_id": "ses-m24", "text": "Later, seen as 1x."}, session="m24"),
        TableRow("phenotype/b.tsv", {"text": "n/a", "more": "Sleeps badly."}),
    ]
    columns = ("text", "more")
    assert read_notes(rows, "1x", "ses-m00", columns) == "Sleeps badly. First visit."
    assert read_notes(rows, "sub-1x", "m24", columns) == "Sleeps badly. Later, seen as [removed]."
    assert read_notes(rows, "1x", None, columns) == "Sleeps badly."
    assert absent_columns(rows, ("text", "nots")) == ["nots"]


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        ("full_name", "Li Wei-Ming", {"Li Wei-Ming", "Li", "Wei", "Ming"}),
        ("LastName", "O'Neill", {"O'Neill", "Neill"}),
        ("recruiting site", "St. Mary of York", {"St. Mary of York", "Mary", "York"}),
        ("dob", "15.1.1931", {"15.1.1931"}),
        ("PTID", "011_S_0021", {"011_S_0021"}),
        ("site", "3", set()),
        ("patient_mood", "calm", set()),
        ("e-mail", "n/a", set()),
        ("MMSE", "24", set()),
        ("siteless", "Oxford", set()),
    ],
)
def test_columns_named_like_identifiers(column, cell, expected):
    rows = [TableRow("participants.tsv", {"participant_id": "sub-7", column: cell})]
    assert set(identifiers_of(rows, "7")) == {"7", "sub-7"} | expected


def test_the_words_of_identifying_columns_have_their_source():
    rows = read_table("identifier_columns.tsv")
    assert len({row["word"] for row in rows}) == len(rows)
    assert {row["kind"] for row in rows} == {"name", "place", "date", "number"}
    assert all(
        re.fullmatch(r"HIPAA Safe Harbor, 45 CFR 164\.514\(b\)\(2\)\(i\)\([A-R]\)", row["source"]) for row in rows
    )


# prompts


@pytest.mark.parametrize("style", ["numbers", "template"])
def test_withheld_variables_are_told_as_missing(style):
    record = {"age": 72.0, "sex": 0, "mmse": 24, "nfl_simoa": 18.8}
    writer = PromptWriter(style, NAMES)
    prompt, less = writer.write(record, without={"nfl_simoa"}), {**record, "nfl_simoa": None}
    assert prompt.text == writer.write(less).text == write_prompt(style, less, NAMES)
    assert "18.8" not in prompt.text and "not available" in prompt.text
    assert (prompt.status, prompt.warning) == (style, "")


def test_styles_that_are_none():
    with pytest.raises(UsageError, match="no prompt style poem; choose from numbers, template, llm"):
        PromptWriter("poem", NAMES)


def test_the_spec_of_a_recipe():
    assert TextSpec().model_dump() == {"style": "template", "encoder": "minilm", "tokens": 64, "width": 384}
    for wrong in ({"style": "poem"}, {"tokens": 1}, {"width": 0}, {"token": 3}):
        with pytest.raises(ValidationError):
            TextSpec(**wrong)


# vectors


def test_vectors_are_padded_and_masked():
    encoder = HashedEncoder(6, 16)
    texts = ["age 72", "", "one two three four five six seven", "age 72"]
    tokens, mask = encode_texts(texts, encoder)
    assert (tokens.shape, tokens.dtype, mask.shape, mask.dtype) == ((4, 6, 16), np.float32, (4, 6), bool)
    assert mask.sum(1).tolist() == [3, 1, 6, 3] and mask[:, 0].all()
    assert not tokens[~mask].any()
    for row, kept, alone in zip(tokens, mask, encoder.encode(texts), strict=True):
        np.testing.assert_array_equal(row[kept], alone)
    empty = encode_texts([], encoder)
    assert empty.tokens.shape == (0, 6, 16) and empty.mask.shape == (0, 6)


def test_each_text_is_encoded_once_and_kept(tmp_path):
    kept, first, second = ContentCache(tmp_path), Counting(), Counting()
    texts = ["a b", "c", "a b"]
    expected = encode_texts(texts, first, kept)
    assert first.asked == ["a b", "c"]
    again = encode_texts([*texts, "d"], second, kept)
    assert second.asked == ["d"]
    np.testing.assert_array_equal(again.tokens[:3], expected.tokens)
    np.testing.assert_array_equal(again.mask[:3], expected.mask)
    for other in (HashedEncoder(8, 32), HashedEncoder(4, 16)):
        counting = Counting(other)
        assert encode_texts(texts, counting, kept).tokens.shape == (3, other.tokens, other.width)
        assert counting.asked == ["a b", "c"], "another encoder, or another number of vectors, is another entry"


def test_damaged_entries_are_computed_anew(tmp_path):
    kept, texts = ContentCache(tmp_path), ["a b", "c d e", "f"]
    expected = encode_texts(texts, HashedEncoder(8, 16), kept)
    paths = sorted(tmp_path.rglob("*.safetensors"))
    assert len(paths) == 3
    paths[0].write_bytes(paths[0].read_bytes()[:-3])
    kept.put_array(paths[1].stem, np.ones((3, 15), np.float32))  # whole, but not of this encoder
    kept.put_array(paths[2].stem, np.full((2, 16), np.nan, np.float32))
    counting = Counting()
    found = encode_texts(texts, counting, kept)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert sorted(counting.asked) == sorted(texts)
    assert encode_texts(texts, last := Counting(), kept).mask.any() and not last.asked


def test_records_become_their_prompts_vectors():
    records = [{"age": 72, "mmse": 24}, {"age": 60, "mmse": None}]
    encoder = HashedEncoder(16, 32)
    found = encode_records(records, PromptWriter("template", ("age", "mmse")), encoder, notes=["Calm.", ""])
    texts = [
        template_prompt(records[0], ("age", "mmse")) + " Notes: Calm.",
        template_prompt(records[1], ("age", "mmse")),
    ]
    expected = encode_texts(texts, encoder)
    assert isinstance(found, EncodedText)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_the_text_tells_what_the_record_does():
    """Simulated people: amyloid positivity can be read from the vectors of the template, and not from shuffled ones."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict

    people, records = draw_records(300, np.random.default_rng(5))
    names = [spec.name for spec in load_recipe("petsynth").conditioning.variables]
    found = encode_records(records, PromptWriter("template", names), HashedEncoder(64, 384))
    positive = np.asarray(people.positive).astype(int)

    def auc(x):
        return roc_auc_score(positive, cross_val_predict(RidgeClassifier(1.0), x, positive, method="decision_function"))

    assert auc(found.tokens[:, 0]) > 0.8
    assert auc(np.random.default_rng(0).permutation(found.tokens[:, 0])) < 0.65


# options


def options(*words: str) -> TextOptions:
    parser = argparse.ArgumentParser()
    add_language(parser)
    return language_from(parser.parse_args(list(words)))


def test_by_default_the_recipe_decides_and_nothing_is_asked():
    found = options()
    assert found == TextOptions() and found.kept() is None
    spec = TextSpec(encoder="hashed", width=32, tokens=8)
    assert found.writer(spec, NAMES).style == "template"
    assert found.load_encoder(spec).identity == "hashed-1-32"
    assert found.planned(spec) == ["prompt: template, encoded by hashed", "no language model would be asked"]


def test_options_override_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serving(lambda body: completion(echo(body))) as server:
        found = options(
            *("--prompt", "llm", "--notes-column", "remarks", "other", "remarks", "--llm-endpoint", server.url),
            *("--llm-model", "tiny", "--llm-timeout", "5", "--text-cache", "kept", "--text-encoder", "hashed"),
        )
        assert found.notes_columns == ("remarks", "other") and found.cache == tmp_path / "kept"
        assert found.endpoint == Endpoint(server.url, "tiny", 5.0)
        assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301  (what workers are given)
        spec = TextSpec(width=32)
        writer = found.writer(spec, NAMES)
        assert {writer.write({"age": 70}).status for _ in range(3)} == {"llm"} and len(server.requests) == 1
        told = " ".join(found.planned(spec))
        assert "would be sent to tiny at 127.0.0.1" in told and "remarks, other" in told
    with pytest.raises(ModelError, match="not the one that the model was trained with"):
        found.load_encoder(spec, identity="bert-0")


def test_a_column_with_notes_that_nobody_has_is_warned_of(tmp_path, caplog):
    (tmp_path / "participants.tsv").write_text("participant_id\tremarks\nsub-1\tSleeps badly.\nsub-2\tn/a\n")
    cases = [Case(label, None, None) for label in ("1", "2")]
    warn_of_absent_notes(TextOptions(notes_columns=("remarks",)), tmp_path, cases)
    assert caplog.text == ""
    warn_of_absent_notes(TextOptions(notes_columns=("remarks", "remark")), tmp_path, cases)
    assert "--notes-column remark: no table has this" in caplog.text and "Sleeps" not in caplog.text


def test_while_a_run_lasts_a_record_is_asked_for_once_and_keeps_its_prompt(tmp_path):
    spec, record = TextSpec(width=32), {"age": 70}
    with serving(lambda body: b"{}") as server:
        run = TextOptions("llm", endpoint=Endpoint(server.url, "tiny"), prompts=tmp_path / "first")
        failed = run.writer(spec, NAMES).write(record, who="sub-1")
        server.answer = lambda body: completion(echo(body))
        again = run.writer(spec, NAMES).write(record, who="sub-2")  # as in another process
        assert failed.status == "template (malformed reply)" and len(server.requests) == 1
        assert (again.text, again.status) == (failed.text, failed.status)
        assert again.warning == failed.warning.replace("sub-1", "sub-2")
        later = replace(run, prompts=tmp_path / "second")
        assert [later.writer(spec, NAMES).write(record).status for _ in range(2)] == ["llm", "llm"]
        assert len(server.requests) == 2


def test_what_was_made_from_the_template_instead_is_told_and_made_again(tmp_path):
    text = {"style": "llm", "encoder": "hashed", "width": 32, "tokens": 8}
    save_model(small_model(small_recipe(regional=None, conditioning={"text": text})), tmp_path / "model")
    case = Case("1", None, tmp_path / "bids" / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    codes = np.random.default_rng(0).choice([code for code, *_ in lookup()], SHAPE).astype(np.uint8)
    probabilities = np.full((CLASSES, *SHAPE), 1 / CLASSES, np.float32)
    head = Anatomy(np.ones(SHAPE, np.float32), codes, probabilities, Grid(SHAPE, np.diag([8.0, 8, 8, 1])))
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "participants.tsv").write_text("participant_id\tage\nsub-1\t70\n")
    found = []
    with serving(lambda body: b"{}") as server:
        for run in ("first", "second"):
            texts = TextOptions(endpoint=Endpoint(server.url, "tiny"), prompts=tmp_path / run)
            given = Settings(
                tmp_path / "bids", tmp_path / "out", ("AV45",), model=tmp_path / "model", device="cpu", texts=texts
            )
            record = steps.record_of(case, given)
            steps.ask(case, given)
            drawn = steps.draws(case, head, record, "AV45", given)
            # it answers while the outputs are written
            server.answer = lambda body: completion(echo(body))
            steps.outputs(case, head, drawn, record, "AV45", given, "hash", {})
            path = last_of(case, "AV45", res=8)
            style = read_json(sidecar_path(given.out_dir / path))["Prompt"]["Style"]
            found.append((style, steps.pet_sink(given, "hash", "AV45").is_current(path), len(server.requests)))
    assert found == [("template (malformed reply)", False, 1), ("llm", True, 2)]


@pytest.mark.parametrize("words", [["--llm-endpoint", "http://localhost/v1"], ["--llm-model", "tiny"]])
def test_endpoint_and_model_belong_together(words):
    with pytest.raises(UsageError, match="belong together"):
        options(*words)


def test_every_variable_can_be_told_to_a_language_model():
    """With all variables known, an obedient reply passes the comparison with the facts, and one changed value fails."""
    values = {name: (variable.low + variable.high) / 2 for name, variable in variables().items()}
    values |= {"sex": 1, "apoe4": 1, "apoe2": 1, "age": 88}
    told = template_prompt(values, tuple(variables()))
    assert len(re.findall(r"\(Simoa\) [\d.]+", told)) > 3
    with serving() as server:
        writer = PromptWriter("llm", tuple(variables()), ChatModel(Endpoint(server.url, "tiny")))
        assert writer.write(SimpleNamespace(get=values.get)).status == "llm"
        for number, value in enumerate(re.findall(r"\((?:Simoa|MSD|IP-MS)\) ([\d.]+)", told)):
            for other in ("1.4321", "88"):  # one that nobody told, and one of another variable
                server.answer = lambda body, v=value, o=other: completion(echo(body).replace(f") {v} ", f") {o} ", 1))
                writer = PromptWriter("llm", tuple(variables()), ChatModel(Endpoint(server.url, "tiny")))
                assert (number, writer.write(values).status) == (number, "template (changed facts)")


def test_the_documentation_shows_what_is_written():
    text = (Path(__file__).parents[1] / "docs" / "language.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (n/a|[\d.]+) \|$", text, re.MULTILINE)
    values = {name: None if cell == "n/a" else float(cell) for name, cell in rows}
    assert len(values) == 9
    shown = re.findall(r"```text\n(.*?)\n```", text)
    assert shown == [write_prompt(style, values, tuple(values)) for style in ("numbers", "template")]
    assert re.findall(r"^\| `template \((.*?)\)` \|", text, re.MULTILINE) == list(PROBLEMS)
    example = re.search(r"```python\n(from bids_petsynth.*?)```", text, re.DOTALL)[1]
    exec(compile(example, "docs/language.md", "exec"), found := {})  # our own page
    assert found["tokens"].shape == (1, 64, 384) and found["mask"].any()
    parser = argparse.ArgumentParser()
    add_language(parser)
    names = {name for action in parser._actions for name in action.option_strings if name.startswith("--")}
    assert names - set(re.findall(r"--[a-z-]+", text)) == {"--help"}
