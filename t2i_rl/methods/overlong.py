"""DAPO's soft punishment of answers that come near the limit of their length (arXiv:2503.14476, equation 13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float, Int

if TYPE_CHECKING:
    from torch import Tensor


OVERLONG = "overlong"  # the part of a reward
LAST = 5  # that part of the limit in which it falls: 4,096 of 20,480 tokens in DAPO


def overlong(lengths: Int[Tensor, "*rows"], limit: int, buffer: int) -> Float[Tensor, "*rows"]:
    """0 up to `limit - buffer` tokens, then falling linearly to -1 at the limit."""
    return ((limit - buffer - lengths) / buffer).clamp(-1, 0)
