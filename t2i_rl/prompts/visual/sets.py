"""The sets of questions with pictures: where they are published, and how a row of theirs is read.

Of the five benchmarks there are the files that VPPO's and GCPO's figures were measured on, lists of chat messages
(`PAPO-Galaxy/PAPO_eval`, `chamber111/VPPO-Eval`), and the benchmarks' own tables. A table lacks how those files word
options, so questions read from one are ours: `from` says which it was. Names of files and columns are as their
publishers' pages and readers of them have them; the files themselves were not seen here, nor were the columns of MM12K.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from models.question import IMAGE
from rewards.answers.rules import BOX, boxed
from t2i_rl.errors import UserError
from t2i_rl.prompts.questions import INSTRUCTION
from t2i_rl.prompts.visual.published import Row

BLANKS = " \t\r\n"  # a form feed at the beginning of an answer was once a command of LaTeX
MESSAGES, TABLE = "messages", "table"
LETTERS = "ABCDEFGHIJ"
LOOK = "Answer the question in the image with the letter of the right option."


class Item(NamedTuple):
    """A question as a row has it; pictures as paths or bytes."""

    text: str
    pictures: Sequence[Any]
    answer: str
    tag: str = ""
    id: str = ""


@dataclass(frozen=True)
class PublishedSet:
    """repository: of data sets of the hub. files: patterns, of which the first that finds any counts.

    read: a row of a table; None for one that the set leaves out. questions: that it has, where figures are of it.
    """

    repository: str
    files: tuple[str, ...]
    read: Callable[[Row], Item | None]
    questions: int


def needed(row: Row, *names: str) -> Any:
    """What the first of these columns that there is holds. Raises UserError that names those that there are."""
    for name in names:
        if name in row:
            return row[name]
    there = ", ".join(f"`{name}`" for name in row) or "nothing"
    raise UserError(f"no column `{'` or `'.join(names)}`, only {there}: give the published file, answers included")


def _listed(pictures: Any) -> list[Any]:
    return [] if pictures is None else list(pictures) if isinstance(pictures, list | tuple) else [pictures]


def _marked(text: str, pictures: Sequence[Any]) -> str:
    """With the pictures before a text that says nothing of where they stand."""
    return text if IMAGE in text else IMAGE * len(pictures) + text


def _options(text: str, options: Sequence[Any]) -> str:
    """With the options, unless they are letters alone, which are in the picture."""
    told = [str(option) for option in options]
    if not told or all(option in LETTERS for option in told):
        return text
    lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, told, strict=False)]
    return "\n".join([text, "Choices:", *lines])


def from_messages(row: Row) -> Item:
    """A question and its answer as a chat, the instruction of the papers behind the question."""
    said = {message["role"]: message["content"] for message in row[MESSAGES]}
    text, pictures = str(needed(said, "user")), _listed(row.get("images"))
    return Item(
        _marked(text.removesuffix(f"\n\n{INSTRUCTION}"), pictures),
        pictures,
        str(needed(said, "assistant")),
        id=str(row.get("id", "")),
    )


def virl39k(row: Row) -> Item:
    """Also the copy that VPPO trains on, which calls the question `problem` and holds its pictures."""
    pictures = _listed(row.get("image", row.get("images")))
    text = _marked(str(needed(row, "question", "problem")), pictures)
    return Item(text, pictures, needed(row, "answer"), row.get("category", ""), row.get("qid", ""))


def mathverse(row: Row) -> Item | None:
    if needed(row, "question_type") != "multi-choice":
        return None
    pictures = _listed(needed(row, "image"))
    text = _marked(needed(row, "question"), pictures)
    return Item(text, pictures, needed(row, "answer"), row.get("problem_version", ""), row.get("sample_index", ""))


def mathvision(row: Row) -> Item:
    """One picture, whatever the numbers of its marks: it holds all parts."""
    pictures = _listed(row.get("decoded_image") or needed(row, "image"))
    text = re.sub(r"<image\d+>", "", needed(row, "question")).strip(BLANKS)
    text = _options(_marked(text, pictures), row.get("options") or ())
    return Item(text, pictures, needed(row, "answer"), row.get("subject", ""), row.get("id", ""))


def mm12k(row: Row) -> Item:
    pictures = _listed(needed(row, "image", "images"))
    text = _marked(needed(row, "question"), pictures)
    return Item(text, pictures, needed(row, "answer"), row.get("subject", ""), row.get("id", ""))


def logicvista(row: Row) -> Item:
    pictures = _listed(row.get("image") or f"images/{needed(row, 'imagename')}")
    skills = _listed(row.get("skill"))
    return Item(
        _marked(needed(row, "question"), pictures), pictures, needed(row, "answer"), skills[0] if skills else ""
    )


def mmmu_pro(row: Row) -> Item:
    """The question is inside the picture, and its options are too."""
    pictures = _listed(needed(row, "image"))
    return Item(_marked(LOOK, pictures), pictures, needed(row, "answer"), row.get("subject", ""), row.get("id", ""))


EXACT = "PAPO-Galaxy/PAPO_eval"
VISUAL: dict[str, PublishedSet] = {
    "virl39k": PublishedSet("TIGER-Lab/ViRL39K", ("39Krelease.parquet", "*"), virl39k, 38_870),
    "mathverse": PublishedSet(EXACT, ("*AI4Math_MathVerse*", "testmini.*", "testmini-*"), mathverse, 2180),
    "mathvision": PublishedSet("chamber111/VPPO-Eval", ("*MathLLMs_MathVision*", "test.*", "test-*"), mathvision, 2907),
    "mm12k": PublishedSet(EXACT, ("*PAPO_MMK12*", "test.*", "test-*"), mm12k, 2000),
    "logicvista": PublishedSet(EXACT, ("*lscpku_LogicVista*", "dataset.json", "test.*", "test-*"), logicvista, 447),
    "mmmu-pro": PublishedSet(EXACT, ("*MMMU_MMMU_Pro*", "vision/test*"), mmmu_pro, 1730),
}


def answer_of(told: Any) -> str | None:
    r"""The right answer, out of its `\boxed{}` if it is in one; None where there is none, or its box does not close."""
    text = "" if told is None else str(told).strip(BLANKS)
    return (boxed(text) if BOX in text else text) or None
