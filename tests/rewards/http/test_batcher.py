"""The batcher of a reward server: what a batch held is gone when the next call begins."""

import threading
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rewards.http.batcher import Batcher, FailedError, Job
from rewards.reward import Scores


class Activations:
    """What a reward has in hand while it scores."""


class Greedy:
    """Fails on batches beyond `most`; `alive`: how many earlier activations there were at the start of each call."""

    name = "greedy"

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen: list[weakref.ref] = []
        self.alive: list[int] = []
        self.go = threading.Event()

    def check(self, *asked: object) -> None:
        """Every text can be scored."""

    def living(self) -> int:
        return sum(one() is not None for one in self.seen)

    def score(self, images: Sequence, *asked: object) -> Scores:
        assert self.go.wait(10)
        self.alive.append(self.living())
        activations = Activations()
        self.seen.append(weakref.ref(activations))
        if len(images) > self.most:
            try:
                raise ValueError("no room")
            except ValueError as error:  # a chain of errors, as torch's are
                raise RuntimeError("out of memory") from error
        return Scores(torch.zeros(len(images)), {}, ("",) * len(images))


def job(images: int) -> Job:
    return Job([np.zeros((2, 2, 3), np.uint8)] * images, ["a"] * images, [{}] * images)


def test_nothing_of_a_failed_batch_is_alive_when_its_jobs_are_tried_alone():
    reward = Greedy(most=1)
    batcher = Batcher(reward, 8, 10**6, lambda *_: None)
    jobs = [job(1) for _ in range(4)]
    for one in jobs:
        batcher.submit(one)
    reward.go.set()
    assert all(one.scores.result(10).failures == {} for one in jobs)
    batcher.close()
    assert len(reward.alive) > 4 and set(reward.alive) == {0}


def test_a_request_that_failed_alone_leaves_its_sentence_only():
    reward, done = Greedy(most=0), threading.Event()
    batcher = Batcher(reward, 8, 10**6, lambda *_: done.set())
    reward.go.set()
    held = job(2)
    gone = weakref.ref(held)
    batcher.submit(held)
    with pytest.raises(FailedError, match="out of memory"):
        held.scores.result(10)
    assert done.wait(10)
    assert reward.living() == 0  # although the answer, which the request still waits to read, is there
    del held
    batcher.submit(job(1))
    batcher.close()
    assert gone() is None and reward.alive == [0, 0]


def test_an_idle_batcher_holds_no_images():
    reward = Greedy(most=8)
    reward.go.set()
    batcher = Batcher(reward, 8, 10**6, lambda *_: None)
    waits = threading.Event()
    take = batcher._next

    def noted() -> list[Job]:
        if reward.alive:
            waits.set()
        return take()

    batcher._next = noted  # type: ignore[method-assign]
    one = job(1)
    gone = weakref.ref(one)
    batcher.submit(one)
    one.scores.result(10)
    del one
    assert waits.wait(10)
    assert gone() is None
    batcher.close()


def test_images_that_are_large_together_are_scored_apart():
    class Counting(Greedy):
        def __init__(self) -> None:
            super().__init__(most=8)
            self.batches: list[int] = []

        def score(self, images: Sequence, *asked: object) -> Scores:
            self.batches.append(len(images))
            return super().score(images, *asked)

    reward = Counting()
    batcher = Batcher(reward, 8, 3 * 12, lambda *_: None)
    jobs = [job(images) for images in (4, 1, 2, 1)]  # of 12 bytes each
    for one in jobs:
        batcher.submit(one)
    reward.go.set()
    batcher.close()
    assert reward.batches == [4, 3, 1]


def test_a_job_that_nobody_waits_for_is_not_begun():
    reward = Greedy(most=8)
    batcher = Batcher(reward, 8, 10**6, lambda *_: None)
    jobs = [job(1) for _ in range(4)]
    for one in jobs:
        one.scores.cancel()
        batcher.submit(one)
    last = job(3)
    batcher.submit(last)
    reward.go.set()
    assert len(last.scores.result(10).total) == 3
    batcher.close()
    assert len(reward.alive) == 1 and batcher.waiting == 0
