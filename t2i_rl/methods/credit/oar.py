"""OAR: weights that hold down tokens of little importance and lift the others.

The reshaping of outcome-grounded advantage reshaping (OAR), for any importance of a token. The paper's own importance,
the effect of each token on the outcome, would take one forward pass per token, or a reward that is differentiable
through the image decoder: neither is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Bool, Float

from t2i_rl.errors import UserError
from t2i_rl.methods.credit.rule import UNKNOWN, Context, Embedding, TokenCredit
from t2i_rl.rollout.names import StatisticName
from t2i_rl.settings import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.rollout.groups import Rollout


@dataclass(frozen=True)
class ReshapedImportance:
    """Weights from a statistic that is not negative.

    importance: the statistic's name (`t2i_rl.rollout.statistics`).
    quantile: of an image's tokens, those below are held down.
    floor: the least weight, before weights are scaled to mean 1.
    boost: what the most important token gets on top of 1.
    """

    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = False
    places: ClassVar[bool] = False

    importance: StatisticName = "kl_cond_uncond"
    quantile: float = 0.5
    floor: float = 0.1
    boost: float = 1.0

    def __post_init__(self) -> None:
        check_choice("oar", "importance", self.importance, StatisticName)
        if not (0 < self.quantile < 1 and 0 < self.floor < 1 and self.boost >= 0):
            raise UserError(
                f"oar: quantile {self.quantile} and floor {self.floor} must be in (0, 1), boost {self.boost} >= 0"
            )

    @property
    def statistics(self) -> tuple[str, ...]:
        return (self.importance,)

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        weight = reshape(rollout.statistics[self.importance], self.quantile, self.floor, self.boost, rollout.valid)
        return TokenCredit(weight, rollout.valid)


def reshape(
    importance: Float[Tensor, "... N"],
    quantile: float,
    floor: float,
    boost: float,
    valid: Bool[Tensor, "... N"] | None = None,
) -> Float[Tensor, "... N"]:
    """With x the min-max of `log(1 + importance)` in the row and q its quantile, scaled to mean 1:

    `max(x / q, floor)` below q, and `1 + boost * (x - q) / (1 - q)` from q on.
    """
    import torch

    from t2i_rl.methods.credit.guidance import minmax
    from t2i_rl.tokenmaps import every, row_mean

    valid = every(importance, valid)
    x = minmax(importance.log1p(), valid)
    q = x.masked_fill(~valid, torch.nan).nanquantile(quantile, dim=-1, keepdim=True)
    low, high = (x / q.clamp(min=1e-8)).clamp(min=floor), 1 + boost * (x - q) / (1 - q).clamp(min=1e-8)
    weight = low.where(x < q, high).masked_fill(~valid, 0)
    return weight / row_mean(weight, valid)
