"""Negative prompts for questions with pictures: what the second branch is asked, so that it shows which words mattered.

Each is a pure function of the question; the policy encodes what it returns. With `Q` the question as in the data, `F`
the instruction that says how to answer, and a blank line between them, the positive prompt is `Q F` with the question's
pictures. From the paper's table 4 (accuracy on MM12K):

- `no-prompt` (no prompt, 76.9): an empty turn.
- `no-image` (no visual input, 81.4): the positive prompt without pictures and their marks.
- `blank-image` (blank image, 82.1): the positive prompt with white pictures of the same sizes.
- `masked-image` (corrupted, as VPPO does it, 82.8): the positive prompt with patches of the pictures black.
- `neutral` (null prompt, 82.3): the pictures and `Answer the question.`
- `wrong-answer` (negative suffix, 83.1): the positive prompt, and a note that asks for a wrong answer.

`wrong-answer-released` is what the released script ran: its data class adds `F` once more behind the note. Of the
release only that one runs; the other rows of the table come from code that was not released, and these constructions
are definitions. `text:...` is any text, with the pictures where it has marks.

Of a question without pictures the three kinds that change pictures are the positive prompt: nothing differs.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, UInt8

from models.question import IMAGE, Question
from t2i_rl.errors import UserError

NOTE = "Note: Intentionally generate an incorrect answer."
NEUTRAL = "Answer the question."
ANY_TEXT = "text:"
WHITE = 255
MASK_PATCH = 14  # pixels, of Qwen3 as well, whose own patches have 16
MASKED_SHARE = 0.5

Noise = np.random.Generator


def instructed(text: str, instruction: str) -> str:
    """A text and, after a blank line, how to answer; the text alone where there is no instruction."""
    return f"{text.strip()}\n\n{instruction}" if instruction else text.strip()


def positive(asked: Question, instruction: str) -> Question:
    """What the policy is asked."""
    return replace(asked, text=instructed(asked.text, instruction))


def no_prompt(asked: Question, instruction: str, noise: Noise) -> Question:
    return Question("")


def no_image(asked: Question, instruction: str, noise: Noise) -> Question:
    return Question(instructed(asked.text.replace(IMAGE, ""), instruction))


def blank_image(asked: Question, instruction: str, noise: Noise) -> Question:
    white = tuple(np.full_like(picture, WHITE) for picture in asked.pictures)
    return replace(positive(asked, instruction), pictures=white)


def masked_image(asked: Question, instruction: str, noise: Noise) -> Question:
    masked = tuple(blackened(picture, noise.random(patches_of(picture))) for picture in asked.pictures)
    return replace(positive(asked, instruction), pictures=masked)


def neutral(asked: Question, instruction: str, noise: Noise) -> Question:
    return replace(asked, text=IMAGE * len(asked.pictures) + NEUTRAL)


def wrong_answer(asked: Question, instruction: str, noise: Noise) -> Question:
    return replace(asked, text=f"{instructed(asked.text, instruction)}\n\n{NOTE}")


def wrong_answer_released(asked: Question, instruction: str, noise: Noise) -> Question:
    return replace(asked, text=instructed(wrong_answer(asked, instruction, noise).text, instruction))


CONTRASTS: dict[str, Callable[[Question, str, Noise], Question]] = {
    "no-prompt": no_prompt,
    "no-image": no_image,
    "blank-image": blank_image,
    "masked-image": masked_image,
    "neutral": neutral,
    "wrong-answer": wrong_answer,
    "wrong-answer-released": wrong_answer_released,
}


def contrast(name: str, asked: Question, instruction: str, noise: Noise) -> Question:
    """The negative prompt of a question. Raises UserError for an unknown name, and for marks that do not fit.

    noise: which patches `masked-image` blackens; nothing else is random.
    """
    if name.startswith(ANY_TEXT):
        return _any_text(name.removeprefix(ANY_TEXT), asked)
    if name not in CONTRASTS:
        raise UserError(f"unknown negative prompt {name!r}: choose {', '.join(CONTRASTS)} or {ANY_TEXT}...")
    return CONTRASTS[name](asked, instruction, noise)


def _any_text(text: str, asked: Question) -> Question:
    marks = text.count(IMAGE)
    if marks not in (0, len(asked.pictures)):
        raise UserError(
            f"the negative prompt {text!r} has {marks} mark(s) {IMAGE}, but {asked.text!r} has {len(asked.pictures)} "
            "picture(s): write one for each, or none"
        )
    return Question(text, asked.pictures if marks else ())


def patches_of(picture: UInt8[np.ndarray, "H W 3"]) -> tuple[int, int]:
    """Rows and columns of the patches that are blackened; the last of each may be smaller."""
    height, width = picture.shape[:2]
    return -(-height // MASK_PATCH), -(-width // MASK_PATCH)


def blackened(picture: UInt8[np.ndarray, "H W 3"], uniforms: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "H W 3"]:
    """The picture with those patches black whose uniform number is below `MASKED_SHARE` (VPPO).

    The picture has the size that the data gives it, before the image processor's own rounding.
    """
    height, width = picture.shape[:2]
    black: Bool[np.ndarray, "h w"] = uniforms < MASKED_SHARE
    pixels = black.repeat(MASK_PATCH, axis=0).repeat(MASK_PATCH, axis=1)[:height, :width]
    return np.where(pixels[..., None], np.uint8(0), picture)
