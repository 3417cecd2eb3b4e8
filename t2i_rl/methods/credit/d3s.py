"""D3S: down-sampling twice, to the images whose rewards differ most and to the tokens that matter most.

Dynamic dual-level down-sampling (arXiv:2509.22115). Images: the subset of a group with the largest variance of
advantages, which is always some of the lowest and some of the highest. Tokens: the top of `|A| * entropy` in each
image. Both shares relax over training; that they do so linearly, up to everything, is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Bool, Float

from t2i_rl.methods.credit.entropy import check_share
from t2i_rl.methods.credit.rule import UNKNOWN, Context, Embedding, TokenCredit

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.rollout.groups import Rollout


@dataclass(frozen=True)
class DownSampling:
    """Updates a share of each group's images (at least 2) and in them a share of the tokens.

    samples, tokens: the shares at the start.
    relax: whether they grow to 1 by the end of the run.
    """

    statistics: ClassVar[tuple[str, ...]] = ("entropy",)
    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = True
    places: ClassVar[bool] = False

    samples: float = 0.5
    tokens: float = 0.5
    relax: bool = True

    def __post_init__(self) -> None:
        check_share("d3s", self.samples)
        check_share("d3s", self.tokens)

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        from t2i_rl.tokenmaps import top_share

        advantages, entropy = context.known_advantages("d3s"), rollout.statistics["entropy"]
        done = context.progress if self.relax else 0.0
        samples, tokens = (share + (1 - share) * done for share in (self.samples, self.tokens))
        kept = most_varied(advantages, max(2, math.ceil(samples * advantages.shape[-1])))
        mask = kept[..., None] & top_share(advantages.abs()[..., None] * entropy, tokens, rollout.valid)
        return TokenCredit(entropy.new_ones(entropy.shape), mask)


def most_varied(values: Float[Tensor, "P G"], size: int) -> Bool[Tensor, "P G"]:
    """The `size` members of each group with the largest variance."""
    import torch

    ordered, order = values.sort(dim=-1, stable=True)
    splits = [[*range(low), *range(values.shape[-1] - size + low, values.shape[-1])] for low in range(size + 1)]
    variances = torch.stack([ordered[..., split].var(-1, correction=0) for split in splits], -1)
    best = torch.tensor(splits, device=values.device)[variances.argmax(-1)]
    return values.new_zeros(values.shape).bool().scatter(-1, order.gather(-1, best), True)
