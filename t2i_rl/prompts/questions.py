"""Prompts with pictures as a model that sees is asked them: the pictures read, in the size that the data gives them.

Pictures are read when a question is asked, and let go with it: a data set has more of them than memory holds.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from models.question import IMAGE, Question
from rewards.files.pictures import PIXELS, PictureError, opened, read_file, rgb, size_of
from t2i_rl.errors import UserError
from t2i_rl.prompts.picture_sizes import fit, fitted
from t2i_rl.prompts.prompt import Prompt

# Behind every question of the papers, after a blank line (`t2i_rl.prompts.contrasts.instructed`).
INSTRUCTION = (
    "You first think through the reasoning process as an internal monologue, enclosed within <think> </think> tags. "
    "Then, provide your final answer enclosed within \\boxed{}."
)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # that data sets of pictures come in
STEEPEST = 200  # times as long as the other a side may be

Pixels = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class PictureSize:
    """Of how many pixels a picture is, about; as the papers train, unless somebody says otherwise."""

    least: int = 256 * 28**2
    most: int = 1280 * 28**2

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            raise UserError(f"pictures of {self.least} to {self.most} pixels: the first has to be above 0 and no more")


def where(prompt: Prompt) -> str:
    return prompt.origin or f"the prompt {prompt.text!r}"


def check_questions(prompts: Iterable[Prompt]) -> None:
    """Raise UserError for a prompt whose marks are not as many as its pictures, and for a picture that is not there."""
    for prompt in prompts:
        marks, given = prompt.text.count(IMAGE), len(prompt.pictures)
        if marks != given:
            raise UserError(
                f"{where(prompt)} has {marks} mark(s) {IMAGE} and {given} picture(s): write a mark for each, and name "
                "the pictures in `images`"
            )
        for picture in prompt.pictures:
            if isinstance(picture, Path) and not picture.is_file():
                raise UserError(f"{where(prompt)} shows {picture}, which is not there: put the picture in its place")


def question_of(prompt: Prompt, size: PictureSize) -> Question:
    """The prompt with its pictures in that size; those that are pixels already stay as they are.

    Raises UserError for a picture that cannot be read.
    """
    return _with_pictures(prompt, size, read_picture)


def outline_of(prompt: Prompt, size: PictureSize) -> Question:
    """The same question with blank pictures in place of files, of which the headers alone are read: as long as it is.

    Raises UserError for a picture whose file has no such header, or ends early.
    """
    return _with_pictures(prompt, size, blank_picture)


def _with_pictures(prompt: Prompt, size: PictureSize, read: Callable[[Path, PictureSize], Pixels]) -> Question:
    found = list[Pixels]()
    for picture in prompt.pictures:
        try:
            found.append(read(picture, size) if isinstance(picture, Path) else picture)
        except PictureError as error:
            raise UserError(
                f"{where(prompt)} shows {picture}, which cannot be read ({error}): copy it again"
            ) from error
    return Question(prompt.text, tuple(found))


def read_picture(path: Path, size: PictureSize) -> Pixels:
    """The pixels of a file in that size. Raises PictureError.

    As released, it stays as it lies in the file, whatever orientation that names.
    """
    with opened(read_file(path), FORMATS, PIXELS) as image:
        _check_sides(*image.size)
        deep = image.mode.startswith("I")  # 16 bits, of which Pillow's own conversion would make white
        return np.array(fit(Image.fromarray(rgb(image)) if deep else image, size.least, size.most))


def blank_picture(path: Path, size: PictureSize) -> Pixels:
    """Black in the size of a file's picture, and one byte of memory. Raises PictureError."""
    sides = size_of(read_file(path), FORMATS, PIXELS)
    _check_sides(*sides)
    width, height = fitted(*sides, size.least, size.most)
    return np.broadcast_to(np.uint8(0), (height, width, 3))


def _check_sides(width: int, height: int) -> None:
    if max(width, height) > STEEPEST * min(width, height):
        raise PictureError(f"{width} x {height} pixels, one side over {STEEPEST} times the other")
