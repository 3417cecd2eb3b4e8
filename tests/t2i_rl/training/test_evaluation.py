"""The held-out score: what is right where a part of the reward says so, else the mean."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray

from rewards.compose import Composite, Member
from rewards.reward import Scores
from t2i_rl.configuration.config import EvaluationConfig, TrainConfig
from t2i_rl.parallel.ranks import Ranks
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.generate import generate
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training.announcements import heldout_score
from t2i_rl.training.evaluation import Evaluation, evaluate
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


class Graded(Brightness):
    """As answers in text are: every second one is right, and the score is another number."""

    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        return replace(super().score(images, prompts, metadata), parts={"accuracy": torch.arange(len(images)) % 2.0})


def test_a_grade_says_what_is_right_and_leaves_the_score():
    prompts = [Prompt("a ring"), Prompt("a cross")]
    graded, plain = (evaluate(random_janus(), prompts, one, Sampling(), 3, 4) for one in (Graded(), Brightness()))
    assert [one.right for one in graded.judged] == [False, True] and graded.overall == plain.overall


class OfTwo(Ranks):
    """The second of two processes knows what both have told, the first only what it told itself."""

    world = 2

    def __init__(self, rank: int, told: list[str]) -> None:
        self.rank, self.told = rank, told

    def each(self, value: Any) -> list[Any]:
        self.told.append(json.dumps(value))
        return [json.loads(one) for one in self.told]


def test_two_processes_judge_and_keep_what_one_does():
    policy, prompts = random_janus(), [Prompt(f"a photo of {number} rings") for number in range(3)]
    alone = evaluate(policy, prompts, Verdicts(), Sampling(), 3, batch=4, keep=[0, 2])
    told = list[str]()
    first, both = (
        evaluate(policy, prompts, Verdicts(), Sampling(), 3, 4, ranks=OfTwo(rank, told), keep=[0, 2]) for rank in (0, 1)
    )
    assert first.images == 1 and both.verdict == "strict" and (both.overall, both.images) == (alone.overall, 3)
    for one, other in zip(both.judged, alone.judged, strict=True):
        assert replace(one, sample=None) == replace(other, sample=None)
        assert np.array_equal(one.sample, other.sample)
    assert [one.sample is None for one in both.judged] == [False, True, False]


def test_a_sum_is_judged_by_its_verdict_and_by_its_mean_where_there_are_two():
    one = Composite({"a": Member(Verdicts(), 0.2, UNIT), "b": Member(Brightness(), 3.0, UNIT)})
    two = Composite({"a": Member(Verdicts(), 0.2, UNIT), "b": Member(Verdicts(), 0.2, UNIT)})
    policy, prompts = random_janus(), [Prompt("a photo of a ring")]
    found = [evaluate(policy, prompts, reward, Sampling(), seed=0, batch=2) for reward in (Verdicts(), one, two)]
    assert [each.overall for each in found] == pytest.approx([1, 1, 0.2])
    assert [each.verdict for each in found] == ["strict", "a/strict", None]


@pytest.mark.parametrize(
    ("reward", "judged_by", "verdict", "tags", "says"),
    [
        ("shapes", "", "strict", 6, "the share of strict verdicts of shapes, on 300 images, the mean of 6 tags"),
        ("shapes:1.0 hpsv2:0.5", "", "shapes/strict", 1, "the share of strict verdicts of shapes, on 300 images"),
        ("shapes", "hpsv2@http://a:1", None, 1, "the mean of hpsv2, on 300 images"),
        ("hpsv2:1.0 aesthetic:0.5", "", None, 1, "the mean of hpsv2:1.0 aesthetic:0.5, on 300 images"),
    ],
)
def test_the_score_in_words(reward: str, judged_by: str, verdict: str | None, tags: int, says: str):
    config = TrainConfig(reward=reward, evaluation=EvaluationConfig(reward=judged_by))
    found = Evaluation({str(tag): 0.5 for tag in range(tags)}, 0.5, 300, verdict=verdict)
    assert heldout_score(config, found, "images") == f"held-out score: {says}"
