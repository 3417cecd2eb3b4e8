"""What scorers share that give an image and its prompt one number, and read no metadata."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from rewards.reward import Scores

IMAGES_PER_PASS = 64


class Measure:
    """A reward whose whole answer is `measure`: a number per image, in the scorer's own unit."""

    name: str

    def measure(self, images: Sequence[UInt8[ndarray, "H W 3"]], prompts: Sequence[str]) -> Float[Tensor, " B"]:
        """The numbers of at most `IMAGES_PER_PASS` images, of any sizes."""
        raise NotImplementedError

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Every text can be scored."""

    def score(
        self,
        images: Sequence[UInt8[ndarray, "H W 3"]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        total = torch.zeros(len(images))
        for start in range(0, len(images), IMAGES_PER_PASS):
            rows = slice(start, start + IMAGES_PER_PASS)
            with torch.no_grad():
                total[rows] = self.measure(images[rows], prompts[rows]).float().cpu()
        return Scores(total, {}, ("",) * len(images))
