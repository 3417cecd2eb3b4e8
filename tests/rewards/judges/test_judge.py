"""Judges: what an endpoint is asked, how its answers are read, and what becomes of those that say nothing."""

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rewards.catalogue import REWARDS
from rewards.errors import RewardError
from rewards.http.patience import Patience
from rewards.judges.endpoint import Endpoint, Token, UnansweredError
from rewards.judges.forms import FORMS, expected_grade
from rewards.judges.judge import Judge
from rewards.registry import build
from rewards.reward import score_each, score_images
from tests.rewards.servers import answering, hanging, nobody, serving

HASTY = Patience(timeout=2, connect=2, attempts=3, pause=0, longest=0)
IMAGES = [np.full((6, 4, 3), level, dtype=np.uint8) for level in (10, 100, 200)]
PROMPTS = ["a dog", "a {prompt} cat", 'two "cats"']
MODELS = json.dumps({"object": "list", "data": [{"id": "judge-7b", "object": "model"}]}).encode()

Reply = Callable[[dict], tuple[int, bytes]]


def says(text: str) -> tuple[int, bytes]:
    return 200, json.dumps({"id": "1", "choices": [{"index": 0, "message": {"content": text}}]}).encode()


def likely(**words: float) -> tuple[int, bytes]:
    top = [{"token": f" {word}", "logprob": math.log(share), "bytes": None} for word, share in words.items()]
    choice = {"message": {"content": "good"}, "logprobs": {"content": [{"token": "good", "top_logprobs": top}]}}
    return 200, json.dumps({"choices": [choice]}).encode()


def endpoint(reply: Reply, models: bytes = MODELS) -> Callable[[str, bytes], tuple[int, bytes]]:
    """An endpoint of one model that answers questions by `reply`."""

    def answer(path: str, body: bytes) -> tuple[int, bytes]:
        return (200, models) if path == "/v1/models" else reply(json.loads(body))

    return answer


def level(asked: dict) -> int:
    """The first pixel of the image in a question."""
    urls = [part["image_url"]["url"] for part in asked["messages"][0]["content"] if part["type"] == "image_url"]
    head, _, data = urls[0].partition(",")
    assert len(urls) == 1 and head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").getpixel((0, 0))[0]


def judge(address: str, name: str = "judge", **more: Any) -> Judge:
    return Judge(name, FORMS[name], Endpoint(f"{address}/v1", **more), HASTY)


def test_a_written_grade_in_process_and_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []

    def reply(question: dict) -> tuple[int, bytes]:
        asked.append(question)
        return says(f"From 1 to 5, not 5.\n**Final Score:** {level(question) / 50 + 1}/5")

    with answering(endpoint(reply)) as address:
        monkeypatch.setenv("T2I_RL_JUDGE", f"{address}/v1/")
        reward = build("judge")
        reward.check(PROMPTS, [{}] * 3)
        assert reward.name == f"judge (judge-7b at {address}/v1)"
        scores = score_images(reward, IMAGES, PROMPTS, [{}] * 3)
        with serving(reward, "judge") as served:
            again = score_images(build(f"judge@{served}"), IMAGES, PROMPTS, [{}] * 3)
    torch.testing.assert_close(scores.total, torch.tensor([1.2, 3.0, 5.0]))
    assert torch.equal(again.total, scores.total) and again.reasons == scores.reasons
    assert scores.reasons[0] == "From 1 to 5, not 5. **Final Score:** 1.2/5" and not scores.parts
    assert {question["model"] for question in asked} == {"judge-7b"}
    assert all(question["temperature"] == 0 for question in asked)
    texts = {level(question): question["messages"][0]["content"][1]["text"] for question in asked}
    assert all(prompt in texts[int(image[0, 0, 0])] for image, prompt in zip(IMAGES, PROMPTS, strict=True))


def test_deqa_is_the_expected_grade_of_the_next_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(question: dict) -> tuple[int, bytes]:
        user, begun = question["messages"]
        assert begun == {"role": "assistant", "content": "The quality of the image is"}
        assert question["continue_final_message"] and not question["add_generation_prompt"]
        assert question["max_tokens"] == 1 and question["logprobs"] and question["top_logprobs"] == 20
        assert [part["type"] for part in user["content"]] == ["text", "image_url"]
        return likely(excellent=0.1, good=0.3, quite=0.2) if level(question) < 50 else likely(bad=0.5, poor=0.5)

    with answering(endpoint(reply)) as address:
        monkeypatch.setenv("T2I_RL_DEQA", f"{address}/v1")
        scores = score_images(build("deqa"), IMAGES, PROMPTS, [{}] * 3)
    torch.testing.assert_close(scores.total, torch.tensor([(0.1 * 5 + 0.3 * 4) / 0.4, 1.5, 1.5]))
    torch.testing.assert_close(scores.parts["mass"], torch.tensor([0.4, 1.0, 1.0]))
    assert REWARDS["deqa"].range == (1.0, 5.0)


def test_words_count_in_any_case_and_without_their_blank() -> None:
    words = {"good": 4.0, "bad": 1.0}
    tokens = [Token(token=token, logprob=math.log(0.25)) for token in (" good", "Good", "\u2581bad", "goodness")]
    found = expected_grade(words, tokens)
    assert (found.grade, found.mass) == pytest.approx((3.0, 0.75))
    with pytest.raises(UnansweredError, match=r"would not say any of good, bad, but one of 'the'"):
        expected_grade(words, [Token(token="the", logprob=-0.1)])
    with pytest.raises(UnansweredError):
        expected_grade(words, [Token(token="good", logprob=math.nan)])


def test_unifiedreward_sees_a_square_of_512() -> None:
    sizes: list[tuple[int, int]] = []

    def reply(question: dict) -> tuple[int, bytes]:
        url = question["messages"][0]["content"][0]["image_url"]["url"]
        sizes.append(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size)
        return says("Final Score: 4")

    with answering(endpoint(reply)) as address:
        assert judge(address, "unifiedreward").score(IMAGES[:1], PROMPTS[:1], [{}]).total.tolist() == [4.0]
    assert sizes == [(512, 512)]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (says("I cannot say. 4"), "gives no grade in 1..5 after 'Final Score:'; it says: 'I cannot say. 4'"),
        (says("Final Score: none"), "gives no grade in 1..5"),
        (says("Final Score: 9"), "gives no grade in 1..5"),
        (says("Final Score: 1e999"), "gives no grade in 1..5"),
        (says("Final Score: 4e1"), "gives no grade in 1..5"),
        (says("Final Score: " + "x" * 5000), "x...'"),
        ((400, b"the prompt is too long"), "refuses the question (status 400): 'the prompt is too long'"),
    ],
)
def test_an_answer_without_a_grade_is_no_score(answer: tuple[int, bytes], complaint: str) -> None:
    calls: list[int] = []

    def reply(question: dict) -> tuple[int, bytes]:
        calls.append(level(question))
        return answer if calls[-1] == 100 else says("Final Score: 2")

    with answering(endpoint(reply)) as address:
        scores = score_each(judge(address), IMAGES, PROMPTS, [{}] * 3)
    assert scores.failures.keys() == {1} and complaint in scores.failures[1] and len(scores.failures[1]) < 400
    assert scores.total.tolist() == [2.0, 0.0, 2.0] and scores.faults == {"image": 1}
    assert sorted(calls) == [10, 100, 200]  # asking again would not help


def test_probabilities_that_are_not_told_are_a_failure() -> None:
    with answering(endpoint(lambda _: says("good"))) as address:
        scores = score_each(judge(address, "deqa"), IMAGES[:1], PROMPTS[:1], [{}])
    assert "tells no probabilities" in scores.failures[0]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ((503, b""), "busy"),
        ((429, b""), "busy"),
        ((500, b"oom"), "server"),
        ((200, b"<html>"), "malformed"),
        ((200, b'{"choices": []}'), "malformed"),
        ((200, b"[" * 2**21), "malformed"),
    ],
)
def test_what_may_pass_is_asked_again(fault: tuple[int, bytes], kind: str) -> None:
    answers = [fault, fault, says("Final Score: 3")]
    with answering(endpoint(lambda _: answers.pop(0))) as address:
        scores = score_images(judge(address), IMAGES[:1], PROMPTS[:1], [{}])
    assert scores.total.tolist() == [3.0] and scores.faults == {kind: 2}


def test_attempts_end() -> None:
    with answering(endpoint(lambda _: (500, b"oom"))) as address:
        scores = score_each(judge(address), IMAGES[:1], PROMPTS[:1], [{}])
    assert "no answer in 3 attempts, the last: fails with the status 500: 'oom'" in scores.failures[0]
    assert scores.faults == {"server": 3}


def test_an_endpoint_that_never_answers() -> None:
    with hanging() as address:
        patience = Patience(timeout=0.1, connect=0.1, attempts=2, pause=0, longest=0)
        reward = Judge("judge", FORMS["judge"], Endpoint(f"{address}/v1", model="m"), patience)
        scores = score_each(reward, IMAGES[:1], PROMPTS[:1], [{}])
        assert "did not answer" in scores.failures[0] and scores.faults == {"timeout": 2}
        with pytest.raises(RewardError, match=r"the judge at .* did not answer /models within 0\.1 s"):
            reward.check([], [])
    with pytest.raises(RewardError, match=r"cannot be reached \(.+\): start it, or mend its address"):
        judge(nobody()).check([], [])


def test_a_token_is_sent_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(lambda path, body: (401, b"wrong key secret-123")) as address:
        monkeypatch.setenv("T2I_RL_JUDGE", f"{address}/v1")
        monkeypatch.setenv("T2I_RL_JUDGE_TOKEN", "secret-123")
        reward = build("judge")
        assert "secret" not in repr(reward.chat.endpoint) + reward.name  # type: ignore[attr-defined]
        with pytest.raises(RewardError, match=r"refuses /models \(status 401\): 'wrong key \.\.\.'") as refused:
            reward.check(PROMPTS, [{}] * 3)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "models", "complaint"),
    [
        ("other", MODELS, r"lacks the model 'other' \(it has: judge-7b\)"),
        (None, b'{"data": []}', r"has no one model \(it has: none\)"),
        (None, b'{"data": [{"id": "a"}, {"id": "b"}]}', r"has no one model \(it has: a, b\)"),
    ],
)
def test_the_model_has_to_be_there(model: str | None, models: bytes, complaint: str) -> None:
    with answering(endpoint(lambda _: says(""), models)) as address, pytest.raises(RewardError, match=complaint):
        judge(address, model=model).check([], [])


@pytest.mark.parametrize(
    "address", ["", "localhost:8000", "http://h:port/v1", "http://me:pass@h/v1", "http://h/v1?a=b"]
)
def test_an_address_that_cannot_be_meant(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_RL_JUDGE", address)
    with pytest.raises(RewardError, match=r"T2I_RL_JUDGE is .*as in T2I_RL_JUDGE=http://HOST:8000/v1") as refused:
        build("judge")
    assert "pass@" not in str(refused.value)


def test_an_image_beyond_the_limit_is_not_sent() -> None:
    with pytest.raises(RewardError, match=r"pixels is not sent to a judge"):
        judge(nobody()).score([np.zeros((1, 2**22 + 1, 3), np.uint8)], ["x"], [{}])


def test_a_form_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "form.json"
    monkeypatch.setenv("T2I_RL_JUDGE_FORM", str(path))

    def built(**fields: Any) -> Judge:
        path.write_text(json.dumps(fields))
        return build("judge")  # type: ignore[return-value]

    with answering(
        endpoint(lambda question: says(f"Grade: {len(question['messages'][0]['content'][1]['text'])}"))
    ) as to:
        monkeypatch.setenv("T2I_RL_JUDGE", f"{to}/v1")
        reward = built(question="{prompt}?", marker="Grade:")
        assert reward.score(IMAGES[:1], ["dog"], [{}]).total.tolist() == [4.0]
        for fields, complaint in (
            ({"marker": "Grade:"}, "question: Field required"),
            ({"question": "?", "marker": "x", "colour": 1}, "colour: Extra inputs are not permitted"),
            ({"question": "?"}, "needs either words or a marker"),
            ({"question": "?", "marker": "x", "words": {"good": 1}}, "needs either words or a marker"),
            ({"question": "?", "words": {"good": 10}}, r"outside of 1\.\.5"),
        ):
            with pytest.raises(RewardError, match=rf"form\.json.*{complaint}"):
                built(**fields)
        path.unlink()
        with pytest.raises(RewardError, match=r"form\.json cannot be read"):
            build("judge")
