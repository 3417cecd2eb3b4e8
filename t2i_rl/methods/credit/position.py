"""Credit by position: weights that fall along the image, and a window that slides over it.

Both are carried over from flow models, where a position is a denoising step: TempFlow-GRPO (arXiv:2508.04324) weights
early steps more, MixGRPO (arXiv:2507.21802) explores and trains only inside a sliding window. The shape of the weights
is ours; outside the window tokens are not trained, but still sampled like the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Float

from t2i_rl.errors import UserError
from t2i_rl.methods.credit.rule import UNKNOWN, Context, Embedding, TokenCredit
from t2i_rl.methods.surrogates import unit_lengths
from t2i_rl.settings import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from models.policy import TokenLayout
    from t2i_rl.rollout.groups import Rollout


WindowUnit = Literal["row", "scale"]


@dataclass(frozen=True)
class EarlyTokens:
    """Weights that fall linearly over the decoding blocks, from `1 + slope` to `1 - slope` at the end of the row."""

    statistics: ClassVar[tuple[str, ...]] = ()
    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = False
    places: ClassVar[bool] = False

    slope: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.slope <= 1:
            raise UserError(f"early tokens: the slope {self.slope} must be in (0, 1]")

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        import torch

        sizes = torch.tensor(layout.blocks, device=rollout.tokens.device)
        block = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        last = block[rollout.lengths - 1].clamp(min=1)[..., None]
        weight = (1 + self.slope * (1 - 2 * block[: rollout.tokens.shape[-1]] / last.double())).float()
        return TokenCredit(weight.where(rollout.valid, 0), rollout.valid)


@dataclass(frozen=True)
class SlidingWindow:
    """Updates the tokens inside a window that moves on by one unit every few steps, and starts over at the end.

    unit: what the window counts in: picture rows, or scales.
    size: its length in units.
    every: for how many steps it stays.
    """

    statistics: ClassVar[tuple[str, ...]] = ()
    embeddings: ClassVar[Embedding | None] = None
    compares: ClassVar[bool] = False
    places: ClassVar[bool] = True

    unit: WindowUnit = "row"
    size: int = 4
    every: int = 25

    def __post_init__(self) -> None:
        check_choice("sliding window", "unit", self.unit, WindowUnit)
        if min(self.size, self.every) < 1:
            raise UserError(f"sliding window: size {self.size} and every {self.every} must be at least 1")

    def __call__(
        self,
        rollout: Rollout,
        embeddings: Float[Tensor, "P G N E"] | None,
        layout: TokenLayout,
        context: Context = UNKNOWN,
    ) -> TokenCredit:
        lengths = unit_lengths(self.unit, layout)
        size = min(self.size, len(lengths))
        first = (context.step - 1) // self.every % (len(lengths) - size + 1)
        start = sum(lengths[:first])
        mask = rollout.tokens.new_zeros(rollout.tokens.shape).bool()
        mask[..., start : start + sum(lengths[first : first + size])] = True
        return TokenCredit(mask.new_ones(mask.shape).float(), mask, {"window": mask})
