"""What a reward must return, and what the door refuses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rewards.errors import RewardError
from rewards.reward import Scores, score_images


class Fixed:
    """Returns the scores it was given."""

    name = "fixed"

    def __init__(self, scores: Scores) -> None:
        self.scores = scores

    def score(
        self, images: Sequence[np.ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Scores:
        return self.scores


IMAGES = [np.zeros((4, 4, 3), dtype=np.uint8)] * 2
PROMPTS = ["a photo of a dog", "a photo of a cat"]


def call(total: Tensor, parts: Mapping[str, Tensor], reasons: tuple[str, ...] = ("", "")) -> Scores:
    return score_images(Fixed(Scores(total, parts, reasons)), IMAGES, PROMPTS, [{}, {}])


def test_finite_scores_pass_unchanged() -> None:
    total, part = torch.tensor([0.5, -2.0]), torch.tensor([0.0, 1.0])
    scores = call(total, {"strict": part})
    assert scores.total is total
    assert scores.parts["strict"] is part


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused_by_image(value: float) -> None:
    bad, good = torch.tensor([0.0, value]), torch.zeros(2)
    with pytest.raises(RewardError, match=r'fixed: total of image 1 \("a photo of a cat"\) is -?(nan|inf)'):
        call(bad, {})
    with pytest.raises(RewardError, match="strict of image 1"):
        call(good, {"strict": bad})


@pytest.mark.parametrize(
    ("total", "parts", "reasons"),
    [
        (torch.zeros(3), {}, ("", "")),
        (torch.zeros(2, 1), {}, ("", "")),
        (torch.zeros(2), {"strict": torch.zeros(1)}, ("", "")),
        (torch.zeros(2), {}, ("",)),
    ],
)
def test_another_length_is_refused(total: Tensor, parts: dict[str, Tensor], reasons: tuple[str, ...]) -> None:
    with pytest.raises(RewardError, match="for 2 images"):
        call(total, parts, reasons)


def test_images_without_prompts_are_refused() -> None:
    with pytest.raises(RewardError, match="2 images, 1 prompts and 2 metadata"):
        score_images(Fixed(Scores(torch.zeros(2), {}, ("", ""))), IMAGES, PROMPTS[:1], [{}, {}])
