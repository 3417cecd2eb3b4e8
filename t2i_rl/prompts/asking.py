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
        asked = [question_of(prompt, self.size) for prompt in prompts]
        return [positive(one, self.instruction) for one in asked] if self.instruction else asked

    def outline(self, prompt: Prompt) -> Question:
        """What is asked, as long as it is, with blank pictures (`t2i_rl.prompts.questions.outline_of`)."""
        return positive(outline_of(prompt, self.size), self.instruction)

    def negatives(self, prompts: Sequence[Prompt], step: int = 0) -> list[Question]:
        """What the second branch is asked, none where the model has its own: the same for a prompt within a step."""
        if not self.against:
            return []
        asked = [question_of(prompt, self.size) for prompt in prompts]
        return [contrast(self.against, one, self.instruction, self._noise(one, step)) for one in asked]

    def _noise(self, asked: Question, step: int) -> np.random.Generator:
        text = "\0".join(("contrast", str(self.seed), str(step), asked.key))
        key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
        return np.random.Generator(np.random.Philox(key=key))


AS_IT_IS = Asking()  # a prompt is the question
