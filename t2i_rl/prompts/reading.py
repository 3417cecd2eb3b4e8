"""Prompts by what a person names: a split of the shapes world, a set, or a file."""

import os
from collections import Counter
from pathlib import Path

from t2i_rl.errors import UserError
from t2i_rl.prompts import files, shapes_questions, shapes_world
from t2i_rl.prompts.files import SUFFIXES
from t2i_rl.prompts.prompt import Prompt, tag_of
from t2i_rl.prompts.sets import NAMES, place, prompt_file

SHAPES_SPLITS = {"shapes:train": "train", "shapes:heldout": "heldout"}
QUESTION_SPLITS = {"questions:train": "train", "questions:heldout": "heldout"}  # about pictures of that world
REPEATS = 16  # of a rare tag's prompts
UNREAD = (".parquet", ".arrow", ".xlsx", ".yaml", ".yml", ".gz", ".zip")  # kinds of files that others keep prompts in


def names_prompts(words: str) -> bool:
    """Whether words name prompts rather than being one: a set, a file that is here, or what ends like a prompt file."""
    if words in (*SHAPES_SPLITS, *QUESTION_SPLITS, *NAMES) or files.suffix(words) in (*SUFFIXES, *UNREAD):
        return True
    path = Path(words)
    try:
        return path.is_file() or (os.sep in words and path.is_dir())
    except (OSError, ValueError):  # longer than a name can be
        return False


def check_words(words: str, what: str) -> None:
    """Raise UserError for the name of prompts where the words of one are wanted."""
    if names_prompts(words):
        raise UserError(f"{what} is {words!r}, which names a file or a set of prompts: write the words of one instead")


def path_of(source: str) -> Path | None:
    """The file of a prompt set by its name, or the file itself, there or not; None for the shapes world.

    Raises UserError for what is neither.
    """
    if source in SHAPES_SPLITS or source in QUESTION_SPLITS:
        return None
    path = place(source) if source in NAMES else Path(source)
    kinds = ", ".join(SUFFIXES)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give one file of prompts ({kinds}), such as a .txt with one on each line")
    if files.suffix(path) not in SUFFIXES:
        ours = ", ".join((*SHAPES_SPLITS, *QUESTION_SPLITS))
        raise UserError(
            f"unknown prompts {source!r}: give {ours}, a name that t2i-rl data list shows, or a file ({kinds})"
        )
    return path


def load_prompts(source: str) -> list[Prompt]:
    """Prompts of `shapes:train`, `shapes:heldout`, a set by its name (`t2i_rl.prompts.sets`) or a file.

    `questions:train`, `questions:heldout`: questions about pictures of the shapes world.

    The shapes world has 480 training prompts of one tag and 3 of another: the rarer ones come up to `REPEATS` times.
    (Three prompts in a sixth of all groups would teach to draw those three.)
    What kinds of files there are says `t2i_rl.prompts.files.read`. Raises UserError with the file and the line.
    """
    path = path_of(source)
    if source in QUESTION_SPLITS:
        return shapes_questions.prompts(QUESTION_SPLITS[source])
    if path is None:
        prompts = [Prompt(str(record["prompt"]), record) for record in shapes_world.prompts(SHAPES_SPLITS[source])]
        if source == "shapes:heldout":
            return prompts
        of_tag = Counter(map(tag_of, prompts))
        most = max(of_tag.values())
        return [prompt for prompt in prompts for _ in range(min(REPEATS, most // of_tag[tag_of(prompt)]))]
    if source in NAMES:
        prompt_file(source)  # is it there, and what it was
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read the prompts in {path} ({error.strerror}): check the path") from error
    return files.read(text, str(path))
