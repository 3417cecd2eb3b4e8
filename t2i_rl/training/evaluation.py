"""Scoring a policy on held-out prompts, in memory: what the trainer does every so many steps.

`eval.geneval` does the same with files, for a benchmark's numbers.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from statistics import fmean
from types import MappingProxyType
from typing import TypeVar

import torch

from models.policy import Policy
from rewards.answers.reward import ACCURACY
from rewards.reward import Reward, Scores, score_images
from t2i_rl.parallel.ranks import ALONE, Ranks
from t2i_rl.pictures.pages import data_uri, pixels
from t2i_rl.prompts.asking import AS_IT_IS, Asking
from t2i_rl.prompts.prompt import Prompt, tag_of
from t2i_rl.rollout.generate import Generated, generate
from t2i_rl.rollout.groups import Sample
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.training.scoring import verdict_name

T = TypeVar("T")


@dataclass(frozen=True)
class Judged:
    """A held-out sample: the index of its prompt, what it is in the mean of, and why it is not more.

    right: what the reward's strict verdict says, or its grade of an answer in text; None where it gives neither.
    sample: itself, where it was asked for.
    """

    prompt: int
    score: float
    right: bool | None
    reason: str
    sample: Sample | None


@dataclass(frozen=True)
class Evaluation:
    """The held-out score: the share of correct images where the reward, or one of a sum, has a strict verdict
    (`t2i_rl.training.scoring.verdict_name`); else the mean of the reward.

    per_tag: the mean over the images of each tag (prompts without a tag are one tag, `all`).
    overall: the unweighted mean of `per_tag`, as in GenEval.
    also: the same mean of further rewards, by their names.
    judged: every sample, in the order of the prompts.
    verdict: the part of the reward that the score is the share of; None: the score is the reward's mean.
    """

    per_tag: Mapping[str, float]
    overall: float
    images: int
    also: Mapping[str, float] = field(default_factory=dict)
    judged: Sequence[Judged] = ()
    verdict: str | None = None


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of at most `size` items."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def score_generated(reward: Reward, prompts: Sequence[Prompt], images: Sequence[Generated]) -> Scores:
    """The scores of generated images; `prompts` is the list that they were generated from."""
    shown = [prompts[image.prompt] for image in images]
    return score_images(reward, [image.image for image in images], [p.text for p in shown], [p.metadata for p in shown])


@torch.no_grad()
def evaluate(
    policy: Policy,
    prompts: Sequence[Prompt],
    reward: Reward,
    sampling: Sampling,
    seed: int,
    batch: int,
    images_per_prompt: int = 1,
    ranks: Ranks = ALONE,
    asking: Asking = AS_IT_IS,
    max_tokens: int | None = None,
    also: Mapping[str, Reward] = MappingProxyType({}),
    keep: Collection[int] = (),
    watched: Callable[[Iterator[Generated]], Iterable[Generated]] = iter,
) -> Evaluation:
    """Generate `images_per_prompt` images of every prompt, about `batch` at a time, and score them.

    Of several processes, each does so with its share of the prompts, and all know what comes of it.

    The images are those of `generate` with this seed, whatever the training step: evaluations differ by the
    policy alone. Raises RewardError when an image cannot be scored.

    asking, max_tokens: how a model that answers in text is asked, and how long its answers may be.
    keep: the indices of the prompts whose first samples are handed back.
    watched: what this process's images go through as they come.
    """
    own = list[tuple[int, list[float], bool | None, str, str | None]]()
    mine, verdict = ranks.share(len(prompts)), None
    drawn = generate(policy, prompts, images_per_prompt, sampling, seed, batch, mine, max_tokens, asking)
    for images in chunks(watched(drawn), batch):
        scores = score_generated(reward, prompts, images)
        verdict = verdict_name(scores.parts)
        columns = [scores.total if verdict is None else scores.parts[verdict]]
        columns += [score_generated(one, prompts, images).total for one in also.values()]
        known = verdict or verdict_name(scores.parts, ACCURACY)  # of answers in text, whose score that is
        rights = [None] * len(images) if known is None else [one > 0 for one in scores.parts[known].tolist()]
        rows = zip(images, torch.stack(columns, dim=1).tolist(), rights, scores.reasons, strict=True)
        for (prompt, sample, image), values, right, reason in rows:
            own.append((prompt, values, right, reason, _told(image) if prompt in keep and sample == 0 else None))
    found: dict[str, list[list[float]]] = {}
    judged = list[Judged]()
    verdicts, each = zip(*ranks.each([verdict, own]), strict=True)
    for prompt, values, right, reason, told in chain.from_iterable(each):
        found.setdefault(tag_of(prompts[prompt]), []).append(values)
        judged.append(Judged(prompt, values[0], right, reason, None if told is None else _heard(policy, told)))
    means = {tag: [fmean(column) for column in zip(*rows, strict=True)] for tag, rows in found.items()}
    overall, *others = (fmean(column) for column in zip(*means.values(), strict=True))
    per_tag = {tag: first for tag, (first, *_) in means.items()}
    verdict = next(filter(None, verdicts), None)  # a process without a share knows none
    return Evaluation(per_tag, overall, len(judged), dict(zip(also, others, strict=True)), judged, verdict)


def _told(sample: Sample) -> str:
    """As processes tell each other."""
    return sample if isinstance(sample, str) else data_uri(sample)


def _heard(policy: Policy, told: str) -> Sample:
    return told if policy.stop_tokens else pixels(told)
