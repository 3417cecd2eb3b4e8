"""SIGTERM and SIGUSR1, by which batch systems say that a run's time is up: it ends after the step it is in."""

import signal
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopping:
    """While it is entered, one of the signals sets `asked`; further ones change nothing.

    Outside the main thread, where Python takes no signals, they do what they did before.
    """

    asked = False

    def __enter__(self) -> Self:
        here = current_thread() is main_thread()
        self.before = {number: signal.signal(number, self._ask) for number in SIGNALS if here}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
