"""What a model is asked: a text, and the pictures that it speaks of. Without torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from models.errors import ModelError

IMAGE = "<image>"  # in the text, where a picture stands


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt. Where a policy is asked with a plain text, that text is a question without pictures.

    text: with a mark `<image>` for every picture, in turn.
    """

    text: str
    pictures: tuple[UInt8[np.ndarray, "H W 3"], ...] = ()

    @property
    def key(self) -> str:
        """What tells questions apart: the text, behind it a digest of the pictures if there are any."""
        if not self.pictures:
            return self.text
        digest = hashlib.blake2b(digest_size=16)
        for picture in self.pictures:
            digest.update(repr(picture.shape).encode() + picture.tobytes())
        return f"{self.text}\0{digest.hexdigest()}"


def question(prompt: str | Question) -> Question:
    """A plain text is a question without pictures."""
    return Question(prompt) if isinstance(prompt, str) else prompt


def texts(prompts: Sequence[str | Question]) -> list[str]:
    """The prompts of a model that reads text alone. Raises ModelError for one with pictures."""
    asked = [question(prompt) for prompt in prompts]
    for one in asked:
        if one.pictures:
            raise ModelError(
                f"the prompt {one.text!r} has {len(one.pictures)} picture(s), but this model reads text alone: leave "
                "them out, or choose a model that sees (t2i-rl models)"
            )
    return [one.text for one in asked]
