"""Rewards by name. The names are at hand without torch; what a reward needs is imported when it is built."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rewards.errors import RewardError

if TYPE_CHECKING:
    from rewards.reward import Reward


def _shapes(rules: str) -> "Reward":
    from rewards.detectors.shapes import PaletteColours, ShapesDetector
    from rewards.geneval_reward import GenEvalReward

    return GenEvalReward(ShapesDetector(), PaletteColours(), rules)


BUILDERS: dict[str, Callable[[], "Reward"]] = {
    "shapes": partial(_shapes, "partial"),
    "shapes-official": partial(_shapes, "official"),
    "shapes-partial-released": partial(_shapes, "partial-released"),
}


def build(name: str) -> "Reward":
    """The reward of that name."""
    if name not in BUILDERS:
        raise RewardError(f"there is no reward named {name!r}: choose one of {', '.join(BUILDERS)}")
    return BUILDERS[name]()
