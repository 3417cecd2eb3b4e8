"""How many connections a reward server holds, and how long those whose request does not come to an end.

uvicorn waits forever for the end of a head, and after an early answer for that of a body: whoever dawdles would hold
a connection as long as he likes. And it takes as many as there are, until none is left for files: then Python logs
megabytes a second.
"""

import asyncio
import resource

import h11
from fastapi import FastAPI
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from rewards.http.door import BODY_SECONDS

CONNECTIONS = 512  # at once; for a further one, that which has waited the longest without a whole request is closed
BACKLOG = 64  # connections that are taken in one go, before any of them can be closed
HEAD_SECONDS = 10.0  # for a head to be there
GRACE = 5.0  # seconds after those that a body has (`rewards.http.door`): its sender is to read why it was too late
WHOLE = (h11.DONE, h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)  # of a client: it has nothing more to say


def config(app: FastAPI, seconds: float = BODY_SECONDS + GRACE, most: int = CONNECTIONS) -> Config:
    """How uvicorn serves the application. most: connections, but no more than half of the files it may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    protocol = in_time(seconds, min(most, files // 2))
    return Config(app, http=protocol, loop="asyncio", backlog=BACKLOG, log_level="warning")


def in_time(seconds: float, most: int = CONNECTIONS) -> type[H11Protocol]:
    """uvicorn's protocol, where a request has so many seconds from its first byte, or from the connection, to its last.

    Then the connection is closed, whether there was an answer already or not; after `HEAD_SECONDS` if the head is not
    there by then.
    """

    class InTime(H11Protocol):
        late: asyncio.TimerHandle | None = None
        began = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()
            if len(self.connections) > most:
                others = (one for one in unfinished if one is not self)
                # Those without a whole head first: they have shown no token yet.
                last = min(others, key=lambda one: one.conn.their_state is h11.SEND_BODY, default=self)
                unfinished.pop(last)
                last.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.IDLE:
                unfinished[self] = None

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._rest()

        def _watch(self) -> None:
            if self.conn.their_state in WHOLE:
                self._rest()
            elif self.late is None:
                unfinished[self] = None
                self.began = self.loop.time()
                self._close_after(min(HEAD_SECONDS, seconds))
            elif self.conn.their_state is h11.SEND_BODY:
                self._close_after(seconds)

        def _close_after(self, seconds: float) -> None:
            if self.late is not None:
                self.late.cancel()
            self.late = self.loop.call_at(self.began + seconds, self.transport.close)

        def _rest(self) -> None:
            unfinished.pop(self, None)
            if self.late is not None:
                self.late.cancel()
                self.late = None

    unfinished: dict[InTime, None] = {}  # those that are not being answered, in the order in which they began to wait
    return InTime
