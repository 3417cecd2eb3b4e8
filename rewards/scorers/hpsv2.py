"""Human Preference Score v2 and v2.1 (arXiv 2306.09341): CLIP ViT-H/14, fine-tuned on what people preferred.

The score is the cosine between the image and its prompt, about 0.2..0.35; published tables show a hundred times that.
A picture keeps its proportions: it is resized as a tensor and padded with black, which is not CLIP's own transform.

Differences from the released code: pictures of a longer side of exactly 224 are padded like all others, and images of
other modes are converted to RGB (there, both end in an error). Its resize did not antialias until torchvision 0.17
changed the default; the paper's figures were made before (`antialias=False`).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from rewards.files.weights import fetch_from_hub
from rewards.scorers.clip import Clip, load_clip
from rewards.scorers.measure import Measure

REPOSITORY = "xswu/HPSv2"
FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
ARCHITECTURE = "ViT-H-14"


def preprocess(image: Image.Image, size: int, antialias: bool) -> Float[Tensor, "3 size size"]:
    """The picture, its longer side brought to `size` (bicubic), centred on black, by CLIP's mean and deviation."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    scale = size / max(image.size)
    height, width = (max(round(side * scale), 1) for side in pixels.shape[1:])
    if scale != 1:
        pixels = F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=antialias)[0]
    left, top = (size - width) // 2, (size - height) // 2
    pixels = F.pad(pixels, (left, size - width - left, top, size - height - top))
    mean, std = (
        torch.tensor(each)[:, None, None] for each in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (pixels - mean) / std


class HpsV2(Measure):
    """Batched; in half precision on CUDA, as the released scorer runs."""

    def __init__(self, clip: Clip, name: str) -> None:
        self.clip = clip
        self.name = name
        self.tokens = clip.tokens

    @classmethod
    def load(
        cls,
        version: Literal["2.0", "2.1"] = "2.1",
        source: str | Path | None = None,
        device: str = "cpu",
        antialias: bool = True,
    ) -> Self:
        """From a checkpoint of that version: a file, a folder in open_clip's format, or the published one.

        Raises RewardError.
        """
        path = Path(source) if source else fetch_from_hub(REPOSITORY, FILES[version])
        clip = load_clip(path, ARCHITECTURE, device)
        size = max(clip.model.visual.image_size)
        resized = "" if antialias else ", resized without antialiasing"
        clip = replace(clip, transform=partial(preprocess, size=size, antialias=antialias))
        return cls(clip, f"hpsv{version} ({path.name}{resized})")

    def has_more(self, prompt: str) -> bool:
        return self.clip.has_more(prompt)

    def measure(self, images: Sequence[UInt8[ndarray, "H W 3"]], prompts: Sequence[str]) -> Float[Tensor, " B"]:
        return self.clip.similarity(images, prompts)
