r"""Answers in text, graded exactly: right or wrong against the answer that the prompt's record has.

What is graded is the content of the last `\boxed{}`; without one an answer is wrong. (As released it is right where
the truth is the text `None`: the one difference.) `math-verify` looks through the whole answer by itself,
and calls other answers right than `mathruler`: scores of the two are not comparable.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from rewards.answers.rules import boxed, mended, well_formed
from rewards.answers.workers import Verdict, Workers
from rewards.errors import RewardError
from rewards.reward import Scores

ANSWER = "answer"  # of a prompt's record
ACCURACY = "accuracy"  # the part that says right or wrong
SHOWN = 80  # characters of an answer in a reason


class AnswerReward:
    """`total` is the accuracy, 0 or 1.

    parts: `accuracy`; `format`, whether the answer has the form that was asked for; `ungraded`, 1 where the grader came
    to no verdict within its limits, which counts as wrong.
    """

    def __init__(self, grader: str, name: str, workers: Workers | None = None) -> None:
        """Raises PackageNotFoundError where the grader is not installed."""
        self.name = f"{name} ({grader} {version(grader)})"
        self.whole = grader == "math-verify"  # it looks for the answer by itself
        self.workers = workers or Workers(grader)

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Refuse prompts without a right answer, and a grader that does not start."""
        for prompt, record in zip(prompts, metadata, strict=True):
            truth(prompt, record)
        self.workers.grade([("1", "1")])

    def score(self, answers: Sequence[str], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        truths = [truth(prompt, record) for prompt, record in zip(prompts, metadata, strict=True)]
        texts = [mended(answer) for answer in answers]
        read = answers if self.whole else [boxed(text) for text in texts]
        pairs = [(one, right) for one, right in zip(read, truths, strict=True) if one is not None]
        graded = iter(self.workers.grade(pairs))
        verdicts = [Verdict() if one is None else next(graded) for one in read]
        accuracy = torch.tensor([float(verdict.right) for verdict in verdicts])
        return Scores(
            total=accuracy,
            parts={
                ACCURACY: accuracy,
                "format": torch.tensor([float(well_formed(text)) for text in texts]),
                "ungraded": torch.tensor([float(bool(verdict.trouble)) for verdict in verdicts]),
            },
            reasons=tuple(map(reason, read, truths, verdicts)),
        )


def truth(prompt: str, record: Mapping[str, Any]) -> str:
    """The right answer. Raises RewardError for a prompt without one."""
    found = record.get(ANSWER)
    if not isinstance(found, str) or not found.strip():
        said = f"has the {ANSWER} {found!r}" if ANSWER in record else f"has no {ANSWER!r}"
        raise RewardError(f'the prompt "{_short(prompt)}" {said}: give every prompt its right answer, as a text')
    return found


def reason(read: str | None, right: str, verdict: Verdict) -> str:
    """Why an answer is not right; nothing where it is."""
    if verdict.right:
        return ""
    if read is None:
        return "no answer in \\boxed{}"
    return f"{_short(read)} {verdict.trouble}" if verdict.trouble else f"{_short(read)} is not {_short(right)}"


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"...{text[-SHOWN:]}"
