"""A question in the checkpoint's own chat format, and its token ids with room for the pictures."""

import re
from collections.abc import Sequence
from typing import Any

from models.errors import ModelError
from models.question import IMAGE, Question

Content = list[dict[str, str]]


def content(text: str) -> Content:
    """The parts of a user's message: pieces of text, empty ones dropped, and the pictures that stand between them."""
    pieces = re.split(f"({IMAGE})", text)
    return [{"type": "image"} if piece == IMAGE else {"type": "text", "text": piece} for piece in pieces if piece]


def chat(processor: Any, text: str) -> str:
    """One user message in the checkpoint's template, up to where the answer begins."""
    message = {"role": "user", "content": content(text)}
    return processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)


def prompt_ids(processor: Any, image_token: int, asked: Question, cells: Sequence[int]) -> list[int]:
    """The token ids of a question, with as many image tokens for each picture as it has merged cells.

    Raises ModelError where marks and pictures do not fit.
    """
    marks = asked.text.count(IMAGE)
    if marks != len(cells):
        raise ModelError(
            f"the prompt {asked.text!r} has {marks} mark(s) {IMAGE} and {len(cells)} picture(s): give one for each"
        )
    ids = processor.tokenizer(chat(processor, asked.text), add_special_tokens=False)["input_ids"]
    if ids.count(image_token) != marks:
        raise ModelError(
            f"the prompt {asked.text!r} holds {processor.image_token}, which stands for pictures: write {IMAGE} instead"
        )
    counts = iter(cells)
    return [token for found in ids for token in [found] * (next(counts) if found == image_token else 1)]
