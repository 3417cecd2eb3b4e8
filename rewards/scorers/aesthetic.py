"""LAION's improved aesthetic predictor: how people would rate the picture, about 1..10; the prompt is not read.

A linear head on the unit-length image feature of OpenAI's CLIP ViT-L/14. Some training code divides by 10; here the
score is as the predictor gives it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor, nn

from rewards.files.weights import fetch, read_tensors
from rewards.scorers.clip import Clip
from rewards.scorers.linear_head import grade, linear_head
from rewards.scorers.measure import Measure

URL = "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac+logos+ava1-l14-linearMSE.pth"


class Aesthetic(Measure):
    def __init__(self, clip: Clip, head: nn.Sequential, name: str) -> None:
        self.clip = clip
        self.head = head
        self.name = name

    @classmethod
    def load(cls, clip: Clip, source: str | Path | None = None) -> Self:
        """clip: OpenAI's ViT-L/14; source: the file of the head, or the published one. Raises RewardError."""
        path = Path(source) if source else fetch(URL)
        head = linear_head(read_tensors(path), clip.model.visual.output_dim, str(path))
        return cls(clip, head.to(clip.device), f"aesthetic ({path.name})")

    def measure(self, images: Sequence[UInt8[ndarray, "H W 3"]], prompts: Sequence[str]) -> Float[Tensor, " B"]:
        return grade(self.head, F.normalize(self.clip.encode_images(images), dim=-1))
