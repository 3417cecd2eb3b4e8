"""What becomes of a step's logits: guidance mixes them, tokens are drawn, and the named statistics are measured.

Everything that changes from step to step is a tensor beside the logits: the place in the sequence, its uniform numbers,
the guidance. So a step can be captured and replayed (`t2i_rl.rollout.steps`), and nothing waits for the device.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.policy import Policy
from t2i_rl.rollout.distribution import block_guidance, filtered, mix
from t2i_rl.rollout.names import CONTRASTS
from t2i_rl.rollout.sampling import Sampling
from t2i_rl.rollout.statistics import STATISTICS, StepLogits


def draw(
    logits: Float[Tensor, "... V"], uniform: Float[Tensor, "..."], sampling: Sampling
) -> tuple[Int[Tensor, "..."], Float[Tensor, "..."]]:
    """The token at which the cumulative distribution passes the uniform number (inverse transform sampling).

    Beside it a number that is finite where the logits are no NaN and none is infinitely likely.
    """
    if sampling.temperature == 0:
        highest, token = logits.max(-1)
        return token, highest
    cumulative = filtered(logits, sampling).softmax(-1).cumsum(-1)
    # Rounding leaves the last entry near 1, not at 1: the number is measured against it, and stays inside.
    total = cumulative[..., -1:]
    found = torch.searchsorted(cumulative, uniform[..., None] * total, right=True)
    return found[..., 0].clamp(max=logits.shape[-1] - 1), total[..., 0]


class Drawing:
    """The tokens of R rows and their statistics, as far as they have been drawn.

    limit: tokens of a row at most.
    names: of the statistics.
    """

    def __init__(
        self,
        policy: Policy,
        rows: int,
        limit: int,
        group_size: int,
        sampling: Sampling,
        names: Sequence[str],
    ) -> None:
        self.guidance, self.sampling, self.group_size = block_guidance(policy, sampling), sampling, group_size
        self.guided = bool((self.guidance != 1).any())
        self.branches = 2 if self.guided or CONTRASTS & set(names) else 1
        self.uniform = torch.zeros(rows, limit, device=self.guidance.device)
        self.tokens = torch.zeros_like(self.uniform, dtype=torch.long)
        self.statistics = {name: torch.zeros_like(self.uniform) for name in names}
        self.evidence = self.uniform.new_zeros(())
        self.never = torch.tensor(policy.never, dtype=torch.long, device=self.guidance.device)
        self.place, self.block = (self.tokens.new_zeros(1) for _ in range(2))

    def begin(self, uniform: Float[Tensor, "R N"]) -> None:
        """From the first token on, with these numbers."""
        self.uniform.copy_(uniform)
        for counter in (self.evidence, self.place, self.block):
            counter.zero_()

    def take(self, logits: Float[Tensor, "K R block V"]) -> Int[Tensor, "R block"]:
        """Draw and measure the tokens of the next block."""
        size = logits.shape[2]
        places = self.place + torch.arange(size, device=logits.device)
        conditional, unconditional = logits[0], logits[1] if len(logits) == 2 else None
        scale = self.guidance.index_select(0, self.block)
        mixed = mix(conditional, unconditional if self.guided else None, scale)
        possible = mixed.index_fill(-1, self.never, -torch.inf) if len(self.never) else mixed
        tokens, evidence = draw(possible, self.uniform.index_select(1, places), self.sampling)
        step = StepLogits(conditional, unconditional, mixed, tokens, self.group_size, self.sampling)
        self.tokens.index_copy_(1, places, tokens)
        for name, values in self.statistics.items():
            values.index_copy_(1, places, STATISTICS[name](step))
        self.evidence.add_(evidence.sum())
        self.place.add_(size)
        self.block.add_(1)
        return tokens

    def sound(self) -> bool:
        """Whether all logits so far were finite: tokens were drawn from the others all the same."""
        return bool(self.evidence.isfinite())
