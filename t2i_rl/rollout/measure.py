"""The statistics of tokens that are there already: teacher-forced, what the sampler measures while it draws."""

from collections.abc import Collection
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.parts.forward import as_forward
from models.policy import Policy
from t2i_rl.rollout.distribution import mix, token_guidance
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.log_probs import chunk_for, micro_batches
from t2i_rl.rollout.names import CONTRASTS, GUIDED
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.statistics import STATISTICS, StepLogits, check_ends


@torch.no_grad()
def measure(
    policy: Policy, rollout: Rollout, sampling: Sampling, names: Collection[str], micro_batch: int
) -> dict[str, Float[Tensor, "P G N"]]:
    """The named statistics of a rollout under any policy or condition: teacher-forced, what the sampler measures.

    micro_batch: prompts in one pass. Behind a row's end a statistic is 0.
    Raises UserError for a statistic that answers of different lengths do not have.
    """
    check_ends(policy, names)
    guidance = token_guidance(policy, sampling) if GUIDED & {*names} else None
    branches = 2 if guidance is not None or CONTRASTS & {*names} else 1
    measured: dict[str, list[Tensor]] = {name: [] for name in names}
    for prompts in micro_batches(len(rollout.prompts), micro_batch):
        part = rollout.take(prompts)
        found = as_forward(policy.module, partial(_measured, policy, part, guidance, branches, sampling, names))
        for name in names:
            values = torch.cat(found[name], -1).unflatten(0, part.tokens.shape[:2])
            measured[name].append(values.masked_fill(~part.valid, 0))
    return {name: torch.cat(parts) for name, parts in measured.items()}


def _measured(
    policy: Policy,
    part: Rollout,
    guidance: Float[Tensor, " N"] | None,
    branches: int,
    sampling: Sampling,
    names: Collection[str],
    _: nn.Module,
) -> dict[str, list[Tensor]]:
    """The statistics of a few groups, in pieces `[R, n]`."""
    tokens = part.tokens.flatten(0, 1)
    hidden = policy.hidden(part.row_condition, tokens, branches)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for at in micro_batches(tokens.shape[1], max(1, chunk_for(policy.vocabulary) // len(tokens))):
        logits = policy.head(hidden[:, :, at])
        conditional, unconditional = logits[0], logits[1] if branches == 2 else None
        mixed = conditional if guidance is None else mix(conditional, unconditional, guidance[at, None])
        step = StepLogits(conditional, unconditional, mixed, tokens[:, at], part.group_size, sampling)
        for name in names:
            found[name].append(STATISTICS[name](step))
    return found
