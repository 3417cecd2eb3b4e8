"""The cosine between an image and its prompt under OpenAI's CLIP ViT-B/32, unscaled: about 0.2..0.35.

This is what T2I-CompBench reports. Others call other numbers CLIPScore: 2.5 times the cosine, not below 0, of the
prompt after "A photo depicts" (Hessel et al.), or 100 times the cosine, not below 0 (torchmetrics).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from rewards.scorers.clip import Clip, load_clip
from rewards.scorers.measure import Measure

OPENAI = "timm/vit_base_patch32_clip_224.openai"  # OpenAI's weights in open_clip's format
ARCHITECTURE = "ViT-B-32-quickgelu"


class ClipScore(Measure):
    def __init__(self, clip: Clip, name: str) -> None:
        self.clip = clip
        self.name = name
        self.tokens = clip.tokens

    @classmethod
    def load(cls, source: str | Path | None = None, device: str = "cpu") -> Self:
        """From a folder or hub repository in open_clip's format, or a file with ViT-B/32's weights.

        Raises RewardError.
        """
        source = source or OPENAI
        return cls(load_clip(source, ARCHITECTURE, device), f"clipscore (cosine, {Path(source).name})")

    def has_more(self, prompt: str) -> bool:
        return self.clip.has_more(prompt)

    def measure(self, images: Sequence[UInt8[ndarray, "H W 3"]], prompts: Sequence[str]) -> Float[Tensor, " B"]:
        return self.clip.similarity(images, prompts)
