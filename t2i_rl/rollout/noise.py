"""The noise of an image: one uniform number per token, keyed by what the image is, not by where it runs.

Key: (seed, step, prompt text, its occurrence in the step, sample). The numbers are drawn on the CPU, so
they do not depend on the batch, its order, the micro-batch, the number of processes or the device.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """What keys the noise of a batch; occurrences are counted within the prompts if not given.

    first: the number of each prompt's first sample here, where a group is sampled in parts.
    """

    seed: int
    step: int = 0
    occurrences: Sequence[int] = field(default_factory=tuple)
    first: int = 0


def occurrences(prompts: Sequence[str]) -> list[int]:
    """How often each prompt has come before in the sequence: repeated prompts get different images."""
    seen: Counter[str] = Counter()
    numbers = []
    for prompt in prompts:
        numbers.append(seen[prompt])
        seen[prompt] += 1
    return numbers


def uniforms(
    seed: int,
    step: int,
    prompts: Sequence[str],
    occurrence: Sequence[int],
    group_size: int,
    tokens: int,
    first: int = 0,
) -> Float[Tensor, "P G N"]:
    """Uniform numbers in [0, 1) for every token of every image, of which each prompt's are numbered from `first`."""
    drawn = np.empty((len(prompts), group_size, tokens), dtype=np.float32)
    for row, (prompt, number) in enumerate(zip(prompts, occurrence, strict=True)):
        for sample in range(group_size):
            text = "\0".join((str(seed), str(step), str(number), str(first + sample), prompt))
            key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
            drawn[row, sample] = np.random.Generator(np.random.Philox(key=key)).random(tokens, dtype=np.float32)
    return torch.from_numpy(drawn)
