"""A judge over HTTP on this machine that answers as a test wants it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Say:
    """One answer. first: log-probabilities of the first token's alternatives."""

    text: str = ""
    first: dict[str, float] | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        if self.status != 200:
            return {"error": {"message": self.text}}
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": self.text}}
        if self.first is not None:
            top = [{"token": token, "logprob": logprob} for token, logprob in self.first.items()]
            choice["logprobs"] = {"content": [{"token": self.text, "logprob": 0.0, "top_logprobs": top}]}
        return {"object": "chat.completion", "choices": [choice]}


Answer = Callable[[str], Say]
"""From the text of a question."""


class LocalJudge:
    """url: of its API. asked: the bodies it got. released: set it to let hanging answers end."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.released = threading.Event()
        self.url = ""


@contextmanager
def local_judge(answer: Answer) -> Iterator[LocalJudge]:
    """Serves in threads until the block ends."""
    judge = LocalJudge(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.asked.append(body)
            judge.keys.append(self.headers.get("Authorization"))
            say = judge.answer(body["messages"][0]["content"])
            data = json.dumps(say.body()).encode()
            self.send_response(say.status)
            for name, value in {**say.headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # whoever asked has given up, as some tests want it
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        judge.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
