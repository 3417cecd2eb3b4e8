"""The held-out score: what is right where a part of the reward says so, else the mean."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray

from rewards.compose import Composite, Member
from rewards.reward import Scores
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.generate import generate
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training.evaluation import evaluate
from t2i_rl.training.scoring import verdict_name
from tests.conftest import random_janus
from tests.t2i_rl.small_runs import Brightness

UNIT = (0.0, 1.0)


class Verdicts(Brightness):
    """Half a point for every image, and all of them are right."""

    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        half = torch.full((len(images),), 0.5)
        return replace(super().score(images, prompts, metadata), total=half, parts={"strict": half * 0 + 1})


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ((), None),
        (("noise",), None),
        (("strict", "noise"), "strict"),
        (("geneval", "geneval/strict", "hpsv2"), "geneval/strict"),
        (("geneval/strict", "shapes/strict"), None),
        (("unstrict", "a/strict/b"), None),
    ],
)
def test_which_part_is_the_verdict(parts: Sequence[str], found: str | None):
    assert verdict_name(parts) == found


def test_every_sample_is_judged_and_some_are_kept():
    policy, prompts = random_janus(), [Prompt("a photo of a ring"), Prompt("a photo of a cross"), Prompt("a square")]
    drawn = [one.image for one in generate(policy, [prompt.text for prompt in prompts], 2, Sampling(), 3, 4)]
    found = evaluate(policy, prompts, Verdicts(), Sampling(), 3, batch=4, images_per_prompt=2, keep=[2, 0])
    assert [(one.prompt, one.score, one.right) for one in found.judged] == [(n // 2, 1.0, True) for n in range(6)]
    assert [n for n, one in enumerate(found.judged) if one.sample is not None] == [0, 4]
    assert all(np.array_equal(found.judged[n].sample, drawn[n]) for n in (0, 4))
    plain = evaluate(policy, prompts, Brightness(), Sampling(), 3, batch=4)
    assert [one.right for one in plain.judged] == [None] * 3
    assert plain.overall == pytest.approx(sum(one.score for one in plain.judged) / 3)


def test_a_sum_is_judged_by_its_verdict_and_by_its_mean_where_there_are_two():
    one = Composite({"a": Member(Verdicts(), 0.2, UNIT), "b": Member(Brightness(), 3.0, UNIT)})
    two = Composite({"a": Member(Verdicts(), 0.2, UNIT), "b": Member(Verdicts(), 0.2, UNIT)})
    policy, prompts = random_janus(), [Prompt("a photo of a ring")]
    assert evaluate(policy, prompts, Verdicts(), Sampling(), seed=0, batch=2).overall == 1
    assert evaluate(policy, prompts, one, Sampling(), seed=0, batch=2).overall == 1
    assert evaluate(policy, prompts, two, Sampling(), seed=0, batch=2).overall == pytest.approx(0.2)
