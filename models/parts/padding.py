"""Left padding, where prompts of different lengths share a batch."""

import torch
from jaxtyping import Int
from torch import Tensor


def trimmed(rows: Tensor, lengths: Int[Tensor, " B"], axis: int = 1) -> tuple[Tensor, Int[Tensor, " B"] | None]:
    """Left-padded rows no wider than the longest, and how many of its slots are padding in each; None where none are.

    lengths: on the CPU, so that nobody waits for a device. axis: of `rows`, the slots.
    """
    known = lengths.tolist()
    width = max(known)
    rows = rows.narrow(axis, rows.shape[axis] - width, width)
    if min(known) == width:
        return rows, None
    return rows, torch.tensor([width - length for length in known]).to(rows.device, non_blocking=True)
