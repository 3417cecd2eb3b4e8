"""How long to wait for reward servers. Without torch: a run's configuration holds it, and `--help` shows it."""

import math
from dataclasses import dataclass

from rewards.errors import RewardError

IMAGES = 64  # that one request may hold


@dataclass(frozen=True)
class Patience:
    """How a run bears with reward servers: seconds, attempts, and what is sent at once.

    Attributes:
        timeout: seconds for one request, from the connection to the last byte of the answer.
        connect: seconds for the connection alone, and for a question after a server's health.
        attempts: for each request, before its images are without a score.
        pause: seconds before the second attempt; it doubles up to the longest, and up to a pause at random is added.
        longest: seconds of the longest pause, and the longest that a server which failed is left alone.
        images: in one request.
        hedge: seconds without an answer after which a request goes to a second server too, and the first answer counts;
            0 never does.
    """

    timeout: float = 120.0
    connect: float = 5.0
    attempts: int = 8
    pause: float = 0.5
    longest: float = 30.0
    images: int = 16
    hedge: float = 0.0

    def __post_init__(self) -> None:
        for name in ("timeout", "connect"):
            self._check(name, 0 < getattr(self, name) < math.inf, "above 0, in seconds")
        for name in ("pause", "longest", "hedge"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "0 or more, in seconds")
        self._check("attempts", self.attempts >= 1, "at least 1")
        self._check("images", 1 <= self.images <= IMAGES, f"in 1..{IMAGES}, which a server takes in one request")

    def _check(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise RewardError(f"reward-server.{name} is {getattr(self, name)}: it has to be {wanted}")


PATIENT = Patience()  # of judges
