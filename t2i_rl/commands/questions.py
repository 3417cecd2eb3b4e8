"""What commands share that ask a model which answers in text: the question with its pictures, and how it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.question import IMAGE
from t2i_rl.errors import UserError
from t2i_rl.prompts.asking import Asking
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.prompts.questions import PictureSize

if TYPE_CHECKING:
    from models.policy import Policy
    from t2i_rl.rollout.sampling import Sampling


def question(words: str, images: Sequence[Path]) -> Prompt:
    """The words with their pictures; those of words without marks stand in front."""
    return Prompt(words if IMAGE in words else IMAGE * len(images) + words, pictures=tuple(images))


def asking(
    policy: Policy, prompts: Sequence[Prompt], sampling: Sampling, instruction: str, against: str = "", seed: int = 0
) -> Asking:
    """How the prompts are asked: pictures in their own size, but for what the model's processor does.

    Raises UserError for guidance, which answers in text have not, and for a question that cannot be asked.
    """
    from t2i_rl.rollout.words import check_asked

    if sampling.guidance_scale != 1 or sampling.negative_prompt:
        raise UserError("--guidance-scale and --negative-prompt are of pictures, and the model answers in text")
    found = Asking(instruction, against, PictureSize(1, MOST), seed)
    check_asked(policy, prompts, found, "the question")
    return found


MOST = 16384 * 28**2  # pixels: what released processors take
