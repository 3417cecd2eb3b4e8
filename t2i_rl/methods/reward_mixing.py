"""Several rewards of an image made one, before or after they are compared inside the group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float

from t2i_rl.methods.advantages import advantages

if TYPE_CHECKING:
    from torch import Tensor


def weighted_sum(
    parts: Sequence[Float[Tensor, "P G"]] | Float[Tensor, "F P G"], weights: Sequence[float]
) -> Float[Tensor, "P G"]:
    """One reward out of several. Its advantages (sum, then normalize) hear the reward of the largest spread best."""
    if len(weights) != len(parts):
        raise ValueError(f"{len(parts)} rewards have {len(weights)} weights: give one for each")
    first, *others = (weight * part for weight, part in zip(weights, parts, strict=True))
    return sum(others, first)


def normalize_then_sum(
    rewards: Sequence[Float[Tensor, "P G"]] | Float[Tensor, "F P G"], weights: Sequence[float], eps: float = 1e-4
) -> Float[Tensor, "P G"]:
    """Every reward's group advantages, their weighted sum, divided by its std over the batch: scales do not matter."""
    summed = weighted_sum([advantages(reward, "group", eps) for reward in rewards], weights)
    return summed / (summed.std() + eps)
