"""Clients that dawdle: what they hold of a reward server is bounded in time and in number."""

import socket
import time
from contextlib import ExitStack, closing, suppress
from urllib.parse import urlsplit

import httpx

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


def test_there_are_only_so_many_connections() -> None:
    with serving(Brightness(), connections=3) as address, ExitStack() as held:
        for _ in range(3):
            held.enter_context(closing(connected(address)))
        with closing(connected(address)) as further, suppress(ConnectionError):
            assert further.recv(1) == b""
        held.close()
        for _ in range(100):  # until the server has noticed
            try:
                assert httpx.post(f"{address}/score", content=BODY, trust_env=False).status_code == 200
                break
            except httpx.TransportError:
                continue
        else:
            raise AssertionError("nobody is let in again")
