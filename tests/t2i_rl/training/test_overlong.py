"""Answers near the limit of their length lose what `reward-weights` says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.policy import Condition
from rewards.registry import build
from t2i_rl.configuration.config import QuestionConfig, RolloutConfig, TrainConfig
from t2i_rl.methods.catalogue import find_method
from t2i_rl.methods.overlong import overlong
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Groups, Rollout
from t2i_rl.training.clock import Clock
from t2i_rl.training.scoring import dull
from t2i_rl.training.trainer import Trainer
from tests.models.small_qwen_vl import random_qwen

PROMPTS = (Prompt("one"), Prompt("two"), Prompt("three"))
EMPTY = Rollout(Condition(("one", "two", "three"), {}), torch.zeros(3, 2, 1, dtype=torch.long), {})


def test_the_part_is_of_the_lengths_and_counts_where_it_is_named(tmp_path: Path) -> None:
    config = TrainConfig(
        model="tiny-vlm",
        reward="math",
        prompts="questions:train",
        heldout="questions:heldout",
        reward_weights={"accuracy": 1.0, "overlong": 0.5},
        question=QuestionConfig(max_tokens=10),
        rollout=RolloutConfig(1, 8),
    )
    policy = random_qwen("qwen2_5_vl", tmp_path)
    policy.stop_tokens = (*policy.stop_tokens, *range(3, 6))  # answers of all lengths
    prompts = [Prompt("how many is one and two ?", {"answer": "3"})]
    trainer = Trainer(config, policy, find_method("dapo"), build("math", samples="answers"), prompts)
    collected = trainer.collector.collect(1, Clock())
    groups = collected.rounds[0]
    lengths = groups.rollout.lengths
    assert len(lengths.unique()) > 2
    expected = overlong(lengths, 10, 2)
    assert torch.equal(groups.parts["overlong"], expected)
    assert torch.equal(groups.rewards, groups.parts["accuracy"] + 0.5 * expected)
    # Not one answer has a box: others are drawn in their place, and nothing is learned from how long they are.
    assert len(collected.rounds) == 1 + config.rollout.resample_rounds
    assert groups.rewards.std() > 0 and not trainer.collector.choose(collected).records


@pytest.mark.parametrize(
    ("prefix", "weights", "expected"),
    [
        ("", {}, [True, False, True]),
        ("", {"accuracy": 1.0, "overlong": 1.0}, [True, False, True]),
        ("", {"total": 1.0, "overlong": 1.0}, [True, False, True]),
        ("", {"overlong": 1.0}, [False, True, True]),
        ("", {"accuracy": 0.0, "overlong": 1.0}, [False, True, True]),
        ("math/", {}, [True, False, True]),
        ("math/", {"math": 1.0, "overlong": 1.0}, [True, False, True]),
        ("math/", {"own": 1.0}, [False, True, True]),
    ],
)
def test_groups_are_left_out_for_their_accuracy_where_it_counts(
    prefix: str, weights: dict[str, float], expected: list[bool]
) -> None:
    """The first group's accuracy is the same and its rewards are not; of the second it is the other way round."""
    accuracy = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    rewards = torch.tensor([[1.0, 0.5], [0.5, 0.5], [0.0, 0.0]])
    groups = Groups(PROMPTS, EMPTY, rewards, {f"{prefix}accuracy": accuracy, "other": rewards}, (0, 1, 2))
    assert dull(groups, weights).tolist() == expected
    assert dull(replace(groups, parts={"other": rewards}), weights).tolist() == [False, True, True]
