"""A real HTTP server on this machine that speaks the protocol of chat completions and keeps what it was sent."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text: str | None, reason: str = "stop", **message: object) -> bytes:
    """The answer of a server whose model wrote ``text``."""
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    about = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny", "usage": usage}
    return json.dumps({**about, "choices": [choice]}).encode()


def echo(body: dict) -> str:
    """What an obedient model writes: the facts in other words."""
    facts = body["messages"][-1]["content"].split("\nNotes: ")[0].removeprefix("Facts: ")
    return f"This is {facts[0].lower()}{facts[1:]}"


@dataclass
class ChatServer:
    """``answer(body)`` gives bytes of a body, or (status, headers, bytes), or a generator of bytes sent slowly."""

    answer: Callable[[dict], object] = lambda body: completion(echo(body))
    requests: list[dict] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(answer: Callable[[dict], object] | None = None) -> Iterator[ChatServer]:
    """Run a server on a free port of 127.0.0.1 for a while."""
    state = ChatServer() if answer is None else ChatServer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.requests.append({"path": self.path, "headers": dict(self.headers), "raw": raw})
            found = state.answer(json.loads(raw or b"{}"))
            status, headers, body = found if isinstance(found, tuple) else (200, {}, found)
            parts = [body] if isinstance(body, bytes) else body
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Connection": "close", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.close_connection = True
            try:
                for part in parts:
                    self.wfile.write(part)
                    self.wfile.flush()
            except OSError:
                pass  # the other side has gone

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def dripping(data: bytes, every: float = 0.1) -> Iterator[bytes]:
    """One byte at a time."""
    for byte in data:
        time.sleep(every)
        yield bytes([byte])
