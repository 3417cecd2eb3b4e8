"""VPPO: only the tokens that depend most on what is shown, and images as a whole by how much they do.

Visually-Perceptive Policy Optimization (arXiv:2510.09285): how much an answer depends on the picture that is asked
about, or, carried over, a picture on its prompt. The dependency of a token is the k3 estimate of KL(with || without),
in [0, 10] nats, from the rollout; without is the contrast's branch, in the paper the question with a masked picture.

Differences between paper and released code, and what we chose:
- The release takes the least and the most over a process and the mean factor over a micro-batch, so the factor depends
  on how rows are split. Ours: all over the optimizer step.
- The release masks anew for each answer of a group. Ours: one mask per question, so that answers compare.
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


NO_SPREAD = 1e-6  # nats


@dataclass(frozen=True)
class PerceptiveTokens:
    """Weight 1 for the most dependent tokens of an image and 0 for the others, times a factor of the image.

    share: the part of the tokens that is kept.
    least: the factor of the image that depends least on its prompt; the mean factor is 1.
    """

    statistics: ClassVar[tuple[str, ...]] = ("logp_cond", "logp_uncond")
    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = False
    places: ClassVar[bool] = False

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
        from t2i_rl.methods.credit.guidance import contrast
        from t2i_rl.tokenmaps import row_mean, top_share

        dependency = contrast(rollout.statistics["logp_cond"], rollout.statistics["logp_uncond"], "k3")
        kept = top_share(dependency, self.share, rollout.valid)
        images = row_mean(dependency, rollout.valid)[..., 0]
        factor = trajectory_factor(images, context.everyone(images), self.least)
        return TokenCredit(kept * factor[..., None], rollout.valid, {"perceptive": kept})


def trajectory_factor(
    dependency: Float[Tensor, "P G"], batch: Float[Tensor, "Q G"], least: float
) -> Float[Tensor, "P G"]:
    """`least + n (most - least)`, n the min-max of the batch's values and `most` such that the mean is 1.

    Equal values, within `NO_SPREAD`, give 1.
    """
    spread = batch - batch.min()
    if spread.max() <= NO_SPREAD:
        return dependency.new_ones(dependency.shape)
    stretched = (dependency - batch.min()) / spread.max()
    return least + stretched * (1 - least) / (spread / spread.max()).mean()
