"""What sampling yields and everything after it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from torch import Tensor

from models.policy import Condition, Policy, Rows
from t2i_rl.errors import UserError
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.ends import row_lengths, stopped, valid_tokens

Sample = UInt8[ndarray, "H W 3"] | str


def samples(policy: Policy, tokens: Int[Tensor, "R N"]) -> list[Sample]:
    """What the rows show or say: pixels on the CPU, or texts."""
    found = policy.decode(tokens)
    return [*found] if isinstance(found, list) else [*found.permute(0, 2, 3, 1).cpu().numpy()]


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
    """Groups of samples, pictures or answers: their tokens and the statistics measured on the way.

    The group is an axis: row p of `condition` is the prompt of `tokens[p]`.

    stop_tokens: of the policy, which end a row (`t2i_rl.rollout.ends`). What stands behind an end never counts.
    idle: how many groups at the end count for nothing: they keep a process in step with others that have more groups.
    """

    condition: Condition
    tokens: Int[Tensor, "P G N"]
    statistics: Mapping[str, Float[Tensor, "P G N"]]
    stop_tokens: tuple[int, ...] = ()
    idle: int = 0

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.condition.prompts

    @property
    def group_size(self) -> int:
        return self.tokens.shape[1]

    @cached_property
    def lengths(self) -> Int[Tensor, "P G"]:
        """Tokens of each row up to its end."""
        found = row_lengths(self.tokens, self.stop_tokens)
        found[len(found) - self.idle :] = 0
        return found

    @cached_property
    def valid(self) -> Bool[Tensor, "P G N"]:
        """Which tokens stand before their row's end: all of a picture."""
        return valid_tokens(self.lengths, self.tokens.shape[-1])

    @property
    def row_valid(self) -> Bool[Tensor, "R N"] | None:
        """The same by row, prompt-major; None where all tokens of all rows are, so that nobody looks."""
        return self.valid.flatten(0, 1) if self.stop_tokens or self.idle else None

    @cached_property
    def cut(self) -> Bool[Tensor, "P G"]:
        """Which answers have no stop token: the limit of tokens ended them."""
        return ~stopped(self.tokens, self.stop_tokens)

    @cached_property
    def row_condition(self) -> Condition:
        """The condition with one row per sample, prompt-major."""
        return self.condition.repeat(self.group_size)

    def take(self, prompts: Rows) -> "Rollout":
        """Only the groups of these prompts."""
        kept = {name: values[prompts] for name, values in self.statistics.items()}
        return Rollout(self.condition.take(prompts), self.tokens[prompts], kept, self.stop_tokens)

    def part(self, prompts: slice) -> "Rollout":
        """These groups, of which those that were idle still are."""
        if prompts == slice(0, len(self.prompts)):
            return self
        busy = len(self.prompts) - self.idle
        return replace(self.take(prompts), idle=max(0, prompts.stop - max(busy, prompts.start)))

    def settled(self) -> "Rollout":
        """The same without columns behind all ends; behind the other ends a stop token, and 0 for statistics."""
        if not self.stop_tokens:
            return self
        longest = int(self.lengths.max())
        behind = ~self.valid[..., :longest]
        return replace(
            self,
            tokens=self.tokens[..., :longest].masked_fill(behind, self.stop_tokens[0]),
            statistics={name: values[..., :longest].masked_fill(behind, 0) for name, values in self.statistics.items()},
        )

    def samples(self, policy: Policy) -> list[Sample]:
        """What the rows show or say, prompt-major."""
        return samples(policy, self.tokens.flatten(0, 1))

    def images(self, policy: Policy) -> UInt8[Tensor, "P G 3 H W"]:
        """Decode the pixels."""
        return pixels(policy, self.tokens.flatten(0, 1)).unflatten(0, self.tokens.shape[:2])


def concatenate(rollouts: Sequence[Rollout], condition: Condition) -> Rollout:
    """The micro-batches of one batch as one rollout, as wide as the widest; `condition` is the whole batch's, in the
    same order."""
    names, stops = rollouts[0].statistics, rollouts[0].stop_tokens
    widest = max(rollout.tokens.shape[-1] for rollout in rollouts)

    def joined(parts: Sequence[Tensor], behind: int) -> Tensor:
        return torch.cat([F.pad(part, (0, widest - part.shape[-1]), value=behind) for part in parts])

    return Rollout(
        condition,
        joined([rollout.tokens for rollout in rollouts], stops[0] if stops else 0),
        {name: joined([rollout.statistics[name] for rollout in rollouts], 0) for name in names},
        stops,
    )


def widened(rollouts: Sequence[Rollout]) -> Rollout:
    """Groups that were sampled in parts, of the same prompts, as whole ones; as long as the longest part."""
    first, longest = rollouts[0], max(rollout.tokens.shape[-1] for rollout in rollouts)
    stop = first.stop_tokens[0] if first.stop_tokens else 0

    def joined(parts: Sequence[Tensor], behind: int) -> Tensor:
        return torch.cat([F.pad(part, (0, longest - part.shape[-1]), value=behind) for part in parts], dim=1)

    statistics = {name: joined([one.statistics[name] for one in rollouts], 0) for name in first.statistics}
    return replace(first, tokens=joined([one.tokens for one in rollouts], stop), statistics=statistics)


@dataclass(frozen=True)
class Groups:
    """Sampled groups and what their samples earned, all of which each process knows; it holds the samples of its own.

    records: the P prompts.
    rollout: the groups that this process sampled.
    rewards: what is maximised.
    parts: further numbers of the reward, by name.
    mine: which of the P groups are those of the rollout, in its order.
    """

    records: tuple[Prompt, ...]
    rollout: Rollout
    rewards: Float[Tensor, "P G"]
    parts: Mapping[str, Float[Tensor, "P G"]]
    mine: tuple[int, ...]

    def take(self, prompts: Sequence[int]) -> "Groups":
        """Only the groups of these prompts."""
        rows, place = list(prompts), {row: place for place, row in enumerate(self.mine)}
        return Groups(
            tuple(self.records[row] for row in rows),
            self.rollout.take([place[row] for row in rows if row in place]),
            self.rewards[rows],
            {name: values[rows] for name, values in self.parts.items()},
            tuple(new for new, row in enumerate(rows) if row in place),
        )


def join(groups: Sequence[Groups], condition: Condition) -> Groups:
    """Several batches as one; `condition` is that of all prompts of their rollouts, in the same order."""
    starts = accumulate((len(part.records) for part in groups), initial=0)
    return Groups(
        tuple(record for part in groups for record in part.records),
        concatenate([part.rollout for part in groups], condition),
        torch.cat([part.rewards for part in groups]),
        {name: torch.cat([part.parts[name] for part in groups]) for name in groups[0].parts},
        tuple(start + row for start, part in zip(starts, groups, strict=False) for row in part.mine),
    )
