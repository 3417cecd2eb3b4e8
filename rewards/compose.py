"""Several rewards as one: their weighted sum, each brought to about 0..1 first."""

from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from rewards.cut import Cut
from rewards.reward import Reward, Scores, score_each
from rewards.threads import begin


@dataclass(frozen=True)
class Member:
    """A reward, its weight, and what bad and good images score under it (its record's `range`)."""

    reward: Reward
    weight: float
    range: tuple[float, float]

    def share(self, total: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """What it adds to the sum: `weight * (total - bad) / (good - bad)`.

        A fixed map, so that an image's score depends on nothing but the image: not on the batch, nor on the step.
        """
        bad, good = self.range
        return self.weight * (total - bad) / (good - bad)


class Composite:
    """`total` is the sum of the members' shares; `parts` has every member's own total by its name, unchanged.

    A member's parts follow as "name/part". An image without a score from one member has none at all.
    """

    def __init__(self, members: Mapping[str, Member]) -> None:
        self.members = members
        self.name = " + ".join(f"{member.weight:g} {member.reward.name}" for member in members.values())

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[Cut]:
        return [cut for member in self.members.values() for cut in member.reward.check(prompts, metadata) or ()]

    def score(
        self,
        images: Sequence[UInt8[ndarray, "H W 3"]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        """The members' scores, asked for side by side: those that are served elsewhere do not wait for each other."""
        asked = {
            name: begin(None, score_each, member.reward, images, prompts, metadata)
            for name, member in self.members.items()
        }
        wait(asked.values())  # for an error too: a member need not stand two calls at once
        found = {name: future.result() for name, future in asked.items()}
        total = torch.zeros(len(images))
        parts: dict[str, Tensor] = {}
        reasons = [""] * len(images)
        failures: dict[int, str] = {}
        faults: dict[str, int] = {}
        for name, scores in found.items():
            total += self.members[name].share(scores.total)
            parts[name] = scores.total
            parts |= {f"{name}/{part}": values for part, values in scores.parts.items()}
            for row, reason in enumerate(scores.reasons):
                reasons[row] = "\n".join(filter(None, (reasons[row], reason)))
            failures |= {row: f"{name}: {why}" for row, why in scores.failures.items()}
            faults |= {f"{name}/{kind}": count for kind, count in scores.faults.items()}
        return Scores(total, parts, tuple(reasons), failures, faults)
