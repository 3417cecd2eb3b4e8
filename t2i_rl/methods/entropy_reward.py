"""A bonus on verifiable rewards for images that keep the reference's entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float

from t2i_rl.errors import UserError
from t2i_rl.methods.advantages import zero_variance
from t2i_rl.settings import check_choice

if TYPE_CHECKING:
    from torch import Tensor


OnZeroStd = Literal["skip", "released"]


@dataclass(frozen=True)
class EntropyReward:
    """STAGE's bonus for the best images, also in the release of arXiv:2605.29198: keep the reference's entropy.

    Images whose reward is the highest of their group get `coefficient * (b - mean of their b)` on top, with
    `b = 1 / (1 + (reference - entropy)^2)`, entropies in nats, averaged over the tokens of the image. For verifiable
    rewards, where many images share the highest. The release compares all images of a process: those of one prompt.

    on_zero_std: in a group of equal rewards this bonus is all there is, and normalizing blows it up to advantages of
        full size. `skip`: such a group gets none; `released`: it does.
    """

    coefficient: float = 0.4
    on_zero_std: OnZeroStd = "skip"

    def __post_init__(self) -> None:
        if self.coefficient == 0:
            raise UserError("entropy reward: a coefficient of 0 has no effect: set entropy_reward to none")
        check_choice("entropy reward", "on_zero_std", self.on_zero_std, OnZeroStd)

    def __call__(
        self, rewards: Float[Tensor, "P G"], entropy: Float[Tensor, "P G"], reference: Float[Tensor, "P G"]
    ) -> Float[Tensor, "P G"]:
        """The rewards with the bonus; entropies are those of the conditional distribution."""
        best = rewards == rewards.amax(-1, keepdim=True)
        if self.on_zero_std == "skip":
            best = best & ~zero_variance(rewards)[:, None]
        kept = 1 / (1 + (reference - entropy).square())
        mean = (kept * best).sum(-1, keepdim=True) / best.sum(-1, keepdim=True).clamp(min=1)
        return rewards + self.coefficient * (kept - mean) * best
