"""A few processes that grade answers side by side, each with limits of time and memory, replaced when they are killed.

A grader may hang, eat all memory or die of what a model wrote; then that answer alone has no verdict, and the next one
finds a new process. Processes start when they are first needed and end with whoever asks, however that ends.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Lock, Timer
from typing import NamedTuple

from rewards.errors import RewardError
from rewards.threads import begin

PROGRAM = Path(__file__).with_name("worker.py")
MOST = 4  # processes
EACH = 2  # answers at once for each process: to start one takes a second
SECONDS = 2.0  # of processor time for an answer
MEMORY = 2**30  # bytes
CLOCK = 10.0  # seconds that may pass in all: a process that was stopped uses none of the processor's
START = 120.0  # seconds on the clock for a process to be ready


class Verdict(NamedTuple):
    """right: as the grader says. trouble: why it has said nothing; then it is not right."""

    right: bool = False
    trouble: str = ""


class Worker:
    """One process, for one thread at a time."""

    def __init__(self, grader: str, seconds: float, memory: int) -> None:
        self.grader, self.seconds, self.memory = grader, seconds, memory
        self.lock = Lock()
        self.process: subprocess.Popen[str] | None = None

    def grade(self, answer: str, truth: str) -> Verdict:
        """Raises RewardError where no process can be started."""
        status = 0
        for _ in range(2):  # once more for one that was killed from outside
            process = self.process or self._start()
            reply, late = _ask(process, json.dumps([answer, truth]), CLOCK)
            if reply is not None:
                return reply
            status = self.end()
            if late or status == -signal.SIGPROF:
                return Verdict(trouble=f"took more than {self.seconds:g} s of the processor")
        return Verdict(trouble=f"ended the grader twice (exit status {status})")

    def _start(self) -> "subprocess.Popen[str]":
        # -P: what lies beside the program is not for it to import.
        command = [sys.executable, "-P", str(PROGRAM), self.grader, str(self.seconds), str(self.memory)]
        process = self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
        )
        ready, _ = _ask(process, None, START)
        if ready != Verdict(right=True):
            self.end()
            why = ready.trouble if ready else "no reply"
            needed = "pip install 'math-verify[antlr4_13_2]'"
            raise RewardError(f"the grader {self.grader} does not start ({why}): run {needed}")
        return process

    def end(self) -> int:
        """Kill the process, if there is one, and wait for its end; how it ended."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.kill()
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(OSError):  # what could not be sent
                pipe.close()
        return process.returncode


def _ask(process: "subprocess.Popen[str]", question: str | None, seconds: float) -> tuple[Verdict | None, bool]:
    """The reply, None if the process ended without one; and whether that was because its time was over."""
    late = Event()

    def stop() -> None:
        late.set()
        process.kill()

    asked, replies = process.stdin, process.stdout
    assert asked is not None and replies is not None
    timer = Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        if question is not None:
            asked.write(question + "\n")
            asked.flush()
        line = replies.readline()
    except OSError:  # it was gone already
        line = ""
    finally:
        timer.cancel()
    return (Verdict(**json.loads(line)) if line.endswith("\n") else None), late.is_set()


class Workers:
    """Grades lists of answers, from whatever threads.

    Raises RewardError from `grade` where no process can be started.
    """

    def __init__(self, grader: str, seconds: float = SECONDS, memory: int = MEMORY, most: int = MOST) -> None:
        number = min(most, os.cpu_count() or 1)
        self.workers = [Worker(grader, seconds, memory) for _ in range(number)]
        self.close = weakref.finalize(self, _end, self.workers)

    def grade(self, answers: Sequence[tuple[str, str]]) -> list[Verdict]:
        """A verdict for every (answer, truth), in their order; what comes several times is graded once."""
        left = deque(dict.fromkeys(answers))
        found: dict[tuple[str, str], Verdict] = {}

        def work(worker: Worker) -> None:
            with worker.lock, contextlib.suppress(IndexError):  # nothing is left
                while True:
                    pair = left.popleft()
                    found[pair] = worker.grade(*pair)

        for asked in [begin(None, work, worker) for worker in self.workers[: math.ceil(len(left) / EACH)]]:
            asked.result()
        return [found[pair] for pair in answers]


def _end(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.end()
