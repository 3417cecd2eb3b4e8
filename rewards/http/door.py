"""Who is let in, and how much of what clients send is held in memory.

A request has a place from when it has arrived in full until it is answered. Bodies on their way have none: they share
so many bytes, and where these do not suffice, the one that has been arriving the longest is given up. So clients that
dawdle take nobody's place.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from rewards.errors import RewardError
from rewards.http.token import HEADER, shown
from rewards.http.wire import DamagedError, TooLargeError

PLACES = 32  # requests that are being answered; further ones are told to come back
ARRIVING = 2**29  # bytes of all the bodies that are on their way
BODY_SECONDS = 60.0  # for a request to arrive in full
COME_BACK = 1  # seconds


class RefusedError(Exception):
    """A request that gets a `Problem` of this status. after: seconds until it may be sent again; 0 does not say."""

    def __init__(self, status: int, sentence: str, after: int = 0) -> None:
        super().__init__(sentence)
        self.status, self.after = status, after


class Door:
    """token: what clients have to show; None lets everybody in. seconds: for a body."""

    def __init__(self, token: bytes | None, seconds: float, places: int, arriving: int = ARRIVING) -> None:
        self.token, self.seconds, self.places, self.arriving = token, seconds, places, arriving
        self.inside = 0
        self.on_their_way: dict[asyncio.Timeout, int] = {}  # bytes so far, in the order in which they began

    @asynccontextmanager
    async def entered(self, request: Request, limit: int, what: str) -> AsyncIterator[bytes]:
        """The body of a request, which has a place inside of the context; what is wrong becomes a `RefusedError`.

        limit: bytes of the body. what: it holds too much of, beyond.
        """
        if not shown(request.headers.get(HEADER, ""), self.token):
            raise RefusedError(401, f"the header {HEADER} has to hold the server's token: set the client's to it")
        with _refusing():
            body = await self._body(request, limit, what)
            if self.inside >= self.places:
                raise RefusedError(503, f"{self.inside} requests are being answered: try again later", COME_BACK)
            self.inside += 1
            try:
                yield body
            finally:
                self.inside -= 1

    async def _body(self, request: Request, limit: int, what: str) -> bytes:
        received = bytearray()
        async with self._arriving() as own:
            try:
                async for piece in request.stream():
                    received += piece
                    if len(received) > limit:
                        raise TooLargeError(f"the body has more than {limit} bytes: send fewer {what} at once")
                    self.on_their_way[own] = len(received)
                    self._make_room()
            except ClientDisconnect:
                raise RefusedError(400, "the client left before its request was complete") from None
        return bytes(received)

    @asynccontextmanager
    async def _arriving(self) -> AsyncIterator[asyncio.Timeout]:
        """Inside of the context a body may arrive, for as long as it has time and room."""
        try:
            async with asyncio.timeout(self.seconds) as own:
                self.on_their_way[own] = 0
                try:
                    yield own
                finally:
                    self.on_their_way.pop(own, None)
        except TimeoutError:
            sentence = f"the request did not arrive within {self.seconds:g} s, or while there was room: send it faster"
            raise RefusedError(408, sentence) from None

    def _make_room(self) -> None:
        while sum(self.on_their_way.values()) > self.arriving:
            oldest = next(iter(self.on_their_way))
            del self.on_their_way[oldest]
            if not oldest.expired():
                oldest.reschedule(0)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except TooLargeError as error:
        raise RefusedError(413, str(error)) from error
    except DamagedError as error:
        raise RefusedError(400, str(error)) from error
    except RewardError as error:
        raise RefusedError(422, str(error)) from error
