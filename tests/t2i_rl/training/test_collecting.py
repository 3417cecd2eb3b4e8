"""Scores that are computed beside the sampling, servers that fail, and groups that are lost."""

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch
from numpy import ndarray

from models.policy import Condition
from rewards.errors import RewardError
from rewards.reward import Scores
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.methods.catalogue import find_method
from t2i_rl.methods.objectives import Objective
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Rollout
from t2i_rl.training import scoring
from t2i_rl.training.trainer import Trainer
from tests.conftest import random_janus
from tests.t2i_rl.small_runs import TokenCollector, TokenPictures
from tests.t2i_rl.training.test_trainer_options import HighCodes, settings, weights

MIXED = [Prompt(f"a photo of {number} {shape}") for shape in ("circle", "ring") for number in ("one", "two", "three")]
WAIT = 60  # seconds, after which a test that would hang fails instead


class Faulty(HighCodes):
    """No score for prompts that say `cross`; their images get NaN. Every call has met a slow server on its way."""

    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        scores = super().score(images, prompts, metadata)
        lost = torch.tensor(["cross" in prompt for prompt in prompts])
        parts = {} if lost.all() else {"twice": 2 * scores.total}
        total = scores.total.masked_fill(lost, math.nan)
        return replace(scores, total=total, parts=parts, faults={"timeout": 1})


def at_once(_: object, function: Any, *arguments: Any) -> Future[Scores]:
    """In place of the thread: scores when it is asked to."""
    done: Future[Scores] = Future()
    done.set_result(function(*arguments))
    return done


def trainer(
    reward: HighCodes,
    prompts: Sequence[Prompt] = MIXED,
    method: str = "grpo",
    kind: type[Trainer] = TokenPictures,
    **more: object,
) -> Any:
    return kind(configured(**more), random_janus(), find_method(method), reward, prompts)


def configured(micro_batch: int = 1, **more: object) -> TrainConfig:
    """With that many prompts sampled at once."""
    config: TrainConfig = settings(**{"prompts_per_step": 4, **more})
    return replace(config, rollout=replace(config.rollout, micro_batch=micro_batch))


def timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "second" not in name}


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("grpo", {"kind": Trainer}),
        ("grpo", {"micro_batch": 3}),
        ("cfg", {"contrast": "text:a blue ring"}),
        ("dapo", {"micro_batch": 2}),
    ],
    ids=["real pictures", "uneven", "measured apart", "resampled"],
)
def test_the_same_bits_as_without_a_thread(monkeypatch: pytest.MonkeyPatch, method: str, more: dict[str, Any]):
    ends = []
    for begin in (scoring.begin, at_once):
        monkeypatch.setattr(scoring, "begin", begin)
        learner = trainer(HighCodes(), method=method, **more)
        ends.append(([timeless(learner.step(number)) for number in (1, 2)], weights(learner.policy)))
    (metrics, policy), (other_metrics, other_policy) = ends
    assert metrics == other_metrics and torch.equal(policy, other_policy)
    assert all(row["grad_norm"] > 0 for row in metrics)


class Counting(TokenCollector):
    """Sets an event when the second micro-batch is sampled; from then on it waits for another, if there is one."""

    sampled_once: threading.Event | None = None
    go_on: threading.Event | None = None

    def sample(self, step: int, condition: Condition, occurrence: Sequence[int]) -> Rollout:
        self.count = getattr(self, "count", 0) + 1
        if self.count == 2 and self.sampled_once is not None:
            self.sampled_once.set()
        if self.count == 2 and self.go_on is not None:
            assert self.go_on.wait(WAIT)
        return super().sample(step, condition, occurrence)


class CountingTrainer(TokenPictures):
    kind = Counting


def test_a_micro_batch_is_scored_while_the_next_is_sampled():
    """The first scores are only there once the second micro-batch is under way."""

    class Late(HighCodes):
        def score(self, *asked: Any) -> Scores:
            assert learner.collector.sampled_once is not None and learner.collector.sampled_once.wait(WAIT)
            return super().score(*asked)

    learner = trainer(Late(), kind=CountingTrainer)
    learner.collector.sampled_once = threading.Event()
    metrics = learner.step(1)
    assert learner.collector.count == 4 and metrics["seconds/score"] > 0


def test_a_failure_ends_the_sampling():
    class Broken(HighCodes):
        def score(self, *asked: Any) -> Scores:
            assert learner.collector.go_on is not None
            learner.collector.go_on.set()
            raise RewardError("the scorer is broken: mend it")

    learner = trainer(Broken(), kind=CountingTrainer, prompts_per_step=40)
    learner.collector.go_on = threading.Event()
    with pytest.raises(RewardError, match=r"^the scorer is broken: mend it$"):
        learner.step(1)
    assert 2 <= learner.collector.count < 40


CROSSES = [Prompt("a photo of a cross"), Prompt("a photo of two crosses")]
RINGS = [prompt for prompt in MIXED if "ring" in prompt.text]


@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_a_lost_group_leaves_no_trace(micro_batch: int):
    """The step is the one that the other groups would have made alone, denominators, KL and metrics included."""
    method = replace(find_method("cfg"), objective=Objective(beta=0.05, denominator="tokens"))
    ends = []
    for prompts in ([*RINGS, *CROSSES], RINGS):
        config = configured(
            prompts_per_step=len(prompts), micro_batch=micro_batch, learning_rate=0.1, on_reward_failure="drop_group"
        )
        learner = TokenPictures(config, random_janus(), method, Faulty(), prompts, random_janus(seed=1).reference())
        learner.optimizer = torch.optim.SGD(learner.policy.trainable_parameters())
        metrics = timeless(learner.step(1))
        assert metrics.pop("groups_scored") == len(RINGS)
        assert metrics.pop("groups_lost") == len(prompts) - len(RINGS) == learner.collector.collected.lost
        assert metrics.pop("reward_faults/timeout") == -(-len(prompts) // micro_batch)
        assert not any("cross" in record.text for record in learner.updated.records)
        ends.append((metrics, weights(learner.policy)))
    (metrics, policy), (alone, alone_policy) = ends
    assert metrics == pytest.approx(alone, abs=1e-5) and "reward/twice" in metrics
    assert (policy - weights(random_janus())).abs().max() > 1e-4
    torch.testing.assert_close(policy, alone_policy, rtol=0, atol=1e-6)


def test_a_lost_group_is_not_taken_for_a_dull_one():
    """Only prompts whose images are all alike are replaced; where those in their place are lost, they stay lost."""
    config = {"prompts_per_step": 5, "resample_rounds": 3, "on_reward_failure": "drop_group"}
    learner = trainer(Faulty(), [*RINGS, *CROSSES], "dapo", **config)
    metrics = learner.step(1)
    assert (metrics["groups_lost"], metrics["groups_resampled"], metrics["groups_dropped"]) == (2, 0, 0)
    learner = trainer(Faulty(), [MIXED[0], *CROSSES], "dapo", **{**config, "prompts_per_step": 3})
    metrics = learner.step(1)
    assert metrics["groups_lost"] >= 2 and metrics["zero_variance"] == 1 and "kl" not in metrics


def test_when_every_group_is_lost_the_run_stops():
    learner = trainer(Faulty(), CROSSES, on_reward_failure="drop_group")
    with pytest.raises(RewardError) as caught:
        learner.step(3)
    sentence = str(caught.value)
    assert sentence.startswith("step 3: every group lacks a score, the first one for its image 0 (")
    assert "total is nan" in sentence and "\n" not in sentence


def test_unless_groups_may_be_lost_one_image_without_a_score_stops_the_run():
    learner = trainer(Faulty(), [*RINGS, *CROSSES], prompts_per_step=5)
    start = weights(learner.policy)
    with pytest.raises(RewardError, match=r"cross.*has no score: total is nan, .*--on-reward-failure drop_group$"):
        learner.step(1)
    assert torch.equal(weights(learner.policy), start)


def test_faults_that_a_retry_mended_are_counted_too():
    metrics = trainer(Faulty(), RINGS).step(1)
    assert metrics["reward_faults/timeout"] == 4 and "groups_lost" not in metrics


@pytest.mark.parametrize("group_batch", [1, 3, 4, 9])
def test_groups_that_are_sampled_in_parts_are_the_same(group_batch: int):
    """Tokens, statistics and so the step, whatever part of a group is sampled at once."""
    whole, parts = trainer(HighCodes()), trainer(HighCodes(), group_batch=group_batch)
    metrics, others = timeless(whole.step(1)), timeless(parts.step(1))
    rollout, other = (learner.collector.collected.rounds[0].rollout for learner in (whole, parts))
    assert rollout.group_size == 4 and torch.equal(rollout.tokens, other.tokens)
    assert others == pytest.approx(metrics, abs=1e-5)
