"""Sampling groups of images under classifier-free guidance, with the statistics a method names."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.policy import Condition, Policy
from t2i_rl.rollout.distribution import block_guidance, filtered, mix
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.names import CONTRASTS
from t2i_rl.rollout.noise import occurrences, uniforms
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.statistics import STATISTICS, StepLogits


@dataclass(frozen=True)
class Noise:
    """What keys the noise of a batch (`t2i_rl.rollout.noise`); occurrences are counted within the prompts if not
    given."""

    seed: int
    step: int = 0
    occurrences: Sequence[int] = field(default_factory=tuple)


def encode(policy: Policy, prompts: Sequence[str], negative_prompt: str) -> Condition:
    """The prompts, each beside the null branch or, where there is one, the negative prompt."""
    return policy.encode(prompts, [negative_prompt] * len(prompts) if negative_prompt else None)


def draw(logits: Float[Tensor, "... V"], noise: Float[Tensor, "..."], sampling: Sampling) -> Int[Tensor, "..."]:
    """The token at which the cumulative distribution passes the noise (inverse transform sampling)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    cumulative = filtered(logits, sampling).softmax(-1).cumsum(-1)
    # Rounding leaves the last entry near 1, not at 1: the noise is measured against it, and stays inside.
    threshold = noise[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def sample_group(
    policy: Policy,
    condition: Condition,
    group_size: int,
    sampling: Sampling,
    noise: Noise,
    statistics: Sequence[str] = (),
) -> Rollout:
    """Sample `group_size` images per prompt and measure the named statistics on the way.

    The unconditional branch runs when some guidance is not 1 or a statistic needs it. Nothing in the
    loop waits for the device, and nothing but attention grows with the step.
    """
    layout, prompts = policy.layout, condition.prompts
    numbers = noise.occurrences or occurrences(prompts)
    uniform = uniforms(noise.seed, noise.step, prompts, numbers, group_size, layout.tokens).flatten(0, 1)
    guidance = block_guidance(policy, sampling)
    guided = bool((guidance != 1).any())
    branches = 2 if guided or CONTRASTS & set(statistics) else 1

    state = policy.prefill(condition, group_size, branches)
    logits = policy.next_logits(state)
    uniform = uniform.to(logits.device)
    tokens = torch.empty(uniform.shape, dtype=torch.long, device=logits.device)
    measured = {name: torch.empty_like(uniform) for name in statistics}
    start = 0
    for index, size in enumerate(layout.blocks):
        block = slice(start, start + size)
        conditional, unconditional = logits[0], logits[1] if branches == 2 else None
        mixed = mix(conditional, unconditional if guided else None, guidance[index])
        tokens[:, block] = draw(mixed, uniform[:, block], sampling)
        step = StepLogits(conditional, unconditional, mixed, tokens[:, block], group_size, sampling)
        for name, values in measured.items():
            values[:, block] = STATISTICS[name](step)
        start += size
        if start < layout.tokens:
            policy.append(state, tokens[:, block])
            logits = policy.next_logits(state)

    def grouped(values: Tensor) -> Tensor:
        return values.unflatten(0, (len(prompts), group_size))

    return Rollout(condition, grouped(tokens), {name: grouped(values) for name, values in measured.items()})
