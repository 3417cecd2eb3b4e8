"""A vision-language model as a reward: it is asked about each image over an OpenAI-compatible endpoint.

What it is asked and how its answer is read is data, a `Form`. Its grade lies in 1..5 and is the score. It comes from a
number in its answer, or, finer, from the probabilities of its first word: the expected grade over the form's words.

An answer without a grade is no score: the image is among the `failures`, never graded 0.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import UInt8
from numpy import ndarray

from rewards.files.noted import note
from rewards.http.patience import PATIENT, Patience
from rewards.judges.endpoint import Chat, Endpoint, Question, picture
from rewards.judges.forms import Form, Verdict, verdict
from rewards.reward import Scores

TOP_TOKENS = 20  # the most that vLLM and others tell the probabilities of


class Judge:
    """The judge of that name. `parts["mass"]`, for words: the probability that the answer was one of them at all."""

    def __init__(self, name: str, form: Form, endpoint: Endpoint, patience: Patience = PATIENT) -> None:
        self.judge, self.form, self.chat = name, form, Chat(endpoint, patience)

    @property
    def name(self) -> str:
        return f"{self.judge} ({self.chat})"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Refuse an endpoint that does not answer or lacks the model; every text can be asked about."""
        self.chat.check()
        asked = f"{self.chat.model} {self.form.model_dump_json()}"
        note(self.judge, hashlib.sha256(asked.encode()).hexdigest())  # wherever the endpoint is

    def score(
        self,
        images: Sequence[UInt8[ndarray, "H W 3"]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        questions = [question(self.form, image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        found, faults = self.chat.ask(questions, partial(verdict, self.form))
        verdicts = [one if isinstance(one, Verdict) else Verdict(0.0, 0.0) for one in found]
        return Scores(
            total=torch.tensor([one.grade for one in verdicts]),
            parts={"mass": torch.tensor([one.mass for one in verdicts])} if self.form.words else {},
            reasons=tuple(one.reason for one in verdicts),
            failures={row: one for row, one in enumerate(found) if isinstance(one, str)},
            faults=dict(faults),
        )


def question(form: Form, image: UInt8[ndarray, "H W 3"], prompt: str) -> Question:
    """What is asked about one image; deterministic as far as the endpoint is. Raises RewardError for a huge image."""
    shown, text = picture(image, form.side), {"type": "text", "text": form.question.replace("{prompt}", prompt)}
    messages = [{"role": "user", "content": [shown, text] if form.image_first else [text, shown]}]
    asked: dict[str, Any] = {"messages": messages, "temperature": 0, "max_tokens": form.tokens}
    if form.opening:
        messages.append({"role": "assistant", "content": form.opening})
        asked |= {"add_generation_prompt": False, "continue_final_message": True}
    if form.words:
        asked |= {"logprobs": True, "top_logprobs": TOP_TOKENS}
    return asked
