"""Win rates by a judge of pairs: what it is asked, how its answers count, what becomes of those that say nothing."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rewards.catalogue import REWARDS, RewardEntry
from rewards.errors import RewardError
from rewards.http.service import Service
from rewards.judges.endpoint import Choice, Endpoint, Message, UnansweredError
from rewards.judges.pairwise import PairwiseJudge, first_wins, ordered
from rewards.registry import build, parse
from rewards.reward import score_each, score_images
from rewards.server import serve
from t2i_rl.cli import main
from t2i_rl.methods.advantages import win_rates
from tests.conftest import random_janus
from tests.rewards.judges.test_judge import HASTY, endpoint, says
from tests.rewards.servers import answering
from tests.t2i_rl.small_runs import Brightness, train_words

LEVELS = (10, 200, 90, 90, 7, 3)
PROMPTS = ("a dog", "a dog", "a dog", "a dog", "a cat", "a cat")
IMAGES = [np.full((6, 4, 3), level, dtype=np.uint8) for level in LEVELS]


def levels(asked: dict) -> list[int]:
    """The first pixels of the images in a question, in their order."""
    content = asked["messages"][0]["content"]
    data = [part["image_url"]["url"].partition(",")[2] for part in content if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB").getpixel((0, 0))[0] for one in data]


def brighter(asked: dict) -> tuple[int, bytes]:
    """A judge that likes bright images."""
    first, second = levels(asked)
    return says(f"Reasons.\nBetter image: {'equal' if first == second else 1 if first > second else 2}.")


def test_the_score_is_the_win_rate_among_the_images_of_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []

    def reply(question: dict) -> tuple[int, bytes]:
        asked.append(question)
        return brighter(question)

    with answering(endpoint(reply)) as address:
        monkeypatch.setenv("T2I_RL_PAIRWISE", f"{address}/v1")
        reward = build("pairwise")
        reward.check(PROMPTS, [{}] * 6)
        scores = score_images(reward, IMAGES, PROMPTS, [{}] * 6)
        assert reward.name == f"pairwise (judge-7b at {address}/v1)"
    # A judge that goes by a number gives what the rank transform of that number gives.
    expected = torch.cat([win_rates(torch.tensor([group]).float())[0] for group in (LEVELS[:4], LEVELS[4:])])
    torch.testing.assert_close(scores.total, expected)
    assert len(asked) == 6 + 1
    for question in asked:
        text, shown = question["messages"][0]["content"][-1]["text"], levels(question)
        assert ("a dog" in text) == (min(shown) >= 10) and ("a cat" in text) == (max(shown) <= 7)


def test_a_judge_that_takes_the_first_is_nearly_fair() -> None:
    images = [np.full((2, 2, 3), level, dtype=np.uint8) for level in range(8)]
    with answering(endpoint(lambda _: says("Better image: 1"))) as address:
        scores = score_images(PairwiseJudge(Endpoint(f"{address}/v1"), HASTY), images, ["x"] * 8, [{}] * 8)
    assert scores.total.min() >= 3 / 7 and scores.total.max() <= 4 / 7


def test_which_image_comes_first_alternates() -> None:
    assert [ordered(0, other) for other in (1, 2, 3)] == [(0, 1), (2, 0), (0, 3)]


def test_without_one_pair_neither_image_has_a_rate() -> None:
    def reply(question: dict) -> tuple[int, bytes]:
        return says("They are both fine.") if sorted(levels(question)) == [3, 7] else brighter(question)

    with answering(endpoint(reply)) as address:
        scores = score_each(PairwiseJudge(Endpoint(f"{address}/v1"), HASTY), IMAGES, PROMPTS, [{}] * 6)
    assert scores.failures.keys() == {4, 5} and "says neither 1, 2 nor equal" in scores.failures[4]
    assert scores.faults == {"image": 1} and scores.total[:4].tolist() == pytest.approx([0, 1, 0.5, 0.5])


def test_a_single_image_has_no_rate() -> None:
    with answering(endpoint(brighter)) as address:
        scores = score_each(PairwiseJudge(Endpoint(f"{address}/v1"), HASTY), IMAGES[3:], PROMPTS[3:], [{}] * 3)
    assert scores.failures.keys() == {0} and "nothing to compare it with" in scores.failures[0]
    assert scores.total.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "won"),
    [
        ("Better image: 1", 1.0),
        ("Better image: 1 at first sight, but then:\nBetter image: **2**", 0.0),
        ('"Better image: Equal".', 0.5),
    ],
)
def test_the_last_verdict_counts(text: str, won: float) -> None:
    assert first_wins(Choice(message=Message(content=text))) == won


@pytest.mark.parametrize(
    "text", [None, "1", "Better image: 12", "Better image: the second, not 1", "Better image: 1\nBetter image:"]
)
def test_an_answer_that_does_not_say(text: str | None) -> None:
    with pytest.raises(UnansweredError, match="says neither 1, 2 nor equal"):
        first_wins(Choice(message=Message(content=text)))


def test_it_cannot_be_served() -> None:
    for served in (lambda: parse("pairwise@http://127.0.0.1:8100"), lambda: serve(Service("pairwise"))):
        with pytest.raises(RewardError, match="'pairwise' compares all images of a prompt"):
            served()


def test_a_run_that_maximises_win_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its held-out images are scored by another reward: they are no group."""
    model = tmp_path / "model"
    random_janus().save(model)
    monkeypatch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Brightness()))
    words = ["--reward", "pairwise", "--steps", "1"]
    with answering(endpoint(brighter)) as address:
        monkeypatch.setenv("T2I_RL_PAIRWISE", f"{address}/v1")
        assert main(train_words(model, tmp_path / "run", "grpo", *words)) == 2
        assert "pairwise compares the images of a group, and held-out images are none" in capsys.readouterr().err
        words += ["--evaluation.reward", "brightness"]
        assert main(train_words(model, tmp_path / "run", "grpo", *words)) == 0
    untrained, trained = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert trained["reward"] == pytest.approx(0.5) and trained["reward_std"] > 0.1 and trained["grad_norm"] > 0
    assert 0 < untrained["heldout"] < 1
