"""Advantages against what a prompt has earned before: statistics per prompt that outlive a step.

Two trainers in one rule. flow_grpo pools the rewards of a prompt, this step's included, takes the population std (of
the prompt, or of the batch) with eps 1e-4 and clips at +-5. Single-stream PO (arXiv:2509.13232) compares with the
past alone, forgets it slowly, and needs no group.

The history is a plain mapping, so that a checkpoint can hold it. Computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float

from t2i_rl.errors import UserError
from t2i_rl.settings import check_choice

if TYPE_CHECKING:
    from torch import Tensor


Baseline = Literal["pooled", "past"]
TrackerScale = Literal["prompt", "batch"]


@dataclass(frozen=True)
class Running:
    """Number, mean and summed squared deviation of the rewards seen; the number shrinks as they are forgotten."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Population std; 0 before the first reward."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def joined(self, rewards: Sequence[float], decay: float) -> Running:
        """These and the new rewards, the old ones counting `decay` times as much (Chan's update)."""
        old, new = decay * self.count, len(rewards)
        mean = sum(rewards) / new
        squares = sum((reward - mean) ** 2 for reward in rewards)
        gap = mean - self.mean
        count = old + new
        return Running(
            count, self.mean + gap * new / count, decay * self.squares + squares + gap**2 * old * new / count
        )


@dataclass(frozen=True)
class PromptBaseline:
    """Settings of the baseline.

    baseline: `pooled`: the mean of all rewards of the prompt, this step's included; `past`: of the earlier ones; for
        a prompt's first visit the mean of the batch.
    scale: `prompt`: the std of the prompt's pooled rewards; `batch`: of this step's rewards.
    decay: how much of the past a visit keeps.
    clip: bound of the advantages.
    """

    baseline: Baseline = "pooled"
    scale: TrackerScale = "batch"
    decay: float = 1.0
    clip: float = 5.0
    eps: float = 1e-4

    def __post_init__(self) -> None:
        if not (0 <= self.decay <= 1 and self.clip > 0):
            raise UserError(f"tracker: decay {self.decay} must be in [0, 1] and clip {self.clip} positive")
        check_choice("tracker", "baseline", self.baseline, Baseline)
        check_choice("tracker", "scale", self.scale, TrackerScale)

    def __call__(
        self, rewards: Float[Tensor, "P G"], prompts: Sequence[str], history: Mapping[str, Running]
    ) -> tuple[Float[Tensor, "P G"], dict[str, Running]]:
        """The advantages, and the history for the next step. Prompts are told apart by their text."""
        import torch

        values = rewards.double()
        texts = list(dict.fromkeys(prompts))
        of = {text: values[[prompt == text for prompt in prompts]].flatten().tolist() for text in texts}
        joined = {text: history.get(text, Running()).joined(of[text], self.decay) for text in texts}
        if self.baseline == "pooled":
            means = {text: joined[text].mean for text in texts}
        else:
            start = values.mean().item()
            means = {text: history[text].mean if text in history else start for text in texts}
        centred = values - torch.tensor([means[prompt] for prompt in prompts], dtype=values.dtype)[:, None].to(values)
        if self.scale == "batch":
            scaled = centred / (values.std(correction=0) + self.eps)
        else:
            stds = torch.tensor([joined[prompt].std for prompt in prompts], dtype=values.dtype)
            scaled = centred / (stds[:, None].to(values) + self.eps)
        return scaled.clamp(-self.clip, self.clip).to(rewards.dtype), {**history, **joined}
