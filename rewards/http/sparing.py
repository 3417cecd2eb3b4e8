"""A log that clients cannot fill: of what goes wrong with their requests, some is enough."""

import logging
import time

NAMES = ("rewards.server", "uvicorn.error", "asyncio")  # who speaks of requests
MOST = 60  # messages
SECONDS = 60.0  # in which there are at most so many
LENGTH = 2000  # signs of a message; a traceback behind it counts for nothing


class Sparing(logging.Filter):
    """Of one logger."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.said = time.monotonic(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self.began >= SECONDS:
            self.began, self.said = now, 0
        self.said += 1
        record.msg, record.args = record.getMessage()[:LENGTH], ()
        if self.said == MOST:
            record.msg += f" (what follows within {SECONDS:g} s is left out)"
        return self.said <= MOST


def spare() -> None:
    """For the rest of this process."""
    for name in NAMES:
        logging.getLogger(name).addFilter(Sparing())
