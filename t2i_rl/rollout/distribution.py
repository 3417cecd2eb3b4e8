"""The distribution that tokens are drawn from: guidance mixes two branches, temperature, top-k and top-p shape it.

The sampler draws from it; the trainer scores under it where the log-prob mode says so (`t2i_rl.rollout.log_probs`).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.policy import Policy
from t2i_rl.rollout.sampling import Sampling


def mix(
    conditional: Float[Tensor, "... V"], unconditional: Float[Tensor, "... V"] | None, scale: Tensor | float
) -> Float[Tensor, "... V"]:
    """Classifier-free guidance (arXiv:2605.29198, eq. 3); the conditional logits as they are without another branch."""
    return conditional if unconditional is None else unconditional + scale * (conditional - unconditional)


def filtered(
    logits: Float[Tensor, "... V"], sampling: Sampling, keep: Int[Tensor, "..."] | None = None
) -> Float[Tensor, "... V"]:
    """Temperature, then top-k (ties kept), then top-p (the token that crosses the threshold is kept).

    keep: a token that stays whatever its rank. One that was drawn before an update has to keep a probability after it.
    """
    tempered = logits = logits / sampling.temperature
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities > sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    if keep is None or logits is tempered:
        return logits
    return logits.scatter(-1, keep[..., None], tempered.gather(-1, keep[..., None]))


def block_guidance(policy: Policy, sampling: Sampling) -> Float[Tensor, " blocks"]:
    """The factor g of `u + g * (c - u)` at every block, of the sampling's scale or else the model's own."""
    own = policy.default_guidance
    return policy.guidance(own if sampling.guidance_scale is None else sampling.guidance_scale)


def token_guidance(policy: Policy, sampling: Sampling) -> Float[Tensor, " N"] | None:
    """The same at every token; None where it is 1 throughout and the mixture is c."""
    guidance = block_guidance(policy, sampling)
    if not bool((guidance != 1).any()):
        return None
    return guidance.repeat_interleave(torch.tensor(policy.layout.blocks, device=guidance.device))
