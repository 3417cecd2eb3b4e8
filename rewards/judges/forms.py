"""What a judge is asked about an image, and the grade that its answer gives (`rewards.judges.judge` does the
asking)."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewards.errors import RewardError
from rewards.judges.endpoint import Choice, Token, UnansweredError, quoted

LOWEST, HIGHEST = 1.0, 5.0
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


class Form(BaseModel):
    """What a judge is asked about one image, and how its answer is read: by its `words`, or by its `marker`.

    question: `{prompt}` stands for the image's prompt; without it, the prompt is not read.
    image_first: whether the image comes before the question.
    opening: how the judge's answer begins; it only continues.
    words: the grade of each word that may follow; the score is the expected grade.
    marker: what the grade follows in a written answer; the first number after its last occurrence counts.
    tokens: how long an answer may be.
    side: the image is resized to a square of so many pixels; None sends it as it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    image_first: bool = True
    opening: str = ""
    words: dict[str, float] = {}
    marker: str = ""
    tokens: int = Field(default=512, ge=1)
    side: int | None = Field(default=None, ge=1)


WRITTEN = Form(
    question=(
        'This image was made from the description "{prompt}".\n'
        "Grade from 1 (useless) to 5 (perfect), fractions allowed, how completely and exactly the image shows what is "
        "described, and how good it looks. Give your reasons in two sentences, then end with a line "
        '"Final Score: " and the grade.'
    ),
    marker="Final Score:",
)
FORMS = {
    "judge": WRITTEN,
    "unifiedreward": WRITTEN.model_copy(update={"side": 512}),
    # What DeQA-Score was trained to continue; it looks at the image only.
    "deqa": Form(
        question="How would you rate the quality of this image?",
        image_first=False,
        opening="The quality of the image is",
        words={"excellent": 5, "good": 4, "fair": 3, "poor": 2, "bad": 1},
        tokens=1,
    ),
}


@dataclass(frozen=True)
class Verdict:
    """mass: the probability of all the form's words together; 1 for a written answer."""

    grade: float
    mass: float = 1.0
    reason: str = ""


def read_form(path: Path) -> Form:
    """A form from a JSON file with the fields of `Form`. Raises RewardError that names the file and the field."""
    try:
        form = Form.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RewardError(f"{path} cannot be read ({error}): give a JSON file with a judge's question") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise RewardError(f"{path}: {where}: {problem['msg']}: see Form in rewards/judges/forms.py") from error
    if bool(form.words) == bool(form.marker):
        raise RewardError(f"{path} needs either words or a marker, by which the answer is read: give one of them")
    if not all(LOWEST <= grade <= HIGHEST for grade in form.words.values()):
        raise RewardError(f"{path}: a word's grade is outside of {LOWEST:g}..{HIGHEST:g}: judges grade in that range")
    return form


def verdict(form: Form, choice: Choice) -> Verdict:
    """The grade that an answer gives. Raises UnansweredError for one that gives none."""
    if form.words:
        if choice.logprobs is None or not choice.logprobs.content:
            raise UnansweredError("tells no probabilities of its words: serve it where logprobs are answered")
        return expected_grade(form.words, choice.logprobs.content[0].top_logprobs)
    text = choice.message.content or ""
    _, found, rest = text.rpartition(form.marker)
    number = NUMBER.search(rest) if found else None
    if number is None or not LOWEST <= float(number.group()) <= HIGHEST:
        raise UnansweredError(
            f"gives no grade in {LOWEST:g}..{HIGHEST:g} after {form.marker!r}; it says: {quoted(text)}"
        )
    return Verdict(float(number.group()), reason=" ".join(text.split()))


def expected_grade(words: Mapping[str, float], tokens: Sequence[Token]) -> Verdict:
    """sum p(w) grade(w) / sum p(w) over the words w, of those tokens whose probabilities are told.

    A word counts in any case, with or without the blank before it; one that is not told counts nothing. Raises
    UnansweredError if none is.
    """
    grades = {word.lower(): grade for word, grade in words.items()}
    said = [(one.token.strip(" \u2581\u0120").lower(), math.exp(min(one.logprob, 0.0))) for one in tokens]
    shares = [(share, grades[word]) for word, share in said if word in grades]
    mass = sum(share for share, _ in shares)
    if not mass > 0:
        likely = ", ".join(repr(one.token) for one in tokens[:3])
        raise UnansweredError(f"would not say any of {', '.join(words)}, but one of {likely}")
    return Verdict(sum(share * grade for share, grade in shares) / mass, mass)
