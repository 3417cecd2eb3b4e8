"""Per-token statistics that can be measured while sampling, where both branches' logits are in hand.

All in float32 and nats. But for `logp_cfg` they are at temperature 1 and before top-k and top-p: they describe the
model, not the sampler's settings. `guided` is the classifier-free-guidance mixture `u + g * (c - u)`.
The names are those of `t2i_rl.rollout.names.StatisticName`, which can be read without torch.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.policy import Policy
from t2i_rl.errors import UserError
from t2i_rl.rollout.distribution import filtered
from t2i_rl.rollout.names import LIMIT, PLACE_BY_PLACE
from t2i_rl.rollout.sampling import Sampling

IMPOSSIBLE = -1e4  # a log-probability whose exponential is 0 in float32


@dataclass
class StepLogits:
    """Logits of one block for every row; log-probabilities are computed when first asked for.

    group_size: how many consecutive rows belong to one prompt.
    sampling: how the tokens were drawn from `guided`.
    """

    conditional: Float[Tensor, "R block V"]
    unconditional: Float[Tensor, "R block V"] | None
    guided: Float[Tensor, "R block V"]
    tokens: Int[Tensor, "R block"]
    group_size: int
    sampling: Sampling = field(default_factory=Sampling)
    found: dict[str, Tensor] = field(default_factory=dict, init=False)

    @property
    def log_conditional(self) -> Float[Tensor, "R block V"]:
        return self._log_probs("conditional", self.conditional)

    @property
    def log_unconditional(self) -> Float[Tensor, "R block V"]:
        if self.unconditional is None:
            raise ValueError("this statistic needs the unconditional branch")
        return self._log_probs("unconditional", self.unconditional)

    @property
    def log_guided(self) -> Float[Tensor, "R block V"]:
        return self._log_probs("guided", self.guided)

    def _log_probs(self, of: str, logits: Float[Tensor, "R block V"]) -> Float[Tensor, "R block V"]:
        """Once; a `cached_property` has a lock, which no compiled graph can hold."""
        if of not in self.found:
            self.found[of] = logits.log_softmax(-1)
        return self.found[of]

    @property
    def log_drawn(self) -> Float[Tensor, "R block V"]:
        return filtered(self.guided, self.sampling, self.tokens).log_softmax(-1)

    def at_tokens(self, values: Float[Tensor, "R block V"]) -> Float[Tensor, "R block"]:
        return values.gather(-1, self.tokens[..., None])[..., 0]


def entropy(log_probs: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """Shannon entropy in nats (arXiv:2509.22485, eq. 1); impossible tokens (log-probability -inf) contribute 0."""
    finite = log_probs.clamp(min=IMPOSSIBLE)  # 0 * -inf would be NaN
    return -(finite.exp() * finite).sum(-1)


def kl_divergence(log_p: Float[Tensor, "... V"], log_q: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """KL(p || q) in nats, exact over the vocabulary (arXiv:2605.29198, eq. 4, with the prompt and without).

    Tokens impossible under p contribute 0.
    """
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0)).sum(-1)


def js_divergence(log_p: Float[Tensor, "... V"], log_q: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """Jensen-Shannon divergence, exact over the vocabulary: the mean KL of both to their mixture; at most ln 2."""
    log_mixture = torch.logaddexp(log_p, log_q) - math.log(2)
    return (kl_divergence(log_p, log_mixture) + kl_divergence(log_q, log_mixture)) / 2


def kl_from_uniform(log_p: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """KL(uniform || p), exact over the vocabulary: how certain p is."""
    return -math.log(log_p.shape[-1]) - log_p.mean(-1)


def group_divergence(log_p: Float[Tensor, "P G block V"]) -> Float[Tensor, "P G block"]:
    """How far each member's prediction is from its group's: `sum_v exp(x) - x - 1`.

    x is the mean log-probability of the group minus the member's own, clamped to +-20.
    """
    difference = (log_p.mean(1, keepdim=True) - log_p).clamp(-LIMIT, LIMIT)
    return (difference.expm1() - difference).sum(-1)


STATISTICS: dict[str, Callable[[StepLogits], Float[Tensor, "R block"]]] = {
    "entropy": lambda step: entropy(step.log_guided),
    "kl_cond_uncond": lambda step: kl_divergence(step.log_conditional, step.log_unconditional),
    "logp_cond": lambda step: step.at_tokens(step.log_conditional),
    "logp_uncond": lambda step: step.at_tokens(step.log_unconditional),
    "logp_guided": lambda step: step.at_tokens(step.log_guided),
    # With which log-probability the token was drawn, and what the log-prob mode `cfg` scores.
    "logp_cfg": lambda step: step.at_tokens(step.log_drawn),
    "entropy_cond": lambda step: entropy(step.log_conditional),
    # What single rules of `t2i_rl.methods.credit` ask for.
    "js_cond_uncond": lambda step: js_divergence(step.log_conditional, step.log_unconditional),
    "kl_uniform": lambda step: kl_from_uniform(step.log_conditional),
    "logit_cond": lambda step: step.at_tokens(step.conditional),
    "group_divergence": lambda step: group_divergence(step.log_conditional.unflatten(0, (-1, step.group_size))).flatten(
        0, 1
    ),
}


def check_ends(policy: Policy, names: Collection[str]) -> None:
    """Raises UserError for a statistic that needs rows of one length, of a policy whose rows end where they end."""
    if policy.stop_tokens and (shared := PLACE_BY_PLACE & {*names}):
        raise UserError(
            f"{min(shared)} compares the samples of a group token by token, and this model's answers differ in length: "
            "choose a method that does not ask for it"
        )
