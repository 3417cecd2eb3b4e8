"""One request to a server that may fail, bounded in time and in the size of its answer."""

import asyncio
from typing import Literal

import httpx

from rewards.http.patience import Patience

FaultKind = Literal["connection", "timeout", "busy", "server", "malformed", "version", "reward", "number", "image"]


class Fault(Exception):  # noqa: N818 (RewardError is what reaches callers)
    """One attempt failed; another one may not. What each kind stands for: `rewards.http.client`."""

    def __init__(self, kind: FaultKind, what: str) -> None:
        super().__init__(what)
        self.kind = kind


async def exchange(
    http: httpx.AsyncClient, address: str, path: str, body: bytes | None, patience: Patience, most: int
) -> tuple[int, bytes]:
    """The status and the answer, of at most so many bytes; a request without a body asks how the server is.

    Raises Fault where there is no connection, no whole answer in time, or a longer one.
    """
    seconds = patience.connect if body is None else patience.timeout
    try:
        async with (
            asyncio.timeout(seconds),
            http.stream("GET" if body is None else "POST", address + path, content=body) as response,
        ):
            data = bytearray()
            async for piece in response.aiter_raw():
                data += piece
                if len(data) > most:
                    raise Fault("malformed", f"sends more than {most} bytes")
            return response.status_code, bytes(data)
    except (TimeoutError, httpx.TimeoutException):
        raise Fault("timeout", f"did not answer {path} within {seconds:g} s") from None
    except httpx.HTTPError as error:
        raise Fault("connection", f"cannot be reached ({error or type(error).__name__})") from error
