"""A vision-language model that compares the images of a prompt, two at a time: an image's score is its win rate.

Pref-GRPO's reward (arXiv:2508.20751): with G images of a prompt, `wins / (G - 1)`, a tie being half a win. Comparing is
easier than grading, and rates keep their spread where all grades are nearly equal. Every pair is asked about once;
which of the two comes first alternates, so that a judge that likes the first better is not unfair to some images.

The images of a prompt in one call are its group, so a single image cannot be scored, and the reward cannot be served:
a server sees only parts of a group. The judge itself is a server already.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from jaxtyping import UInt8
from numpy import ndarray

from rewards.files.noted import note
from rewards.http.patience import PATIENT, Patience
from rewards.judges.endpoint import Chat, Choice, Endpoint, Question, UnansweredError, picture, quoted
from rewards.reward import Scores

ASKED = (
    'Both images were made from the description "{prompt}".\n'
    "Say which of them shows more completely and exactly what is described and, where they are equal in that, which "
    "one looks better. Give your reasons in two sentences, then end with the line "
    '"Better image: 1", "Better image: 2" or "Better image: equal".'
)
MARKER = "Better image:"
WORDS = re.compile(r"\W*(1|2|equal)\b", re.IGNORECASE)
FIRST_WINS = {"1": 1.0, "2": 0.0, "equal": 0.5}
TOKENS = 512


class PairwiseJudge:
    """The win rates that the model of an endpoint gives."""

    def __init__(self, endpoint: Endpoint, patience: Patience = PATIENT) -> None:
        self.chat = Chat(endpoint, patience)

    @property
    def name(self) -> str:
        return f"pairwise ({self.chat})"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Refuse an endpoint that does not answer or lacks the model; every text can be asked about."""
        self.chat.check()
        note("pairwise", hashlib.sha256(str(self.chat.model).encode()).hexdigest())  # wherever the endpoint is

    def score(
        self,
        images: Sequence[UInt8[ndarray, "H W 3"]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Scores:
        groups: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(row)
        pairs = [ordered(*pair) for rows in groups.values() for pair in combinations(rows, 2)]
        shown = [picture(image) for image in images]
        questions = [question(shown[first], shown[second], prompts[first]) for first, second in pairs]
        found, faults = self.chat.ask(questions, first_wins)
        failures = {
            rows[0]: "it is the only image of its prompt, so there is nothing to compare it with"
            for rows in groups.values()
            if len(rows) == 1
        }
        wins = torch.zeros(len(images))
        for (first, second), won in zip(pairs, found, strict=True):
            if isinstance(won, str):  # without one of its pairs, a rate would be of other pairs than the others'
                failures |= {first: won, second: won}
            else:
                wins[first] += won
                wins[second] += 1 - won
        rivals = torch.tensor([max(1, len(groups[prompt]) - 1) for prompt in prompts])
        return Scores(wins / rivals, {}, ("",) * len(images), failures, dict(faults))


def ordered(left: int, right: int) -> tuple[int, int]:
    """The two in the order in which they are shown: half of an image's pairs show it first."""
    return (left, right) if (left + right) % 2 else (right, left)


def question(first: Mapping[str, Any], second: Mapping[str, Any], prompt: str) -> Question:
    """Which of two pictures is better; deterministic as far as the endpoint is."""
    content = [first, second, {"type": "text", "text": ASKED.replace("{prompt}", prompt)}]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": TOKENS}


def first_wins(choice: Choice) -> float:
    """1, 0 or, where the two are equal, 0.5. Raises UnansweredError for an answer that does not say."""
    text = choice.message.content or ""
    said = WORDS.match(text.rpartition(MARKER)[2]) if MARKER in text else None
    if said is None:
        raise UnansweredError(f"says neither 1, 2 nor equal after {MARKER!r}, but: {quoted(text)}")
    return FIRST_WINS[said[1].lower()]
