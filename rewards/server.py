"""Serve a reward over HTTP (`rewards.http.wire` says what is spoken, `rewards.http.app` answers).

    t2i-rl serve shapes --port 8100
    python -m rewards.server shapes --port 8100     from a checkout, with rewards/requirements.txt only

The port is taken before anything is loaded. A stop (SIGTERM or Ctrl-C) takes no new requests and answers those
that are accepted; a second Ctrl-C does not wait. Nothing here imports torch before the reward is built.
"""

import signal
import socket
import sys
from dataclasses import replace

import tyro

from rewards.catalogue import find
from rewards.errors import RewardError, printable
from rewards.files.noted import noted
from rewards.http import token
from rewards.http.service import AUTO, Service
from rewards.registry import build, check_servable

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; who connects waits for the server. Raises RewardError when it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:  # of a name that no host has
        reason = error.strerror if isinstance(error, OSError) else "it is no name of a host"
        raise RewardError(
            f"cannot listen on port {port} of {host} ({reason}): stop what uses it, or choose another --port or --host"
        ) from error
    return listener


def serve(service: Service) -> None:
    """Serve until a signal says stop.

    Raises RewardError for an unknown reward, one that is not whole, an address that cannot be had and an empty token.
    """
    check_servable(service.reward)
    asked, samples = token.secret(), find(service.reward).scores
    with listen(service.host, service.port) as listener:
        service = replace(service, device=_device(service.device))
        with noted() as weights:
            reward = build(service.reward, service.device, samples=samples)
            reward.check([], [])  # a judge learns its model
        import uvicorn

        from rewards.http.app import create_app
        from rewards.http.connections import config
        from rewards.http.sparing import spare

        spare()
        own = weights[service.reward]
        app = create_app(reward, service, asked, weights=own, answers=samples == "answers")
        server = uvicorn.Server(config(app))
        # uvicorn hands signals on once it has stopped: they have done their work by then.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        host, port = listener.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"{service.reward} ({reward.name}) on {service.device} at {where}", flush=True)
        if service.host not in LOOPBACK and asked is None:
            print(f"anybody who reaches this port is answered: set {token.VARIABLE} to ask for a token", flush=True)
        server.run(sockets=[listener])


def _device(asked: str) -> str:
    """The device that is meant: `auto` is a GPU where there is one, else the CPU."""
    import torch

    return ("cuda" if torch.cuda.device_count() else "cpu") if asked == AUTO else asked


def main() -> int:
    """Returns the exit code."""
    try:
        serve(tyro.cli(Service, prog="python -m rewards.server"))
    except RewardError as error:
        print(printable(f"rewards.server: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
