"""T2I-CompBench's attribute binding (categories color, shape, texture): BLIP is asked for every noun phrase.

The score of an image is the product of P(yes) over the questions "a green bench?", "a blue bowl?", ... Every number
is rounded to four decimals where the released code prints it, for its averages are taken over what was printed.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

NO_THINGS = ("top", "the side", "the left", "the right")  # noun phrases of a relation
QUESTIONS = 8  # at most
REMOVED = re.compile(r"[.!\"()*#:;~]")


def questions(noun_phrases: Sequence[str]) -> list[str]:
    """What is asked about an image."""
    return [f"{phrase}?" for phrase in noun_phrases if phrase not in NO_THINGS][:QUESTIONS]


def as_asked(question: str) -> str:
    """The question as the model reads it: in lower case, without the signs that its tokenizer never saw."""
    return REMOVED.sub("", question.lower())


def probability_of_yes(logit_yes: float, logit_no: float) -> float:
    """P(yes) where only yes and no can be said, with four decimals."""
    return round(1 / (1 + math.exp(min(logit_no - logit_yes, 700.0))), 4)


def attribute_score(probabilities: Sequence[float]) -> float:
    """The product in float32, with four decimals; 1 where nothing is asked."""
    product = np.float32(1)
    for one in probabilities:
        product *= np.float32(one)
    return float(f"{product:.4f}")
