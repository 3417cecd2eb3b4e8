"""Pictures on their way to the vision tower: resized once and kept as bytes, normalised when a pass needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from models.errors import ModelError

STEEPEST = 200  # how many times as long as the other a side may be


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in the tower's patches, on the CPU. A float32 copy would be eight times as large.

    patches: in the tower's order, each once; `grid` of them.
    """

    patches: UInt8[Tensor, "n C p p"]
    grid: tuple[int, int]


def read_picture(processor: Any, pixels: UInt8[np.ndarray, "H W 3"]) -> Picture:
    """A picture as the checkpoint's image processor resizes it. Raises ModelError for what is none."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ModelError(
            f"a picture is {pixels.dtype} {list(pixels.shape)}: it has to be uint8 of height, width and 3 colours"
        )
    height, width, _ = pixels.shape
    if max(height, width) > STEEPEST * min(height, width):
        raise ModelError(
            f"a picture has {width}x{height} pixels: no side may be over {STEEPEST} times the other, so cut it"
        )
    read = processor(
        [np.require(pixels, requirements="W")],
        do_rescale=False,
        do_normalize=False,
        input_data_format="channels_last",
        return_tensors="pt",
    )
    (_, rows, columns) = read["image_grid_thw"][0].tolist()
    side = processor.patch_size
    repeated = read["pixel_values"].view(rows * columns, 3, processor.temporal_patch_size, side, side)
    return Picture(repeated[:, :, 0].to(torch.uint8).contiguous(), (rows, columns))


def tower_inputs(
    processor: Any, pictures: Sequence[Picture], like: Tensor
) -> tuple[Float[Tensor, "n Cpp"], Int[Tensor, "B 3"]]:
    """What the tower reads: normalised patches, each once per temporal slot, and the pictures' grids.

    like: a weight of the tower, whose place they are made in. Float32 until the tower casts them.
    """
    patches = torch.cat([picture.patches for picture in pictures]).to(like.device)
    mean, std = (
        torch.tensor(values, device=like.device).view(-1, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    scaled = (patches * processor.rescale_factor - mean) / std
    twice = scaled[:, :, None].expand(-1, -1, processor.temporal_patch_size, -1, -1)
    grids = torch.tensor([[1, *picture.grid] for picture in pictures], device=like.device)
    return twice.flatten(1), grids
