"""Clients that dawdle: what they hold of a reward server is bounded in time and in number."""

import socket
import time
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import httpx
import pytest

from rewards.http.wire import pack
from tests.rewards.servers import IMAGES, PROMPTS, RECORDS, Brightness, serving

BODY = pack("shapes", IMAGES[:1], PROMPTS[:1], RECORDS[:1])
HEAD = b"POST /score HTTP/1.1\r\nhost: x\r\n"


def connected(address: str) -> socket.socket:
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


# How a request begins, what follows again and again, and what is said of it.
DAWDLERS = {
    "half a body": (HEAD + b"content-length: 500\r\n\r\nhalf of it", b"", b"HTTP/1.1 408 "),
    "a slow body": (HEAD + b"content-length: 5000\r\n\r\nhalf of it", b"x", b"HTTP/1.1 408 "),
    "chunks": (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n", b"HTTP/1.1 408 "),
    "chunks that nobody reads": (
        HEAD.replace(b"score", b"nowhere") + b"transfer-encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n",
        b"HTTP/1.1 404 ",
    ),
    "half a head": (HEAD + b"x-a: ", b"x", b""),
    "nothing": (b"", b"", b""),
}


def closed(slow: socket.socket, more: bytes, said: list[bytes]) -> bool:
    """Whether the server has left, after it was sent some more."""
    try:
        slow.sendall(more)
        said.append(slow.recv(1000))
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return not said[-1]


def test_a_request_that_never_ends_is_given_up() -> None:
    with serving(Brightness(), body_seconds=0.1, seconds=0.8) as address, ExitStack() as held:
        said: dict[str, list[bytes]] = {name: [] for name in DAWDLERS}
        open_ = {name: held.enter_context(closing(connected(address))) for name in DAWDLERS}
        for name, slow in open_.items():
            slow.sendall(DAWDLERS[name][0])
            slow.settimeout(0.01)
        for _ in range(1000):
            open_ = {name: slow for name, slow in open_.items() if not closed(slow, DAWDLERS[name][1], said[name])}
            if not open_:
                break
        assert not open_
    for name, (_, _, answer) in DAWDLERS.items():
        assert b"".join(said[name]).startswith(answer) and any(said[name]) == bool(answer), name


def test_a_connection_in_use_is_not_given_up() -> None:
    with serving(Brightness(), seconds=0.2) as address, httpx.Client(base_url=address, trust_env=False) as client:
        ports = set()
        for _ in range(4):
            reply = client.post("/score", content=BODY)
            assert reply.status_code == 200
            ports.add(reply.extensions["network_stream"].get_extra_info("client_addr"))
            time.sleep(0.1)
    assert len(ports) == 1


def still_open(*connections: socket.socket) -> list[bool]:
    """Which are, after whatever the server does at once."""
    for one in connections:
        one.settimeout(0.2)
    return [not closed(one, b"", []) for one in connections]


def test_there_are_only_so_many_connections_and_who_has_waited_longest_leaves_first() -> None:
    with serving(Brightness(), connections=4) as address, ExitStack() as held:
        body, silent, head, last = (held.enter_context(closing(connected(address))) for _ in range(4))
        body.sendall(HEAD + b"content-length: 500\r\n\r\nhalf of it")
        head.sendall(HEAD)
        assert still_open(body, silent, head, last) == [True] * 4
        assert httpx.post(f"{address}/score", content=BODY, trust_env=False).status_code == 200
        assert still_open(body, silent, head, last) == [True, False, True, True]


@pytest.mark.parametrize("beginning", ["nothing", "half a head", "half a body", "chunks that nobody reads"])
def test_nobody_is_kept_out_by_those_who_dawdle(beginning: str) -> None:
    """More of them than there are places, and connections."""
    with serving(Brightness(), connections=8, places=4) as address, ExitStack() as held:
        for _ in range(40):
            held.enter_context(closing(connected(address))).sendall(DAWDLERS[beginning][0])
        began = time.monotonic()
        for _ in range(10):
            assert httpx.post(f"{address}/score", content=BODY, trust_env=False).status_code == 200
        assert time.monotonic() - began < 5


def test_nobody_is_kept_out_by_connections_that_have_been_answered() -> None:
    with serving(Brightness(), connections=4) as address, ExitStack() as held:
        for _ in range(8):
            idle = held.enter_context(closing(connected(address)))
            idle.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert idle.recv(12) == b"HTTP/1.1 200"
        assert httpx.post(f"{address}/score", content=BODY, trust_env=False).status_code == 200
