"""TW-GRPO: positions at which the predictions of the group differ weigh more.

TW-GRPO (arXiv:2505.24718), in the form of its code: per position the divergence of each image's distribution from the
group's mean log-probability (`t2i_rl.rollout.statistics.group_divergence`), averaged over the group, min-max scaled
over the positions to [1, most]. The same for the whole group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float

from t2i_rl.errors import UserError
from t2i_rl.methods.credit.rule import UNKNOWN, Context, Embedding, TokenCredit

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.rollout.groups import Rollout


@dataclass(frozen=True)
class DivergentPositions:
    """Weights from 1, where the group's images predict alike, to `most`. The code's function has 1.5, its runs 1.75."""

    statistics: ClassVar[tuple[str, ...]] = ("group_divergence",)
    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = True
    places: ClassVar[bool] = True

    most: float = 1.75

    def __post_init__(self) -> None:
        if self.most < 1:
            raise UserError(f"tw: the largest weight {self.most} must be at least 1")

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        weight = position_weights(rollout.statistics["group_divergence"], self.most)
        return TokenCredit(weight, weight.new_ones(weight.shape).bool())


def position_weights(divergence: Float[Tensor, "P G N"], most: float) -> Float[Tensor, "P G N"]:
    """The group's mean divergence of every position, stretched to [1, most]; 1 where all are equal."""
    mean = divergence.mean(1, keepdim=True)
    above = mean - mean.amin(-1, keepdim=True)
    top = above.amax(-1, keepdim=True)
    return (1 + (most - 1) * above / top.where(top > 0, 1)).expand_as(divergence)
