"""What sampling yields and everything after it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from models.policy import Condition, Policy


@dataclass(frozen=True)
class Rollout:
    """Groups of sampled images: their tokens and the statistics measured on the way.

    The group is an axis: row p of `condition` is the prompt of `tokens[p]`.
    """

    condition: Condition
    tokens: Int[Tensor, "P G N"]
    statistics: Mapping[str, Float[Tensor, "P G N"]]

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.condition.prompts

    @property
    def group_size(self) -> int:
        return self.tokens.shape[1]

    @cached_property
    def row_condition(self) -> Condition:
        """The condition with one row per image, prompt-major."""
        return self.condition.repeat(self.group_size)

    def images(self, policy: Policy) -> UInt8[Tensor, "P G 3 H W"]:
        """Decode the pixels."""
        return policy.decode(self.tokens.flatten(0, 1)).unflatten(0, self.tokens.shape[:2])


def concatenate(rollouts: Sequence[Rollout], condition: Condition) -> Rollout:
    """The micro-batches of one batch as one rollout; `condition` is the whole batch's, in the same order."""
    names = rollouts[0].statistics
    return Rollout(
        condition,
        torch.cat([rollout.tokens for rollout in rollouts]),
        {name: torch.cat([rollout.statistics[name] for rollout in rollouts]) for name in names},
    )
