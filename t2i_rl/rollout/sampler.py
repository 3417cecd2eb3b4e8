"""Sampling groups of pictures or answers, under classifier-free guidance, with the statistics a method names."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.policy import Condition, Policy
from models.question import Question, question
from t2i_rl.errors import DivergenceError
from t2i_rl.prompts.asking import Asking
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.ends import Ends
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.noise import Noise, occurrences, uniforms
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.statistics import check_ends
from t2i_rl.rollout.steps import begin, kept
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
    return encode(policy, *asking.both(prompts, step))


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
    prompts, limit = condition.prompts, min(policy.layout.tokens, max_tokens or policy.layout.tokens)
    numbers = noise.occurrences or occurrences(prompts)
    uniform = uniforms(noise.seed, noise.step, prompts, numbers, group_size, limit, noise.first).flatten(0, 1)
    steps = begin(policy, condition, group_size, sampling, statistics, uniform)
    ends, start = Ends(policy.stop_tokens, len(uniform), steps.drawing.tokens.device), 0
    drawn = steps.first(policy)
    for size in policy.layout.blocks:
        start += size
        if start == limit or ends.all_with(drawn):
            break
        drawn = steps.next(policy, drawn)
    if not steps.drawing.sound():
        kept(policy).steps = None  # what is not a number in their buffers would spread to the next rollout
        raise DivergenceError(
            "the model's logits are not finite, so its weights are damaged or have diverged: take an older checkpoint "
            "or, in training, a smaller update.learning-rate"
        )

    def grouped(values: Tensor) -> Tensor:
        return values[:, :start].unflatten(0, (len(prompts), group_size)).clone()

    found = {name: grouped(values) for name, values in steps.drawing.statistics.items()}
    return Rollout(condition, grouped(steps.drawing.tokens), found, policy.stop_tokens).settled()
