"""Prompts, where they come from, and the order in which training meets them."""

import json
from collections import Counter
from pathlib import Path

from t2i_rl.errors import UserError
from t2i_rl.prompts import shapes_world
from t2i_rl.prompts.prompt import Prompt, tag_of
from t2i_rl.prompts.sets import NAMES, READERS, place, prompt_file, records

SHAPES_SPLITS = {"shapes:train": "train", "shapes:heldout": "heldout"}
SUFFIXES = (".jsonl", ".txt", *READERS)
REPEATS = 16  # of a rare tag's prompts


def path_of(source: str) -> Path | None:
    """The file of a prompt set by its name, or the file itself, there or not; None for the shapes world.

    Raises UserError for what is neither.
    """
    if source in SHAPES_SPLITS:
        return None
    path = place(source) if source in NAMES else Path(source)
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"unknown prompts {source!r}: give {', '.join(SHAPES_SPLITS)}, a name that t2i-rl data list shows, or a "
            f"file ({', '.join(SUFFIXES)})"
        )
    return path


def load_prompts(source: str) -> list[Prompt]:
    """Prompts of `shapes:train`, `shapes:heldout`, a set by its name (`t2i_rl.prompts.sets`) or a file.

    The shapes world has 480 training prompts of one tag and 3 of another: the rarer ones come up to `REPEATS` times.
    (Three prompts in a sixth of all groups would teach to draw those three.)
    A `.jsonl` line is an object with `prompt`; the whole object is the metadata. A `.txt` line is a
    prompt. Blank lines are skipped. A `.json` file is a list of texts or of such objects, a `.csv` file has a column
    `prompt`. Raises UserError with the file and the line.
    """
    path = path_of(source)
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
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read the prompts in {path} ({error.strerror}): check the path") from error
    if path.suffix in READERS:
        return [Prompt(record["prompt"], record) for record in records(text, str(path))]
    lines = text.split("\n")
    read = _from_json if path.suffix == ".jsonl" else _from_text
    prompts = [read(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompts: write at least one line")
    return prompts


def _from_text(line: str, place: str) -> Prompt:
    return Prompt(line.strip())


def _from_json(line: str, place: str) -> Prompt:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({error}): write one object per line") from error
    if not isinstance(record, dict) or "prompt" not in record:
        raise UserError(f'{place} has no `prompt`: every line is an object such as {{"prompt": "a red cube"}}')
    text = record["prompt"]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: `prompt` is {text!r}, but it has to be a text that is not empty")
    return Prompt(text, record)
