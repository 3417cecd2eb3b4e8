"""What each word of some answers is worth: the statistics and the credit of their tokens, beside the question.

`answer_maps` samples a group and measures it; `t2i_rl.reports.revisit` hands a training step's own group to
`answers_of`. `t2i_rl.pictures.answer_files` draws them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor

from models.policy import Policy
from models.question import IMAGE, Question
from t2i_rl.errors import UserError
from t2i_rl.methods.credit.rule import TokenCredit
from t2i_rl.methods.method import Method
from t2i_rl.pictures.heatmaps import CONTRAST
from t2i_rl.prompts.asking import Asking
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Rollout
from t2i_rl.rollout.noise import Noise
from t2i_rl.rollout.sampler import ask, sample_group
from t2i_rl.rollout.sampling import Sampling

END = "■"  # stands for the token that ends an answer
MEASURED = ("entropy", *CONTRAST.statistics)


@dataclass(frozen=True)
class Answer:
    """One answer, token by token.

    maps: the names are those of `t2i_rl.pictures.heatmaps.LOOKS`.
    advantage: of the whole answer, where it is known.
    """

    label: str
    words: tuple[str, ...]
    maps: Mapping[str, Float[ndarray, " n"]]
    advantage: float | None = None


@dataclass(frozen=True)
class AnswerMaps:
    """The answers of one group. source: which policy, contrast and method they show, in one sentence."""

    question: str
    pictures: tuple[UInt8[ndarray, "H W 3"], ...]
    answers: tuple[Answer, ...]
    source: str


@torch.no_grad()
def answer_maps(
    policy: Policy,
    prompt: Prompt,
    asking: Asking,
    group_size: int,
    sampling: Sampling,
    seed: int,
    method: Method,
    max_tokens: int,
    source: str,
) -> AnswerMaps:
    """Sample one group and measure it. Raises UserError for a method that credits words by the answers' rewards."""
    names = dict.fromkeys((*MEASURED, *method.credit.statistics))
    [question] = asking.questions([prompt])
    condition = ask(policy, asking, [prompt])
    rollout = sample_group(policy, condition, group_size, sampling, Noise(seed), [*names], max_tokens)
    try:
        credit = method.credit(rollout, None, policy.layout)
    except ValueError as error:  # of rules that look at advantages
        raise UserError(f"{error}: show it in a training run instead, with --from-run") from error
    labels = [f"answer {number}" for number in range(group_size)]
    shown = f"{source} · compared with {asking.against}, seed {seed} · method {method.name}"
    return answers_of(policy, rollout, credit, question, shown, labels)


@torch.no_grad()
def answers_of(
    policy: Policy,
    rollout: Rollout,
    credit: TokenCredit,
    question: Question,
    source: str,
    labels: Sequence[str],
    advantages: Sequence[float] = (),
) -> AnswerMaps:
    """The answers of a rollout of one question, which holds the statistics of `MEASURED`.

    credit: what the method made of it. advantages: of the answers, where they are known.
    """
    maps = {
        "kl": rollout.statistics["kl_cond_uncond"],
        "cfg": CONTRAST(rollout, None, policy.layout).weight,
        "entropy": rollout.statistics["entropy"],
        "credit": credit.weight * credit.mask,
    }
    found = []
    for number, (label, length) in enumerate(zip(labels, rollout.lengths[0].tolist(), strict=True)):
        values = {name: each[0, number, :length].float().cpu().numpy() for name, each in maps.items()}
        words = words_of(policy, rollout.tokens[0, number, :length])
        found.append(Answer(label, words, values, advantages[number] if advantages else None))
    return AnswerMaps(question.text.replace(IMAGE, "").strip(), question.pictures, tuple(found), source)


def words_of(policy: Policy, tokens: Int[Tensor, " n"]) -> tuple[str, ...]:
    """What each token adds to the text; `END` for the one that ends it."""
    behind = torch.ones(len(tokens), len(tokens), dtype=torch.bool, device=tokens.device).triu(1)
    beginnings = policy.decode(tokens.expand(len(tokens), -1).masked_fill(behind, policy.stop_tokens[0]))
    texts = ["", *(str(text).rstrip("\ufffd") for text in beginnings)]  # half a character is shown with its other half
    words = [after[len(before) :] for before, after in pairwise(texts)]
    if int(tokens[-1]) in policy.stop_tokens:
        words[-1] = END
    return tuple(words)


def shade(values: Float[ndarray, " n"], limits: tuple[float, float]) -> Float[ndarray, " n"]:
    """Between 0, the lower limit, and 1, the upper one."""
    low, high = limits
    return np.clip((values - low) / (high - low), 0, 1)
