"""What the speed benchmarks are asked for; without torch, for the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from t2i_rl.settings import check

Waste = Literal["growing-cache", "statistics-pass", "old-pass", "both-branches", "whole-logits", "looks"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Shape:
    """Of a Janus: its language model, image vocabulary, tokens per side."""

    layers: int
    width: int
    mlp: int
    heads: int
    codes: int = 16384
    grid: int = 24


SHAPES = {
    "small": Shape(8, 512, 1376, 8),
    "janus-pro-1b": Shape(24, 2048, 5632, 16),
    "janus-pro-7b": Shape(30, 4096, 11008, 32),
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What both benchmarks ask for.

    Attributes:
        model: true shapes (janus-pro-1b, janus-pro-7b) or a small Janus for a CPU; random weights, nothing is loaded.
        lora_rank: of adapters on all linear layers; 0: none.
        dtype: of the weights.
        device: where the model runs, such as cpu or cuda.
        guidance: scale of classifier-free guidance.
        rounds: timed ones, in which the arms take turns; one before them warms up and is told apart.
        threads: of the CPU; 0: as many as torch takes.
        seed: of weights, prompts and noise.
        json: file for all figures (docs/speed.md has the fields).
    """

    model: Literal["small", "janus-pro-1b", "janus-pro-7b"] = "small"
    lora_rank: int = 0
    dtype: Precision = "float32"
    device: str = "cpu"
    guidance: float = 5.0
    rounds: int = 3
    threads: int = 0
    seed: int = 0
    json: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None

    def __post_init__(self) -> None:
        check("lora-rank", self.lora_rank, self.lora_rank >= 0, "0 or more")
        check("rounds", self.rounds, self.rounds >= 1, "at least 1")
        check("threads", self.threads, self.threads >= 0, "0 or more")

    @property
    def shape(self) -> Shape:
        return SHAPES[self.model]


@dataclass(frozen=True, kw_only=True)
class RolloutBench(Bench):
    """How fast groups are sampled: ours captured and eager, transformers' generate, a cache that grows.

    Attributes:
        images: in a rollout, of one prompt; several numbers for several rollouts.
        tokens: sampled of each image; 0: all.
    """

    images: tuple[int, ...] = (8,)
    tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check("images", self.images, bool(self.images) and min(self.images) >= 1, "numbers of at least 1")
        check("tokens", self.tokens, 0 <= self.tokens <= self.shape.grid**2, f"0 to {self.shape.grid**2}")

    @property
    def drawn(self) -> int:
        return self.tokens or self.shape.grid**2


@dataclass(frozen=True, kw_only=True)
class StepBench(Bench):
    """What a whole training step costs: methods beside each other, and beside a step with the wastes of released ones.

    Attributes:
        methods: compared with the first.
        images: in a step, half of each of two prompts.
        grid: tokens per side; 0: the model's.
        micro_batch: images per forward and backward pass.
        wastes: what the other step does needlessly; none of them: it is ours.
    """

    methods: tuple[str, ...] = ("grpo", "cfg", "critical")
    images: int = 8
    grid: int = 0
    micro_batch: int = 8
    wastes: tuple[Waste, ...] = (
        *("growing-cache", "statistics-pass", "old-pass"),
        *("both-branches", "whole-logits", "looks"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check("methods", self.methods, bool(self.methods), "at least one")
        check("images", self.images, self.images >= 4 and self.images % 2 == 0, "an even number of at least 4")
        check("grid", self.grid, self.grid >= 0, "0 or more")
        check("micro-batch", self.micro_batch, self.micro_batch >= 1, "at least 1")
