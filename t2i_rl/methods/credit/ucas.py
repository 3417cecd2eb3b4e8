"""UCAS: certain images learn less from success and more from failure, and certain tokens pay a little.

Uncertainty-aware advantage shaping (arXiv:2510.10649). z is the group's z-score of an image's certainty, the sum over
its tokens of KL(uniform || p). Advantages become `A exp(-success z)` if A > 0, else `A exp(failure z)`; then every
token loses `penalty` times the min-max (over the batch) of its raw logit, positive advantages at most down to 0.
"""

from __future__ import annotations

import math
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
class UncertaintyShaping:
    """Advantages by token. success, failure: how strongly certainty tells; penalty: the price of a certain token."""

    statistics: ClassVar[tuple[str, ...]] = ("kl_uniform", "logit_cond")
    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = True
    places: ClassVar[bool] = False

    success: float = 0.25
    failure: float = 0.35
    penalty: float = 0.05

    def __post_init__(self) -> None:
        if min(self.success, self.failure, self.penalty) < 0:
            raise UserError("ucas: success, failure and penalty must not be negative")

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        certainty, logit = (rollout.statistics[name] for name in self.statistics)
        least, most = logit.where(rollout.valid, math.inf).amin(-1), logit.where(rollout.valid, -math.inf).amax(-1)
        lowest, highest = context.everyone(least).min(), context.everyone(most).max()
        shaped = shaped_advantages(
            context.known_advantages("ucas"),
            certainty.sum(-1),
            (logit - lowest) / (highest - lowest).where(highest > lowest, 1),
            self.success,
            self.failure,
            self.penalty,
        )
        return TokenCredit(shaped.new_ones(shaped.shape), rollout.valid, advantages=shaped)


def shaped_advantages(
    advantages: Float[Tensor, "P G"],
    certainty: Float[Tensor, "P G"],
    logit: Float[Tensor, "P G N"],  # between the lowest of the batch, 0, and the highest, 1
    success: float,
    failure: float,
    penalty: float,
) -> Float[Tensor, "P G N"]:
    """The formula above; the std of the z-score is unbiased, eps 1e-6."""
    z = (certainty - certainty.mean(-1, keepdim=True)) / (certainty.std(-1, keepdim=True) + 1e-6)
    good = advantages > 0
    image = (advantages * (-success * z).exp().where(good, (failure * z).exp()))[..., None]
    token = image - penalty * logit
    return token.clamp(min=0).where(good[..., None], token)
