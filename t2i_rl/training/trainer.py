"""The training step: sample groups, decode them, score them, credit their tokens, update the policy.

Several processes share a step (`t2i_rl.parallel`): each samples, scores and updates on whole groups of its own, all
know what every group earned, and denominators and gradients are sums over all.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from models.policy import Policy
from rewards.reward import Reward
from t2i_rl.configuration.checks import check_settings
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.configuration.method_checks import check_layout
from t2i_rl.errors import UserError
from t2i_rl.methods.advantages import advantages
from t2i_rl.methods.baselines import PromptBaseline, Running
from t2i_rl.methods.credit.rule import Context, TokenCredit
from t2i_rl.methods.method import Method
from t2i_rl.methods.objectives import ImageRows, denominators
from t2i_rl.methods.reward_mixing import normalize_then_sum
from t2i_rl.parallel.ranks import ALONE, Ranks
from t2i_rl.parallel.weights import weights_of
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Groups, Rollout
from t2i_rl.rollout.log_probs import TokenDistribution, frozen_log_probs
from t2i_rl.rollout.measure import measure
from t2i_rl.rollout.passes import StatisticPasses
from t2i_rl.rollout.sampler import encode
from t2i_rl.training.clock import Clock
from t2i_rl.training.collecting import Collector
from t2i_rl.training.optimizer import adamw
from t2i_rl.training.scoring import verdict_name
from t2i_rl.training.update import apply_gradient, backward, gradients, learning_rate


class Trainer:
    """A policy, what scores it, and the state that a step changes: weights, optimizer, history.

    policy: what samples and measures.
    weights: of the policy and, where that is split among processes, of what the optimizer changes.

    reference: the frozen policy that the run began with, if a method needs it; a copy of the policy if not given.
    ranks: the processes that share the run.
    Raises UserError for a method that does not go with the settings or with the model.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        method: Method,
        reward: Reward,
        prompts: Sequence[Prompt],
        reference: Policy | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        check_settings(config, method)
        check_layout(method, policy.layout)
        self.config, self.policy, self.method, self.ranks = config, policy, method, ranks
        policy.gradient_checkpointing = config.update.gradient_checkpointing
        update, rollout = config.update, config.rollout
        self.distribution = TokenDistribution(update.log_prob, rollout.sampling, update.unconditional_gradient)
        names = {"entropy", *method.credit.statistics, self.distribution.sampler_statistic}
        if method.entropy_reward is not None:
            names.add("entropy_cond")
        self.passes = StatisticPasses(frozenset(names), rollout.sampling, config.contrast_prompt, rollout.micro_batch)
        self.collector = Collector(config, policy, method, reward, prompts, self.passes, ranks)
        self.history: dict[str, Running] = {}  # what each prompt has earned, for methods that remember it
        apart = config.parallel
        self.weights = weights_of(policy, ranks, apart.shard, apart.reshard, apart.offload)
        self.reference = self.weights.reference(reference or policy) if method.needs_reference else None
        self.optimizer = adamw(self.weights.trained.trainable_parameters(), update)

    def step(self, number: int) -> dict[str, float]:
        """One rollout and its update; returns the step's metrics (`t2i_rl.training.metrics_log`)."""
        clock = Clock()
        collected = self.collector.collect(number, clock)  # sample, decode, score
        groups = self.collector.choose(collected)
        with clock.phase("update"):  # credit, update
            # Where no group teaches anything, weights and optimizer stay as they are.
            updated = self.update(number, groups) if groups.records else {}
        clock.add("step", clock.total())
        metrics = {
            "step": number,
            **collected.metrics(),
            **updated,
            **{f"seconds/{phase}": spent for phase, spent in clock.seconds.items()},
            "images_per_second": collected.images / clock.seconds["step"],
        }
        if self.method.filter_zero_std != "off":
            metrics["groups_dropped"] = len(collected.rewards) - len(groups.records)
            metrics["groups_resampled"] = len(collected.rewards) - len(collected.rounds[0].records)
        if self.config.on_reward_failure == "drop_group":
            metrics["groups_lost"] = collected.lost
        return metrics

    def advantages(self, groups: Groups) -> Float[Tensor, "P G"]:
        """How good each image is, among its group or against what its prompt has earned before."""
        rewards, scale, bonus = groups.rewards, self.method.scale, self.method.entropy_reward
        if bonus is not None and self.reference is not None:
            if verdict_name(groups.parts) is None:
                raise UserError(
                    f"method {self.method.name} has an entropy reward, for images that are right, and "
                    f"{self.collector.reward.name} gives no strict verdict: set entropy_reward=none in the method"
                )
            rewards = bonus(rewards, *self.mean_entropies(groups.rollout, self.reference))
        if isinstance(scale, PromptBaseline):
            compared, self.history = scale(rewards, [record.text for record in groups.records], self.history)
            return compared
        if self.config.reward_order == "normalize-then-sum":
            weights = self.config.part_weights
            return normalize_then_sum([groups.parts[name] for name in weights], [*weights.values()])
        return advantages(rewards, scale)

    def mean_entropies(self, rollout: Rollout, reference: Policy) -> list[Float[Tensor, "P G"]]:
        """Mean entropy of each image's conditional predictions: of the policy that sampled it, of the reference.

        The rollout is of this process, the entropies are of all.
        """
        settings, name, own = self.config.rollout, "entropy_cond", len(rollout.prompts)
        compared = measure(reference, self.in_step(rollout), settings.sampling, [name], settings.micro_batch)
        found = rollout.statistics[name], compared[name][:own]
        return [self.ranks.gather(values.mean(-1)).cpu() for values in found]

    def in_step(self, rollout: Rollout) -> Rollout:
        """With as many groups as the process with the most has, so that all make the same calls; the last are idle."""
        own = len(rollout.prompts)
        if (idle := max(self.ranks.each(own)) - own) == 0:
            return rollout
        some = rollout if own else self.blank_group(rollout)
        return replace(some.take([*range(own), *[0] * idle]), idle=idle)

    def blank_group(self, like: Rollout) -> Rollout:
        """A group that nobody sampled."""
        condition = encode(self.policy, [self.collector.prompts[0].text], self.config.rollout.sampling.negative_prompt)
        shape = 1, *like.tokens.shape[1:]
        statistics = {name: values.new_zeros(shape) for name, values in like.statistics.items()}
        return Rollout(condition, like.tokens.new_zeros(shape), statistics, like.stop_tokens)

    def credit(self, rollout: Rollout, context: Context) -> TokenCredit:
        """Which tokens the method updates, and how much."""
        kind = self.method.credit.embeddings
        embeddings = None
        if kind is not None:
            with torch.no_grad():
                embeddings = self.policy.token_embeddings(rollout.tokens.flatten(0, 1), kind)
            embeddings = embeddings.unflatten(0, rollout.tokens.shape[:2])
        credit = self.method.credit(rollout, embeddings, self.policy.layout, context)
        return credit.within(rollout.valid) if rollout.idle else credit

    def update(self, number: int, groups: Groups) -> dict[str, float]:
        """The optimizer steps on one rollout."""
        settings, method, own = self.config.update, self.method, len(groups.mine)
        earned, rollout = self.advantages(groups), self.in_step(groups.rollout)
        earned = F.pad(earned[[*groups.mine]], (0, 0, 0, rollout.idle)).to(rollout.tokens.device)
        context = Context(
            earned, number, self.config.steps, self.config.seed, lambda values: self.ranks.gather(values[:own])
        )
        rows = rollout.tokens.flatten(0, 1), rollout.valid.flatten(0, 1)
        data = rollout.row_condition, rows[0], settings.micro_batch, self.distribution, rows[1]
        ref = None if self.reference is None else frozen_log_probs(self.reference, *data)
        old = frozen_log_probs(self.policy, *data) if settings.updates_per_rollout > 1 else None
        rate, trained = learning_rate(number, self.config.steps, settings), self.weights.trained
        credit = self.credit(rollout, context)
        gap = 0.0
        for repeat in range(settings.updates_per_rollout):
            if repeat and method.source == "current":
                now = self.passes.anew(self.policy, rollout, method.credit.statistics)
                credit = self.credit(now, context)
            shares = denominators(credit.first(own), method.objective).over(self.ranks)
            images = ImageRows.of(credit, earned, old, ref)
            sums, lp = backward(
                trained, self.reference, method, rollout, images, shares, self.distribution, settings.micro_batch
            )
            sums = self.ranks.totals(sums)
            if repeat == 0:
                sampled = rollout.statistics[self.distribution.sampler_statistic].flatten(0, 1)
                gap = max(self.ranks.each(((lp - sampled) * rows[1]).abs().max().item()))
            self.weights.add_up(gradients(self.optimizer))
            norm = apply_gradient(self.optimizer, rate, settings.max_grad_norm, sums["value"], number)
            self.weights.refresh()
        weights = self.ranks.totals({"weight": (credit.weight * credit.mask).sum().item()})["weight"]
        return {
            **{name: sums[name] for name in ("kl", "kl_updated") if name in sums},
            "clip_fraction": sums["clip_fraction"],
            "policy_loss": sums["policy"],
            "grad_norm": norm,
            "learning_rate": rate,
            "logprob_gap": gap,
            "updated_tokens": (shares.selected / shares.tokens).item(),
            "credit_weight": weights / max(1, shares.selected.item()),
        }
