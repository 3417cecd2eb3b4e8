"""GTPO: tokens that a good and a bad image of the group share at the same position are not punished.

Group-relative trajectory-based policy optimization (arXiv:2508.03772). Where the same code stands at the same position
in images of opposite advantage, the negative side is skipped and the positive side counts double. Rare in images of
many codes, but for flat background. The paper's entropy filter is `EntropyTokens`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float

from t2i_rl.methods.credit.rule import UNKNOWN, Context, Embedding, TokenCredit

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.rollout.groups import Rollout


@dataclass(frozen=True)
class ConflictingTokens:
    """Weight 0 for the negative and 2 for the positive side of a conflict, 1 elsewhere."""

    statistics: ClassVar[tuple[str, ...]] = ()
    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = True
    places: ClassVar[bool] = True

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        advantages, tokens = context.known_advantages("gtpo"), rollout.tokens
        same = tokens[:, :, None] == tokens[:, None]
        opposite = advantages[:, :, None] * advantages[:, None, :] < 0
        conflict = (same & opposite[..., None]).any(2)
        weight = 1 + conflict * advantages.sign()[..., None]
        return TokenCredit(weight, conflict.new_ones(conflict.shape), {"conflict": conflict})
