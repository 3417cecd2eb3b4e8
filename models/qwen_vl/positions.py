"""M-RoPE: where each token of a prompt stands on the three axes time, height and width.

Ours, because transformers falls back to plain counting in silence where it is not told which tokens are pictures, and
keeps what it found for the next call.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor


def mrope_positions(
    ids: Sequence[int], image_token: int, grids: Sequence[tuple[int, int]], merge: int
) -> Int[Tensor, "3 L"]:
    """The positions of a prompt.

    Text counts on along all three axes. A picture of m x n merged cells that begins at s stands at (s, s + row,
    s + column), row by row; what follows it goes on at s + max(m, n).

    grids: (height, width) in patches of the pictures in turn, each of which has a run of image tokens in `ids`.
    merge: patches along a side of one cell.
    """
    pictures = iter(grids)
    parts, place, at = [], 0, 0
    while place < len(ids):
        if ids[place] == image_token:
            rows, columns = (side // merge for side in next(pictures))
            cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).mT
            parts.append(at + F.pad(cells, (0, 0, 1, 0)))
            place, at = place + rows * columns, at + max(rows, columns)
        else:
            run = _run_of_text(ids, place, image_token)
            parts.append(at + torch.arange(run).expand(3, -1))
            place, at = place + run, at + run
    return torch.cat(parts, dim=1)


def _run_of_text(ids: Sequence[int], start: int, image_token: int) -> int:
    ends: Iterator[int] = (place for place in range(start, len(ids)) if ids[place] == image_token)
    return next(ends, len(ids)) - start
