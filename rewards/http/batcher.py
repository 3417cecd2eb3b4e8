"""Micro-batches out of many clients' requests: one thread owns the reward and scores whatever waits.

There is no timer: while a batch is scored the next requests gather, so that batches grow with the load and a lone
request waits for nobody.
"""

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from rewards.reward import Reward, Sample, Scores, joined, score_each, size_of

log = logging.getLogger("rewards.server")


class FailedError(Exception):
    """The reward failed on a job; the text is its error's."""


@dataclass(frozen=True)
class Job:
    """One request's images or answers, and where its scores will be."""

    images: Sequence[Sample]
    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    scores: "Future[Scores]" = field(default_factory=Future)


class Batcher:
    """Scores jobs in the order of their arrival, `batch` images at a time.

    size: bytes of the images that are scored together at most, but for a job that alone has more.
    scored: called after each batch with its number of images and its seconds.
    """

    def __init__(self, reward: Reward, batch: int, size: int, scored: Callable[[int, float], None]) -> None:
        self.reward, self.batch, self.size, self.scored = reward, batch, size, scored
        self.jobs: deque[Job] = deque()
        self.waiting = 0  # images accepted and not scored yet
        self.began: float | None = None  # when the present batch began
        self.closing = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="reward", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Accept a job: from now on it will be answered, even when `close` follows."""
        with self.changed:
            if self.closing:
                raise RuntimeError("the batcher is closed")
            self.jobs.append(job)
            self.waiting += len(job.images)
            self.changed.notify()

    def close(self) -> None:
        """Score what was accepted, then stop."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join()

    @property
    def busy(self) -> float:
        """Seconds that the present batch has taken so far; 0 when there is none."""
        began = self.began
        return 0.0 if began is None else time.monotonic() - began

    def _run(self) -> None:
        while self._score_next():  # a call of its own, so that nothing of a batch is held while the next is waited for
            pass

    def _score_next(self) -> bool:
        """Score the next jobs; False once all is done and closed."""
        if not (jobs := self._next()):
            return False
        self.began = time.monotonic()
        self._answer(jobs)
        self.scored(sum(len(job.images) for job in jobs), self.busy)
        self.began = None
        with self.changed:
            self.waiting -= sum(len(job.images) for job in jobs)
        return True

    def _next(self) -> list[Job]:
        """The oldest job and those behind it that fill the batch; nothing once all is done and closed."""
        with self.changed:
            while self.changed.wait_for(lambda: self.jobs or self.closing) and self.jobs:
                if jobs := self._fitting():
                    return jobs
        return []

    def _fitting(self) -> list[Job]:
        """Jobs of one batch, without those that were cancelled because nobody waits for them any more."""
        jobs: list[Job] = []
        images = size = 0
        while self.jobs:
            images += len(self.jobs[0].images)
            size += sum(map(size_of, self.jobs[0].images))
            if jobs and (images > self.batch or size > self.size):
                break
            job = self.jobs.popleft()
            if job.scores.set_running_or_notify_cancel():
                jobs.append(job)
            else:
                self.waiting -= len(job.images)
        return jobs

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Score the jobs together; if that fails, each alone, so that no request fails for its neighbour.

        Of an error only its text is kept: its traceback holds whatever the reward had in hand, such as the activations
        that did not fit, and they have to be gone when the next call begins.
        """
        try:
            answers = self._score(jobs)
        except Exception as error:
            failed, trace = str(error), traceback.format_exc()
        else:
            for job, scores in zip(jobs, answers, strict=True):
                job.scores.set_result(scores)
            return
        if len(jobs) == 1:
            log.error("a request of %d images could not be scored\n%s", len(jobs[0].images), trace)
            jobs[0].scores.set_exception(FailedError(failed))
            return
        for job in jobs:
            self._answer([job])

    def _score(self, jobs: Sequence[Job]) -> list[Scores]:
        images = list(chain.from_iterable(job.images for job in jobs))
        prompts = list(chain.from_iterable(job.prompts for job in jobs))
        metadata = list(chain.from_iterable(job.metadata for job in jobs))
        parts = []
        for start in range(0, len(images), self.batch):
            rows = slice(start, start + self.batch)
            parts.append(score_each(self.reward, images[rows], prompts[rows], metadata[rows]))
        whole, answers, start = joined(parts), [], 0
        for job in jobs:
            answers.append(_rows(whole, start, start + len(job.images)))
            start += len(job.images)
        return answers


def _rows(scores: Scores, start: int, stop: int) -> Scores:
    """The scores of some consecutive images."""
    return Scores(
        total=scores.total[start:stop],
        parts={name: values[start:stop] for name, values in scores.parts.items()},
        reasons=scores.reasons[start:stop],
        failures={row - start: why for row, why in scores.failures.items() if start <= row < stop},
    )
