"""Surrogates: what a token's loss is, given how far the update has moved its probability and the advantage.

A surrogate is a frozen dataclass of its constants; called, it is a pure function. `r = exp(log_ratio)` is the ratio
to the policy that sampled, of the token or of the unit around it (`unit_log_ratio`). While that policy is still the
current one, `r` is 1 and all of them have the gradient of `-A lp`.
"""

from __future__ import annotations  # with TYPE_CHECKING: the command line names methods without importing torch

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from jaxtyping import Bool, Float

from t2i_rl.errors import UserError
from t2i_rl.rollout.names import LIMIT

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout

Unit = Literal["token", "row", "scale", "sequence"]


@dataclass(frozen=True)
class LogRatios:
    """How far the policy has moved from the one that sampled the tokens.

    log_ratio: of the unit that each token belongs to, in nats, with gradient; `token_log_ratio`: of the token itself.
    lp, old: log-probabilities under the two; `old` without gradient.
    """

    log_ratio: Float[Tensor, "*images N"]
    token_log_ratio: Float[Tensor, "*images N"]
    lp: Float[Tensor, "*images N"]
    old: Float[Tensor, "*images N"]


@dataclass(frozen=True)
class Terms:
    """The loss of every token, before credit and reduction, and where a bound is active."""

    loss: Float[Tensor, "*images N"]
    clipped: Bool[Tensor, "*images N"]


class Surrogate(Protocol):
    """Constants of a loss per token; a frozen dataclass. Advantages broadcast over the tokens."""

    def __call__(self, ratios: LogRatios, advantage: Float[Tensor, "*images #N"]) -> Terms: ...


def check_bounds(low: float, high: float) -> None:
    if not (0 <= low < 1 and high >= 0):
        raise UserError(f"surrogate: the lower bound {low} must be in [0, 1), the upper bound {high} at least 0")


@dataclass(frozen=True)
class Clipped:
    """PPO and GRPO: `-min(r A, clip(r, 1 - low, 1 + high) A)` (arXiv:1707.06347, eq. 7; arXiv:2402.03300, eq. 3).

    DAPO raises `high` to 0.28 (arXiv:2503.14476, eq. 10); GSPO has 3e-4 and 4e-4 over the sequence's ratio.
    """

    low: float = 0.2
    high: float = 0.2

    def __post_init__(self) -> None:
        check_bounds(self.low, self.high)

    def __call__(self, ratios: LogRatios, advantage: Float[Tensor, "*images #N"]) -> Terms:
        ratio = ratios.log_ratio.exp()
        unclipped = ratio * advantage
        clipped = ratio.clamp(1 - self.low, 1 + self.high) * advantage
        return Terms(-unclipped.minimum(clipped), clipped < unclipped)


@dataclass(frozen=True)
class DualClipped:
    """`Clipped`, and for A < 0 at most `-cap A`: a ratio gone wild is not followed (arXiv:1912.09729, eq. 5)."""

    low: float = 0.2
    high: float = 0.2
    cap: float = 3.0

    def __post_init__(self) -> None:
        if self.cap <= 1 + self.high:
            raise UserError(f"surrogate: the cap {self.cap} must lie above the upper bound 1 + {self.high}")
        check_bounds(self.low, self.high)

    def __call__(self, ratios: LogRatios, advantage: Float[Tensor, "*images #N"]) -> Terms:
        terms, most = Clipped(self.low, self.high)(ratios, advantage), -self.cap * advantage
        capped = (advantage < 0) & (terms.loss > most)
        return Terms(most.where(capped, terms.loss), terms.clipped | capped)


@dataclass(frozen=True)
class TwoSided:
    """`-min(min(r, cap) A, clip(r, 1 - low, 1 + high) A)`: bounded for either sign (INTELLECT-2, arXiv:2505.07291)."""

    low: float = 0.2
    high: float = 0.2
    cap: float = 4.0

    def __post_init__(self) -> None:
        if self.cap <= 1 + self.high:
            raise UserError(f"surrogate: the cap {self.cap} must lie above the upper bound 1 + {self.high}")
        check_bounds(self.low, self.high)

    def __call__(self, ratios: LogRatios, advantage: Float[Tensor, "*images #N"]) -> Terms:
        ratio = ratios.log_ratio.exp()
        unclipped = ratio.clamp(max=self.cap) * advantage
        clipped = ratio.clamp(1 - self.low, 1 + self.high) * advantage
        return Terms(-unclipped.minimum(clipped), (clipped < unclipped) | ((ratio > self.cap) & (advantage < 0)))


@dataclass(frozen=True)
class Cispo:
    """`-sg(clip(r, 1 - low, 1 + high)) A lp`: the ratio is bounded, never the gradient cut (arXiv:2506.13585, eq. 4).

    Without `low` only the upper bound holds, as in the paper; verl has 0.2 and 0.28.
    """

    low: float | None = None
    high: float = 4.0

    def __post_init__(self) -> None:
        check_bounds(self.low or 0.0, self.high)

    def __call__(self, ratios: LogRatios, advantage: Float[Tensor, "*images #N"]) -> Terms:
        ratio = ratios.log_ratio.detach().exp()
        bounded = ratio.clamp(None if self.low is None else 1 - self.low, 1 + self.high)
        return Terms(-bounded * advantage * ratios.lp, bounded != ratio)


@dataclass(frozen=True)
class Sapo:
    """`-A (4 / tau) sigmoid(tau (r - 1))`: a smooth gate instead of a clip (arXiv:2511.20347).

    positive, negative: tau for advantages above 0, and for the others.
    """

    positive: float = 1.0
    negative: float = 1.05

    def __post_init__(self) -> None:
        if min(self.positive, self.negative) <= 0:
            raise UserError(f"surrogate: the temperatures {self.positive} and {self.negative} must be positive")

    def __call__(self, ratios: LogRatios, advantage: Float[Tensor, "*images #N"]) -> Terms:
        tau = advantage.new_tensor(self.positive).where(advantage > 0, self.negative)
        gate = (tau * (ratios.log_ratio.exp() - 1)).sigmoid()
        return Terms(-advantage * (4 / tau) * gate, gate.new_zeros(gate.shape).bool())


@dataclass(frozen=True)
class Dhpo:
    """`share * Clipped(token ratio) + (1 - share) * Clipped(unit ratio)`: DHPO with a fixed mix.

    The unit is the objective's, so it must not be the token. Formula as recalled in the survey of methods: the paper
    and its mix by entropy could not be checked.
    """

    low: float = 0.2
    high: float = 0.2
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"surrogate: the share {self.share} of the token ratio must lie between 0 and 1")
        check_bounds(self.low, self.high)

    def __call__(self, ratios: LogRatios, advantage: Float[Tensor, "*images #N"]) -> Terms:
        clip = Clipped(self.low, self.high)
        unit = clip(ratios, advantage)
        token = clip(LogRatios(ratios.token_log_ratio, ratios.token_log_ratio, ratios.lp, ratios.old), advantage)
        loss = self.share * token.loss + (1 - self.share) * unit.loss
        return Terms(loss, token.clipped & unit.clipped)


@dataclass(frozen=True)
class Dcpo:
    """`Clipped` with bounds that widen for tokens of low probability q under the old policy.

    `0.5 + 0.5 sqrt(max(1 - 4 low / q, 0)) <= r <= 0.5 + 0.5 sqrt(1 + 4 high / q)` (DCPO, arXiv:2509.02333; recalled).
    """

    low: float = 0.16
    high: float = 0.2

    def __post_init__(self) -> None:
        check_bounds(self.low, self.high)

    def __call__(self, ratios: LogRatios, advantage: Float[Tensor, "*images #N"]) -> Terms:
        ratio, rarity = ratios.log_ratio.exp(), (-ratios.old).clamp(max=LIMIT).exp()
        least = 0.5 + 0.5 * (1 - 4 * self.low * rarity).clamp(min=0).sqrt()
        most = 0.5 + 0.5 * (1 + 4 * self.high * rarity).sqrt()
        unclipped, clipped = ratio * advantage, ratio.clamp(least, most) * advantage
        return Terms(-unclipped.minimum(clipped), clipped < unclipped)


@dataclass(frozen=True)
class Regression:
    """`(scale log r - A)^2 / (2 scale)`: Reg-GRPO regresses the log-ratio onto the advantage (arXiv:2506.07464).

    Without a clip: the pull ends where `log r = A / scale`. Ours: the division by 2 scale, for the gradient of `-A lp`
    at r = 1.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise UserError(f"surrogate: the scale {self.scale} of the log-ratio must be positive")

    def __call__(self, ratios: LogRatios, advantage: Float[Tensor, "*images #N"]) -> Terms:
        gap = self.scale * ratios.log_ratio - advantage
        return Terms(gap.square() / (2 * self.scale), gap.new_zeros(gap.shape).bool())


# Ratio units


def log_ratio(lp: Float[Tensor, "... N"], old: Float[Tensor, "... N"] | None) -> Float[Tensor, "... N"]:
    """`lp - old`, clamped to +-20 nats. Without `old` the policy is the one that sampled: 0, with lp's gradient."""
    return (lp - (lp.detach() if old is None else old)).clamp(-LIMIT, LIMIT)


def unit_lengths(unit: Unit, layout: TokenLayout) -> list[int]:
    """How many consecutive tokens share a ratio: those of a picture row, of a scale's whole map, of the image."""
    if unit == "sequence":
        return [layout.tokens]
    return [length for h, w in layout.maps for length in ([w] * h if unit == "row" else [h * w])]


def unit_log_ratio(
    log_ratio: Float[Tensor, "*images N"], mask: Bool[Tensor, "*images N"], lengths: Sequence[int]
) -> Float[Tensor, "*images N"]:
    """The mean log-ratio of the updated tokens of each unit, at every token: the log of the geometric mean.

    Tokens that are not updated neither count nor get gradient. Over the sequence: GSPO (arXiv:2507.18071, eq. 7).
    """
    import torch

    def mean(values: Tensor, kept: Tensor) -> Tensor:
        return ((values * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1)).expand_as(values)

    pieces = zip(log_ratio.split(list(lengths), -1), mask.split(list(lengths), -1), strict=True)
    return torch.cat([mean(*piece) for piece in pieces], -1)
