"""What every reward offers: images, or answers in text, and their prompts in; one finite number for each out.

A reward that cannot score raises `RewardError`, or names the images without a score in `Scores.failures`; a NaN
is such a failure, never a number. `score_images` and `score_each` are the doors: all calls go through one of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from torch import Tensor

from rewards.cut import Cut
from rewards.errors import RewardError


@dataclass(frozen=True)
class Scores:
    """The scores of B images, in float32 on the CPU.

    total: what is maximised.
    parts: further numbers by name, to be logged; in the range that each reward states.
    reasons: why an image has less than the full score; "" where there is nothing to say.
    failures: why an image has no score, by its index; its total and parts are 0, which then stands for nothing.
    faults: how often a server failed on the way, by kind (`rewards.http.client`), whether a retry helped or not.
    """

    total: Float[Tensor, " B"]
    parts: Mapping[str, Float[Tensor, " B"]]
    reasons: tuple[str, ...]
    failures: Mapping[int, str] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)


Sample = UInt8[ndarray, "H W 3"] | str


def size_of(sample: Sample) -> int:
    """Bytes of a picture, signs of an answer."""
    return len(sample) if isinstance(sample, str) else sample.nbytes


class Reward(Protocol):
    """Scores images, or answers, against their prompts. That of number i belongs to `prompts[i]` and `metadata[i]`."""

    @property
    def name(self) -> str:
        """What logs and errors call it."""
        ...

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Sequence[Cut] | None:
        """Refuse, with a `RewardError`, prompts that it could not score: asked before a run begins.

        Returns how many of them it reads the beginning of only; nothing, or None, where that cannot be.
        """
        ...

    def score(self, samples: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], /) -> Scores:
        """The scores of the samples, in their order; what is in `metadata` is the reward's own affair.

        samples: pixels `[H, W, 3]`, or texts: as the reward's record in `rewards.catalogue` says.
        """
        ...


def score_images(
    reward: Reward,
    images: Sequence[Sample],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    mend: str = "",
) -> Scores:
    """`reward.score`, refused with a `RewardError` unless every image has one finite number throughout.

    mend: what the caller can do about it, for the sentence's end.
    """
    scores = score_each(reward, images, prompts, metadata)
    for row, why in scores.failures.items():
        raise RewardError(f'{reward.name}: image {row} ("{prompts[row]}") has no score: {why}{mend}')
    return scores


def score_each(
    reward: Reward,
    images: Sequence[Sample],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
) -> Scores:
    """`reward.score`, where images that have no score, or one that is no finite number, are among the `failures`.

    For callers who can do without some images (`dropped_groups`). Raises `RewardError` for an answer of another
    length than asked, and whatever the reward itself refuses.
    """
    if not len(images) == len(prompts) == len(metadata):
        raise RewardError(
            f"{reward.name}: {len(images)} images, {len(prompts)} prompts and {len(metadata)} metadata records "
            "do not go together: pass one prompt and one record per image"
        )
    scores = reward.score(images, prompts, metadata)
    failures = dict(scores.failures)
    for part, values in {"total": scores.total, **scores.parts}.items():
        if values.shape != (len(images),):
            raise RewardError(
                f"{reward.name}: {part} has shape {list(values.shape)} for {len(images)} images: "
                "the reward must return one number per image"
            )
        for row in values.isfinite().logical_not().nonzero().flatten().tolist():
            failures.setdefault(row, f"{part} is {values[row].item()}, which is no finite number")
    if len(scores.reasons) != len(images):
        raise RewardError(
            f"{reward.name}: {len(scores.reasons)} reasons for {len(images)} images: "
            "the reward must return one reason, possibly empty, per image"
        )
    return _without(scores, failures) if failures else scores


def _without(scores: Scores, failures: Mapping[int, str]) -> Scores:
    """The scores with 0 in the rows that failed."""
    failed = torch.zeros(len(scores.total), dtype=torch.bool)
    failed[list(failures)] = True
    parts = {name: values.masked_fill(failed, 0) for name, values in scores.parts.items()}
    return replace(
        scores, total=scores.total.masked_fill(failed, 0), parts=parts, failures=dict(sorted(failures.items()))
    )


def dropped_groups(scores: Scores, group_size: int) -> Bool[Tensor, " P"]:
    """Which groups of consecutive images lack a score: comparing the rest of such a group would bias it."""
    dropped = torch.zeros(len(scores.total) // group_size, dtype=torch.bool)
    dropped[[row // group_size for row in scores.failures]] = True
    return dropped


def joined(batches: Sequence[Scores]) -> Scores:
    """The scores of consecutive batches as one. A batch may lack a part only if all its images failed."""
    names = {name: None for scores in batches for name in scores.parts}
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    failures: dict[int, str] = {}
    faults: Counter[str] = Counter()
    start = 0
    for scores in batches:
        size = len(scores.total)
        for name in names:
            if name not in scores.parts and len(scores.failures) < size:
                raise RewardError(f"only some of the images have the part {name!r}: a reward must score all alike")
            parts[name].append(scores.parts.get(name, torch.zeros(size)))
        failures.update({start + row: why for row, why in scores.failures.items()})
        faults.update(scores.faults)
        start += size
    return Scores(
        total=torch.cat([scores.total for scores in batches]),
        parts={name: torch.cat(values) for name, values in parts.items()},
        reasons=tuple(reason for scores in batches for reason in scores.reasons),
        failures=failures,
        faults=dict(faults),
    )
