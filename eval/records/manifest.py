"""What an evaluation keeps on disk, so that it can be stopped, shared by several processes, and trusted later.

    FOLDER/settings.json          what was asked for; another request needs another folder
    FOLDER/manifest.jsonl         one line per image: prompt, metadata, seed, file, its SHA-256
    FOLDER/scores/NAME.jsonl      one line per image that the scorer NAME has judged
    FOLDER/summary.json           the figures; there only when every image has been judged

While it runs, process r writes `manifest.r.jsonl` and `scores/NAME.r.jsonl`. Whoever finds all lines there joins them;
it does no harm if two do so at once, for both write the same.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from t2i_rl.errors import UserError
from t2i_rl.outputs import write_atomically

SETTINGS, MANIFEST, SCORES, SUMMARY = "settings.json", "manifest.jsonl", "scores", "summary.json"

Key = tuple[int, int]  # the index of the prompt, the number of the image among its images
Row = dict[str, Any]
Block = Sequence[Key]  # drawn together and judged together


@dataclass(frozen=True)
class Shard:
    """Which of several processes this is."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Self:
        """As torchrun sets it: RANK and WORLD_SIZE. Raises UserError."""
        rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            raise UserError(
                f"RANK is {rank!r} and WORLD_SIZE {world!r}: RANK has to be a number from 0 to WORLD_SIZE - 1"
            )
        return cls(int(rank), int(world))

    def own(self, blocks: Sequence[Block]) -> list[Block]:
        """What this process looks after: every block whose number is `rank` modulo `world`."""
        return list(blocks[self.rank :: self.world])


def digest(value: Any) -> str:
    """The SHA-256 of a value that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder ready, or see that it holds what was begun with these settings. Raises UserError."""
    path = folder / SETTINGS
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(not one.name.startswith(".") for one in folder.iterdir())):
            raise UserError(f"{folder} holds something else than an evaluation: name another folder")
        write_atomically(path, as_json(settings))
    held, wanted = read_object(path), json.loads(json.dumps(settings))
    for key in [*wanted, *held]:
        if held.get(key) != wanted.get(key):
            raise UserError(
                f"{folder} holds an evaluation with another {key} ({held.get(key)}, now {wanted.get(key)}): "
                "name another folder, or remove it"
            )


def read_object(path: Path) -> Row:
    """A JSON object. Raises UserError that names the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give the folder of a finished evaluation") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): name another folder") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no object: name another folder")
    return found


class Ledger:
    """Lines of one kind, one per image, written by several processes."""

    def __init__(self, path: Path, shard: Shard) -> None:
        self.path = path
        self.part = path.with_suffix(f".{shard.rank}{path.suffix}")

    def rows(self) -> dict[Key, Row]:
        """What all processes have written so far. A last line without its end is what a killed one was writing.

        Raises UserError for any other line that cannot be read, and for numbers that are none.
        """
        # The parts first: who joins them writes the whole before it removes them, so nothing is missed.
        paths = [*sorted(self.path.parent.glob(f"{self.path.stem}.*{self.path.suffix}")), self.path]
        rows: dict[Key, Row] = {}
        for path in paths:
            for number, line in enumerate(_lines(path), start=1):
                try:
                    row = json.loads(line, parse_float=_finite, parse_constant=_finite)
                    if any(type(value) not in (int, float) for value in row.get("values", {}).values()):
                        raise TypeError("a value is no number")
                    rows[row["index"], row["sample"]] = row
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise UserError(
                        f"{path}, line {number} is not about an image ({error}): remove the line to do it again"
                    ) from error
        return rows

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to this process's part."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        with self.part.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def mend(self) -> None:
        """Cut off a line that was torn when this process was killed."""
        if self.part.exists():
            write_atomically(self.part, "".join(line + "\n" for line in _lines(self.part)))

    def join(self, keys: Sequence[Key]) -> list[Row] | None:
        """All lines in order, as one file; None while some are missing."""
        rows = self.rows()
        if any(key not in rows for key in keys):
            return None
        whole = [rows[key] for key in keys]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in whole)
        if not self.path.exists() or self.path.read_text(encoding="utf-8") != text:
            write_atomically(self.path, text)
        for part in self.path.parent.glob(f"{self.path.stem}.*{self.path.suffix}"):
            part.unlink(missing_ok=True)
        return whole


def _finite(text: str) -> float:
    """A number of JSON. Raises ValueError for one that none of our scorers has given."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


def _lines(path: Path) -> list[str]:
    """The whole lines of a file; none of one that is not there, or is no longer."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return text.split("\n")[:-1]
