"""Prompts that are longer than a policy reads them; what rewards say of theirs is in `rewards.cut`."""

from collections.abc import Sequence

from models.policy import Policy, ReadsBeginnings
from rewards.cut import Cut


def cut_by(policy: Policy, name: str, prompts: Sequence[str]) -> list[Cut]:
    """How many prompts the policy of that name reads the beginning of only; nothing where that are none."""
    found = policy.cut(prompts) if isinstance(policy, ReadsBeginnings) else None
    return [Cut(name, *found)] if found and found[1] else []
