"""Reward servers for tests: ours on a free port, and some that nobody would want."""

import multiprocessing
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
import uvicorn
from numpy import ndarray

from rewards.http.app import create_app
from rewards.http.connections import CONNECTIONS, config
from rewards.http.service import Service
from rewards.http.wire import Scorer, envelope_of, request_id
from rewards.reward import Reward, Scores
from rewards.server import listen

SCORER = Scorer(reward="shapes", model="brightness", weights="")
IMAGES = [np.full((4, 6, 3), value, dtype=np.uint8) for value in range(8)]
PROMPTS = [f"prompt {row}" for row in range(8)]
RECORDS: list[dict[str, Any]] = [{"row": row} for row in range(8)]


class Brightness:
    """The first pixel over 255. `before` runs ahead of every batch; records that say "bad" are refused."""

    name = "brightness"

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.before = before
        self.batches: list[int] = []

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        if any(record.get("bad") for record in metadata):
            from rewards.errors import RewardError

            raise RewardError("a record is bad: mend it")

    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        self.batches.append(len(images))
        self.before()
        total = torch.tensor([float(image[0, 0, 0]) for image in images]) / 255
        return Scores(total, {"double": 2 * total}, tuple(prompts))


def prepared(
    reward: Reward, name: str = "shapes", seconds: float = 65.0, connections: int = CONNECTIONS, **more: Any
) -> uvicorn.Server:
    """A server that is ready to run in any thread or process."""
    return uvicorn.Server(config(create_app(reward, Service(name), **more), seconds, connections))


def address_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def serving(reward: Reward, name: str = "shapes", port: int = 0, **more: Any) -> Iterator[str]:
    """The address of our server, in a thread of this process."""
    with listen("127.0.0.1", port) as listener:
        server = prepared(reward, name, **more)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def mortal(reward: Reward) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of our server in a process of its own, and what kills it."""
    listener = listen("127.0.0.1", 0)
    address = address_of(listener)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: prepared(reward).run(sockets=[listener]), daemon=True
    )
    child.start()
    listener.close()  # the child has its own

    def kill() -> None:
        child.kill()
        child.join()

    try:
        yield address, kill
    finally:
        kill()


@contextmanager
def answering(
    answer: Callable[[str, bytes], tuple[int, bytes]],
    headers: Mapping[str, str] | None = None,
    surplus: Callable[[bytes], bytes] | None = None,
) -> Iterator[str]:
    """A server that answers (path, body) with whatever status and bytes it is told to.

    surplus: makes a second answer out of the first, which is sent behind it.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1" if surplus else "HTTP/1.0"

        def do_GET(self) -> None:
            status, data = answer(self.path, self.rfile.read(int(self.headers.get("content-length", 0))))
            self.say(status, data)
            if surplus:
                self.say(status, surplus(data))

        def say(self, status: int, data: bytes) -> None:
            self.send_response(status)
            for name, value in {"content-length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield address_of(server.socket)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def named(answer: bytes, body: bytes) -> bytes:
    """An answer to a score request, of which it says `REQUEST`."""
    return answer.replace(b"REQUEST", request_id(envelope_of(body)).encode())


@contextmanager
def hanging() -> Iterator[str]:
    """An address where connections are taken and nothing is ever said."""
    with listen("127.0.0.1", 0) as listener:
        yield address_of(listener)


def nobody() -> str:
    """An address where nothing listens."""
    with listen("127.0.0.1", 0) as listener:
        return address_of(listener)
