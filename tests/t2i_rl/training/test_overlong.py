"""Answers near the limit of their length lose what `reward-weights` says."""

from pathlib import Path

import torch

from rewards.registry import build
from t2i_rl.configuration.config import QuestionConfig, RolloutConfig, TrainConfig
from t2i_rl.methods.catalogue import find_method
from t2i_rl.methods.overlong import overlong
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.training.clock import Clock
from t2i_rl.training.trainer import Trainer
from tests.models.small_qwen_vl import random_qwen


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
    [groups, *_] = trainer.collector.collect(1, Clock()).rounds
    lengths = groups.rollout.lengths
    assert len(lengths.unique()) > 2
    expected = overlong(lengths, 10, 2)
    assert torch.equal(groups.parts["overlong"], expected)
    assert torch.equal(groups.rewards, groups.parts["accuracy"] + 0.5 * expected)
