"""A reward that a person brought along, tried before a run leans on it: on two pictures of noise, or two answers."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rewards.catalogue import REWARDS
from rewards.compose import Composite
from rewards.own import OwnReward
from rewards.registry import parse
from rewards.reward import Reward, Sample, score_each


def try_own(
    specification: str, reward: Reward, prompt: str, record: Mapping[str, Any], size: Callable[[], tuple[int, int]]
) -> None:
    """Ask once whatever of a reward is one's own and runs in this process. A sample without a score is no mistake.

    reward: as built from the specification. size: tells height and width of the pictures, if that is asked.
    Raises RewardError for what raises, or gives no number for each.
    """
    for term in parse(specification):
        one = reward.members[term.name].reward if isinstance(reward, Composite) else reward
        if term.addresses or not (isinstance(one, OwnReward) or term.name not in REWARDS):
            continue
        samples: list[Sample] = ["1", "2"]
        if term.entry.scores == "pictures":
            samples = [*np.random.default_rng(0).integers(0, 256, (2, *size(), 3), dtype=np.uint8)]
        score_each(one, samples, [prompt] * 2, [record] * 2)
