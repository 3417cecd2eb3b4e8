"""How many connections a reward server holds, and how long those whose request does not come to an end.

uvicorn waits forever for the end of a head, and after an early answer for that of a body: whoever dawdles would hold
a connection as long as he likes.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 512  # at once; further ones are closed as they come
GRACE = 5.0  # seconds after the time that a body has (`rewards.http.app`), so that its sender reads why it was too late
WHOLE = (h11.DONE, h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)  # of a client: it has nothing more to say


def in_time(seconds: float, most: int = CONNECTIONS) -> type[H11Protocol]:
    """uvicorn's protocol, where a request has so many seconds from its first byte, or from the connection, to its last.

    Then the connection is closed, whether there was an answer already or not.
    """

    class InTime(H11Protocol):
        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._rest()

        def _watch(self) -> None:
            if self.conn.their_state in WHOLE:
                self._rest()
            elif self.late is None:
                self.late = self.loop.call_later(seconds, self.transport.close)

        def _rest(self) -> None:
            if self.late is not None:
                self.late.cancel()
                self.late = None

    return InTime
