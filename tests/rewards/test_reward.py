"""What a reward must return, and what the door refuses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rewards.errors import RewardError
from rewards.reward import Scores, dropped_groups, joined, score_each, score_images


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
    with pytest.raises(RewardError, match=r'fixed: image 1 \("a photo of a cat"\) has no score: total is -?(nan|inf)'):
        call(bad, {})
    with pytest.raises(RewardError, match="has no score: strict is"):
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


def test_what_is_no_number_is_a_failure_of_its_image_alone() -> None:
    total, part = torch.tensor([0.5, float("nan")]), torch.tensor([1.0, 2.0])
    scores = score_each(Fixed(Scores(total, {"strict": part}, ("", ""))), IMAGES, PROMPTS, [{}, {}])
    assert scores.failures.keys() == {1}
    assert scores.total.tolist() == [0.5, 0.0] and scores.parts["strict"].tolist() == [1.0, 0.0]


def test_groups_with_a_failure_are_dropped() -> None:
    scores = Scores(torch.zeros(6), {}, ("",) * 6, failures={3: "late"})
    assert dropped_groups(scores, 2).tolist() == [False, True, False]
    assert dropped_groups(scores, 3).tolist() == [False, True]


def test_batches_are_joined_in_order() -> None:
    one = Scores(torch.tensor([1.0]), {"a": torch.tensor([2.0])}, ("x",), faults={"busy": 1})
    lost = Scores(torch.zeros(2), {}, ("", ""), failures={0: "gone", 1: "gone"}, faults={"busy": 2})
    whole = joined([one, lost, one])
    assert whole.total.tolist() == [1, 0, 0, 1] and whole.parts["a"].tolist() == [2, 0, 0, 2]
    assert whole.reasons == ("x", "", "", "x")
    assert whole.failures == {1: "gone", 2: "gone"} and whole.faults == {"busy": 4}


def test_batches_with_other_parts_do_not_join() -> None:
    one, other = Scores(torch.zeros(1), {"a": torch.zeros(1)}, ("",)), Scores(torch.zeros(1), {}, ("",))
    with pytest.raises(RewardError, match="only some of the images have the part 'a'"):
        joined([one, other])
