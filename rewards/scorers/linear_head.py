"""The head that makes a number of a feature in the aesthetic predictor and in ImageReward: linear layers, no more.

Between the layers (768-1024-128-64-16-1 as published) there was dropout in training and nothing else.
"""

import re
from collections.abc import Mapping
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from rewards.errors import RewardError

KEY = re.compile(r"layers\.(\d+)\.weight")


def linear_head(weights: Mapping[str, Tensor], width: int, source: str) -> nn.Sequential:
    """The layers `layers.N.weight` and `.bias` in their order, in float32; from features of `width` to one number.

    Raises RewardError, which names the source, for layers that do not follow from one another.
    """
    numbers = sorted(int(found.group(1)) for key in weights if (found := KEY.fullmatch(key)))
    pairs = [(weights[f"layers.{number}.weight"], weights.get(f"layers.{number}.bias")) for number in numbers]
    sizes = [width, *(weight.shape[0] for weight, _ in pairs)]
    fits = len(sizes) > 1 and sizes[-1] == 1
    for (weight, bias), (before, after) in zip(pairs, pairwise(sizes), strict=True):
        fits = fits and weight.shape == (after, before) and bias is not None and bias.shape == (after,)
    if not fits:
        raise RewardError(
            f"{source}: the layers have the shapes {[list(weight.shape) for weight, _ in pairs]}, which do not lead "
            f"from {width} numbers to one: give the checkpoint of the scorer"
        )
    head = nn.Sequential(*(nn.Linear(before, after) for before, after in pairwise(sizes)))
    head.load_state_dict(
        {f"{row}.{leaf}": weights[f"layers.{n}.{leaf}"] for row, n in enumerate(numbers) for leaf in ("weight", "bias")}
    )
    return head.eval().requires_grad_(False)


def grade(head: nn.Sequential, features: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    return head(features)[:, 0]
