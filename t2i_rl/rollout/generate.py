"""Generating images: the pictures of a list of prompts, and their folder in the layout of GenEval.

An image depends on the prompt, its occurrence in the list, the sample number and the seed, not on the
batch it is sampled in.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxtyping import UInt8
from numpy import ndarray

from models.policy import Policy
from t2i_rl.errors import UserError
from t2i_rl.rollout.noise import Noise, occurrences
from t2i_rl.rollout.sampler import encode, sample_group
from t2i_rl.rollout.sampling import Sampling


class Generated(NamedTuple):
    """One image: the index of its prompt in the list, its number within the prompt's group, its pixels."""

    prompt: int
    sample: int
    image: UInt8[ndarray, "H W 3"]


def generate(
    policy: Policy,
    prompts: Sequence[str],
    images_per_prompt: int,
    sampling: Sampling,
    seed: int,
    batch: int,
    only: Sequence[int] | None = None,
) -> Iterator[Generated]:
    """The images in order, sampled about `batch` at a time (whole prompts, at least one).

    only: the indices of the prompts to generate, all if not given; their images stay the same.
    Raises UserError for counts below 1.
    """
    check_counts(images_per_prompt, batch)
    numbers = occurrences(prompts)
    rows = range(len(prompts)) if only is None else only
    size = max(1, batch // images_per_prompt)
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        condition = encode(policy, [prompts[row] for row in chosen], sampling.negative_prompt)
        noise = Noise(seed, occurrences=[numbers[row] for row in chosen])
        images = sample_group(policy, condition, images_per_prompt, sampling, noise).images(policy)
        pixels = images.permute(0, 1, 3, 4, 2).cpu().numpy()
        for row, group in zip(chosen, pixels, strict=True):
            for sample, image in enumerate(group):
                yield Generated(row, sample, image)


def check_counts(images_per_prompt: int, batch: int) -> None:
    """Raises UserError unless there is something to generate at a time."""
    for name, count in (("images_per_prompt", images_per_prompt), ("batch", batch)):
        if count < 1:
            raise UserError(f"{name} is {count}: it has to be at least 1")
