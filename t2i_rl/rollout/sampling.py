"""How tokens are drawn, and which distribution their log-probability is of: settings, without torch."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import tyro

from t2i_rl.settings import check

LogProb = Literal["cond", "cfg"]


@dataclass(frozen=True)
class Sampling:
    """How images are drawn.

    Attributes:
        guidance_scale: g of `u + g * (c - u)`; 1 is plain conditional sampling; nothing: the model's own.
        temperature: divides the guided logits; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens up to this total probability; 1 keeps all.
        negative_prompt: what guidance leads away from; nothing: the model's unconditional branch.
    """

    guidance_scale: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    negative_prompt: Annotated[str, tyro.conf.arg(prefix_name=False)] = ""

    def __post_init__(self) -> None:
        scale = self.guidance_scale
        check("guidance-scale", scale, scale is None or math.isfinite(scale), "finite")
        check("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more")
        check("top-k", self.top_k, self.top_k >= 0, "0 or more")
        check("top-p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")

    def of(self, own: float) -> Self:
        """With the model's own guidance scale where none is given."""
        return self if self.guidance_scale is not None else replace(self, guidance_scale=own)
