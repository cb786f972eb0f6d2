"""Asking a chat model at an endpoint that the user names to put a record into words; by default nothing is asked.

The protocol is that of OpenAI's chat completions, which vLLM, llama.cpp, Ollama, LM Studio and others speak. Sent are
the messages of :func:`bids_petsynth.clinical.prompts.llm_request`, the model's name and two limits: no label, no date,
no file name. Whatever goes wrong has one of the names of :data:`PROBLEMS`; a reply is never shown in a message.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bids_petsynth.clinical.cache import ContentCache, content_key
from bids_petsynth.clinical.prompts import notes_text
from bids_petsynth.errors import UsageError

log = logging.getLogger("bids_petsynth")

#: Environment variable that holds the endpoint's key, if it wants one; there is no other way to give it.
KEY_VARIABLE = "BIDS_PETSYNTH_LLM_KEY"
#: What may come of a request instead of a usable reply.
PROBLEMS = (
    "no connection",
    "time-out",
    "HTTP error",
    "refusal",
    "malformed reply",
    "overlong reply",
    "changed facts",
    "given up",
)
#: Characters of a reply beyond which it is not the few sentences that were asked for.
LONGEST_REPLY = 2000
_MOST_BYTES = 2**20  # of an answer, whatever it holds
_MOST_TOKENS = 1000
_PATIENCE = 3  # failures in a row after which the endpoint is not asked again
_WAITS = (1.0, 4.0)  # seconds before a busy endpoint is asked again
_LONGEST_WAIT = 30.0
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_HOPELESS = frozenset({401, 403, 404, 405})

Messages = Sequence[Mapping[str, str]]


class ReplyError(Exception):
    """No usable reply; ``kind`` is one of :data:`PROBLEMS`, the text says what happened and what to do."""

    def __init__(self, kind: str, sentence: str):
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True)
class Endpoint:
    """Where a chat model is asked.

    Attributes
    ----------
    url
        Base of the interface, such as ``http://localhost:8000/v1``; ``/chat/completions`` is added if need be.
    model
        The model's name there.
    timeout
        Seconds for one request, from the connection to the end of the reply.

    Raises
    ------
    UsageError
        If the URL is none, holds a password, or the key cannot be sent.
    """

    url: str
    model: str
    timeout: float = 60.0

    def __post_init__(self) -> None:
        parts = _split(self.url)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
            raise UsageError("--llm-endpoint takes a URL such as http://localhost:8000/v1.")
        if parts.username is not None or parts.password is not None:
            raise UsageError(f"--llm-endpoint must not hold a name or password; put a key into {KEY_VARIABLE}.")
        if not self.model.strip():
            raise UsageError("--llm-model is empty; give the model's name as the endpoint knows it.")
        if not re.fullmatch(r"[\x21-\x7e]*", os.environ.get(KEY_VARIABLE, "")):
            raise UsageError(f"The environment variable {KEY_VARIABLE} holds blanks or odd characters; correct it.")

    @property
    def address(self) -> str:
        """Full URL of the requests."""
        parts = urllib.parse.urlsplit(self.url)
        path = parts.path.rstrip("/")
        path += "" if path.endswith("/chat/completions") else "/chat/completions"
        return urllib.parse.urlunsplit(parts._replace(path=path))

    @property
    def host(self) -> str:
        """Host with port, for messages."""
        return urllib.parse.urlsplit(self.url).netloc

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        name = urllib.parse.urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name == "localhost"


class ChatModel:
    """Puts records into words through an endpoint, each request once: replies are kept in ``cache``.

    After three failures in a row that no other record would fare better with, the endpoint is not asked again.
    """

    def __init__(
        self, endpoint: Endpoint, cache: ContentCache | None = None, wait: Callable[[float], None] = time.sleep
    ):
        self.endpoint = endpoint
        self._cache, self._wait, self._failures = cache, wait, 0
        if endpoint.url.startswith("http:") and not endpoint.is_local:
            log.warning("Clinical values go to %s unencrypted; use https where the endpoint has it.", endpoint.host)

    def describe(self, messages: Messages) -> str:
        """A usable reply, on one line, from the cache or the endpoint.

        Raises
        ------
        ReplyError
            If there is none. The reply must tell every value that the messages tell and no other number.
        """
        body = {"model": self.endpoint.model, "messages": [dict(message) for message in messages], "stream": False}
        limits = {"temperature": 0, "max_tokens": _MOST_TOKENS}
        key = content_key("chat-1", self.endpoint.address, json.dumps(body | limits, sort_keys=True))
        kept = self._cache.get_text(key) if self._cache else None
        if kept is not None:
            return kept
        if self._failures >= _PATIENCE:
            raise ReplyError(
                "given up", f"the language model at {self.endpoint.host} is not asked again after repeated failures"
            )
        try:
            data = self._ask(body, limits)
            self._failures = 0
        except ReplyError as problem:
            if problem.kind in ("no connection", "time-out", "HTTP error"):
                self._failures += 1
            raise
        told = " ".join(message["content"] for message in messages if message["role"] == "user")
        reply = _checked(_content(data, self.endpoint.host), told, self.endpoint.host)
        if self._cache:
            self._cache.put_text(key, reply)
        return reply

    def _ask(self, body: dict, limits: dict) -> bytes:
        """The answer's bytes; a busy endpoint is asked again, and one that knows no such limits without them."""
        waits = list(_WAITS)
        while True:
            try:
                return _post(self.endpoint, body | limits)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in (400, 422) and limits:
                    limits = {}
                    continue
                if error.code in _BUSY and waits:
                    self._wait(max(waits.pop(0), _retry_after(error.headers)))
                    continue
                if error.code in _HOPELESS:
                    self._failures = _PATIENCE
                remedy = {
                    401: f"check {KEY_VARIABLE}",
                    403: f"check {KEY_VARIABLE}",
                    404: "check --llm-endpoint and --llm-model",
                    429: "ask less often, or later",
                }.get(error.code, "redirections are not followed: name the final address" if error.code < 400 else "")
                raise ReplyError(
                    "HTTP error",
                    f"the language model at {self.endpoint.host} answered with HTTP status {error.code}"
                    + (f" ({remedy})" if remedy else ""),
                ) from None


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Values and key go to the named address and to no other."""

    def redirect_request(self, *args: object) -> None:
        return None


def _post(endpoint: Endpoint, body: dict) -> bytes:
    """Send ``body``; the answer's bytes. HTTPError for any status but 2xx, ReplyError for the rest."""
    from bids_petsynth import __version__

    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    headers["User-Agent"] = f"bids-petsynth/{__version__}"
    if key := os.environ.get(KEY_VARIABLE):
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body, ensure_ascii=False).encode()
    request = urllib.request.Request(endpoint.address, data, headers, method="POST")
    # a proxy of the environment is for other machines; one in between would see what is meant to stay here
    proxies = urllib.request.ProxyHandler({} if endpoint.is_local else None)
    opener = urllib.request.build_opener(_NoRedirection, proxies)
    deadline = time.monotonic() + endpoint.timeout
    slow = ReplyError("time-out", f"the language model at {endpoint.host} did not answer within {endpoint.timeout:g} s")
    try:
        with opener.open(request, timeout=endpoint.timeout) as answer:
            found = bytearray()
            while part := answer.read1(65536):
                found += part
                if len(found) > _MOST_BYTES:
                    raise ReplyError("overlong reply", f"the language model at {endpoint.host} sent too long a reply")
                if time.monotonic() > deadline:
                    raise slow
            promised = answer.headers.get("Content-Length", "")
            if promised.isdecimal() and len(found) < int(promised):  # reading in parts does not look at it
                raise http.client.IncompleteRead(bytes(found))
            return bytes(found)
    except urllib.error.HTTPError:
        raise
    except TimeoutError:
        raise slow from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise slow from None
        reason = getattr(error.reason, "strerror", None) or type(error.reason).__name__
        raise ReplyError(
            "no connection", f"no connection to the language model at {endpoint.host} ({reason})"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise ReplyError(
            "no connection", f"the connection to the language model at {endpoint.host} broke ({type(error).__name__})"
        ) from None


def _split(url: str) -> urllib.parse.SplitResult | None:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts if parts.port != 0 and re.fullmatch(r"[\x21-\x7e]+", url) else None
    except ValueError:
        return None


def _retry_after(headers: Mapping[str, str]) -> float:
    told = str(headers.get("Retry-After", ""))
    return min(float(told), _LONGEST_WAIT) if re.fullmatch(r"\d{1,9}", told) else 0.0


_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_REFUSAL = re.compile(
    r"\W*(?:(?:I['’]m|I am) (?:very |so )?sorry|sorry|I apologi[sz]e|unfortunately, I|as an AI\b"
    r"|I(?: can['’]t| cannot| can not| could not| won['’]t| will not|(?: am|['’]m) (?:unable|not able)))",
    re.IGNORECASE,
)


def _content(data: bytes, host: str) -> str:
    """The text of an answer."""
    try:
        choice = json.loads(data)["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
        if isinstance(content, list):
            content = "".join(part["text"] for part in content if part.get("type") == "text")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        content = refusal = reason = None
    if refusal or reason == "content_filter":
        raise ReplyError("refusal", f"the language model at {host} refused to describe the record")
    text = _THOUGHT.sub("", content).strip() if isinstance(content, str) else ""
    if reason == "length" or len(text) > LONGEST_REPLY:
        raise ReplyError("overlong reply", f"the language model at {host} sent too long a reply")
    if not text or "<think>" in text:
        raise ReplyError("malformed reply", f"the language model at {host} sent no text in the form of the protocol")
    if _REFUSAL.match(text):
        raise ReplyError("refusal", f"the language model at {host} refused to describe the record")
    return text


_NUMBER = re.compile(r"(?<![\w./-])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def _numbers(text: str) -> Counter[float]:
    """Numbers that stand by themselves, how often: not those of p-tau217, Aβ42/40, MMSE 24/30."""
    return Counter(float(number.replace(",", "")) for number in _NUMBER.findall(text))


def _checked(reply: str, told: str, host: str) -> str:
    """The reply without identifiers, on one line, if its numbers are those it was told.

    Values of the facts must all be there, as often as they were told; numbers of the notes may, and no other. Whether a
    number stands beside the right name is not looked at.
    """
    cleaned = notes_text(reply, (), LONGEST_REPLY)
    facts = told.split("\nNotes: ")[0]
    allowed = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", told)} | set(_numbers(told))
    found = _numbers(cleaned)
    if _numbers(facts) - found or not set(found) <= allowed:
        raise ReplyError(
            "changed facts", f"the language model at {host} left out values or wrote others than it was told"
        )
    return cleaned
