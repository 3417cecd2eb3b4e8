"""What sampling yields and everything after it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from models.policy import Condition, Policy
from t2i_rl.errors import UserError
from t2i_rl.prompts.prompt import Prompt


def pixels(policy: Policy, tokens: Int[Tensor, "R N"]) -> UInt8[Tensor, "R 3 H W"]:
    """The samples of a model that draws. Raises UserError for one that answers in text."""
    samples = policy.decode(tokens)
    if isinstance(samples, list):
        raise UserError(
            "the model answers in text, and here pictures are looked at: choose one that draws (t2i-rl models)"
        )
    return samples


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

    def take(self, prompts: Sequence[int]) -> "Rollout":
        """Only the groups of these prompts."""
        rows = list(prompts)
        kept = {name: values[rows] for name, values in self.statistics.items()}
        return Rollout(self.condition.take(rows), self.tokens[rows], kept)

    def images(self, policy: Policy) -> UInt8[Tensor, "P G 3 H W"]:
        """Decode the pixels."""
        return pixels(policy, self.tokens.flatten(0, 1)).unflatten(0, self.tokens.shape[:2])


def concatenate(rollouts: Sequence[Rollout], condition: Condition) -> Rollout:
    """The micro-batches of one batch as one rollout; `condition` is the whole batch's, in the same order."""
    names = rollouts[0].statistics
    return Rollout(
        condition,
        torch.cat([rollout.tokens for rollout in rollouts]),
        {name: torch.cat([rollout.statistics[name] for rollout in rollouts]) for name in names},
    )


@dataclass(frozen=True)
class Groups:
    """Sampled groups and what their images earned.

    records: the P prompts.
    rewards: what is maximised.
    parts: further numbers of the reward, by name.
    """

    records: tuple[Prompt, ...]
    rollout: Rollout
    rewards: Float[Tensor, "P G"]
    parts: Mapping[str, Float[Tensor, "P G"]]

    def take(self, prompts: Sequence[int]) -> "Groups":
        """Only the groups of these prompts."""
        rows = list(prompts)
        return Groups(
            tuple(self.records[row] for row in rows),
            self.rollout.take(rows),
            self.rewards[rows],
            {name: values[rows] for name, values in self.parts.items()},
        )


def join(groups: Sequence[Groups], condition: Condition) -> Groups:
    """Several batches as one; `condition` is that of all their prompts, in the same order."""
    return Groups(
        tuple(record for part in groups for record in part.records),
        concatenate([part.rollout for part in groups], condition),
        torch.cat([part.rewards for part in groups]),
        {name: torch.cat([part.parts[name] for part in groups]) for name in groups[0].parts},
    )
