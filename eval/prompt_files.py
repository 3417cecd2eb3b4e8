"""Where the prompts of a benchmark's categories lie, and how they say which category they are of."""

from collections.abc import Sequence
from pathlib import Path

from t2i_rl.errors import UserError
from t2i_rl.prompts.prompt import Prompt


def in_category(prompts: Sequence[Prompt], category: str) -> list[Prompt]:
    """The prompts with `category` in their metadata."""
    return [Prompt(prompt.text, {**prompt.metadata, "prompt": prompt.text, "category": category}) for prompt in prompts]


def place_in(folder: Path | None, file: str, name: str) -> str:
    """A file of a folder of the user's, else the name that `t2i-rl data` knows it by. Raises UserError."""
    if folder is None:
        return name
    if not (folder / file).is_file():
        raise UserError(f"{folder} has no {file}: give the folder of the benchmark's prompt files")
    return str(folder / file)
