"""One request to a server that may fail, bounded in time and in the size of its answer; and when it is asked again."""

import asyncio
from typing import Literal, NamedTuple

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from rewards.errors import RewardError
from rewards.http.patience import Patience

FaultKind = Literal[
    "connection",
    "timeout",
    "busy",
    "server",
    "malformed",
    "version",
    "reward",
    "scorer",
    "request",
    "number",
    "image",
]


class Fault(Exception):  # noqa: N818 (RewardError is what reaches callers)
    """One attempt failed; another one may not. What each kind stands for: `rewards.http.client`.

    after: seconds after which a server that is busy wants to be asked again; 0 where it does not say.
    """

    def __init__(self, kind: FaultKind, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.kind, self.after = kind, after


class Reply(NamedTuple):
    """after: as in `Fault`."""

    status: int
    data: bytes
    after: float


async def exchange(
    http: httpx.AsyncClient, address: str, path: str, body: bytes | None, patience: Patience, most: int
) -> Reply:
    """The answer, of at most so many bytes; a request without a body asks how the server is.

    Raises Fault where there is no connection, no whole answer in time, or a longer one, RewardError for no address.
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
            return Reply(response.status_code, bytes(data), _seconds(response.headers.get("retry-after", "")))
    except (TimeoutError, httpx.TimeoutException):
        raise Fault("timeout", f"did not answer {path} within {seconds:g} s") from None
    except httpx.HTTPError as error:
        raise Fault("connection", f"cannot be reached ({error or type(error).__name__})") from error
    except (httpx.InvalidURL, UnicodeError) as error:  # of a name that no host has
        raise RewardError(f"{address} is no address of a server ({error}): write it as http://HOST:PORT") from error


def _seconds(text: str) -> float:
    """What `retry-after` says, of which dates and nonsense say nothing."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0


def retrying(patience: Patience) -> AsyncRetrying:
    """Asks again after a Fault, and raises the last.

    A server that is only busy and says when to come back is not failing: coming back is no attempt, until that has
    taken as long as all attempts might.
    """
    growing = wait_exponential_jitter(patience.pause, patience.longest, jitter=patience.pause)
    failed = 0

    def stop(state: RetryCallState) -> bool:
        nonlocal failed
        failed += not _fault(state).after
        waited = state.seconds_since_start or 0.0
        return failed >= patience.attempts or waited > patience.attempts * patience.timeout

    def wait(state: RetryCallState) -> float:
        return max(growing(state), min(_fault(state).after, patience.longest))

    return AsyncRetrying(retry=retry_if_exception_type(Fault), stop=stop, wait=wait, reraise=True)


def _fault(state: RetryCallState) -> Fault:
    assert state.outcome is not None
    fault = state.outcome.exception()
    assert isinstance(fault, Fault)
    return fault
