"""Group-relative advantages: how good an image is among the images of the same prompt.

GRPO (DeepSeekMath, arXiv:2402.03300, section 4.1.2): `A_i = (r_i - mean(r)) / (std(r) + eps)`, mean and std
over the G images of one prompt. The std is the unbiased one (it divides by G - 1) and eps is 1e-4, as in the
released trainers of T2I-R1, STAGE and both GCPO papers; verl has 1e-6. Dr. GRPO (arXiv:2503.20783) drops the
std. Statistics are per group, so a group never straddles two calls; `batch` also wants the whole batch.

Other estimators are rules: frozen dataclasses of their constants, to be called with the rewards. What remembers
earlier steps is in `t2i_rl.methods.baselines`.
"""

from __future__ import annotations  # with TYPE_CHECKING: the command line names the scales without importing torch

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from jaxtyping import Bool, Float

from t2i_rl.errors import UserError
from t2i_rl.methods.baselines import PromptBaseline
from t2i_rl.settings import check_choice

if TYPE_CHECKING:
    from torch import Tensor

Scale = Literal["group", "batch", "none"]


class AdvantageRule(Protocol):
    """Constants of an estimator; a frozen dataclass."""

    def __call__(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]: ...


def advantages(
    rewards: Float[Tensor, "P G"], scale: Scale | AdvantageRule | PromptBaseline = "group", eps: float = 1e-4
) -> Float[Tensor, "P G"]:
    """Rewards around their group's mean, divided by the std of the group, of the whole batch, or by nothing.

    A rule in place of a scale does as it says. Equal rewards give exactly 0, unless a rule says otherwise. Raises
    ValueError for groups of one image: there is nothing to compare; and for a tracker, which needs the past as well.
    """
    if isinstance(scale, PromptBaseline):
        raise ValueError("a tracker compares with the past: call it with the prompts and their history")
    if not isinstance(scale, str):
        return scale(rewards)
    above = above_worst(rewards)
    centred = above - above.mean(-1, keepdim=True)
    if scale == "none":
        return centred
    std = above.std(-1, keepdim=True) if scale == "group" else rewards.std()
    return centred / (std + eps)


def zero_variance(rewards: Float[Tensor, "P G"], threshold: float = 1e-6) -> Bool[Tensor, " P"]:
    """Whether the rewards of a group are all (nearly) the same, so that it teaches nothing."""
    return above_worst(rewards).std(-1) <= threshold


def above_worst(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Rewards measured from the worst of the group: without rounding errors where they are equal or close."""
    _check_group(rewards)
    return rewards - rewards.amin(-1, keepdim=True)


def _check_group(rewards: Float[Tensor, "P G"]) -> None:
    if rewards.shape[-1] < 2:
        raise ValueError("a group of one image has no advantage: sample at least 2 images per prompt")


# Estimators


@dataclass(frozen=True)
class LeaveOneOut:
    """RLOO (arXiv:2402.14740): `A_i = r_i - mean of the others' rewards`, without a std."""

    def __call__(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        group = rewards.shape[-1]
        return advantages(rewards, "none") * group / (group - 1)


@dataclass(frozen=True)
class BestOfGroup:
    """In the manner of pass@k: only the best image earns, `(best - second) / (std + eps)`; the others 0.

    Of equal best ones the lead is 0. As in verl, eps is 1e-6.
    """

    eps: float = 1e-6

    def __call__(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        above = above_worst(rewards)
        best, second = above.topk(2, dim=-1).values.split(1, dim=-1)
        lead = (best - second) / (above.std(-1, keepdim=True) + self.eps)
        return lead * (above == best)


@dataclass(frozen=True)
class VirtualBest:
    """NGRPO (arXiv:2509.18851): mean and std include one virtual image of the highest possible reward.

    So a group of equal failures is pushed away from, instead of teaching nothing.

    maximum: that reward. Rewards above it raise UserError.
    """

    maximum: float = 1.0
    eps: float = 1e-4

    def __call__(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        if rewards.max() > self.maximum:
            raise UserError(
                f"virtual best: a reward of {rewards.max().item()} is above the maximum {self.maximum}: raise that"
            )
        _check_group(rewards)
        missing, group = self.maximum - rewards, rewards.shape[-1]  # the virtual image misses 0
        mean = missing.sum(-1, keepdim=True) / (group + 1)
        variance = ((missing - mean).square().sum(-1, keepdim=True) + mean.square()) / group
        return (mean - missing) / (variance.sqrt() + self.eps)


@dataclass(frozen=True)
class ValueAnchored:
    """Group advantage plus the reward's own level: `(r - mean) / (std + eps) + factor * (r - anchor)`.

    The group part of VGPO, whose signal does not vanish where all images are equally good. The paper's formula could
    not be read: this one is ours.
    """

    factor: float = 0.1
    anchor: float = 0.5

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise UserError(f"value anchored: the factor {self.factor} of the reward's level must be positive")

    def __call__(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        return advantages(rewards) + self.factor * (rewards - self.anchor)


@dataclass(frozen=True)
class WinRate:
    """Pref-GRPO (arXiv:2508.20751) on scores: rewards are replaced by win rates, then compared in the group.

    Only the order of the rewards counts, so a reward model's narrow or drifting scale cannot be exploited.
    """

    scale: Scale = "group"

    def __post_init__(self) -> None:
        check_choice("win rate", "scale", self.scale, Scale)

    def __call__(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        return advantages(win_rates(rewards), self.scale)


def win_rates(scores: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """The share of the other images of the group that an image beats; a tie counts half."""
    _check_group(scores)
    left, right = scores[..., :, None], scores[..., None, :]
    beaten = (left > right).float() + 0.5 * (left == right).float()
    return (beaten.sum(-1) - 0.5) / (scores.shape[-1] - 1)
