"""A training step with what released trainers do needlessly, restated: the same loss, each waste a switch.

- `growing-cache`: sampling concatenates the cache anew in every layer of every step;
- `statistics-pass`: what the credit looks at is measured in a second pass of both branches, after sampling;
- `old-pass`: the policy that sampled scores the tokens again, though nothing has moved and the ratio is 1;
- `both-branches`: policy and reference run the null branch in every scoring pass, and nobody reads it;
- `whole-logits`: logits and log-softmax of all tokens and codes at once, kept for the backward pass, which runs through
  tokens without credit too;
- `looks`: every metric is fetched from the device in every micro-batch.

The reference is asked inside the update, micro-batch by micro-batch, after the rewards.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.policy import Condition, Policy
from t2i_rl.methods.method import Method
from t2i_rl.methods.objectives import Denominators, ImageRows
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.log_probs import Replay, log_probs, micro_batches
from t2i_rl.rollout.measure import measure
from t2i_rl.speed.arms import Work, eager, growing
from t2i_rl.speed.settings import Waste
from t2i_rl.training.collecting import Collector
from t2i_rl.training.trainer import Trainer


def scored(
    policy: Policy, condition: Condition, tokens: Int[Tensor, "R N"], wastes: frozenset[Waste]
) -> Float[Tensor, "R N"]:
    """Conditional log-probability of every token."""
    if not wastes & {"both-branches", "whole-logits"}:
        return log_probs(policy, condition, tokens)
    hidden = policy.hidden(condition, tokens, branches=2 if "both-branches" in wastes else 1)
    states = hidden if "whole-logits" in wastes else hidden[:1]
    parts = policy.head(states).log_softmax(-1)
    return parts[0].gather(-1, tokens[..., None])[..., 0]


def backward(
    policy: Policy,
    reference: Policy | None,
    method: Method,
    rollout: Rollout,
    images: ImageRows,
    shares: Denominators,
    micro_batch: int,
    wastes: frozenset[Waste],
) -> tuple[dict[str, float], Float[Tensor, "R N"]]:
    """As `t2i_rl.training.update.backward`, with the wastes."""
    condition, tokens = rollout.row_condition, rollout.tokens.flatten(0, 1)
    sums: dict[str, Tensor] = {}
    found = []
    for part in micro_batches(len(tokens), micro_batch):
        rows = condition.take(part), tokens[part]
        given = images.take(part)
        with torch.no_grad():
            if reference is not None:
                given = replace(given, ref=scored(reference, *rows, wastes))
            if "old-pass" in wastes:
                given = replace(given, old=scored(policy, *rows, wastes))
        lp = scored(policy, *rows, wastes)
        loss = method.loss(Replay(lp), given, shares, policy.layout)
        loss.value.backward()
        for name, value in vars(loss).items():
            if value is not None:
                number = value.detach().double()
                sums[name] = sums.get(name, 0) + (number.item() if "looks" in wastes else number)
        found.append(lp.detach())
    return {name: float(value) for name, value in sums.items()}, torch.cat(found)


class WastefulCollector(Collector):
    """Samples with them. wastes: to be set before the first step."""

    wastes: frozenset[Waste] = frozenset()

    def sample(self, step: int, condition: Condition, occurrence: Sequence[int]) -> Rollout:
        if not self.wastes & {"growing-cache", "statistics-pass"}:
            return super().sample(step, condition, occurrence)
        settings, policy = self.config.rollout, self.policy
        scale = settings.sampling.guidance_scale or policy.default_guidance
        work = Work(policy, condition, settings.group_size, policy.layout.tokens, scale, seed=step)
        sample = growing if "growing-cache" in self.wastes else eager
        rollout = Rollout(condition, sample(work).unflatten(0, (len(condition), settings.group_size)), {})
        names = self.passes.while_sampling
        found = measure(policy, rollout, settings.sampling, names, settings.micro_batch)
        return replace(rollout, statistics=found)


class WastefulTrainer(Trainer):
    """Its steps are ours but for the wastes."""

    def __init__(self, wastes: frozenset[Waste], *given: Any) -> None:
        super().__init__(*given)
        self.wastes, ours = wastes, vars(self.collector) | {"reference": None}
        self.collector = WastefulCollector(**ours)
        self.collector.wastes = wastes

    def backward(
        self, rollout: Rollout, images: ImageRows, shares: Denominators
    ) -> tuple[dict[str, float], Float[Tensor, "R N"]]:
        policies, micro_batch = (self.policy, self.reference), self.config.update.micro_batch
        return backward(*policies, self.method, rollout, images, shares, micro_batch, self.wastes)
