"""From what an image decoder computes to bytes."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from models.errors import ModelError


def to_bytes(values: Float[Tensor, "R 3 H W"]) -> UInt8[Tensor, "R 3 H W"]:
    """Values meant to lie in 0..255, truncated. Raises ModelError for NaN, which would become some byte."""
    if values.isnan().any():
        raise ModelError(
            "the image decoder gives pixels that are no numbers: copy the checkpoint again, or choose float32"
        )
    return values.clamp(0, 255).to(torch.uint8)
