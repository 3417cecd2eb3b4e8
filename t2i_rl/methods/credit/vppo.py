"""VPPO: only the tokens that depend most on what is shown, and images as a whole by how much they do.

Visually-Perceptive Policy Optimization (arXiv:2510.09285), carried over from seeing an image to seeing the prompt. The
dependency of a token is the k3 estimate of KL(with prompt || without), in [0, 10] nats, from the rollout.
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
class PerceptiveTokens:
    """Weight 1 for the most dependent tokens of an image and 0 for the others, times a factor of the image.

    share: the part of the tokens that is kept.
    least: the factor of the image that depends least on its prompt; the mean factor is 1.
    """

    statistics: ClassVar[tuple[str, ...]] = ("logp_cond", "logp_uncond")
    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = False

    share: float = 0.4
    least: float = 0.9

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and 0 <= self.least <= 1):
            raise UserError(f"vppo: the share {self.share} must be in (0, 1], the least factor {self.least} in [0, 1]")

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        from t2i_rl.methods.credit.guidance import contrast, highest

        dependency = contrast(rollout.statistics["logp_cond"], rollout.statistics["logp_uncond"], "k3")
        kept = highest(dependency, self.share)
        images = dependency.mean(-1)
        factor = trajectory_factor(images, context.everyone(images), self.least)
        weight = kept * factor[..., None]
        return TokenCredit(weight, kept.new_ones(kept.shape).bool(), {"perceptive": kept.bool()})


def trajectory_factor(
    dependency: Float[Tensor, "P G"], batch: Float[Tensor, "Q G"], least: float
) -> Float[Tensor, "P G"]:
    """`least + n (most - least)`, n the min-max of the batch's values and `most` such that the mean is 1.

    Equal values give 1.
    """
    spread = batch - batch.min()
    if spread.max() == 0:
        return dependency.new_ones(dependency.shape)
    stretched = (dependency - batch.min()) / spread.max()
    return least + stretched * (1 - least) / (spread / spread.max()).mean()
