"""The fault drill: servers that die, hang and lie behind one client. No wrong score ever comes out."""

import json
import os
import pickle
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.errors import RewardError
from rewards.http.client import Patience, RemoteReward
from rewards.http.wire import VERSION, Answer, Health, Problem
from rewards.reward import dropped_groups, score_each, score_images
from tests.rewards.servers import (
    IMAGES,
    PROMPTS,
    RECORDS,
    SCORER,
    Brightness,
    answering,
    hanging,
    mortal,
    named,
    serving,
)

# Only the drill has to wait for a timeout: elsewhere a slow machine must not look like a fault.
DRILL = Patience(timeout=0.5, connect=0.3, attempts=6, pause=0.01, longest=0.02, images=2)
QUICK = Patience(timeout=30, connect=30, attempts=6, pause=0.01, longest=0.02, images=2)
HOPELESS = Patience(timeout=30, connect=30, attempts=2, pause=0.01, longest=0.02, images=2)
EXPECTED = torch.arange(8) / 255
HEALTHY = Health(version=VERSION, ready=True, scorer=SCORER, device="cpu", waiting=0, busy=0.0).model_dump_json()
RIGHT: dict[str, Any] = {
    "version": VERSION,
    "request": "REQUEST",
    "scorer": SCORER.model_dump(),
    "total": [9.0, 9.0],
    "parts": {"double": [9.0, 9.0]},
    "reasons": ["", ""],
    "failures": {},
}


class Trap:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def lie(**changes: Any) -> bytes:
    return json.dumps({**RIGHT, **changes}).encode()


LIES = {
    "garbage": (b"\x00\xff garbage", "malformed"),
    "nothing": (b"", "malformed"),
    "html": (b"<html>200 OK</html>", "malformed"),
    "nan": (lie(total=[float("nan"), 9.0]), "number"),
    "infinity": (lie(total=[9.0, float("-inf")]), "number"),
    "nan in a part": (lie(parts={"double": [9.0, float("nan")]}), "number"),
    "beyond float32": (lie(total=[9.0, 1e300]), "number"),
    "null": (lie(total=[None, 9.0]), "malformed"),
    "text": (lie(total=["9", "9"]), "malformed"),
    "too short": (lie(total=[9.0]), "malformed"),
    "too long": (lie(total=[9.0] * 3), "malformed"),
    "a short part": (lie(parts={"double": [9.0]}), "malformed"),
    "reasons lost": (lie(reasons=[]), "malformed"),
    "failures elsewhere": (lie(failures={"7": "?"}), "malformed"),
    "another version": (lie(version=VERSION + 1), "version"),
    "another reward": (lie(scorer={**SCORER.model_dump(), "reward": "shapes-official"}), "reward"),
    "another scorer": (lie(scorer={**SCORER.model_dump(), "model": "darkness"}), "scorer"),
    "other weights": (lie(scorer={**SCORER.model_dump(), "weights": "ab" * 32}), "scorer"),
    "another request": (lie(request="ab" * 32), "request"),
    "more than was asked": (lie(extra=1), "malformed"),
}


def test_the_lies_are_told_well():
    """But for the lie, the client would believe them."""
    assert Answer.model_validate_json(lie()).total == [9.0, 9.0]


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_counted_and_never_believed(name: str):
    data, kind = LIES[name]
    with (
        serving(Brightness()) as good,
        answering(lambda path, body: (200, named(data, body) if path == "/score" else HEALTHY.encode())) as liar,
    ):
        reward = RemoteReward("shapes", [liar, good], QUICK)
        reward.scorer = SCORER  # as the first answer says
        faults: Counter[str] = Counter()
        for _ in range(20):  # which server gets the first part is chance
            scores = score_images(reward, IMAGES, PROMPTS, RECORDS)
            assert torch.equal(scores.total, EXPECTED)
            faults.update(scores.faults)
            if faults:
                break
        assert faults.keys() == {kind}


@pytest.mark.parametrize("status", [200, 302, 404, 500])
def test_a_pickle_is_not_opened(tmp_path: Path, status: int):
    data = pickle.dumps({"scores": [9.0, 9.0], "trap": Trap(tmp_path / "sprung")})
    with answering(lambda *_: (status, data)) as address:
        reward = RemoteReward("shapes", [address], HOPELESS)
        scores = score_each(reward, IMAGES[:2], PROMPTS[:2], RECORDS[:2])
        with pytest.raises(RewardError, match="no server of 'shapes' answers"):
            reward.check(PROMPTS, RECORDS)
    assert scores.failures.keys() == {0, 1} and not scores.total.any()
    assert scores.faults == {"malformed" if status == 200 else "server": 2}
    assert not (tmp_path / "sprung").exists()


def test_an_answer_without_end_is_cut_off():
    with answering(lambda *_: (200, b" " * 20 * 2**20)) as address:
        scores = score_each(
            RemoteReward("shapes", [address], Patience(attempts=1)), IMAGES[:1], PROMPTS[:1], RECORDS[:1]
        )
    assert scores.faults == {"malformed": 1} and "sends more than" in scores.failures[0]


def test_three_servers_one_killed_one_hangs_one_lies():
    """While any of them is good all images are scored; the good one is then killed in the middle of its work."""
    lies = iter(sorted(LIES) * 1000)

    def answer(path: str, body: bytes) -> tuple[int, bytes]:
        return 200, HEALTHY.encode() if path == "/health" else named(LIES[next(lies)][0], body)

    with (
        serving(Brightness()) as good,
        mortal(Brightness()) as (doomed, kill),
        hanging() as stuck,
        answering(answer) as liar,
    ):
        reward = RemoteReward("shapes", [good, doomed, stuck, liar], DRILL)
        reward.scorer = SCORER
        faults: Counter[str] = Counter()
        for turn in range(3):
            if turn == 1:
                kill()
            scores = score_each(reward, IMAGES, PROMPTS, RECORDS)
            right = torch.ones(8, dtype=torch.bool)
            right[list(scores.failures)] = False
            assert torch.equal(scores.total[right], EXPECTED[right])
            assert not scores.total[~right].any()
            faults.update(scores.faults)
        assert {"timeout", "connection"} <= faults.keys()
        assert faults.keys() & {"malformed", "number", "version", "reward"}


def test_a_server_killed_while_it_scores_loses_nothing():
    def until_killed() -> None:
        threading.Event().wait(30)

    patience = replace(QUICK, images=8)
    with serving(Brightness()) as good, mortal(Brightness(until_killed)) as (doomed, kill):
        reward = RemoteReward("shapes", [doomed, good], patience)
        reward.servers[1].in_flight += 1  # so that the doomed one is asked first
        timer = threading.Timer(0.5, kill)
        timer.start()
        scores = score_images(reward, IMAGES, PROMPTS, RECORDS)
        timer.join()
    assert torch.equal(scores.total, EXPECTED)
    assert scores.faults.keys() == {"connection"}


def test_when_no_server_is_left_the_run_stops_or_the_group_is_dropped():
    with serving(Brightness()) as good:
        reward = RemoteReward("shapes", [good], HOPELESS)
        assert not score_images(reward, IMAGES, PROMPTS, RECORDS).faults
    with pytest.raises(RewardError, match=r'shapes: image 0 \("prompt 0"\) has no score: no server scored it in 2'):
        score_images(reward, IMAGES, PROMPTS, RECORDS)
    scores = score_each(reward, IMAGES, PROMPTS, RECORDS)
    assert scores.faults == {"connection": 8} and scores.failures.keys() == set(range(8))
    assert dropped_groups(scores, 4).tolist() == [True, True]


def test_only_the_groups_that_lack_a_score_are_dropped():
    def answer(path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/health":
            return 200, HEALTHY.encode()
        return (500, b"") if b'"prompt 2"' in body else (200, named(lie(), body))

    with answering(answer) as address:
        scores = score_each(RemoteReward("shapes", [address], HOPELESS), IMAGES, PROMPTS, RECORDS)
    assert scores.failures.keys() == {2, 3}
    assert dropped_groups(scores, 4).tolist() == [True, False]
    assert dropped_groups(scores, 2).tolist() == [False, True, False, False]
    assert scores.parts["double"].tolist() == [9, 9, 0, 0, 9, 9, 9, 9]


def test_a_server_that_comes_back_gets_work_again():
    state = {"well": False}

    def answer(path: str, body: bytes) -> tuple[int, bytes]:
        if not state["well"]:
            return 500, Problem(version=VERSION, error="broken").model_dump_json().encode()
        return 200, HEALTHY.encode() if path == "/health" else named(lie(), body)

    with answering(answer) as address:
        away = RemoteReward("shapes", [address], HOPELESS)
        assert score_each(away, IMAGES[:2], PROMPTS[:2], RECORDS[:2]).faults == {"server": 2}
        assert away.servers[0].failed == 2
        state["well"] = True
        assert score_each(away, IMAGES[:2], PROMPTS[:2], RECORDS[:2]).total.tolist() == [9, 9]
        assert away.servers[0].failed == 0
