"""STAGE: tokens that look the same in good and bad images of a group earn less.

STAGE (arXiv:2509.25027). `c` is the mean cosine between a token's codebook vector and those at the same position in
the images of the group whose advantage has the other sign (or is 0). Weight `clip((1 - c) / 2, 0, 1)`, its sum the
denominator; KL factor `0.5 + 0.5 clip(c + 1, 0, 1)`.

As released, an image of advantage 0 counts itself among the others, with cosine 0.
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
class DissimilarTokens:
    """Weights every token by how unlike the group's images of other advantage it is."""

    statistics: ClassVar[tuple[str, ...]] = ()
    embeddings: ClassVar[Embedding | None] = "codebook"
    compares: ClassVar[bool] = True
    places: ClassVar[bool] = True

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        if embeddings is None:
            raise ValueError("stage compares the images of a group by their codebook vectors: pass them")
        alike = opposite_similarity(embeddings, context.known_advantages("stage"))
        weight = ((1 - alike) / 2).clamp(0, 1)
        return TokenCredit(weight, weight.new_ones(weight.shape).bool(), kl=0.5 + 0.5 * (alike + 1).clamp(0, 1))


def opposite_similarity(
    embeddings: Float[Tensor, "P G N E"], advantages: Float[Tensor, "P G"]
) -> Float[Tensor, "P G N"]:
    """Mean cosine with the group's images for which `A_i A_j <= 0`; 0 where there are none. Zero vectors have 0."""
    import torch
    import torch.nn.functional as F

    unit = F.normalize(embeddings.float(), dim=-1, eps=1e-8)
    opposite = (advantages[:, :, None] * advantages[:, None, :] <= 0).float()
    others = opposite * (1 - torch.eye(advantages.shape[1], device=advantages.device))
    total = (unit * torch.einsum("pij,pjne->pine", others, unit)).sum(-1)
    return total / opposite.sum(-1).clamp(min=1)[..., None]
