"""What the images of a step earn: asked in a thread of its own, while the next ones are sampled."""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rewards.answers.reward import ACCURACY
from rewards.reward import Reward, Scores, joined, score_each, score_images
from rewards.threads import begin
from t2i_rl.configuration.config import OnRewardFailure
from t2i_rl.errors import UserError
from t2i_rl.methods.advantages import zero_variance
from t2i_rl.methods.reward_mixing import weighted_sum
from t2i_rl.parallel.ranks import Ranks
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Groups, Rollout, Sample

MEND = ": mend that, or leave such groups out with --on-reward-failure drop_group"


class Scorer:
    """Scores micro-batches in their order, in threads of their own, while the caller samples the next ones.

    One after the other, for a reward need not stand two calls at once; a client of servers spreads each call over them
    itself.

    on_failure: whether an image without a score is an error or among the failures.
    seconds: how long it has worked.
    """

    def __init__(self, reward: Reward, on_failure: OnRewardFailure) -> None:
        self.reward, self.seconds = reward, 0.0
        self.ask = partial(score_images, mend=MEND) if on_failure == "stop" else score_each
        self.asked: list[Future[Scores]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error, or Ctrl-C, does not wait for scores that nobody will read.
        for asked in self.asked:
            asked.cancel()

    def submit(self, records: Sequence[Prompt], samples: Sequence[Sample]) -> None:
        """Ask for the scores of a further micro-batch, as many samples for each prompt, prompt-major.

        Raises what an earlier one has failed with by now.
        """
        for earlier in self.asked:
            if earlier.done():
                earlier.result()
        self.asked.append(begin(self.asked[-1] if self.asked else None, self._score, records, samples))

    def scores(self) -> Scores:
        """The scores of all micro-batches as one, once the last of them is there. Raises the first failure."""
        return joined([asked.result() for asked in self.asked])

    def _score(self, records: Sequence[Prompt], samples: Sequence[Sample]) -> Scores:
        """One score per sample."""
        began = time.perf_counter()
        shown = [record for record in records for _ in range(len(samples) // len(records))]
        try:
            return self.ask(
                self.reward,
                samples,
                [record.text for record in shown],
                [record.metadata for record in shown],
            )
        finally:
            self.seconds += time.perf_counter() - began


def of_all(ranks: Ranks, scores: Scores | None) -> Scores:
    """The scores of all processes' images, in their order; a process without images gives None."""
    own = None
    if scores is not None:
        numbers = {part: values.tolist() for part, values in scores.parts.items()}
        own = scores.total.tolist(), numbers, scores.reasons, [*scores.failures.items()], dict(scores.faults)
    return joined(
        [
            Scores(
                torch.tensor(total, dtype=torch.float32),
                {part: torch.tensor(values, dtype=torch.float32) for part, values in parts.items()},
                tuple(reasons),
                dict(failures),
                faults,
            )
            for total, parts, reasons, failures, faults in filter(None, ranks.each(own))
        ]
    )


def verdict_name(parts: Iterable[str], verdict: str = "strict") -> str | None:
    """The part of a reward that says of an image right or wrong: `strict`, or `NAME/strict` in a sum of rewards.

    verdict: what it is called. None where there is no such part, or several, of which none is the verdict on the whole.
    """
    found = [name for name in parts if name.rpartition("/")[2] == verdict]
    return found[0] if len(found) == 1 else None


def dull(groups: Groups, weights: Mapping[str, float]) -> Bool[Tensor, " P"]:
    """Which groups are left out or replaced, where a method does so: those of equal rewards.

    Of answers, as DAPO does it, those of equal accuracy, where that is among what is maximised, by the weights of parts
    if there are any: answers that are all right or all wrong teach nothing by their lengths.
    """
    name = verdict_name(groups.parts, ACCURACY)
    if name is None or (weights and not any(map(weights.get, (name, name.rpartition("/")[0], "total")))):
        return zero_variance(groups.rewards)
    return zero_variance(groups.parts[name])


def with_rewards(
    records: Sequence[Prompt],
    rollout: Rollout,
    scores: Scores,
    weights: Mapping[str, float],
    name: str,
    mine: Sequence[int],
) -> Groups:
    """The groups with what their images earned: the total or, where parts have weights, the weighted sum of these.

    rollout: those of the groups that are `mine`.
    name: of the reward, for the UserError about a part that it does not give.
    """
    shape = len(records), rollout.group_size
    numbers: Mapping[str, Float[Tensor, " B"]] = {**scores.parts, "total": scores.total} if weights else scores.parts
    if unknown := weights.keys() - numbers.keys():
        raise UserError(f"reward-weights names {min(unknown)!r}, but {name} gives {', '.join(numbers)}: choose")
    parts = {part: values.view(shape) for part, values in numbers.items()}
    if not weights:
        return Groups(tuple(records), rollout, scores.total.view(shape), parts, tuple(mine))
    summed = weighted_sum([parts[part] for part in weights], [*weights.values()])
    return Groups(tuple(records), rollout, summed, parts, tuple(mine))
