"""The loss of an update: clipped policy gradient with per-token credit, and the KL to the reference.

    loss = sum_it m_it * w_it * -min(r_it A_i, clip(r_it, 1 - low, 1 + high) A_i) / D_policy
         + beta * sum_it m_it * k3_it / D_kl

over images i and tokens t, with the mask m and the weight w of `t2i_rl.credit`, and the advantage A. The clipped
term is PPO's (arXiv:1707.06347, eq. 7), its combination with group advantages and the k3 estimate of the KL is
GRPO's (arXiv:2402.03300, eqs. 3 and 4).

Denominators are those of the whole update batch, taken once: the loss of some rows is their part of the whole, so
micro-batches of any split add up. Log-probabilities are float32, conditional, at temperature 1.
"""

from __future__ import annotations  # with TYPE_CHECKING: the command line reads Objective without importing torch

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxtyping import Bool, Float

from t2i_rl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from t2i_rl.credit import TokenCredit

LIMIT = 20.0  # nats: bound of a difference of log-probabilities before its exponential


@dataclass(frozen=True)
class Objective:
    """How far a token's probability may move, and what pulls it back.

    clip_low, clip_high: the ratio to the sampling policy earns nothing outside `[1 - clip_low, 1 + clip_high]`.
    beta: factor of the KL to the reference; 0 leaves it out.
    denominator: what divides the policy term. `mask`: the updated tokens; `weight`: the sum of their weights;
        `tokens`: all tokens. The KL is divided by all tokens for `tokens`, else by the updated ones.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    denominator: Literal["mask", "weight", "tokens"] = "mask"

    def __post_init__(self) -> None:
        if not (0 <= self.clip_low < 1 and self.clip_high >= 0):
            raise UserError(f"objective: clip-low {self.clip_low} must be in [0, 1), clip-high {self.clip_high} >= 0")
        if self.beta < 0:
            raise UserError(f"objective: beta {self.beta} must not be negative")


@dataclass(frozen=True)
class Denominators:
    """What the sums over a whole update batch are divided by; add them up over processes.

    policy, kl: of the two terms of the loss.
    selected: the number of updated tokens, for the metrics.
    """

    policy: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    selected: Float[Tensor, ""]


@dataclass(frozen=True)
class Loss:
    """The part that some rows have in the loss of the batch, and, detached, in its metrics.

    value: what to differentiate.
    policy: the policy term of the loss.
    kl: mean k3 over the updated tokens, in nats, before beta.
    clip_fraction: share of the updated tokens at which clipping takes the gradient away.
    """

    value: Float[Tensor, ""]
    policy: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]


def denominators(credit: TokenCredit, objective: Objective) -> Denominators:
    """The denominators of an update batch, from the credit of all its tokens."""
    selected = credit.mask.sum().float()
    tokens = selected.new_tensor(credit.mask.numel())
    if objective.denominator == "tokens":
        return Denominators(tokens, tokens, selected)
    weight = (credit.weight * credit.mask).sum()
    return Denominators(weight if objective.denominator == "weight" else selected, selected, selected)


def log_ratio(lp: Float[Tensor, "... N"], old: Float[Tensor, "... N"] | None) -> Float[Tensor, "... N"]:
    """`lp - old`, clamped to +-20 nats. Without `old` the policy is the one that sampled: 0, with lp's gradient."""
    return (lp - (lp.detach() if old is None else old)).clamp(-LIMIT, LIMIT)


def k3(lp: Float[Tensor, "... N"], ref: Float[Tensor, "... N"]) -> Float[Tensor, "... N"]:
    """Estimate of KL(policy || reference) from the sampled token: `exp(ref - lp) - (ref - lp) - 1`.

    In nats, at least 0, unbiased for tokens that the policy sampled; `ref - lp` is clamped to +-20.
    """
    difference = (ref - lp).clamp(-LIMIT, LIMIT)
    return difference.expm1() - difference  # expm1: small differences would drown in the 1


def policy_loss(
    lp: Float[Tensor, "*rows N"],
    old: Float[Tensor, "*rows N"] | None,
    ref: Float[Tensor, "*rows N"] | None,
    advantages: Float[Tensor, "*rows"],
    weight: Float[Tensor, "*rows N"],
    mask: Bool[Tensor, "*rows N"],
    objective: Objective,
    denominators: Denominators,
) -> Loss:
    """The rows' part of the loss of the batch to which the denominators belong.

    lp, old, ref: log-probabilities of the sampled tokens under the policy, under the policy that sampled them
        (None: the policy itself, one update per rollout) and under the reference (None: beta must be 0).
    weight: may carry gradient (the undetached running weight of `t2i_rl.credit.critical`).

    No selected token gives a loss of 0 that is still connected to lp.
    """
    if ref is None and objective.beta:
        raise ValueError(f"beta is {objective.beta}: the KL needs the reference's log-probabilities")
    ratio = log_ratio(lp, old).exp()
    advantage = advantages[..., None]
    unclipped = ratio * advantage
    clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high) * advantage
    policy = mean(-unclipped.minimum(clipped) * weight * mask, denominators.policy)
    divergence = lp.new_zeros(lp.shape) if ref is None else k3(lp, ref) * mask
    return Loss(
        value=policy + objective.beta * mean(divergence, denominators.kl),
        policy=policy.detach(),
        kl=mean(divergence, denominators.selected).detach(),
        clip_fraction=mean((clipped < unclipped) & mask, denominators.selected),
    )


def mean(values: Tensor, denominator: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The sum of the values over the denominator; where that is 0, so are the values, and the mean is 0."""
    return values.sum() / denominator.where(denominator > 0, 1)
