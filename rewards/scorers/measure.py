"""What scorers share that give an image and its prompt one number, and read no metadata."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from rewards.cut import Cut
from rewards.reward import Scores

IMAGES_PER_PASS = 64


class Measure:
    """A reward whose whole answer is `measure`: a number per image, in the scorer's own unit.

    tokens: of a prompt that it reads, those at the ends included; None: there is no such limit.
    """

    name: str
    tokens: int | None = None

    def measure(self, images: Sequence[UInt8[ndarray, "H W 3"]], prompts: Sequence[str]) -> Float[Tensor, " B"]:
        """The numbers of at most `IMAGES_PER_PASS` images, of any sizes."""
        raise NotImplementedError

    def has_more(self, prompt: str) -> bool:
        """Whether a prompt has more than `tokens`."""
        raise NotImplementedError

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[Cut]:
        """Every text can be scored, if not all of it."""
        if self.tokens is None:
            return []
        longer = sum(number for prompt, number in Counter(prompts).items() if self.has_more(prompt))
        return [Cut(self.name, self.tokens, longer)] if longer else []

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
