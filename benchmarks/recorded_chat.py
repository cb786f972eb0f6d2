r"""A large chat model's words for the simulated people of ``recipes.py``, served in the protocol of chat completions.

    python benchmarks/recorded_chat.py [--port 8765]
    python benchmarks/recipes.py run … --only "language, text by a language model" \
        --llm http://127.0.0.1:8765/v1 recorded

``recorded_chat.json`` holds what the model wrote, once, to the messages that ``prompts.llm_request`` makes of these
records, by the facts that it was told. Other facts are refused, and the template takes their place.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RECORDED = Path(__file__).with_suffix(".json")


def answer(request: dict, replies: dict[str, str]) -> dict:
    """The answer to a request; a refusal where no reply was recorded."""
    told = request["messages"][-1]["content"]
    message = {"role": "assistant", "content": replies.get(told)}
    if told not in replies:
        message["refusal"] = "no reply was recorded to these facts"
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"object": "chat.completion", "model": request["model"], "choices": [choice]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=8765)
    port = parser.parse_args().port
    replies = json.loads(RECORDED.read_text())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(answer(request, replies)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
