"""Where the images of a benchmark lie: our own layout, and those of the official tools.

Ours is GenEval's for every benchmark: `00000/samples/0000.png`, by the prompt's index and the image's number. Images
are found by the folder and the number that their name ends in, whatever image format they are in.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.records.manifest import Key
from t2i_rl.errors import UserError
from t2i_rl.pictures.image_files import image_path

PLAIN = "plain"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LONGEST = 200  # bytes of a prompt in a file's name; file systems allow 255 of the whole name
NUMBER = re.compile(r"(?:^|_)(\d+)$")


@dataclass(frozen=True)
class Layout:
    """The path of every image, below a folder; a name may begin with its prompt."""

    name: str
    paths: Mapping[Key, Path]

    def find(self, folder: Path) -> dict[Key, Path]:
        """The images that are there.

        Raises UserError for two files of one number, and for a file whose name tells another prompt.
        """
        listings = {parent: _numbered(folder / parent) for parent in {path.parent for path in self.paths.values()}}
        found = {}
        for key, path in self.paths.items():
            match = NUMBER.search(path.stem)
            assert match is not None  # every layout numbers its images
            there = listings[path.parent].get(int(match[1]))
            if there is not None:
                _check_prompt(there, path)
                found[key] = there
        return found

    def further(self, folder: Path, found: Mapping[Key, Path]) -> Path | None:
        """A numbered image of the folder that is none of those found; images without a number do no harm."""
        parents = {folder / path.parent for path in self.paths.values()}
        if self.name == PLAIN:
            parents |= {path for path in folder.glob("*/samples") if path.parent.name.isdecimal()}
        known = set(found.values())
        images = (path for parent in sorted(parents) for path in _numbered(parent).values())
        return next((path for path in images if path not in known), None)


def plain(keys: Sequence[Key]) -> Layout:
    """Ours and GenEval's."""
    return Layout(PLAIN, {key: image_path(*key) for key in keys})


def metadata_path(index: int) -> Path:
    """Where GenEval writes what a prompt's images should show."""
    return Path(f"{index:05d}", "metadata.jsonl")


def file_name(prompt: str, number: int) -> str:
    """T2I-CompBench's name of an image. A slash, and what is too long for a name, is left out."""
    text = prompt.replace("/", " ").encode()[:LONGEST].decode(errors="ignore")
    return f"{text}_{number:06d}.png"


def _numbered(folder: Path) -> dict[int, Path]:
    """The images of a folder by number. Raises UserError if two have the same."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = NUMBER.search(path.stem)
        if match is None or path.suffix.lower() not in SUFFIXES or path.name.startswith("."):  # ._0000.png of a Mac
            continue
        number = int(match[1])
        if number in found:
            raise UserError(f"{found[number]} and {path} have the same number: remove one of them")
        found[number] = path
    return found


def _check_prompt(found: Path, expected: Path) -> None:
    """A name that holds a prompt holds the right one, as far as it was written out. Raises UserError."""
    texts = [re.sub(r"[\W_]+", "", NUMBER.sub("", path.stem)).lower() for path in (found, expected)]
    if not (texts[0].startswith(texts[1]) or (texts[0] and texts[1].startswith(texts[0]))):
        raise UserError(f'{found} should show "{NUMBER.sub("", expected.stem)}": give the images of these very prompts')
