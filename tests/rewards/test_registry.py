"""Rewards by name."""

import subprocess
import sys

import pytest

from rewards.errors import RewardError
from rewards.registry import BUILDERS, build


@pytest.mark.parametrize("name", BUILDERS)
def test_every_name_builds_a_reward(name: str) -> None:
    reward = build(name)
    assert callable(reward.score)
    assert reward.name


def test_an_unknown_name_is_answered_with_the_names() -> None:
    with pytest.raises(RewardError, match="no reward named 'shape': choose one of shapes, shapes-official"):
        build("shape")


def test_the_names_are_listed_without_torch() -> None:
    check = "import sys, rewards.registry; assert rewards.registry.BUILDERS; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
