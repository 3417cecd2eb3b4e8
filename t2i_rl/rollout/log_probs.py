"""Log-probabilities of sampled tokens under teacher forcing, computed so that memory does not grow with V.

The log-prob mode says which distribution a log-probability is of, for the old, the new and the reference policy alike:

- `cond` (as in every released trainer): the conditional one, at temperature 1, whole. Its bias: images are drawn from
  the guided mixture, so the tokens are not samples of the distribution that the update moves. The gradient is that of
  another objective, the true importance ratio between the two is left out, and with one update per rollout nothing in
  the metrics shows it. It costs one branch.
- `cfg`: the mixture that was drawn from, with its guidance at every block, temperature, top-k and top-p. Unbiased, for
  a second branch. The gradient of the mixture `u + g (c - u)` reaches the weights through both branches; it may be
  stopped in the unconditional one.

Where guidance is 1 at temperature 1 without top-k and top-p, the two are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.parts.forward import as_forward
from models.policy import Condition, Policy
from t2i_rl.rollout.distribution import filtered, mix, token_guidance
from t2i_rl.rollout.sampling import LogProb, Sampling
from t2i_rl.rollout.statistics import entropy, kl_divergence

CHUNK = 4096  # tokens at most whose V logits exist at once
LOGITS = 2**26  # numbers of these: of as many tokens where V is 16,384, of fewer words of a language


def chunk_for(vocabulary: int) -> int:
    """How many tokens have their logits at once, so that memory does not grow with the vocabulary."""
    return max(1, min(CHUNK, LOGITS // vocabulary))


@dataclass(frozen=True)
class TokenDistribution:
    """Which distribution gives a token its log-probability: the mode, how the token was drawn, the gradient's way."""

    mode: LogProb = "cond"
    sampling: Sampling = field(default_factory=Sampling)
    unconditional_gradient: bool = True

    @property
    def sampler_statistic(self) -> str:
        """The statistic that is this log-probability as the sampler saw it, to see how far replay is from decoding."""
        return "logp_cfg" if self.mode == "cfg" else "logp_cond"


CONDITIONAL = TokenDistribution()


@dataclass(frozen=True)
class Replay:
    """What the replay says of some images' tokens under the current policy, with gradient.

    lp: log-probability of the sampled token.
    entropy: of the whole distribution, in nats, for the entropy bonus.
    kl: KL(policy || reference), exact over the vocabulary, in nats, for the form `full`.
    """

    lp: Float[Tensor, "*rows N"]
    entropy: Float[Tensor, "*rows N"] | None = None
    kl: Float[Tensor, "*rows N"] | None = None


def replay(
    policy: Policy,
    condition: Condition,
    tokens: Int[Tensor, "R N"],
    distribution: TokenDistribution = CONDITIONAL,
    with_entropy: bool = False,
    reference: Policy | None = None,
    chunk: int | None = None,
    valid: Bool[Tensor, "R N"] | None = None,
) -> Replay:
    """Log-probability of every token; if asked, the distribution's entropy and its exact KL to the reference's.

    Float32, with gradient. Logits are recomputed in backward, of the tokens whose gradient is not 0.
    chunk: tokens whose logits exist at once, if not `chunk_for` so many.
    valid: the tokens before their row's end, if not all; the others have no logits, and 0 for each value.
    """

    def values(_: nn.Module) -> Tensor:
        most = chunk or chunk_for(policy.vocabulary)
        return _values(policy, condition, tokens, distribution, with_entropy, reference, most, valid)

    lp, *others = as_forward(policy.module, values).unflatten(-1, tokens.shape)
    return Replay(
        lp,
        entropy=others[0] if with_entropy else None,
        kl=others[-1] if reference is not None else None,
    )


def _values(
    policy: Policy,
    condition: Condition,
    tokens: Int[Tensor, "R N"],
    distribution: TokenDistribution,
    with_entropy: bool,
    reference: Policy | None,
    chunk: int,
    valid: Bool[Tensor, "R N"] | None,
) -> Float[Tensor, "values R*N"]:
    """What `replay` says of the tokens, one below the other."""
    hidden, guidance = _states(policy, condition, tokens, distribution)
    states = [hidden]
    if reference is not None:
        with torch.no_grad():
            states += as_forward(reference.module, lambda _: _states(reference, condition, tokens, distribution)[:1])

    def piece(chosen: Tensor, factor: Tensor, own: Tensor, others: Tensor | None = None) -> Tensor:
        log_p = _log_distribution(policy, own, chosen, factor, distribution)
        found = [log_p.gather(-1, chosen[:, None])[:, 0]]
        if with_entropy:
            found.append(entropy(log_p))
        if reference is not None and others is not None:
            with torch.no_grad():
                log_q = _log_distribution(reference, others, chosen, factor, distribution)
            found.append(kl_divergence(log_p, log_q))
        return torch.stack(found)

    flat = [tokens.flatten(), guidance.repeat(len(tokens)), *(part.flatten(1, 2) for part in states)]
    places = None if valid is None else valid.flatten().nonzero()[:, 0]
    if places is not None:
        flat = [part.index_select(max(0, part.ndim - 2), places) for part in flat]
    weights = [weight for weight in policy.module.parameters() if weight.requires_grad]
    values = _Recomputed.apply(piece, chunk, weights, *flat, *weights)
    if places is not None:
        values = values.new_zeros(len(values), tokens.numel()).index_copy(1, places, values)
    return values


class _Recomputed(torch.autograd.Function):
    """A piece's values at all tokens, a chunk at a time, of which only what it is computed from is kept for backward.

    Backward computes the piece again, only at the tokens that have a gradient: those without credit cost none. To find
    them is a look for which the host waits: the one of a micro-batch, where no row ends early.
    The weights that the piece may read are handed over once more for their gradients' sake.
    """

    @staticmethod
    def forward(ctx: Any, piece: Callable[..., Tensor], chunk: int, weights: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.piece, ctx.chunk, ctx.weights = piece, chunk, weights
        given = tensors[: len(tensors) - len(weights)]
        ctx.save_for_backward(*given)
        parts = zip(*(part.split(chunk, dim=max(0, part.ndim - 2)) for part in given), strict=True)
        return torch.cat([piece(*part) for part in parts], -1)

    @staticmethod
    def backward(ctx: Any, pulled: Float[Tensor, "values T"]) -> tuple[Tensor | None, ...]:
        chosen, factor, own, *others = ctx.saved_tensors
        whole, pulls = torch.zeros_like(own), list[Tensor | None]([None] * len(ctx.weights))
        for rows in (pulled != 0).any(0).nonzero()[:, 0].split(ctx.chunk):
            with torch.enable_grad():
                states = own.detach()[:, rows].requires_grad_()
                values = ctx.piece(chosen[rows], factor[rows], states, *(part[:, rows] for part in others))
            pull, *more = torch.autograd.grad(values, [states, *ctx.weights], pulled[:, rows], allow_unused=True)
            whole.index_copy_(1, rows, pull)
            pulls = [_sum(*both) for both in zip(pulls, more, strict=True)]
        return None, None, None, None, None, whole, *(None for _ in others), *pulls


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _states(
    policy: Policy, condition: Condition, tokens: Int[Tensor, "R N"], distribution: TokenDistribution
) -> tuple[Float[Tensor, "K R N D"], Float[Tensor, " N"]]:
    """The states of the branches that the mode needs, and the guidance that mixes them."""
    guidance = token_guidance(policy, distribution.sampling) if distribution.mode == "cfg" else None
    hidden = policy.hidden(condition, tokens, branches=1 if guidance is None else 2)
    steps = tokens.shape[1]
    return hidden, torch.ones(steps, device=hidden.device) if guidance is None else guidance[:steps]


def _log_distribution(
    policy: Policy,
    states: Float[Tensor, "K T D"],
    tokens: Int[Tensor, " T"],
    guidance: Float[Tensor, " T"],
    distribution: TokenDistribution,
) -> Float[Tensor, "T V"]:
    if distribution.mode == "cond":
        return policy.head(states[0]).log_softmax(-1)
    conditional, *unconditional = policy.head(states)
    null = unconditional[0] if unconditional else None
    if null is not None and not distribution.unconditional_gradient:
        null = null.detach()
    return filtered(mix(conditional, null, guidance[:, None]), distribution.sampling, keep=tokens).log_softmax(-1)


def log_probs(
    policy: Policy,
    condition: Condition,
    tokens: Int[Tensor, "R N"],
    distribution: TokenDistribution = CONDITIONAL,
    valid: Bool[Tensor, "R N"] | None = None,
) -> Float[Tensor, "R N"]:
    """Log-probability of every token: what old, new and reference policies are compared by."""
    return replay(policy, condition, tokens, distribution, valid=valid).lp


@torch.no_grad()
def frozen_replay(
    policy: Policy,
    condition: Condition,
    tokens: Int[Tensor, "R N"],
    micro_batch: int,
    distribution: TokenDistribution = CONDITIONAL,
    with_entropy: bool = False,
    valid: Bool[Tensor, "R N"] | None = None,
) -> Replay:
    """`replay` without gradient, in the micro-batches of the update, so that equal weights give equal bits."""
    parts = [
        replay(
            policy,
            condition.take(rows),
            tokens[rows],
            distribution,
            with_entropy,
            valid=None if valid is None else valid[rows],
        )
        for rows in micro_batches(len(tokens), micro_batch)
    ]
    entropies = [part.entropy for part in parts if part.entropy is not None]
    return Replay(torch.cat([part.lp for part in parts]), torch.cat(entropies) if entropies else None)


def micro_batches(rows: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` rows."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
