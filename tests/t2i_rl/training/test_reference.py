"""The reference is asked once per rollout, for what the method compares with, while rewards are awaited."""

from dataclasses import replace
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from models.janus.policy import JanusPolicy
from rewards.reward import Scores
from t2i_rl.configuration.config import RolloutConfig, TrainConfig, UpdateConfig
from t2i_rl.methods.catalogue import find_method
from t2i_rl.parallel.ranks import Ranks
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.statistics import entropy
from t2i_rl.training.reference import ENTROPY, LOG_PROB
from t2i_rl.training.trainer import Trainer
from tests.conftest import random_janus
from tests.t2i_rl.small_runs import OfTokens, TokenPictures

PROMPTS = [Prompt("a photo of a ring"), Prompt("a photo of two crosses")]
IMAGES = 2 * 3


class Judged(OfTokens):
    def total(self, tokens: Tensor, prompt: str) -> float:
        return tokens.mean().item()

    def score(self, *asked: Any) -> Scores:
        scores = super().score(*asked)
        return replace(scores, parts={"strict": (scores.total > 15).float()})


def learner(method: str, reward: OfTokens | None = None, **update: Any) -> TokenPictures:
    config = TrainConfig(
        steps=3,
        rollout=RolloutConfig(2, 3, 1, Sampling(guidance_scale=2.0)),
        update=UpdateConfig(learning_rate=1e-3, micro_batch=4, **update),
    )
    return TokenPictures(config, random_janus(), find_method(method), reward or Judged(), PROMPTS)


def rows_run(policy: JanusPolicy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows, of either branch, each teacher-forced pass of a policy has."""
    hidden, rows = policy.hidden, list[int]()
    monkeypatch.setattr(
        policy,
        "hidden",
        lambda condition, tokens, branches: rows.append(branches * len(tokens)) or hidden(condition, tokens, branches),
    )
    return rows


@pytest.mark.parametrize(
    ("method", "log_prob", "rows"),
    [
        *((method, "cond", IMAGES) for method in ("grpo", "critical", "grpo-full-kl", "cfg-released", "stage")),
        ("grpo", "cfg", 2 * IMAGES),
        ("cfg-released", "cfg", 3 * IMAGES),  # the guided log-probability, and the conditional entropy
    ],
)
def test_one_row_of_the_reference_for_each_image(
    method: str, log_prob: str, rows: int, monkeypatch: pytest.MonkeyPatch
):
    trainer = learner(method, log_prob=log_prob)
    asked = rows_run(trainer.reference, monkeypatch)
    trainer.step(1)
    assert sum(asked) == rows


@pytest.mark.parametrize("updates", [1, 3])
def test_several_updates_ask_the_reference_once_and_the_old_policy_never(updates: int, monkeypatch: pytest.MonkeyPatch):
    trainer = learner("grpo", updates_per_rollout=updates)
    theirs, ours = (rows_run(policy, monkeypatch) for policy in (trainer.reference, trainer.policy))
    trainer.step(1)
    assert sum(theirs) == IMAGES and sum(ours) == updates * IMAGES


@pytest.mark.parametrize("method", ["cfg-released", "cfg-released[objective.kl=full]"])
@pytest.mark.parametrize("log_prob", ["cond", "cfg"])
def test_the_entropy_is_that_of_the_conditional_predictions(method: str, log_prob: str):
    trainer = learner(method, log_prob=log_prob)
    trainer.step(1)
    rollout = trainer.updated.rollout
    hidden = trainer.reference.hidden(rollout.row_condition, rollout.tokens.flatten(0, 1), 1)
    wanted = entropy(trainer.reference.head(hidden[0]).log_softmax(-1)).unflatten(0, (2, 3))
    torch.testing.assert_close(rollout.statistics[ENTROPY], wanted)
    assert (LOG_PROB in rollout.statistics) == (log_prob == "cond" or method == "cfg-released")


def test_the_reference_does_not_wait_for_rewards(monkeypatch: pytest.MonkeyPatch):
    """The reward gives no score before the reference was asked."""
    asked = Event()

    class Patient(Judged):
        def score(self, *given: Any) -> Scores:
            assert asked.wait(30)
            return super().score(*given)

    trainer: Trainer = learner("grpo", Patient())
    hidden = trainer.reference.hidden
    monkeypatch.setattr(trainer.reference, "hidden", lambda *given, **named: asked.set() or hidden(*given, **named))
    metrics = trainer.step(1)
    assert metrics["kl"] == 0 and metrics["seconds/reference"] > 0


class Behind(Ranks):
    """A process beside one that has two groups more."""

    def each(self, value: Any) -> list[Any]:
        return [value, value + 2]


@pytest.mark.parametrize("own", [[0, 1], [0], []], ids=str)
def test_idle_groups_are_passed_and_leave_nothing(own: list[int], monkeypatch: pytest.MonkeyPatch):
    """A process with few groups asks the reference as often as the one with most, and keeps what is its own."""
    trainer = learner("cfg-released")
    trainer.step(1)
    plain = trainer.updated.rollout.take(own)
    idle = replace(trainer.idle, ranks=Behind())
    asked = rows_run(trainer.reference, monkeypatch)
    found = replace(trainer.collector.reference, idle=idle).complete(plain)
    assert sum(asked) == 3 * (len(own) + 2)
    filled = idle.fill(found)
    for name in (LOG_PROB, ENTROPY):
        torch.testing.assert_close(found.statistics[name], plain.statistics[name])
        assert len(filled.statistics[name]) == len(own) + 2 and not filled.statistics[name][len(own) :].any()
