"""Answers in text over HTTP: the same verdicts as in process, within the limits, and nothing else in their place."""

import signal
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi.testclient import TestClient

from rewards.errors import RewardError
from rewards.http.app import create_app
from rewards.http.client import RemoteReward
from rewards.http.service import Service
from rewards.http.wire import Answer, Limits, Problem, TooLargeError, envelope_of, pack, read, request_id, unpack
from rewards.registry import build
from rewards.reward import Reward, score_each, score_images
from rewards.server import serve
from tests.rewards.http.test_client import QUICK, same
from tests.rewards.servers import IMAGES, serving

ANSWERS = [f"<think>ä ☃ {row}</think> \\boxed{{{row}}}" for row in range(8)]
PROMPTS = [f"how many, {row}?" for row in range(8)]
RECORDS = [{"answer": str(row % 3)} for row in range(8)]
BODY = pack("math", ANSWERS[:2], PROMPTS[:2], RECORDS[:2])


@pytest.fixture(scope="module")
def local() -> Reward:
    return build("math", samples="answers")


@pytest.fixture(scope="module")
def client(local: Reward) -> Iterator[TestClient]:
    limits = Limits(images=8, bytes=2000, envelope=2000)
    with TestClient(create_app(local, Service("math"), limits=limits, answers=True)) as client:
        yield client


def test_verdicts_over_http_are_those_in_process(local: Reward) -> None:
    odd = [*ANSWERS[:5], "no box", "", "\\boxed{9**9**9**9}"]
    records = [*RECORDS[:7], {"answer": "1/2"}]
    with serving(local, "math", answers=True) as first, serving(local, "math", answers=True) as second:
        away = build(f"math@{first},{second}", patience=QUICK, samples="answers")
        away.check(PROMPTS, records)
        assert away.name == local.name == "math (mathruler 0.1.0)"
        theirs = score_images(away, odd, PROMPTS, records)
        with pytest.raises(RewardError, match=r'the prompt "how many, 0\?" has no \'answer\''):
            away.check(PROMPTS, [{}] * 8)
    same(score_images(local, odd, PROMPTS, records), theirs)
    assert theirs.total.tolist() == [1, 1, 1, 0, 0, 0, 0, 0] and theirs.parts["ungraded"].sum() == 1


def test_graders_are_served(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    apps = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: apps.append(server.config.app))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    serve(Service("math", port=0))
    assert capsys.readouterr().out.startswith("math (math (mathruler 0.1.0)) on cpu at http://127.0.0.1:")
    with TestClient(apps[0]) as client:
        assert read(Answer, client.post("/score", content=BODY).content).total == [1, 1]


def test_packing_loses_nothing() -> None:
    envelope, answers = unpack(BODY, Limits())
    assert answers == ANSWERS[:2] and envelope.prompts == PROMPTS[:2] and not envelope.images


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (pack("math", IMAGES[:2], PROMPTS[:2], RECORDS[:2]), 422, "'math' scores answers, and pictures came"),
        (pack("math", [ANSWERS[0], IMAGES[0]], PROMPTS[:2], RECORDS[:2]), 422, "1 answers and 1 images, 2 prompts"),
        (pack("math", ANSWERS[:2], PROMPTS[:1], RECORDS[:1]), 422, "2 answers, 1 prompts and 1 metadata records"),
        (pack("math", ["1"] * 9, ["?"] * 9, RECORDS[:1] * 9), 413, "9 answers: at most 8 go together"),
        (pack("math", ["1" * 2000], PROMPTS[:1], RECORDS[:1]), 413, "bytes: at most 2000 go together"),
        (BODY + b"1", 422, "the images should have 0 bytes in all, but 1 came"),
    ],
    ids=["pictures", "both", "few", "many", "long", "more"],
)
def test_what_does_not_go_together_is_refused(client: TestClient, body: bytes, status: int, says: str) -> None:
    answer = client.post("/score", content=body)
    assert answer.status_code == status and says in Problem.model_validate_json(answer.content).error


def test_a_reward_of_pictures_is_sent_no_answers() -> None:
    with serving(build("shapes")) as address, pytest.raises(RewardError, match="'shapes' scores pictures, and answers"):
        record = {"tag": "single_object", "include": [{"class": "ring", "count": 1}]}
        score_each(RemoteReward("shapes", [address], QUICK), ["1"], ["a ring"], [record])


def test_an_answer_that_was_changed_on_its_way_is_told_by_what_it_answers(client: TestClient) -> None:
    damaged = BODY.replace(b"boxed{0}", b"boxed{2}")
    reply = Answer.model_validate_json(client.post("/score", content=damaged).content)
    assert reply.request == request_id(envelope_of(damaged)) != request_id(envelope_of(BODY))


def test_an_answer_that_no_server_reads_is_named() -> None:
    with pytest.raises(TooLargeError, match=r'the prompt "how many, 0\?" and its record and answer take \d+ bytes'):
        RemoteReward("math", ["http://127.0.0.1:1"], QUICK).score(["1" * 2**20], PROMPTS[:1], RECORDS[:1])
