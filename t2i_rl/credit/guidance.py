"""Guidance contrast: a token earns what the prompt changed in its prediction.

Guidance Contrastive Policy Optimization (arXiv:2605.29198). The token statistic is the exact divergence
`D_t = KL(p(. | prompt) || p(. | no prompt))`; the weight is its rank within the image.

Differences between paper and released code, and what we chose:
- D is exact in the paper and a one-sample k3 estimate in the release. Exact: the sampler has both
  distributions in hand, so it costs nothing.
- The paper's weights are percentiles (mean 0.5), the release's a power law of the rank (mean 1): both are here.
- The release breaks ties in arbitrary order: ours share their mean rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Float

from t2i_rl.credit import Embedding, TokenCredit
from t2i_rl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.rollout import Rollout


@dataclass(frozen=True)
class GuidanceContrast:
    """Weights every token by the rank of its divergence among the tokens of its image.

    normalize: how ranks become weights. `percentile`: from 0 for the lowest to 1 for the highest, mean 0.5;
        `power`: see `power_weights`, mean 1.
    top, mass: of the power law, the share of tokens that holds that share of the weight.
    """

    statistics: ClassVar[tuple[str, ...]] = ("kl_cond_uncond",)
    embeddings: ClassVar[Embedding | None] = None

    normalize: Literal["percentile", "power"] = "percentile"
    top: float = 0.4
    mass: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.top <= self.mass < 1:
            raise UserError(f"guidance contrast: top {self.top} and mass {self.mass} must be 0 < top <= mass < 1")

    def __call__(
        self, rollout: Rollout, embeddings: Float[Tensor, "P G N E"] | None, layout: TokenLayout
    ) -> TokenCredit:
        from t2i_rl.tokenmaps import percentile_ranks

        divergence = rollout.statistics["kl_cond_uncond"]
        if self.normalize == "percentile":
            weight = percentile_ranks(divergence)
        else:
            weight = power_weights(divergence, self.top, self.mass)
        return TokenCredit(weight, divergence.new_ones(divergence.shape).bool())


def power_weights(values: Float[Tensor, "... N"], top: float = 0.4, mass: float = 0.8) -> Float[Tensor, "... N"]:
    """`(rank / N)^alpha` scaled to sum to N per image, so that the `top` tokens hold about `mass` of the weight.

    `alpha = ln(1 - mass) / ln(1 - top) - 1`, from the integral of the power law up to `1 - top`.
    """
    from t2i_rl.tokenmaps import ranks

    alpha = math.log(1 - mass) / math.log(1 - top) - 1
    weight = (ranks(values) / values.shape[-1]) ** alpha
    return weight / weight.mean(-1, keepdim=True)
