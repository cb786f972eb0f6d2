"""Prompts from a language model, against a real local server: what is sent, and what may come back but a text."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path

import pytest
from chat_server import completion, dripping, echo, serving

from bids_petsynth.clinical.cache import ContentCache
from bids_petsynth.clinical.language import PromptWriter
from bids_petsynth.clinical.llm import KEY_VARIABLE, PROBLEMS, ChatModel, Endpoint, ReplyError
from bids_petsynth.clinical.prompts import llm_request, template_prompt
from bids_petsynth.errors import UsageError

RECORDED = Path(__file__).parents[1] / "benchmarks/recorded_chat.json"
NAMES = ("age", "sex", "apoe4", "mmse", "nfl_simoa", "ptau217_lumipulse")
WOMAN = {"age": 72.4, "sex": 0, "apoe4": 1, "mmse": 24, "nfl_simoa": 18.8}
MESSAGES = llm_request(WOMAN, NAMES, "Sleeps 6 hours.")
FACTS = template_prompt(WOMAN, NAMES)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """No key, and a proxy that must not be used for this machine."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


def model(server, cache=None, waits=None, **more) -> ChatModel:
    return ChatModel(Endpoint(server.url, "tiny", **more), cache, (waits if waits is not None else []).append)


def problem(server, **more) -> ReplyError:
    with pytest.raises(ReplyError) as caught:
        model(server, **more).describe(MESSAGES)
    assert caught.value.kind in PROBLEMS
    text = str(caught.value).replace(server.url[7:-3], "")
    assert not any(word in text for word in ("72", "18.8", "woman", "SECRET")), "no value in a message"
    return caught.value


def test_a_real_models_words_keep_what_was_told_and_a_changed_value_is_noticed():
    """What a large chat model wrote to 168 simulated records, for ``benchmarks/recipes.py``."""
    replies = json.loads(RECORDED.read_text())
    asked = {"role": "user", "content": ""}
    with serving(lambda body: completion(replies[body["messages"][-1]["content"]])) as server:
        kept = [model(server).describe([asked | {"content": facts}]) for facts in replies]
    assert kept == list(replies.values()) and len(kept) == 168 and all("ε4" in text for text in kept)
    values = [re.search(r"GFAP \(Simoa\) ([\d.]+)", facts).group(1) for facts in replies]
    wrong = {f: t.replace(v, f"{float(v) + 1000:g}") for (f, t), v in zip(replies.items(), values, strict=True)}
    with serving(lambda body: completion(wrong[body["messages"][-1]["content"]])) as server:
        for facts in wrong:
            with pytest.raises(ReplyError, match="left out values or wrote others"):
                model(server).describe([asked | {"content": facts}])


# what is sent


def test_exactly_this_is_sent():
    with serving() as server:
        reply = model(server).describe(MESSAGES)
    [request] = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert json.loads(request["raw"]) == {
        "model": "tiny",
        "messages": MESSAGES,
        "stream": False,
        "temperature": 0,
        "max_tokens": 1000,
    }
    assert set(request["headers"]) == {
        *("Host", "Content-Type", "Content-Length", "Accept", "Accept-Encoding", "User-Agent", "Connection")
    }
    assert reply == (
        "This is a 72-year-old woman, carrier of one APOE ε4 allele, MMSE 24. Plasma NfL (Simoa) 18.8 pg/mL (normal). "
        "P-tau217 is not available."
    )


def test_the_key_comes_from_the_environment_and_stays_out_of_sight(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "SECRET-key")
    with serving() as server:
        asked = model(server)
        asked.describe(MESSAGES)
    assert server.requests[0]["headers"]["Authorization"] == "Bearer SECRET-key"
    assert "SECRET" not in repr(asked.endpoint) + repr(vars(asked))
    monkeypatch.setenv(KEY_VARIABLE, "two\r\nX-Header: lines")
    with pytest.raises(UsageError, match=f"{KEY_VARIABLE} holds blanks or odd characters"):
        Endpoint("http://localhost/v1", "tiny")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_values_go_to_no_other_address(code):
    """Neither redirections nor the environment's proxy are followed."""
    with serving() as other, serving(lambda body: (code, {"Location": f"{other.url}/chat/completions"}, b"")) as server:
        found = problem(server)
        assert found.kind == "HTTP error" and f"{code} (redirections are not followed" in str(found)
        assert not other.requests


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1/chat/completions"),
        ("https://lab.example.org/v1/chat/completions", "https://lab.example.org/v1/chat/completions"),
        ("https://h.example.org/d/x?api-version=1", "https://h.example.org/d/x/chat/completions?api-version=1"),
    ],
)
def test_addresses(url, address):
    assert Endpoint(url, "m").address == address
    assert Endpoint(url, "m").is_local == ("localhost" in url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "takes a URL such as"),
        ("ftp://example.org", "takes a URL such as"),
        ("localhost:8000", "takes a URL such as"),
        ("http://", "takes a URL such as"),
        ("http://[::1", "takes a URL such as"),
        ("http://host:99999999/", "takes a URL such as"),
        ("http://host/\r\nX: y", "takes a URL such as"),
        ("http://host/#part", "takes a URL such as"),
        ("http://me:word@host/v1", "must not hold a name or password"),
    ],
)
def test_urls_that_are_refused(url, message):
    with pytest.raises(UsageError, match=message) as caught:
        Endpoint(url, "m")
    assert "word@" not in str(caught.value)


def test_unencrypted_is_said_except_for_this_machine(caplog):
    ChatModel(Endpoint("http://127.0.0.1:1/v1", "m"))
    ChatModel(Endpoint("https://lab.example.org/v1", "m"))
    assert not caplog.records
    ChatModel(Endpoint("http://lab.example.org/v1", "m"))
    assert "lab.example.org unencrypted" in caplog.text


# what comes back instead


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", "malformed reply"),
        (b"<html>It works!</html>", "malformed reply"),
        (b"\xff\xfe", "malformed reply"),
        (b"[" * 100_000, "malformed reply"),
        (b"null", "malformed reply"),
        (b'{"choices": []}', "malformed reply"),
        (b'{"choices": [{"message": null}]}', "malformed reply"),
        (b'{"choices": [{"message": {"content": 7}}]}', "malformed reply"),
        (completion(None), "malformed reply"),
        (completion(" \n"), "malformed reply"),
        (completion("<think>72 18.8 but then"), "malformed reply"),
        (completion(None, refusal="No."), "refusal"),
        (completion(f"This is {FACTS}", "content_filter"), "refusal"),
        (completion("I'm sorry, but I can't help with medical records."), "refusal"),
        (completion("I cannot describe people."), "refusal"),
        (completion("I’m unable to do that: 72, 24, 18.8."), "refusal"),
        (completion(FACTS + " She is well." * 200), "overlong reply"),
        (completion(FACTS, "length"), "overlong reply"),
        (b" " * (2**20 + 1), "overlong reply"),
        (completion(FACTS.replace("18.8", "18.9")), "changed facts"),
        (completion(FACTS.replace("18.8 pg/mL", "slightly raised")), "changed facts"),
        (completion(FACTS + " Her amyloid PET shows 45 Centiloid."), "changed facts"),
    ],
)
def test_replies_that_are_of_no_use(answer, kind):
    with serving(lambda body: answer) as server:
        assert problem(server).kind == kind
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "text",
    [
        FACTS,
        f"<think>She is 99?</think>\n\n{FACTS}",
        FACTS.replace("MMSE 24", "MMSE 24/30"),
        FACTS.replace("18.8", "18.80") + " She sleeps 6 hours.",
    ],
)
def test_replies_that_are_used(text):
    with serving(lambda body: completion(text)) as server:
        assert "18.8" in model(server).describe(MESSAGES)


def test_parts_of_a_reply_are_joined_and_identifiers_removed():
    parts = [{"type": "text", "text": "Mrs. Jones, seen on 12 March 2019.\n"}, {"type": "text", "text": FACTS}]
    with serving(lambda body: completion(parts)) as server:
        reply = model(server).describe(MESSAGES)
    assert reply == f"[removed], seen on [removed]. {FACTS}"


def test_an_endpoint_that_says_nothing_or_drips():
    started = time.monotonic()
    with serving(lambda body: (200, {}, dripping(b" " * 200))) as server:
        assert problem(server, timeout=0.5).kind == "time-out"
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts and never answers
        server.url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        found = problem(server, timeout=0.3)
    assert found.kind == "time-out" and "within 0.3 s" in str(found)
    assert time.monotonic() - started < 8
    found = problem(server)  # the port is closed by now
    assert found.kind == "no connection" and "refused" in str(found).lower()


def test_a_connection_that_breaks():
    with serving(lambda body: (200, {"Content-Length": "1000"}, b'{"choices"')) as server:
        assert problem(server).kind == "no connection"


@pytest.mark.parametrize(("code", "hint"), [(401, KEY_VARIABLE), (404, "--llm-model"), (418, "418")])
def test_http_errors_are_told_and_their_text_is_not(code, hint):
    with serving(lambda body: (code, {}, b'{"error": "SECRET 72 woman"}')) as server:
        found = problem(server)
    assert (found.kind, len(server.requests)) == ("HTTP error", 1)
    assert str(code) in str(found) and hint in str(found)


def test_a_busy_endpoint_is_asked_again():
    answers = iter([(503, {"Retry-After": "2"}, b""), (429, {"Retry-After": "86400"}, b""), completion(FACTS)])
    waits = []
    with serving(lambda body: next(answers)) as server:
        assert model(server, waits=waits).describe(MESSAGES) == FACTS
    assert waits == [2, 30], "as it says, but not for ever"
    waits.clear()
    with serving(lambda body: (429, {}, b"")) as server, pytest.raises(ReplyError, match="429 .*ask less often"):
        model(server, waits=waits).describe(MESSAGES)
    assert waits == [1, 4] and len(server.requests) == 3


def test_an_endpoint_without_these_limits():
    with serving(lambda body: (400, {}, b"") if "max_tokens" in body else completion(FACTS)) as server:
        assert model(server).describe(MESSAGES) == FACTS
    assert [set(json.loads(request["raw"])) for request in server.requests][1] == {"model", "messages", "stream"}


def test_a_dead_endpoint_is_given_up():
    with serving(lambda body: (418, {}, b"")) as server:
        asked = model(server)
        kinds = []
        for age in range(60, 65):
            with pytest.raises(ReplyError) as caught:
                asked.describe(llm_request({"age": age}, ("age",)))
            kinds.append(caught.value.kind)
    assert kinds == ["HTTP error"] * 3 + ["given up"] * 2
    assert len(server.requests) == 3
    with serving(lambda body: (401, {}, b"")) as server:
        asked = model(server)
        for kind in ("HTTP error", "given up"):
            with pytest.raises(ReplyError) as caught:
                asked.describe(MESSAGES)
            assert caught.value.kind == kind


def test_an_endpoint_that_recovers_is_not_given_up():
    turns = iter([418, 418, 0] * 3)

    def answer(body):
        code = next(turns)
        return (code, {}, b"") if code else completion(echo(body))

    with serving(answer) as server:
        asked = model(server)
        for age in range(60, 69):
            try:
                asked.describe(llm_request({"age": age}, ("age",)))
            except ReplyError as error:
                assert error.kind == "HTTP error"
    assert len(server.requests) == 9


# cache


def test_replies_are_kept_and_problems_are_not(tmp_path):
    cache = ContentCache(tmp_path)
    with serving(lambda body: (418, {}, b"")) as server:
        url = server.url
        with pytest.raises(ReplyError):
            model(server, cache).describe(MESSAGES)
        assert not list(tmp_path.rglob("*.txt"))
        server.answer = lambda body: completion(echo(body))
        reply = model(server, cache).describe(MESSAGES)
        assert model(server, cache).describe(MESSAGES) == reply
        assert len(server.requests) == 2
        other = [ChatModel(Endpoint(url, "larger"), cache), ChatModel(Endpoint(url + "/b", "tiny"), cache)]
        assert {m.describe(MESSAGES) for m in other} == {reply}, "another model or address is asked"
        assert len(server.requests) == 4
        model(server, cache).describe(llm_request({**WOMAN, "mmse": 25}, NAMES))
        assert len(server.requests) == 5
    assert ChatModel(Endpoint(url, "tiny"), cache).describe(MESSAGES) == reply, "kept replies need no endpoint"
    for path in tmp_path.rglob("*.txt"):
        path.write_text(path.read_text()[:-1])
    with pytest.raises(ReplyError, match="no connection"):
        ChatModel(Endpoint(url, "tiny"), cache).describe(MESSAGES)


# the writer


def test_the_writer_falls_back_and_says_so():
    with serving() as server:
        writer = PromptWriter("llm", NAMES, model(server))
        prompt = writer.write(WOMAN, "Sleeps 6 hours.", who="sub-007")
        assert (prompt.status, prompt.warning) == ("llm", "")
        assert prompt.text.startswith("This is a 72-year-old woman")
        server.answer = lambda body: completion("I'm sorry.")
        prompt = writer.write(WOMAN, "Sleeps 6 hours.", who="sub-007")
    assert prompt.status == "template (refusal)"
    assert prompt.text == f"{FACTS} Notes: Sleeps 6 hours."
    assert prompt.warning.startswith("sub-007: the language model at 127.0.0.1")
    assert "template prompt is used" in prompt.warning and "72" not in prompt.warning.replace(server.url[7:-3], "")
    assert all(b"007" not in request["raw"] for request in server.requests), "the label is for the warning alone"


def test_nothing_is_asked_unless_named():
    with pytest.raises(UsageError, match="--llm-endpoint and --llm-model, or --prompt template"):
        PromptWriter("llm", NAMES)
    with serving() as server:
        writer = PromptWriter("template", NAMES, model(server))
        assert writer.write(WOMAN).status == "template"
    assert not server.requests


def test_withheld_variables_are_not_sent():
    with serving() as server:
        PromptWriter("llm", NAMES, model(server)).write(WOMAN, without={"nfl_simoa", "mmse"})
    sent = server.requests[0]["raw"].decode()
    assert "18.8" not in sent and "MMSE and NfL" not in sent.split("Facts")[0]
    assert "MMSE, p-tau217 and NfL are not available" in sent
