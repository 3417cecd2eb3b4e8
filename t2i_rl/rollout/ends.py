"""Where rows end: an answer at its first stop token, which belongs to it; a picture, which has none, at its last token.

What stands behind an end is any token, and never counts.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

STEPS_APART = 16  # that all rows have ended is asked so often of a device, which the host then waits for


def row_lengths(tokens: Int[Tensor, "*rows N"], stop_tokens: Sequence[int]) -> Int[Tensor, "*rows"]:
    """How many tokens belong to each row; all N where there is no stop token among them."""
    stops = _is_stop(tokens, stop_tokens)
    before = stops.cumsum(-1) == 0
    return (before.sum(-1) + 1).clamp(max=tokens.shape[-1])


def stopped(tokens: Int[Tensor, "*rows N"], stop_tokens: Sequence[int]) -> Bool[Tensor, "*rows"]:
    """Which rows have a stop token."""
    return _is_stop(tokens, stop_tokens).any(-1)


def valid_tokens(lengths: Int[Tensor, "*rows"], tokens: int) -> Bool[Tensor, "*rows N"]:
    """Which of so many tokens stand before the end of their row."""
    return torch.arange(tokens, device=lengths.device) < lengths[..., None]


class Ends:
    """Which rows have ended so far, while they are drawn."""

    def __init__(self, stop_tokens: Sequence[int], rows: int, device: torch.device) -> None:
        self.stop_tokens = torch.tensor(list(stop_tokens), dtype=torch.long, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.apart = 1 if device.type == "cpu" else STEPS_APART
        self.steps = 0

    def all_with(self, drawn: Int[Tensor, "R block"]) -> bool:
        """Whether none goes on behind these tokens, as far as has been asked."""
        if not len(self.stop_tokens):
            return False
        self.ended |= torch.isin(drawn, self.stop_tokens).any(-1)
        self.steps += 1
        return self.steps % self.apart == 0 and bool(self.ended.all())


def _is_stop(tokens: Int[Tensor, "*rows N"], stop_tokens: Sequence[int]) -> Bool[Tensor, "*rows N"]:
    return torch.isin(tokens, torch.tensor(list(stop_tokens), dtype=tokens.dtype, device=tokens.device))
