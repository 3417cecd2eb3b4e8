"""Guidance contrast: a token earns what the prompt changed in its prediction.

Guidance Contrastive Policy Optimization (arXiv:2605.29198). The token statistic is the exact divergence
`D_t = KL(p(. | prompt) || p(. | no prompt))` (eq. 4), on answers in text from a negative prompt; the weight is its rank
within the image or the answer (eq. 5), a factor of the advantage (eqs. 6 and 7).

Differences between paper and released code, and what we chose:
- D is exact in the paper and a one-sample k3 estimate in the release. Exact: the sampler has both
  distributions in hand, so it costs nothing.
- The paper's weights are percentiles (mean 0.5), the release's a power law of the rank (mean 1): both are here.
- The release breaks ties in arbitrary order: ours share their mean rank.
- The release measures k3 in a second pass after sampling: ours is the sampler's, at the same weights. On text it
  measures under the weights of each optimizer step: the method's `source`.
- The release also spares highly weighted tokens half of the KL, which the paper does not mention: `kl_reweight`.
- Softmax and min-max weights, |log-ratio| and information gain are ablations of the paper that its release lacks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Bool, Float

from t2i_rl.errors import UserError
from t2i_rl.methods.credit.rule import UNKNOWN, Context, Embedding, TokenCredit
from t2i_rl.settings import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.rollout.groups import Rollout

Statistic = Literal["kl_exact", "k3", "ig", "abs", "js"]
Normalize = Literal["percentile", "power", "softmax", "minmax", "topk", "none"]
Ties = Literal["average", "stable"]
Rescale = Literal["none", "mean1"]
# The settings that only some kinds of weights look at.
LOOKED_AT = {
    "statistic": ("percentile", "power", "softmax", "minmax", "topk"),
    "top": ("power", "topk"),
    "mass": ("power",),
    "temperature": ("softmax",),
    "ties": ("percentile", "power"),
}
K3_MOST = 10.0  # nats: the release's bound of the estimate
LEAST = -1e30  # beside it every exponential is 0, and a row of nothing else still has a softmax


@dataclass(frozen=True)
class GuidanceContrast:
    """Weights every token by the rank of its divergence among the tokens of its image or answer.

    statistic: the divergence between the predictions with and without prompt. `kl_exact`, `js`: over the vocabulary;
        from the sampled token alone: `k3`, `ig` (its gain in log-probability), `abs` (the size of that).
    normalize: how divergences become weights. `percentile`: the rank, from 0 for the lowest to 1 for the highest, mean
        0.5; `power`: see `power_weights`, mean 1; `softmax`: of the divergence over `temperature`, times N; `minmax`:
        from 0 to 1, 1 where all are equal; `topk`: 1 for the `top` share of the tokens, else 0; `none`: 1.
    top, mass: of the power law, the share of tokens that holds that share of the weight.
    ties: whether equal divergences share their mean rank or go by position.
    rescale: `mean1` scales the weights of an image to mean 1.
    kl_reweight: whether tokens of large weight are held less to the reference (`kl_factor`).
    """

    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = False
    places: ClassVar[bool] = False

    statistic: Statistic = "kl_exact"
    normalize: Normalize = "percentile"
    top: float = 0.4
    mass: float = 0.8
    temperature: float = 0.1
    ties: Ties = "average"
    rescale: Rescale = "none"
    kl_reweight: bool = False

    def __post_init__(self) -> None:
        check_choice("guidance contrast", "statistic", self.statistic, Statistic)
        check_choice("guidance contrast", "normalize", self.normalize, Normalize)
        check_choice("guidance contrast", "ties", self.ties, Ties)
        check_choice("guidance contrast", "rescale", self.rescale, Rescale)
        if not 0 < self.top <= self.mass < 1:
            raise UserError(f"guidance contrast: top {self.top} and mass {self.mass} must be 0 < top <= mass < 1")
        if self.temperature <= 0:
            raise UserError(f"guidance contrast: the temperature {self.temperature} must be positive")
        for name, kinds in LOOKED_AT.items():
            if self.normalize not in kinds and getattr(self, name) != getattr(GuidanceContrast, name):
                raise UserError(
                    f"guidance contrast: {name} {getattr(self, name)} has no effect on weights of the kind "
                    f"{self.normalize}: set normalize to {' or '.join(kinds)}"
                )

    @property
    def statistics(self) -> tuple[str, ...]:
        exact = {"kl_exact": "kl_cond_uncond", "js": "js_cond_uncond"}
        return (exact[self.statistic],) if self.statistic in exact else ("logp_cond", "logp_uncond")

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        first, *second = (rollout.statistics[name] for name in self.statistics)
        divergence = contrast(first, second[0], self.statistic) if second else first
        weight = self.weights(divergence, rollout.valid)
        factor = kl_factor(weight) if self.kl_reweight else None
        return TokenCredit(weight, rollout.valid, kl=factor)

    def weights(
        self, divergence: Float[Tensor, "... N"], valid: Bool[Tensor, "... N"] | None = None
    ) -> Float[Tensor, "... N"]:
        """The weight of every token, from the divergences of its row; 0 for those that are not valid."""
        from t2i_rl.tokenmaps import every, row_mean

        valid = every(divergence, valid)
        weight = self._normalized(divergence, valid).masked_fill(~valid, 0)
        return weight / row_mean(weight, valid).clamp(min=1e-8) if self.rescale == "mean1" else weight

    def _normalized(self, divergence: Float[Tensor, "... N"], valid: Bool[Tensor, "... N"]) -> Float[Tensor, "... N"]:
        from t2i_rl.tokenmaps import percentile_ranks, row_length, top_share

        match self.normalize:
            case "percentile":
                return percentile_ranks(divergence, self.ties, valid)
            case "power":
                return power_weights(divergence, self.top, self.mass, self.ties, valid)
            case "softmax":
                tempered = (divergence / self.temperature).masked_fill(~valid, LEAST)
                return row_length(valid) * tempered.softmax(-1)
            case "minmax":
                return minmax(divergence, valid)
            case "topk":
                return top_share(divergence, self.top, valid).to(divergence.dtype)
            case "none":
                return divergence.new_ones(divergence.shape)


def contrast(
    logp_cond: Float[Tensor, "... N"], logp_uncond: Float[Tensor, "... N"], statistic: Statistic
) -> Float[Tensor, "... N"]:
    """The divergence as seen by the sampled token: `k3` (at most 10 nats, as released), `ig` or `abs`.

    `ig`, the information gain, is eq. 10 of arXiv:2605.29198; where the negative prompt asks for a wrong answer, it is
    the log-odds of the implicit classifier of correctness (eq. 9).
    """
    from t2i_rl.methods.kl import k3

    if statistic == "k3":
        return k3(logp_cond, logp_uncond).clamp(max=K3_MOST)
    gain = logp_cond - logp_uncond
    return gain if statistic == "ig" else gain.abs()


def power_weights(
    values: Float[Tensor, "... N"],
    top: float = 0.4,
    mass: float = 0.8,
    ties: Ties = "average",
    valid: Bool[Tensor, "... N"] | None = None,
) -> Float[Tensor, "... N"]:
    """`(rank / n)^alpha` scaled to sum to n per row of n, so that the `top` tokens hold about `mass` of the weight.

    `alpha = ln(1 - mass) / ln(1 - top) - 1`, from the integral of the power law up to `1 - top`.
    """
    from t2i_rl.tokenmaps import every, ranks, row_length, row_mean

    valid = every(values, valid)
    alpha = math.log(1 - mass) / math.log(1 - top) - 1
    weight = (ranks(values, ties, valid) / row_length(valid)) ** alpha
    mean = row_mean(weight, valid)
    return weight / mean.where(mean > 0, 1)


def minmax(values: Float[Tensor, "... N"], valid: Bool[Tensor, "... N"] | None = None) -> Float[Tensor, "... N"]:
    """The values of a row, stretched to [0, 1]; 1 where all are equal."""
    from t2i_rl.tokenmaps import every

    valid = every(values, valid)
    least = values.where(valid, math.inf).amin(-1, keepdim=True)
    above = (values - least).where(valid, 0)
    most = above.amax(-1, keepdim=True)
    return (above / most.where(most > 0, 1)).where(most > 0, 1).where(valid, 0)


def kl_factor(weight: Float[Tensor, "... N"]) -> Float[Tensor, "... N"]:
    """`0.5 + 0.5 clip(2 - 2 w, 0, 1)`: whole up to a weight of 0.5, half from 1 on (as released)."""
    return 0.5 + 0.5 * (2 - 2 * weight).clamp(0, 1)
