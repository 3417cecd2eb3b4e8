"""Generating samples: the pictures, or the answers, of a list of prompts, and their folder in the layout of GenEval.

An image depends on the prompt, its occurrence in the list, the sample number and the seed, not on the
batch it is sampled in.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from models.policy import Policy
from t2i_rl.errors import UserError
from t2i_rl.prompts.asking import AS_IT_IS, Asking
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.rollout.groups import Sample
from t2i_rl.rollout.noise import Noise, occurrences
from t2i_rl.rollout.sampler import encode, sample_group
from t2i_rl.rollout.sampling import Sampling


class Generated(NamedTuple):
    """One image or answer: the index of its prompt in the list, its number within the prompt's group, itself."""

    prompt: int
    sample: int
    image: Sample


def generate(
    policy: Policy,
    prompts: Sequence[str | Prompt],
    images_per_prompt: int,
    sampling: Sampling,
    seed: int,
    batch: int,
    only: Sequence[int] | None = None,
    max_tokens: int | None = None,
    asking: Asking = AS_IT_IS,
) -> Iterator[Generated]:
    """The images in order, sampled about `batch` at a time (whole prompts, at least one).

    only: the indices of the prompts to generate, all if not given; their images stay the same.
    max_tokens: of an answer in text. asking: how prompts become questions, whose pictures are read batch by batch.
    Raises UserError for counts below 1.
    """
    check_counts(images_per_prompt, batch)
    asked = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    numbers = occurrences([prompt.key for prompt in asked])
    rows = range(len(prompts)) if only is None else only
    size = max(1, batch // images_per_prompt)
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        questions = asking.questions([asked[row] for row in chosen])
        condition = encode(policy, questions, sampling.negative_prompt)
        noise = Noise(seed, occurrences=[numbers[row] for row in chosen])
        rollout = sample_group(policy, condition, images_per_prompt, sampling, noise, max_tokens=max_tokens)
        for number, one in enumerate(rollout.samples(policy)):
            yield Generated(chosen[number // images_per_prompt], number % images_per_prompt, one)


def check_counts(images_per_prompt: int, batch: int) -> None:
    """Raises UserError unless there is something to generate at a time."""
    for name, count in (("images_per_prompt", images_per_prompt), ("batch", batch)):
        if count < 1:
            raise UserError(f"{name} is {count}: it has to be at least 1")
