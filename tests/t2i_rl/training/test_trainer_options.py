"""What a step computes under settings that few runs have, on the random model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from numpy import ndarray
from torch import Tensor

from models.janus.policy import JanusPolicy
from rewards.reward import Scores
from t2i_rl.configuration.config import RolloutConfig, TrainConfig, UpdateConfig
from t2i_rl.errors import UserError
from t2i_rl.methods.advantages import advantages
from t2i_rl.methods.catalogue import METHODS, find_method
from t2i_rl.methods.credit.guidance import GuidanceContrast
from t2i_rl.methods.credit.rule import Context, TokenCredit
from t2i_rl.methods.entropy_reward import EntropyReward
from t2i_rl.methods.method import Method
from t2i_rl.methods.objectives import Objective
from t2i_rl.methods.reward_mixing import normalize_then_sum
from t2i_rl.parallel.ranks import Ranks
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.statistics import entropy, kl_divergence
from t2i_rl.training.trainer import Trainer
from tests.conftest import random_janus
from tests.models.small_star import random_star
from tests.t2i_rl.small_runs import OfTokens, TokenPictures

PROMPTS = [Prompt("a photo of a ring"), Prompt("a photo of two crosses and a red square")]
SAMPLING = Sampling(guidance_scale=2.0)
PLAIN = Method("plain", "no KL")


class HighCodes(OfTokens):
    """Rewards high codes, but for prompts that say `circle`: their images are all alike to it."""

    def total(self, tokens: Tensor, prompt: str) -> float:
        return 0.5 if "circle" in prompt else tokens.mean().item() / 32


class Judged(HighCodes):
    """With two parts."""

    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        scores = super().score(images, prompts, metadata)
        noise = torch.tensor([(100 * float(image.sum())) ** 2 % 7.0 for image in images])
        return replace(scores, parts={"strict": (scores.total > 0.5).float(), "noise": noise})


class Verdicts(OfTokens):
    """All images of dull prompts are right, about half of the others. strict: the part with the verdict."""

    def __init__(self, strict: str = "strict") -> None:
        self.strict = strict

    def total(self, tokens: Tensor, prompt: str) -> float:
        return float("circle" in prompt or tokens.sum().item() % 2)

    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        scores = super().score(images, prompts, metadata)
        return replace(scores, parts={self.strict: scores.total})


def settings(sampling: Sampling = SAMPLING, **more: object) -> TrainConfig:
    update = {name: more.pop(name) for name in list(more) if name in UpdateConfig.__dataclass_fields__}
    rollout = {name: more.pop(name) for name in list(more) if name in RolloutConfig.__dataclass_fields__}
    return TrainConfig(
        steps=30,
        rollout=RolloutConfig(
            **{"prompts_per_step": 2, "group_size": 4, "micro_batch": 2, **rollout}, sampling=sampling
        ),
        update=UpdateConfig(**{"learning_rate": 1e-3, "schedule": "constant", "micro_batch": 3, **update}),
        **more,
    )


def trainer(
    method: Method,
    config: TrainConfig,
    reward: OfTokens | None = None,
    prompts: Sequence[Prompt] = PROMPTS,
    kind: type[TokenPictures] = TokenPictures,
    reference: JanusPolicy | None = None,
) -> TokenPictures:
    return kind(config, random_janus(), method, reward or HighCodes(), prompts, reference)


def another() -> JanusPolicy:
    """A reference that is not where the policy begins."""
    return random_janus(seed=1).reference()


def weights(policy: JanusPolicy) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.trainable_parameters()])


def branches(policy: JanusPolicy, rollout: Rollout, negative: str | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all codes under both branches, `[P, G, N, V]`."""
    condition = policy.encode(rollout.prompts, None if negative is None else [negative] * len(rollout.prompts))
    hidden = policy.hidden(condition.repeat(rollout.group_size), rollout.tokens.flatten(0, 1), 2)
    return tuple(policy.head(hidden).detach().log_softmax(-1).unflatten(1, rollout.tokens.shape[:2]))


# Log-prob mode


@pytest.mark.parametrize("sampling", [SAMPLING, Sampling(3.0, 0.8, 20, 0.9)], ids=str)
@pytest.mark.parametrize("gradient", [True, False])
def test_mode_cfg_replays_what_was_drawn(sampling: Sampling, gradient: bool):
    config = settings(sampling, log_prob="cfg", unconditional_gradient=gradient, updates_per_rollout=2)
    learner = trainer(METHODS["grpo"], config)
    metrics = learner.step(1)
    assert metrics["logprob_gap"] < 1e-3
    assert metrics["grad_norm"] > 0
    drawn = learner.updated.rollout.statistics
    assert "logp_cfg" in drawn and "logp_cond" not in drawn


def test_mode_cfg_learns():
    learner = trainer(PLAIN, settings(log_prob="cfg", learning_rate=1e-2, group_size=8, micro_batch=16))
    rewards = [learner.step(number)["reward"] for number in range(1, 21)]
    assert sum(rewards[-5:]) > 1.2 * sum(rewards[:5])


def test_the_modes_agree_where_guidance_is_one():
    ends = []
    for mode in ("cond", "cfg"):
        learner = trainer(METHODS["critical"], settings(Sampling(guidance_scale=1.0), log_prob=mode))
        learner.step(1)
        ends.append(weights(learner.policy))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


def test_layers_that_cannot_be_compiled_are_refused():
    config = replace(settings(compile=True), model="star-256")
    with pytest.raises(UserError, match="the layers of star-256 cannot be compiled"):
        TokenPictures(config, random_star(), METHODS["grpo"], HighCodes(), PROMPTS)


# Exact KL and entropy


def test_the_exact_kl_that_is_logged():
    learner = trainer(METHODS["grpo-full-kl"], settings(), reference=another())
    before = random_janus()
    metrics = learner.step(1)
    rollout = learner.updated.rollout
    wanted = kl_divergence(branches(before, rollout)[0], branches(learner.reference, rollout)[0]).mean()
    assert metrics["kl"] == pytest.approx(wanted.item(), rel=1e-4)
    assert trainer(METHODS["grpo-full-kl"], settings()).step(1)["kl"] == 0


@pytest.mark.parametrize("bonus", [1.0, -1.0])
def test_the_entropy_bonus_moves_the_entropy(bonus: float):
    """Where all rewards are equal, nothing else moves the policy."""
    method = replace(PLAIN, objective=Objective(entropy_bonus=bonus))
    dull = [Prompt("a photo of a circle"), Prompt("a photo of two circles")]
    learner = trainer(method, settings(), prompts=dull)
    policy = random_janus()
    learner.step(1)
    first = learner.updated.rollout
    learner.step(2)
    before, after = (entropy(branches(model, first)[0]).mean() for model in (policy, learner.policy))
    assert (after - before) * bonus > 0.01


# Groups of equal rewards

DULL = [Prompt("a photo of a circle")]


def test_a_dropped_group_leaves_no_trace():
    """The step is the one that the other group would have made alone, denominators and KL included."""
    method = replace(METHODS["cfg"], filter_zero_std="drop", objective=Objective(beta=0.05, denominator="tokens"))
    ends = []
    for prompts in ([PROMPTS[0], *DULL], [PROMPTS[0]]):
        config = settings(prompts_per_step=len(prompts), learning_rate=0.1)
        learner = trainer(method, config, prompts=prompts, reference=another())
        learner.optimizer = torch.optim.SGD(learner.policy.trainable_parameters())
        metrics = learner.step(1)
        assert metrics["groups_dropped"] == len(prompts) - 1 and metrics["groups_resampled"] == 0
        assert metrics["zero_variance"] == (len(prompts) - 1) / len(prompts)
        ends.append(weights(learner.policy))
    assert (ends[0] - weights(random_janus())).abs().max() > 1e-4
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("filtering", "sampled"), [("drop", 1), ("resample", 4)])
def test_where_no_group_teaches_nothing_moves(filtering: str, sampled: int):
    method = replace(METHODS["grpo"], filter_zero_std=filtering)
    rounds = {"resample_rounds": 3} if filtering == "resample" else {}
    learner = trainer(method, settings(prompts_per_step=1, **rounds), prompts=DULL)
    metrics = learner.step(1)
    assert torch.equal(weights(learner.policy), weights(random_janus()))
    assert metrics["groups_dropped"] == len(learner.collector.collected.rounds) == sampled
    assert "kl" not in metrics and metrics["reward"] == 0.5


MIXED = [Prompt(f"a photo of {number} {shape}") for shape in ("circle", "ring") for number in ("one", "two", "three")]


def test_further_prompts_are_sampled_until_the_batch_is_full():
    def stepped(resample_rounds: int = 9) -> tuple[TokenPictures, dict[str, float]]:
        learner = trainer(METHODS["dapo"], settings(prompts_per_step=4, resample_rounds=resample_rounds), prompts=MIXED)
        return learner, learner.step(1)

    learner, metrics = stepped()
    updated = learner.updated
    assert len(updated.records) == 4 and not any("circle" in record.text for record in updated.records)
    assert updated.rollout.prompts == tuple(record.text for record in updated.records)
    first = sum("circle" in record.text for record in learner.collector.collected.rounds[0].records)
    assert (
        0
        < first
        == len(learner.collector.collected.rounds[1].records)
        <= metrics["groups_resampled"]
        == metrics["groups_dropped"]
    )
    # A prompt that comes again shows other images, and the same step is the same once more.
    seen = updated.rollout.tokens.flatten(1)
    assert len(seen.unique(dim=0)) == 4 > len({record.text for record in updated.records})
    again, _ = stepped()
    assert torch.equal(again.updated.rollout.tokens, updated.rollout.tokens)
    assert torch.equal(weights(again.policy), weights(learner.policy))
    fewer, metrics = stepped(resample_rounds=1)
    assert (
        len(fewer.collector.collected.rounds) == 2 and metrics["groups_dropped"] >= metrics["groups_resampled"] == first
    )


# Several rewards


SUM = "shapes:0.5 shapes-official:2"


class Sum(Judged):
    """The parts of such a sum, its members' own totals."""

    def score(self, images: Sequence[ndarray], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        scores = super().score(images, prompts, metadata)
        members = {"shapes": scores.parts["noise"], "shapes-official": scores.total}
        return replace(scores, total=0.5 * members["shapes"] + 2 * members["shapes-official"], parts=members)


def earned(learner: TokenPictures) -> Tensor:
    return learner.advantages(learner.updated)


def test_several_rewards():
    weighing = {"strict": 0.5, "noise": 0.25, "total": 2.0}
    learner = trainer(METHODS["grpo"], settings(reward_weights=weighing), Judged())
    metrics = learner.step(1)
    groups = learner.updated
    rewards = sum(weight * groups.parts[name] for name, weight in weighing.items())
    torch.testing.assert_close(groups.rewards, rewards)
    torch.testing.assert_close(earned(learner), advantages(rewards))
    assert metrics["reward"] == pytest.approx(rewards.mean().item())
    assert metrics["reward/total"] == pytest.approx(groups.parts["total"].mean().item())

    config = settings(reward_weights=weighing, reward_order="normalize-then-sum")
    other = trainer(METHODS["grpo"], config, Judged())
    other.step(1)
    parts = [other.updated.parts[name] for name in weighing]
    torch.testing.assert_close(earned(other), normalize_then_sum(parts, list(weighing.values())))
    assert not torch.allclose(earned(other), earned(learner))


def test_the_weights_of_a_sum_are_those_of_the_normalized_rewards():
    ends = []
    for more in ({}, {"reward_weights": {"shapes": 0.5, "shapes-official": 2.0}}):
        learner = trainer(METHODS["grpo"], settings(reward=SUM, reward_order="normalize-then-sum", **more), Sum())
        learner.step(1)
        groups = learner.updated
        members = [groups.parts["shapes"], groups.parts["shapes-official"]]
        torch.testing.assert_close(earned(learner), normalize_then_sum(members, [0.5, 2.0]))
        torch.testing.assert_close(groups.rewards, 0.5 * members[0] + 2 * members[1])
        ends.append(weights(learner.policy))
    assert torch.equal(*ends)


def test_an_unknown_part_is_refused_in_one_sentence():
    learner = trainer(METHODS["grpo"], settings(reward_weights={"beauty": 1.0}), Judged())
    with pytest.raises(UserError, match="'beauty', but brightness gives strict, noise, total"):
        learner.step(1)


@pytest.mark.parametrize("on_zero_std", ["skip", "released"])
@pytest.mark.parametrize(("method", "strict"), [("cfg-released", "strict"), ("stage", "shapes/strict")])
def test_the_entropy_reward_of_verifiable_rewards(method: str, strict: str, on_zero_std: str):
    bonus = EntropyReward(on_zero_std=on_zero_std)
    asked, prompts = replace(METHODS[method], entropy_reward=bonus), [PROMPTS[0], *DULL]
    learner = trainer(asked, settings(), Verdicts(strict), prompts, reference=another())
    policy = random_janus()
    assert learner.step(1)["grad_norm"] > 0
    groups = learner.updated
    own, other = (entropy(branches(m, groups.rollout)[0]).mean(-1) for m in (policy, learner.reference))
    wanted = advantages(bonus(groups.rewards, own, other))
    torch.testing.assert_close(earned(learner), wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(wanted, advantages(groups.rewards))
    dull = groups.records.index(DULL[0])
    assert wanted[dull].any() == (on_zero_std == "released")

    plain = trainer(METHODS[method], settings())
    with pytest.raises(UserError, match=f"method {method} has an entropy reward.*brightness gives no strict verdict"):
        plain.step(1)


# What the prompt is compared with


class Crediting(TokenPictures):
    def credit(self, rollout: Rollout, context: Context) -> TokenCredit:
        self.seen = [*getattr(self, "seen", []), (rollout.statistics, weights(self.policy))]
        return super().credit(rollout, context)


@pytest.mark.parametrize("contrast", [None, "a blue ring"])
def test_the_source_of_the_statistics(contrast: str | None):
    config = settings(updates_per_rollout=3, contrast=contrast and f"text:{contrast}")
    fixed = trainer(METHODS["cfg"], config, kind=Crediting)
    fixed.step(1)
    assert len(fixed.seen) == 1
    learner = trainer(find_method("cfg[source=current]"), config, kind=Crediting)
    learner.step(1)
    assert len(learner.seen) == 3
    policy = random_janus()
    for statistics, moved in learner.seen:
        torch.nn.utils.vector_to_parameters(moved, policy.trainable_parameters())
        wanted = kl_divergence(*branches(policy, learner.updated.rollout, contrast))
        torch.testing.assert_close(statistics["kl_cond_uncond"], wanted, rtol=1e-3, atol=1e-4)
    first, *_, last = (statistics["kl_cond_uncond"] for statistics, _ in learner.seen)
    assert not torch.allclose(first, last, rtol=1e-2)


@pytest.mark.parametrize("statistic", ["kl_exact", "k3"])
def test_guidance_and_contrast_together_and_apart(statistic: str):
    method = replace(METHODS["cfg"], credit=GuidanceContrast(statistic))

    def rollout(negative: str, contrast: str | None) -> Rollout:
        config = settings(replace(SAMPLING, negative_prompt=negative), contrast=contrast)
        learner = trainer(method, config)
        learner.step(1)
        return learner.updated.rollout

    name = "kl_cond_uncond" if statistic == "kl_exact" else "logp_uncond"
    null, together, apart, back = (
        rollout(*pair)
        for pair in (("", None), ("a blue ring", None), ("", "text:a blue ring"), ("a blue ring", "null"))
    )
    assert torch.equal(null.tokens, apart.tokens) and torch.equal(together.tokens, back.tokens)
    assert not torch.equal(null.tokens, together.tokens)
    for found, negative in ((null, None), (together, "a blue ring"), (apart, "a blue ring"), (back, None)):
        conditional, other = branches(random_janus(), found, negative)
        sampled = other.gather(-1, found.tokens[..., None])[..., 0]
        wanted = kl_divergence(conditional, other) if statistic == "kl_exact" else sampled
        torch.testing.assert_close(found.statistics[name], wanted, rtol=1e-3, atol=1e-4)


def test_entropies_of_several_processes_stand_beside_their_groups():
    class OfTwo(Ranks):
        def each(self, value: list[int]) -> list[list[int]]:
            return [value, [0]]

        def gather(self, rows: Tensor) -> Tensor:
            return torch.cat([rows, torch.full((1, 2), 9.0)])

    entropy = torch.tensor([[[1.0, 3.0], [2.0, 4.0]], [[5.0, 5.0], [6.0, 8.0]]])
    rollout = SimpleNamespace(statistics={"entropy": entropy}, valid=torch.ones(2, 2, 2, dtype=torch.bool))
    found = Trainer.entropies(SimpleNamespace(ranks=OfTwo()), SimpleNamespace(mine=(1, 2), rollout=rollout), "entropy")
    assert found.tolist() == [[9, 9], [2, 3], [5, 7]]
