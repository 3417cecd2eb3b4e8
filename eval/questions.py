"""Questions of a benchmark's own to a vision-language model, over an OpenAI-compatible endpoint (`T2I_RL_JUDGE`).

Each answer is one word, and its grade is expected over the probabilities of the words: `sum p(w) grade(w) / sum p(w)`
(`rewards.judges.judge`). A question is asked once about an image, or once for each entry of a list in the prompt's
metadata, such as one for every object; then its figures are of all the entries' grades.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from eval.benchmark import Judgement
from eval.records.manifest import digest
from rewards.errors import RewardError
from rewards.http.patience import PATIENT, Patience
from rewards.judges.endpoint import Endpoint
from rewards.judges.forms import Form
from rewards.judges.judge import Judge
from rewards.reward import score_images
from t2i_rl.prompts.prompt import Prompt

VARIABLE = "T2I_RL_JUDGE"
ENTRY = "entry"  # stands for an entry of the list
GEOMETRIC, WORST = "geometric", "worst"
PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Question:
    """One question about an image.

    name: of its figure.
    ask: the text; `{prompt}`, `{KEY}` of the prompt's metadata and, with `each`, `{entry}` are filled in.
    each: a key of the metadata whose value is a list; the question is asked for every entry.
    words: the grade of each word that the answer may be.
    """

    name: str
    ask: str
    each: str = ""
    words: Mapping[str, float] = field(default_factory=lambda: {"yes": 1.0, "no": 0.0})

    @property
    def values(self) -> tuple[str, ...]:
        """The names of what a scorer says: of a list the mean, the geometric mean and the smallest grade."""
        return (self.name, f"{self.name}_{GEOMETRIC}", f"{self.name}_{WORST}") if self.each else (self.name,)

    def texts(self, prompt: Prompt) -> list[str]:
        """What is asked about an image of the prompt. Raises RewardError for metadata that lack something."""
        known: dict[str, Any] = {**prompt.metadata, "prompt": prompt.text}

        def fill(more: Mapping[str, Any]) -> str:
            return PLACE.sub(lambda place: str(_of({**known, **more}, place[1], prompt, self.name)), self.ask)

        if not self.each:
            return [fill({})]
        entries = _of(known, self.each, prompt, self.name)
        if not isinstance(entries, list) or not entries:
            raise RewardError(f'prompt "{prompt.text}": {self.each!r} is {entries!r}, not a list of what to ask for')
        return [fill({ENTRY: entry}) for entry in entries]

    def figures(self, grades: Sequence[float]) -> dict[str, float]:
        """`values` of an image, from the grades of its `texts`."""
        if not self.each:
            return {self.name: grades[0]}
        positive = [max(grade, 0.0) for grade in grades]
        return dict(
            zip(self.values, (fmean(grades), math.prod(positive) ** (1 / len(grades)), min(grades)), strict=True)
        )


def _of(known: Mapping[str, Any], key: str, prompt: Prompt, question: str) -> Any:
    if key not in known:
        raise RewardError(f'prompt "{prompt.text}" has no {key!r}, which the question {question!r} needs')
    return known[key]


class QuestionScorer:
    """Asks an endpoint every question about every image."""

    def __init__(self, questions: Sequence[Question], endpoint: Endpoint, patience: Patience = PATIENT) -> None:
        self.questions = tuple(questions)
        self.judges = {
            one.name: Judge(one.name, Form(question="{prompt}", words=dict(one.words), tokens=1), endpoint, patience)
            for one in questions
        }
        self.name = f"questions {self._digest()} (model not asked yet)"

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse metadata that lack something, and an endpoint that does not answer. Learns the model's name."""
        for prompt in prompts:
            for question in self.questions:
                question.texts(prompt)
        for judge in self.judges.values():
            judge.check([], [])
        # The model and the questions make the scores, not where it is served.
        [model] = {judge.chat.model for judge in self.judges.values()}
        self.name = f"questions {self._digest()} to {model}"

    def score(self, images: Sequence[UInt8[ndarray, "H W 3"]], prompts: Sequence[Prompt]) -> list[Judgement]:
        values: list[dict[str, float]] = [{} for _ in images]
        told: list[dict[str, float]] = [{} for _ in images]
        for question in self.questions:
            texts = [question.texts(prompt) for prompt in prompts]
            shown = [image for image, asked in zip(images, texts, strict=True) for _ in asked]
            every = [text for asked in texts for text in asked]
            grades = iter(score_images(self.judges[question.name], shown, every, [{}] * len(every)).total.tolist())
            for row, asked in enumerate(texts):
                of_image = [next(grades) for _ in asked]
                values[row] |= question.figures(of_image)
                told[row] |= dict(zip(asked, of_image, strict=True))
        return [Judgement(found, details={"grades": answers}) for found, answers in zip(values, told, strict=True)]

    def _digest(self) -> str:
        return digest([[one.name, one.ask, one.each, dict(one.words)] for one in self.questions])[:8]
