"""What a policy is asked: the question that a prompt becomes and, in the second branch, what it is compared with."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.question import Question
from t2i_rl.prompts.contrasts import contrast, positive
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.prompts.questions import PictureSize, outline_of, question_of


@dataclass(frozen=True)
class Asking:
    """How prompts become questions. A model that draws is asked the prompt's own text.

    instruction: behind every question, after a blank line.
    against: what the second branch is asked: a negative prompt by its name, or `text:...` (`t2i_rl.prompts.contrasts`);
        nothing: what the model has by itself.
    size: of the pictures that are files.
    seed: of what is random in a negative prompt.
    """

    instruction: str = ""
    against: str = ""
    size: PictureSize = field(default_factory=PictureSize)
    seed: int = 0

    def questions(self, prompts: Sequence[Prompt]) -> list[Question]:
        """What is asked. Raises UserError for a picture that cannot be read."""
        return [self._positive(question_of(prompt, self.size)) for prompt in prompts]

    def outline(self, prompt: Prompt) -> Question:
        """What is asked, as long as it is, with blank pictures (`t2i_rl.prompts.questions.outline_of`)."""
        return self._positive(outline_of(prompt, self.size))

    def both(self, prompts: Sequence[Prompt], step: int = 0) -> tuple[list[Question], list[Question]]:
        """What is asked and what the second branch is, nothing where the model has its own; pictures are read once.

        A prompt's second question is the same within a step.
        """
        asked = [question_of(prompt, self.size) for prompt in prompts]
        against = (
            [contrast(self.against, one, self.instruction, self._noise(one, step)) for one in asked]
            if self.against
            else []
        )
        return [*map(self._positive, asked)], against

    def _positive(self, asked: Question) -> Question:
        return positive(asked, self.instruction) if self.instruction else asked

    def _noise(self, asked: Question, step: int) -> np.random.Generator:
        text = "\0".join(("contrast", str(self.seed), str(step), asked.key))
        key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
        return np.random.Generator(np.random.Philox(key=key))


AS_IT_IS = Asking()  # a prompt is the question
