"""The training step: sample groups, decode them, score them, credit their tokens, update the policy.

Several processes share a step (`t2i_rl.parallel`): each samples, scores and updates on whole groups of its own, all
know what every group earned, and denominators and gradients are sums over all.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from models.policy import CompilesLayers, Policy
from rewards.reward import Reward
from t2i_rl.configuration.answer_checks import check_samples
from t2i_rl.configuration.asking import asking_of, contrast_prompt
from t2i_rl.configuration.checks import check_settings
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.configuration.method_checks import check_layout
from t2i_rl.errors import UserError
from t2i_rl.methods.advantages import advantages
from t2i_rl.methods.baselines import PromptBaseline, Running
from t2i_rl.methods.credit.rule import Context, TokenCredit
from t2i_rl.methods.method import Method
from t2i_rl.methods.objectives import Denominators, ImageRows, denominators
from t2i_rl.methods.reward_mixing import normalize_then_sum
from t2i_rl.parallel.ranks import ALONE, Ranks
from t2i_rl.parallel.weights import weights_of
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Groups, Rollout
from t2i_rl.rollout.log_probs import TokenDistribution, frozen_replay
from t2i_rl.rollout.passes import StatisticPasses
from t2i_rl.rollout.steps import kept
from t2i_rl.rollout.words import short_enough
from t2i_rl.tokenmaps import row_mean
from t2i_rl.training.clock import Clock
from t2i_rl.training.collecting import Collector
from t2i_rl.training.idle import IdleGroups
from t2i_rl.training.optimizer import adamw
from t2i_rl.training.reference import ENTROPY, LOG_PROB, ReferencePass
from t2i_rl.training.scoring import verdict_name
from t2i_rl.training.update import apply_gradient, backward, even_parts, gradients, learning_rate


class Trainer:
    """A policy, what scores it, and the state that a step changes: weights, optimizer, history.

    policy: what samples and measures.
    weights: of the policy and, where that is split among processes, of what the optimizer changes.

    prompts: of which questions that are too long are never asked.
    reference: what the run began with, kept as a frozen copy if a method needs it; the policy itself if not given.
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
        check_samples(config, method, bool(policy.stop_tokens))
        check_layout(method, policy.layout)
        self.config, self.policy, self.method, self.ranks = config, policy, method, ranks
        update, rollout = config.update, config.rollout
        policy.gradient_checkpointing = update.gradient_checkpointing
        if isinstance(policy, CompilesLayers):
            policy.compiled = update.compile
        elif update.compile:
            raise UserError(f"update.compile: the layers of {config.model} cannot be compiled: leave it out")
        decoding = kept(policy)
        decoding.capture, decoding.compiled = rollout.capture, rollout.compile
        self.distribution = TokenDistribution(update.log_prob, rollout.sampling, update.unconditional_gradient)
        names = {"entropy", *method.credit.statistics, self.distribution.sampler_statistic}
        if method.entropy_reward is not None:
            names.add("entropy_cond")
        answers = bool(policy.stop_tokens)
        asking, contrast = asking_of(config, method, answers), None if answers else contrast_prompt(config.contrast)
        most, self.prompts = config.question.max_prompt_tokens, prompts
        asked = short_enough(policy, prompts, asking, most) if answers else prompts
        self.passes = StatisticPasses(frozenset(names), rollout.sampling, contrast, rollout.prompts_at_once)
        self.weights = weights_of(policy, ranks, config.parallel)
        self.reference = self.weights.reference(reference or policy) if method.needs_reference else None
        self.idle = IdleGroups(ranks, policy, asking, asked[0])
        compared = None
        if self.reference is not None:
            compared = ReferencePass(self.reference, method, self.distribution, update.micro_batch, self.idle)
        self.collector = Collector(config, policy, method, reward, asked, asking, self.passes, compared, ranks)
        self.history: dict[str, Running] = {}  # what each prompt has earned, for methods that remember it
        self.optimizer = adamw(self.weights.trained.trainable_parameters(), update)

    @property
    def limit(self) -> int | None:
        """Tokens that an answer may have; pictures have all theirs."""
        return min(self.policy.layout.tokens, self.config.question.max_tokens) if self.policy.stop_tokens else None

    @property
    def left_out(self) -> int:
        """Questions that are too long."""
        return len(self.prompts) - len(self.collector.prompts)

    @property
    def noun(self) -> str:
        """What is sampled."""
        return "answers" if self.policy.stop_tokens else "images"

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
            f"{self.noun}_per_second": collected.images / clock.seconds["step"],
        }
        if self.method.filter_zero_std != "off":
            metrics["groups_dropped"] = len(collected.rewards) - len(groups.records)
            metrics["groups_resampled"] = len(collected.rewards) - len(collected.rounds[0].records)
        if self.config.on_reward_failure == "drop_group":
            metrics |= {"groups_lost": collected.lost, "groups_scored": len(collected.rewards)}
        return metrics

    def advantages(self, groups: Groups) -> Float[Tensor, "P G"]:
        """How good each image is, among its group or against what its prompt has earned before."""
        rewards, scale, bonus = groups.rewards, self.method.scale, self.method.entropy_reward
        if bonus is not None:
            if verdict_name(groups.parts) is None:
                raise UserError(
                    f"method {self.method.name} has an entropy reward, for images that are right, and "
                    f"{self.collector.reward.name} gives no strict verdict: set entropy_reward=none in the method"
                )
            rewards = bonus(rewards, *(self.entropies(groups, name) for name in ("entropy_cond", ENTROPY)))
        if isinstance(scale, PromptBaseline):
            compared, self.history = scale(rewards, [record.key for record in groups.records], self.history)
            return compared
        if self.config.reward_order == "normalize-then-sum":
            weights = self.config.part_weights
            return normalize_then_sum([groups.parts[name] for name in weights], [*weights.values()])
        return advantages(rewards, scale)

    def everyone(self, busy: int, values: Float[Tensor, "P ..."]) -> Float[Tensor, "Q ..."]:
        """The values of all processes' busy groups; of answers as wide as the widest, with NaN behind the others."""
        widest = max(self.ranks.each(values.shape[-1]))
        return self.ranks.gather(F.pad(values[:busy], (0, widest - values.shape[-1]), value=torch.nan))

    def entropies(self, groups: Groups, name: str) -> Float[Tensor, "P G"]:
        """The mean over each sample's tokens, of the groups of all processes."""
        found = self.ranks.gather(row_mean(groups.rollout.statistics[name], groups.rollout.valid)[..., 0]).cpu()
        places = torch.tensor([*chain.from_iterable(self.ranks.each([*groups.mine]))], dtype=torch.long)
        return torch.empty_like(found).index_copy_(0, places, found)  # what is gathered is in the processes' order

    def credit(self, rollout: Rollout, context: Context) -> TokenCredit:
        """Which tokens the method updates, and how much."""
        kind = self.method.credit.embeddings
        embeddings = None
        if kind is not None:
            with torch.no_grad():
                embeddings = self.policy.token_embeddings(rollout.tokens.flatten(0, 1), kind)
            embeddings = embeddings.unflatten(0, rollout.tokens.shape[:2])
        found = self.method.credit(rollout, embeddings, self.policy.layout, context)
        return TokenCredit.checked(found, rollout, self.method.name).within(rollout.valid)

    def scored(self, rollout: Rollout) -> Float[Tensor, "R N"]:
        """Log-probabilities under the policy that sampled, before any weight moves."""
        rows, size = (rollout.row_condition, rollout.tokens.flatten(0, 1)), self.config.update.micro_batch
        return frozen_replay(self.weights.trained, *rows, size, self.distribution, valid=rollout.row_valid).lp

    def update(self, number: int, groups: Groups) -> dict[str, float]:
        """The optimizer steps on one rollout."""
        settings, method = self.config.update, self.method
        earned, rollout = self.advantages(groups), self.idle.fill(groups.rollout)
        earned = F.pad(earned[[*groups.mine]], (0, 0, 0, rollout.idle)).to(rollout.tokens.device)
        rate = learning_rate(number, self.config.steps, settings)
        parts = even_parts(len(rollout.prompts), settings.mini_batches)
        old = [self.scored(rollout.part(part)) if len(parts) > 1 else None for part in parts]
        credits, gap = dict[int, TokenCredit](), 0.0
        for turn in range(settings.updates_per_rollout * len(parts)):
            place, first = turn % len(parts), turn < len(parts)
            here, images = rollout.part(parts[place]), earned[parts[place]]
            busy = len(here.prompts) - here.idle
            sampled = here.statistics[self.distribution.sampler_statistic].flatten(0, 1)
            if turn and method.source == "current":
                here = self.passes.anew(self.policy, here, method.credit.statistics)
            if first or method.source == "current":
                everyone = partial(self.everyone, busy)
                context = Context(images, number, self.config.steps, self.config.seed, everyone)
                credits[place] = self.credit(here, context)
            credit = credits[place]
            shares = denominators(credit.first(busy), method.objective, here.valid[:busy], self.limit).over(self.ranks)
            rows = ImageRows.of(credit, images, old[place], here.statistics.get(LOG_PROB))
            sums, lp = self.backward(here, rows, shares)
            sums = self.ranks.totals(sums)
            if first:
                # Where it was not scored before: no weight has moved yet, lp is that of the policy that sampled.
                was = lp if (before := old[place]) is None else before
                old[place] = was
                off = (was - sampled) * here.valid.flatten(0, 1)
                gap = max(gap, *self.ranks.each(off.abs().max().item()))
            self.weights.add_up(gradients(self.optimizer, self.ranks))
            norm = apply_gradient(self.optimizer, rate, settings.max_grad_norm, sums["value"], number, self.ranks)
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

    def backward(
        self, rollout: Rollout, images: ImageRows, shares: Denominators
    ) -> tuple[dict[str, float], Float[Tensor, "R N"]]:
        """The gradient of one update: `t2i_rl.training.update.backward` with what the trainer has."""
        policies, micro_batch = (self.weights.trained, self.reference), self.config.update.micro_batch
        return backward(*policies, self.method, rollout, images, shares, self.distribution, micro_batch)
