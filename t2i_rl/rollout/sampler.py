"""Sampling groups of pictures or answers, under classifier-free guidance, with the statistics a method names."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.policy import Condition, Policy
from models.question import Question, question
from t2i_rl.errors import DivergenceError
from t2i_rl.prompts.asking import Asking
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.distribution import block_guidance, filtered, mix
from t2i_rl.rollout.ends import Ends
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.names import CONTRASTS
from t2i_rl.rollout.noise import Noise, occurrences, uniforms
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.statistics import STATISTICS, StepLogits, check_ends
from t2i_rl.rollout.words import check_prompts


def encode(
    policy: Policy, prompts: Sequence[str | Question], negatives: str | Sequence[str | Question] = ""
) -> Condition:
    """The prompts, each beside the null branch or, where there is one, the negative prompt: of all, or its own.

    Raises UserError for one that holds a control token.
    """
    against = [negatives] * len(prompts) if isinstance(negatives, str) and negatives else [*negatives]
    asked = [Prompt(question(one).text) for one in prompts]
    check_prompts(policy, asked + [Prompt(question(one).text, origin="the negative prompt") for one in against])
    return policy.encode(prompts, against or None)


def ask(policy: Policy, asking: Asking, prompts: Sequence[Prompt], step: int = 0) -> Condition:
    """The prompts as they are put in a step, each beside what it is compared with."""
    return encode(policy, asking.questions(prompts), asking.negatives(prompts, step))


def draw(logits: Float[Tensor, "... V"], uniform: Float[Tensor, "..."], sampling: Sampling) -> Int[Tensor, "..."]:
    """The token at which the cumulative distribution passes the uniform number (inverse transform sampling)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    cumulative = filtered(logits, sampling).softmax(-1).cumsum(-1)
    # Rounding leaves the last entry near 1, not at 1: the number is measured against it, and stays inside.
    threshold = uniform[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def sample_group(
    policy: Policy,
    condition: Condition,
    group_size: int,
    sampling: Sampling,
    noise: Noise,
    statistics: Sequence[str] = (),
    max_tokens: int | None = None,
) -> Rollout:
    """Sample `group_size` pictures or answers per prompt and measure the named statistics on the way.

    The unconditional branch runs when some guidance is not 1 or a statistic needs it. Nothing in the
    loop waits for the device, but for a rare look at whether all answers have ended, and nothing but attention grows
    with the step.

    max_tokens: of an answer, fewer than the layout allows.
    Raises UserError for a statistic that answers of different lengths do not have, and DivergenceError for logits that
    are not finite: a token would be drawn from them all the same.
    """
    check_ends(policy, statistics)
    layout, prompts = policy.layout, condition.prompts
    limit = min(layout.tokens, max_tokens or layout.tokens)
    numbers = noise.occurrences or occurrences(prompts)
    uniform = uniforms(noise.seed, noise.step, prompts, numbers, group_size, limit, noise.first).flatten(0, 1)
    guidance = block_guidance(policy, sampling)
    guided = bool((guidance != 1).any())
    branches = 2 if guided or CONTRASTS & set(statistics) else 1

    state = policy.prefill(condition, group_size, branches)
    logits = policy.next_logits(state)
    uniform = uniform.to(logits.device)
    tokens = torch.empty(uniform.shape, dtype=torch.long, device=logits.device)
    measured, highest = {name: torch.empty_like(uniform) for name in statistics}, torch.empty_like(uniform)
    never, ends = torch.tensor(policy.never, device=logits.device), Ends(policy.stop_tokens, len(tokens), logits.device)
    start = 0
    for index, size in enumerate(layout.blocks):
        block = slice(start, start + size)
        conditional, unconditional = logits[0], logits[1] if branches == 2 else None
        mixed = mix(conditional, unconditional if guided else None, guidance[index])
        drawn_from = mixed.index_fill(-1, never, -torch.inf) if policy.never else mixed
        tokens[:, block] = draw(drawn_from, uniform[:, block], sampling)
        highest[:, block] = drawn_from.amax(-1)  # NaN if a logit is
        step = StepLogits(conditional, unconditional, mixed, tokens[:, block], group_size, sampling)
        for name, values in measured.items():
            values[:, block] = STATISTICS[name](step)
        start += size
        if start == limit or ends.all_with(tokens[:, block]):
            break
        policy.append(state, tokens[:, block])
        logits = policy.next_logits(state)

    if not highest[:, :start].isfinite().all():  # one look for all tokens
        raise DivergenceError(
            "the model's logits are not finite, so its weights are damaged or have diverged: take an older checkpoint "
            "or, in training, a smaller update.learning-rate"
        )

    def grouped(values: Tensor) -> Tensor:
        return values[:, :start].unflatten(0, (len(prompts), group_size))

    found = {name: grouped(values) for name, values in measured.items()}
    return Rollout(condition, grouped(tokens), found, policy.stop_tokens).settled()
