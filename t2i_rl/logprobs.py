"""Log-probabilities of sampled tokens under teacher forcing, computed so that memory does not grow with V."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.policy import Condition, Policy

CHUNK = 4096  # tokens whose V logits exist at once


def token_log_probs(
    policy: Policy, hidden: Float[Tensor, "R N D"], tokens: Int[Tensor, "R N"], chunk: int = CHUNK
) -> Float[Tensor, "R N"]:
    """`log_softmax(head(hidden))` at the tokens, float32; each chunk's logits are recomputed in backward."""

    def piece(states: Tensor, chosen: Tensor) -> Tensor:
        return policy.head(states).log_softmax(-1).gather(-1, chosen[:, None])[:, 0]

    parts = zip(hidden.flatten(0, 1).split(chunk), tokens.flatten().split(chunk), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([piece(*part) for part in parts]).view_as(tokens)
    pieces = [checkpoint(piece, *part, use_reentrant=False) for part in parts]
    return torch.cat(pieces).view_as(tokens)


def score(policy: Policy, condition: Condition, tokens: Int[Tensor, "R N"]) -> Float[Tensor, "R N"]:
    """Conditional log-probability of every token: what old, new and reference policies are compared by.

    The images were drawn from the guided distribution; as in the released trainers, the conditional one is
    what the update moves (the log-prob mode `cond`).
    """
    return token_log_probs(policy, policy.hidden(condition, tokens, branches=1)[0], tokens)


@torch.no_grad()
def score_in_parts(
    policy: Policy, condition: Condition, tokens: Int[Tensor, "R N"], micro_batch: int
) -> Float[Tensor, "R N"]:
    """`score` without gradient, in the micro-batches of the update, so that equal weights give equal bits."""
    return torch.cat(
        [score(policy, condition.take(rows), tokens[rows]) for rows in micro_batches(len(tokens), micro_batch)]
    )


def micro_batches(rows: int, size: int) -> list[range]:
    """Consecutive row ranges of at most `size` rows."""
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]
