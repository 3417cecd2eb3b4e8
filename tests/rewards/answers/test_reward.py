"""Answers as a reward: what is right, what is wrong and why, and where it may not be used."""

import pytest
import torch

from rewards.errors import RewardError
from rewards.registry import build
from rewards.reward import Reward, score_each


@pytest.fixture(scope="module")
def reward() -> Reward:
    return build("math", samples="answers")


def test_an_answer_is_right_or_wrong_with_a_reason(reward: Reward) -> None:
    answers = ["<think>a</think>\\boxed{1 / 2}", "\\boxed{3}", "it is 1/2", "\\boxed{" + "9" * 100 + "}"]
    scores = score_each(reward, answers, ["how much?"] * 4, [{"answer": "0.5"}] * 4)
    assert torch.equal(scores.total, torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert torch.equal(scores.parts["accuracy"], scores.total)
    assert scores.parts["format"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert scores.parts["ungraded"].tolist() == [0.0] * 4
    assert scores.reasons == ("", "3 is not 0.5", "no answer in \\boxed{}", f"...{'9' * 80} is not 0.5")


def test_no_box_is_wrong_whatever_the_truth(reward: Reward) -> None:
    assert score_each(reward, ["none"], [""], [{"answer": "None"}]).total.item() == 0


def test_its_name_has_the_grader_and_its_version(reward: Reward) -> None:
    assert reward.name == "math (mathruler 0.1.0)"


@pytest.mark.parametrize(
    ("record", "said"),
    [({}, "has no 'answer'"), ({"answer": " "}, "has the answer ' '"), ({"answer": 3}, "has the answer 3")],
)
def test_a_prompt_without_a_right_answer_is_refused(reward: Reward, record: dict, said: str) -> None:
    with pytest.raises(RewardError, match=f'the prompt "how much\\?" {said}: give every prompt its right answer'):
        reward.check(["how much?"], [record])


def test_pictures_and_answers_have_rewards_of_their_own() -> None:
    with pytest.raises(RewardError, match="'shapes' scores pictures, and here are answers: choose math, math-verify"):
        build("math:0.5 shapes:0.5", samples="answers")
    with pytest.raises(RewardError, match=r"'math' scores answers, and here are pictures: choose shapes, .*hpsv2"):
        build("math")


def test_a_sum_of_rewards_scores_answers_too() -> None:
    both = build("math:3 math-verify", samples="answers")
    scores = score_each(both, ["the answer is 3.", "\\boxed{3}"], [""] * 2, [{"answer": "3"}] * 2)
    assert scores.total.tolist() == [1.0, 4.0]
    assert scores.parts["math-verify/accuracy"].tolist() == [1.0, 1.0]
