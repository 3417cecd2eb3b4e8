"""What every reward offers: images and their prompts in, one finite number per image out.

A reward that cannot score raises `RewardError`; a NaN is such a failure, never a number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from rewards.errors import RewardError


@dataclass(frozen=True)
class Scores:
    """The scores of B images, in float32 on the CPU.

    total: what is maximised.
    parts: further numbers by name, to be logged; in the range that each reward states.
    reasons: why an image has less than the full score; "" where there is nothing to say.
    """

    total: Float[Tensor, " B"]
    parts: Mapping[str, Float[Tensor, " B"]]
    reasons: tuple[str, ...]


class Reward(Protocol):
    """Scores images against their prompts. Image i belongs to `prompts[i]` and `metadata[i]`."""

    name: str

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Refuse, with a `RewardError`, prompts that it could not score: asked before a run begins."""
        ...

    def score(
        self,
        images: Sequence[UInt8[ndarray, "H W 3"]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        """The scores of the images, in their order; what is in `metadata` is the reward's own affair."""
        ...


def score_images(
    reward: Reward,
    images: Sequence[UInt8[ndarray, "H W 3"]],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
) -> Scores:
    """`reward.score`, refused with a `RewardError` unless every image has one finite number throughout."""
    if not len(images) == len(prompts) == len(metadata):
        raise RewardError(
            f"{reward.name}: {len(images)} images, {len(prompts)} prompts and {len(metadata)} metadata records "
            "do not go together: pass one prompt and one record per image"
        )
    scores = reward.score(images, prompts, metadata)
    for part, values in {"total": scores.total, **scores.parts}.items():
        if values.shape != (len(images),):
            raise RewardError(
                f"{reward.name}: {part} has shape {list(values.shape)} for {len(images)} images: "
                "the reward must return one number per image"
            )
        if not values.isfinite().all():
            row = int(values.isfinite().logical_not().nonzero()[0])
            raise RewardError(
                f'{reward.name}: {part} of image {row} ("{prompts[row]}") is {values[row].item()}, not a score: '
                "look into the scorer's own log"
            )
    if len(scores.reasons) != len(images):
        raise RewardError(
            f"{reward.name}: {len(scores.reasons)} reasons for {len(images)} images: "
            "the reward must return one reason, possibly empty, per image"
        )
    return scores
