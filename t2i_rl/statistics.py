"""Per-token statistics that can be measured while sampling, where both branches' logits are in hand.

All in float32, in nats, at temperature 1 and before top-k and top-p: they describe the model, not the
sampler's settings. `guided` is the classifier-free-guidance mixture `u + g * (c - u)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class StepLogits:
    """Logits of one block for every row; log-probabilities are computed when first asked for."""

    conditional: Float[Tensor, "R block V"]
    unconditional: Float[Tensor, "R block V"] | None
    guided: Float[Tensor, "R block V"]
    tokens: Int[Tensor, "R block"]

    @cached_property
    def log_conditional(self) -> Float[Tensor, "R block V"]:
        return self.conditional.log_softmax(-1)

    @cached_property
    def log_unconditional(self) -> Float[Tensor, "R block V"]:
        if self.unconditional is None:
            raise ValueError("this statistic needs the unconditional branch")
        return self.unconditional.log_softmax(-1)

    @cached_property
    def log_guided(self) -> Float[Tensor, "R block V"]:
        return self.guided.log_softmax(-1)

    def at_tokens(self, values: Float[Tensor, "R block V"]) -> Float[Tensor, "R block"]:
        return values.gather(-1, self.tokens[..., None])[..., 0]


def entropy(log_probs: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """Shannon entropy in nats; impossible tokens (log-probability -inf) contribute 0."""
    # 0 * -inf would be NaN; entr() would take a second logarithm of every element.
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    return -(log_probs.exp() * finite).sum(-1)


def kl_divergence(log_p: Float[Tensor, "... V"], log_q: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """KL(p || q), exact over the vocabulary; tokens impossible under p contribute 0."""
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0)).sum(-1)


STATISTICS: dict[str, Callable[[StepLogits], Float[Tensor, "R block"]]] = {
    "entropy": lambda step: entropy(step.log_guided),
    "kl_cond_uncond": lambda step: kl_divergence(step.log_conditional, step.log_unconditional),
    "logp_cond": lambda step: step.at_tokens(step.log_conditional),
    "logp_uncond": lambda step: step.at_tokens(step.log_unconditional),
    "logp_guided": lambda step: step.at_tokens(step.log_guided),
}

NEEDS_UNCONDITIONAL = frozenset({"kl_cond_uncond", "logp_uncond"})
