"""One step of training: what it computes, what it must not depend on, and that it learns."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.janus.policy import JanusPolicy
from rewards.errors import RewardError
from rewards.reward import Scores
from t2i_rl.cli import main
from t2i_rl.configuration.config import RolloutConfig, TrainConfig, UpdateConfig
from t2i_rl.errors import DivergenceError
from t2i_rl.methods.catalogue import METHODS, find_method
from t2i_rl.methods.credit.rule import UNKNOWN
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.log_probs import frozen_replay
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training.trainer import Trainer
from t2i_rl.training.update import apply_gradient, learning_rate
from tests.conftest import random_janus
from tests.t2i_rl.small_runs import STEPS, Brightness, OfTokens, TokenPictures, train_words

PROMPTS = [Prompt("a photo of a ring"), Prompt("a photo of two crosses and a red square")]
TRAINED = ("grpo", "cfg", "critical")
TOKEN = 5


class ShareOfToken(OfTokens):
    """The share of one token id, which no image need show; hardly anything else, so that few images tie."""

    def total(self, tokens: Tensor, prompt: str) -> float:
        return ((tokens == TOKEN).float().mean() + 1e-4 * tokens.mean()).item()


class Judged(ShareOfToken):
    """With a verdict, for methods with an entropy reward."""

    def score(self, *asked: Any) -> Scores:
        scores = super().score(*asked)
        return dataclasses.replace(scores, parts={"strict": (scores.total > 0).float()})


class Indifferent(OfTokens):
    def total(self, tokens: Tensor, prompt: str) -> float:
        return 1.0


def settings(group_size: int = 3, rollout_micro: int = 2, update_micro: int = 6, **update: object) -> TrainConfig:
    return TrainConfig(
        steps=30,
        rollout=RolloutConfig(len(PROMPTS), group_size, rollout_micro, Sampling(guidance_scale=2.0)),
        update=dataclasses.replace(
            UpdateConfig(learning_rate=1e-3, schedule="constant", micro_batch=update_micro), **update
        ),
    )


def trainer(
    method: str,
    config: TrainConfig,
    reward: type[OfTokens] = ShareOfToken,
    reference: JanusPolicy | None = None,
) -> TokenPictures:
    return TokenPictures(config, random_janus(), find_method(method), reward(), PROMPTS, reference)


def weights(policy: JanusPolicy) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in policy.model.named_parameters()}


def test_learning_rate_schedules():
    def rates(schedule: str) -> list[float]:
        update = UpdateConfig(learning_rate=2.0, warmup_steps=2, schedule=schedule, final_ratio=0.1)
        return [learning_rate(step, 6, update) for step in range(1, 7)]

    assert rates("constant") == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert rates("linear") == pytest.approx([1.0, 2.0, 2.0, 1.55, 1.1, 0.65])
    assert rates("cosine") == pytest.approx(
        [1.0, 2.0, *(0.2 + 1.8 * (1 + math.cos(math.pi * quarter / 4)) / 2 for quarter in (0, 1, 2, 3))]
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_no_step_is_wasted(schedule: str, warmup: int):
    """A schedule down to 0 ends after the last step, not at it; the first one after warm-up gets all of the rate."""
    update = UpdateConfig(learning_rate=1.0, warmup_steps=warmup, schedule=schedule, final_ratio=0.0)
    rates = [learning_rate(step, 10, update) for step in range(1, 11)]
    assert rates[max(0, warmup - 1)] == rates[warmup] == 1.0 and min(rates) > 0
    assert learning_rate(11, 10, update) == pytest.approx(0)


@pytest.mark.parametrize(("method", "updates"), [("grpo", 1), ("cfg", 1), ("critical", 1), ("grpo", 2)])
def test_it_learns(method: str, updates: int):
    """The reward is the share of one token id: a wrong sign, mask or credit shows at once."""
    learner = trainer(method, settings(group_size=8, update_micro=16, learning_rate=1e-2, updates_per_rollout=updates))
    rewards = [learner.step(number)["reward"] for number in range(1, 26)]
    assert sum(rewards[-5:]) > 2 * sum(rewards[:5])


@pytest.mark.parametrize("method", [name for name in METHODS if name not in TRAINED])
def test_every_method_takes_a_finite_step(method: str):
    """And a second one with two updates, the latter off the sampling policy, where clipping and ratios matter."""
    updates = 1 + (METHODS[method].source == "current")
    learner = trainer(method, settings(group_size=4, updates_per_rollout=updates), Judged)
    assert learner.step(1)["grad_norm"] > 0
    learner.config = settings(group_size=4, updates_per_rollout=2)
    assert all(math.isfinite(value) for value in learner.step(2).values())


@pytest.mark.parametrize("method", TRAINED)
def test_the_step_before_anything_moved(method: str):
    """The first update compares equal policies: ratio 1, KL 0, and the sampler agrees with the trainer."""
    metrics = trainer(method, settings()).step(1)
    assert metrics["kl"] == 0 and metrics["clip_fraction"] == 0
    assert metrics["logprob_gap"] < 1e-4
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize("log_prob", ["cond", "cfg"])
@pytest.mark.parametrize("method", ["grpo", "gspo", "gspo-token", "dcpo"])
def test_the_old_policy_is_the_new_one_before_the_first_optimizer_step(
    method: str, log_prob: str, monkeypatch: pytest.MonkeyPatch
):
    """Its log-probabilities are those of a pass of its own, bit for bit, and so is the gradient of the first update."""
    learner = trainer(method, settings(update_micro=4, updates_per_rollout=2, log_prob=log_prob))
    before, olds = random_janus(), list[Tensor | None]()
    loss = type(learner.method).loss

    def watched(self, replay, rows, *rest):
        olds.append(rows.old)
        found = loss(self, replay, rows, *rest)
        if rows.old is None:
            other = loss(self, replay, dataclasses.replace(rows, old=replay.lp.detach()), *rest)
            pulls = [torch.autograd.grad(one.value, replay.lp, retain_graph=True)[0] for one in (found, other)]
            assert torch.equal(*pulls)
        return found

    monkeypatch.setattr(type(learner.method), "loss", watched)
    learner.step(1)
    rollout = learner.updated.rollout
    rows = rollout.row_condition, rollout.tokens.flatten(0, 1)
    assert olds[:2] == [None, None]
    assert torch.equal(torch.cat(olds[2:]), frozen_replay(before, *rows, 4, learner.distribution).lp)


@pytest.mark.parametrize("method", TRAINED)
def test_micro_batches_do_not_matter(method: str):
    """Equal up to float32 rounding; AdamW's first step would blow up the sign of a rounded zero, so it is SGD's."""
    ends = []
    for rollout_micro, update_micro in ((2, 6), (1, 2), (1, 4)):
        learner = trainer(method, settings(3, rollout_micro, update_micro, learning_rate=0.1))
        learner.optimizer = torch.optim.SGD(learner.policy.trainable_parameters())
        learner.step(1)
        ends.append((learner.updated.rollout.tokens, weights(learner.policy)))
    start = weights(random_janus())
    (tokens, whole), *others = ends
    assert max((whole[name] - start[name]).abs().max() for name in start) > 1e-3
    for other_tokens, parts in others:
        assert torch.equal(other_tokens, tokens)
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-6)


def test_only_the_language_model_moves_and_the_reference_stays():
    learner = trainer("grpo", settings())
    start = weights(learner.policy)
    kl = [learner.step(number)["kl"] for number in (1, 2)]
    moved = {name for name, value in weights(learner.policy).items() if not torch.equal(value, start[name])}
    assert moved and all(".language_model." in name for name in moved)
    assert all(torch.equal(value, start[name]) for name, value in weights(learner.reference).items())
    assert kl[0] == 0 and kl[1] > 0


@pytest.mark.parametrize("method", ["grpo", "critical"])
def test_the_kl_that_is_logged(method: str):
    """Against k3 of the scores, for a reference that is another model: over all tokens, and over the updated ones."""
    learner = trainer(method, settings(), reference=random_janus(seed=1).reference())
    before = random_janus()
    metrics = learner.step(1)
    rollout = learner.updated.rollout
    condition, tokens = rollout.row_condition, rollout.tokens.flatten(0, 1)
    there, here = (frozen_replay(policy, condition, tokens, 6).lp for policy in (learner.reference, before))
    difference = there - here
    wanted = difference.clamp(-20, 20).exp() - difference.clamp(-20, 20) - 1
    assert metrics["kl"] == pytest.approx(wanted.mean().item(), rel=1e-4)
    if method == "grpo":
        assert metrics["kl_updated"] == metrics["kl"]
    else:
        mask = learner.credit(rollout, UNKNOWN).mask.flatten(0, 1)
        assert metrics["kl_updated"] == pytest.approx(wanted[mask].mean().item(), rel=1e-4)


@pytest.mark.parametrize("method", ["spo", "tracker", "spo[credit=vppo]"])
def test_a_step_of_single_images(method: str):
    """Advantages come from the prompts' past, and nothing in a step divides by the spread of one image."""
    learner = trainer(method, settings(group_size=1))
    for number in (1, 2, 3):
        metrics = learner.step(number)
        assert all(math.isfinite(value) for value in metrics.values())
        assert not {"reward_std", "zero_variance"} & metrics.keys()
    assert metrics["grad_norm"] > 0


def test_without_a_reference_there_is_no_divergence():
    metrics = trainer("gtpo", settings()).step(1)
    assert "policy_loss" in metrics and not {"kl", "kl_updated"} & metrics.keys()


def test_equal_rewards_teach_nothing():
    learner = trainer("grpo", settings(), Indifferent)
    start = weights(learner.policy)
    metrics = learner.step(1)
    assert metrics["zero_variance"] == 1 and metrics["grad_norm"] == 0
    assert all(torch.equal(value, start[name]) for name, value in weights(learner.policy).items())


def poison(parameter: Tensor) -> None:
    with torch.no_grad():
        parameter.fill_(math.nan)


def test_a_loss_that_is_not_finite_stops_before_the_weights():
    learner = trainer("grpo", settings())
    poison(learner.reference.language_model.norm.weight)
    start = weights(learner.policy)
    with pytest.raises(DivergenceError, match="step 7: the loss is nan"):
        learner.step(7)
    assert all(torch.equal(value, start[name]) for name, value in weights(learner.policy).items())


def test_a_gradient_that_is_not_finite_stops_before_the_weights():
    learner = trainer("grpo", settings())
    learner.policy.language_model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    start = weights(learner.policy)
    with pytest.raises(DivergenceError, match="step 3: the gradient norm is"):
        learner.step(3)
    assert all(torch.equal(value, start[name]) for name, value in weights(learner.policy).items())


def test_weights_that_are_not_finite_are_never_a_step(monkeypatch: pytest.MonkeyPatch):
    """Nor what a run would save: the loss and the gradient are finite, and only the optimizer's step is not."""
    learner = trainer("grpo", settings())
    parameter = next(learner.policy.trainable_parameters())
    for value in (math.nan, math.inf, -math.inf):
        monkeypatch.setattr(learner.optimizer, "step", lambda value=value: parameter.data.view(-1)[-1:].fill_(value))
        with pytest.raises(DivergenceError, match="step 2: the optimizer's step left weights that are not finite"):
            apply_gradient(learner.optimizer, 1e-3, 1.0, 0.5, 2)
        parameter.data.view(-1)[-1:].fill_(0)


def test_a_score_that_is_not_finite_is_an_error_and_no_number():
    class Broken(Brightness):
        def score(self, images, prompts, metadata) -> Scores:
            return Scores(torch.full((len(images),), math.nan), {}, ("",) * len(images))

    learner = Trainer(settings(), random_janus(), find_method("grpo"), Broken(), PROMPTS)
    with pytest.raises(RewardError, match="nan"):
        learner.step(1)


@pytest.mark.usefixtures("brightness")
def test_a_run_that_diverges_says_so_and_exits_with_1(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    step = Trainer.step

    def poisoned(self: Trainer, number: int) -> dict[str, float]:
        if number == 3:
            poison(self.reference.language_model.norm.weight)
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", poisoned)
    assert main(train_words(model, tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert error.startswith("t2i-rl: step 3: the loss is nan") and error.count("\n") == 1
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]


@pytest.mark.usefixtures("brightness")
@pytest.mark.parametrize("value", [math.inf, 1e38])
def test_weights_of_the_last_step_that_are_of_no_use_are_not_saved(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
):
    """1e38 is finite, and what is computed with it is not."""
    step = torch.optim.AdamW.step

    def blown_up(self: torch.optim.AdamW) -> None:
        step(self)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if self.state[parameters[0]]["step"] == STEPS:
            for parameter in parameters:
                parameter.data.fill_(value)

    monkeypatch.setattr(torch.optim.AdamW, "step", blown_up)
    assert main(train_words(model, tmp_path / "run")) == 1
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept[-1] == "step-000004"
