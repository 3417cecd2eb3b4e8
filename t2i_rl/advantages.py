"""Group-relative advantages: how good an image is among the images of the same prompt.

GRPO (DeepSeekMath, arXiv:2402.03300, section 4.1.2): `A_i = (r_i - mean(r)) / (std(r) + eps)`, mean and std
over the G images of one prompt. The std is the unbiased one (it divides by G - 1) and eps is 1e-4, as in the
released trainers of T2I-R1, STAGE and both GCPO papers; verl has 1e-6. Dr. GRPO (arXiv:2503.20783) drops the
std. Statistics are per group, so a group never straddles two calls; `batch` also wants the whole batch.
"""

from __future__ import annotations  # with TYPE_CHECKING: the command line names the scales without importing torch

from typing import TYPE_CHECKING, Literal

from jaxtyping import Bool, Float

if TYPE_CHECKING:
    from torch import Tensor

Scale = Literal["group", "batch", "none"]


def advantages(rewards: Float[Tensor, "P G"], scale: Scale = "group", eps: float = 1e-4) -> Float[Tensor, "P G"]:
    """Rewards around their group's mean, divided by the std of the group, of the whole batch, or by nothing.

    Equal rewards give exactly 0. Raises ValueError for groups of one image: there is nothing to compare.
    """
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
    if rewards.shape[-1] < 2:
        raise ValueError("a group of one image has no advantage: sample at least 2 images per prompt")
    return rewards - rewards.amin(-1, keepdim=True)
