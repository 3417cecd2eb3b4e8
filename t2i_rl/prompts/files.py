"""Prompts as files hold them: lines of text or of JSON, a JSON list, a table; each prompt with its place."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from t2i_rl.errors import UserError
from t2i_rl.prompts.prompt import Prompt
from t2i_rl.settings import check_whole

PROMPT, IMAGES = "prompt", "images"
NAMES = (PROMPT, "prompts")  # of the key or column, in any case
Entries = Iterator[tuple[str, Any]]  # a place and what stands there


def read(text: str, origin: str) -> list[Prompt]:
    """The prompts in the text of a file; what else an entry holds becomes metadata.

    A `.jsonl` line is an object with `prompt`, a `.txt` line is a prompt; blank lines are skipped. A `.json` file is a
    list of texts or of such objects. A `.csv` or `.tsv` table has a column `prompt`; its columns come in lower case.
    origin: a path or address whose suffix says which. Raises UserError that names it and the place inside it.
    """
    kind = suffix(origin)
    if kind == LINES:
        prompts = [Prompt(line.strip(), origin=place) for place, line in _lines(text, origin)]
    else:
        folder = Path(origin).parent
        prompts = [prompt_of(entry, place, folder) for place, entry in KINDS[kind](text, origin)]
    if not prompts:
        raise UserError(f"{origin} holds no prompts: write at least one")
    return prompts


def suffix(origin: str | PurePath) -> str:
    """What a path or an address ends in, in lower case."""
    return PurePosixPath(origin).suffix.lower()


def prompt_of(entry: Any, place: str, folder: Path) -> Prompt:
    """A text, or an object with the text `prompt`, as a prompt. Raises UserError that names its place.

    folder: what the pictures of a question, the texts in `images`, are relative to.
    """
    record = {PROMPT: entry} if isinstance(entry, str) else entry
    if not isinstance(record, dict):
        raise UserError(f'{place} has no `{PROMPT}`: write a text, or an object such as {{"{PROMPT}": "a red cube"}}')
    found = [PROMPT] if PROMPT in record else [key for key in record if key.lower() in NAMES]
    if len(found) != 1:
        there = ", ".join(f"`{key}`" for key in found or record) or "nothing"
        fault = f"no `{PROMPT}`, only {there}" if not found else f"more than one `{PROMPT}`, {there}"
        raise UserError(f"{place} has {fault}: name what the images show `{PROMPT}`, and nothing else")
    text = record[found[0]]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: `{found[0]}` is {text!r}, but it has to be a text that is not empty")
    check_whole(json.dumps(record, ensure_ascii=False, default=str), place)
    metadata = {PROMPT if key == found[0] else key: value for key, value in record.items()}
    named = record.get(IMAGES)
    shown = named if isinstance(named, list) and all(isinstance(one, str) for one in named) else []
    return Prompt(text, metadata, place, pictures=tuple(folder / one for one in shown))


def _lines(text: str, origin: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{origin}, line {number}", line


def _json_lines(text: str, origin: str) -> Entries:
    for place, line in _lines(text, origin):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not JSON ({error}): write one object per line") from error
        yield place, entry


def _json_list(text: str, origin: str) -> Entries:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin} is not JSON ({error}): write a list of texts, or of objects") from error
    if not isinstance(found, list):
        keys = f" but an object with {', '.join(f'`{key}`' for key in found) or 'nothing'}" * isinstance(found, dict)
        raise UserError(f"{origin} is no list{keys}: write a list of texts, or of objects with `{PROMPT}`")
    return ((f"{origin}, entry {number}", entry) for number, entry in enumerate(found, start=1))


def _table(text: str, origin: str, delimiter: str) -> Entries:
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    columns: list[str] = []
    before = 0  # lines; a field in quotes may run over several
    try:
        for row in rows:
            place, before = f"{origin}, line {before + 1}", rows.line_num
            if not row:
                continue
            if not columns:
                columns = [column.strip().lower() for column in row]
                _check_columns(columns, row, place, delimiter)
                columns = [PROMPT if column in NAMES else column for column in columns]
            elif len(row) != len(columns):
                raise UserError(
                    f"{place} has {len(row)} fields for {len(columns)} columns: write every field, with quotes around "
                    f"one that holds a {SIGNS[delimiter]}"
                )
            else:
                yield place, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{origin}, line {rows.line_num} is no row of a table ({error}): mend the quotes") from error


SIGNS = {",": "comma", "\t": "tab"}


def _check_columns(columns: list[str], told: list[str], place: str, delimiter: str) -> None:
    if sum(column in NAMES for column in columns) != 1:
        there = ", ".join(f"`{column}`" for column in told)
        raise UserError(
            f"{place} has to name one column `{PROMPT}`, but has {there}: name what the images show so, with a "
            f"{SIGNS[delimiter]} between two columns"
        )


KINDS: dict[str, Callable[[str, str], Entries]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": lambda text, origin: _table(text, origin, ","),
    ".tsv": lambda text, origin: _table(text, origin, "\t"),
}
LINES = ".txt"
SUFFIXES = (*KINDS, LINES)
