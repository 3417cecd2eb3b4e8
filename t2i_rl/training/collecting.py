"""What a step samples: groups with their scores, those of one micro-batch computed while the next is sampled."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from rewards.reward import Scores, joined
from t2i_rl.methods.advantages import zero_variance
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Groups

Score = Callable[[Sequence[Prompt], UInt8[ndarray, "P G H W 3"]], Scores]


class Scorer:
    """Scores micro-batches in their order, in a thread of its own, while the caller samples the next ones.

    One thread, for a reward need not stand two calls at once; a client of servers spreads each call over them itself.

    seconds: how long it has worked.
    """

    def __init__(self, score: Score) -> None:
        self.score, self.seconds = score, 0.0
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self.asked: list[Future[Scores]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error, or Ctrl-C, does not wait for scores that nobody will read.
        self.pool.shutdown(wait=False, cancel_futures=True)

    def submit(self, records: Sequence[Prompt], images: UInt8[ndarray, "P G H W 3"]) -> None:
        """Ask for the scores of a further micro-batch. Raises what an earlier one has failed with by now."""
        for earlier in self.asked:
            if earlier.done():
                earlier.result()
        self.asked.append(self.pool.submit(self._timed, records, images))

    def scores(self) -> Scores:
        """The scores of all micro-batches as one, once the last of them is there. Raises the first failure."""
        return joined([asked.result() for asked in self.asked])

    def _timed(self, records: Sequence[Prompt], images: UInt8[ndarray, "P G H W 3"]) -> Scores:
        began = time.perf_counter()
        try:
            return self.score(records, images)
        finally:
            self.seconds += time.perf_counter() - began


@dataclass(frozen=True)
class Collected:
    """All that a step sampled.

    rounds: the groups that have their scores, at first of the step's own prompts, then of those drawn in their place.
    lost: how many groups lack a score.
    faults: how often a reward server failed on the way, by kind (`rewards.http.client`).
    """

    rounds: tuple[Groups, ...]
    lost: int
    faults: Mapping[str, int]

    @property
    def rewards(self) -> Float[Tensor, "P G"]:
        return torch.cat([groups.rewards for groups in self.rounds])

    @property
    def sampled(self) -> int:
        """Images, scored or not."""
        return (len(self.rewards) + self.lost) * self.rewards.shape[1]

    def metrics(self) -> dict[str, float]:
        """What the scored groups earned, and what went wrong (`t2i_rl.training.metrics_log`)."""
        rewards, first = self.rewards, self.rounds[0]
        parts = {name: torch.cat([groups.parts[name] for groups in self.rounds]) for name in first.parts}
        entropies = [groups.rollout.statistics["entropy"] for groups in self.rounds]
        return {
            "reward": rewards.mean().item(),
            "reward_std": rewards.std(dim=1).mean().item(),
            **{f"reward/{name}": values.mean().item() for name, values in parts.items()},
            "zero_variance": zero_variance(rewards).float().mean().item(),
            "entropy": torch.cat(entropies).mean().item(),
            **{f"reward_faults/{kind}": count for kind, count in self.faults.items()},
        }
