"""Real HTTP servers on loopback: one that answers with the tiny model, a proxy that injects faults.

A server is given a function from a request to a Reply; it runs in threads of this process.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from skipalign import tiny
from skipalign.model import load_model, load_tokenizer
from skipalign.transformers_engine import TransformersGenerator


@dataclass(frozen=True)
class Asked:
    """A request as it came; `at` is the monotonic time."""

    number: int
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Reply:
    """What to send; `cut` closes in the middle of the body, its quarters come `drip` s apart."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    drip: float = 0.0


class Server:
    """What a server was asked, and which requests it answered to the end with success."""

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.delivered: list[dict[str, Any]] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    asked = Asked(len(server.asked), self.path, dict(self.headers), body)
                    server.asked.append(asked)
                    server._now += 1
                    server.most_at_once = max(server.most_at_once, server._now)
                try:
                    self._send(asked, server.answer(asked))
                except (BrokenPipeError, ConnectionResetError):
                    pass  # a client that did not wait
                finally:
                    with server._lock:
                        server._now -= 1

            def _send(self, asked: Asked, reply: Reply) -> None:
                time.sleep(reply.delay)
                raw = isinstance(reply.body, bytes)
                data = reply.body if raw else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if reply.status == 200 and not (reply.cut or reply.delay or reply.drip):
                    with server._lock:
                        server.delivered.append(asked.body)
                piece = len(data) // 4
                for start in (0, piece, 2 * piece, 3 * piece):
                    if reply.cut and start == 2 * piece:
                        return
                    self.wfile.write(data[start : start + piece if start < 3 * piece else None])
                    self.wfile.flush()
                    time.sleep(reply.drip)

        return Handler


@contextmanager
def serving(answer: Callable[[Asked], Reply]) -> Iterator[Server]:
    """Run a server for the length of the block."""
    server = Server(answer)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


@cache
def tiny_generator() -> TransformersGenerator:
    """The packaged model."""
    return TransformersGenerator(load_model(str(tiny.BASE)), load_tokenizer(str(tiny.BASE)))


def answers_as_tiny() -> Callable[[Asked], Reply]:
    """Answer both endpoints with the packaged model, and with vLLM's fields if they come."""
    lock = threading.Lock()
    generator = tiny_generator()

    def answer(asked: Asked) -> Reply:
        body, tokenizer = asked.body, generator.tokenizer
        is_chat = asked.path == "/v1/chat/completions"
        if is_chat:
            text = tokenizer.apply_chat_template(
                body["messages"], tokenize=False, add_generation_prompt=True
            )
        else:
            text = body["prompt"]
        ids = tokenizer(text)["input_ids"] if isinstance(text, str) else text
        with lock:
            (found,) = generator.generate(
                [ids],
                max_new_tokens=body["max_tokens"],
                more_stop_ids=body.get("stop_token_ids", ()),
                min_new_tokens=body.get("min_tokens", 0),
            )
        for stop in body.get("stop", ()):
            found = type(found)(found.ids, found.text.partition(stop)[0])
        return Reply(said(found.text, is_chat=is_chat))

    return answer


def said(text: str | None, *, is_chat: bool = False) -> dict[str, Any]:
    """An answer in the shape of its endpoint."""
    if is_chat:
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return {"choices": [{"index": 0, "text": text}]}


def faulty_proxy(url: str, faults: Mapping[int, Reply | str]) -> Callable[[Asked], Reply]:
    """Pass requests on to a server, apart from those whose number has a fault.

    A fault is a Reply in place of the server's; or what happens to the server's: "cut" in the
    middle of its body, or "slow", 1.5 seconds later.
    """
    opener = build_opener(ProxyHandler({}))

    def answer(asked: Asked) -> Reply:
        fault = faults.get(asked.number)
        if isinstance(fault, Reply):
            return fault
        target = url.removesuffix("/v1") + asked.path
        request = Request(
            target, json.dumps(asked.body).encode(), {"Content-Type": "application/json"}
        )
        with opener.open(request, timeout=60) as response:
            body = response.read()
        return Reply(body, cut=fault == "cut", delay=1.5 if fault == "slow" else 0.0)

    return answer


REFUSALS = {
    "busy": Reply({"error": {"message": "Rate limit"}}, 429, {"Retry-After": "1"}),
    "broken": Reply(b"<html>Internal error</html>", 500),
}
