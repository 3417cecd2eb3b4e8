"""Published data sets as they lie in a folder: rows of parquet or JSON files, and the pictures that these have."""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from rewards.files.pictures import PictureError, opened
from t2i_rl.errors import UserError
from t2i_rl.outputs import aside_of, whole_folder
from t2i_rl.prompts.questions import FORMATS, PictureSize, read_picture

Row = Mapping[str, Any]
KINDS = (".parquet", ".json", ".jsonl")
BATCH = 64  # rows of a parquet file that are in memory at once


def find_files(source: Path, patterns: Sequence[str]) -> list[Path]:
    """The source itself if it is a file, else what the first pattern finds below the folder, of `KINDS`.

    Raises UserError for a folder without any.
    """
    if source.is_file():
        return [source]
    known = [path for path in sorted(source.rglob("*")) if path.suffix in KINDS and not path.name.startswith(".")]
    for pattern in patterns:
        if found := [path for path in known if path.match(pattern)]:
            return found
    raise UserError(
        f"{source} holds none of the files {', '.join(patterns)} ({', '.join(KINDS)}): give the folder of the "
        "published files, or one of them, with --source"
    )


def rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its place. Raises UserError for a file that holds none."""
    read = _parquet_rows if path.suffix == ".parquet" else _json_rows
    for number, row in enumerate(read(path), start=1):
        place = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{place} is no object: give the published file")
        yield place, row


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise UserError("reading .parquet files needs pyarrow: run pip install pyarrow") from error
    try:
        for batch in ParquetFile(path).iter_batches(BATCH):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own are such
        raise UserError(f"{path} cannot be read ({str(error).partition(chr(10))[0]}): copy it again") from error


def _json_rows(path: Path) -> Iterator[Any]:
    """A list of rows, an object that has them by number, or a row on each line."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            found = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}): copy it again") from error
    if isinstance(found, dict):
        found = list(found.values())
    if not isinstance(found, list):
        raise UserError(f"{path} holds no list of rows: give the published file")
    yield from found


class Pictures:
    """The pictures of a published set, found where they lie, unpacked or written into a folder of our own."""

    def __init__(self, source: Path, patterns: Sequence[str], own: Path) -> None:
        """patterns: of the set's files, whose archives are those named alike, if any are. own: where to write."""
        self.folder = source if source.is_dir() else source.parent
        self.patterns, self.own = patterns, own

    def place(self, picture: Any, where: str) -> Path:
        """The file of a picture that a row names, or holds as bytes. Raises UserError for one that cannot be read."""
        data = picture.get("bytes") if isinstance(picture, dict) else picture
        name = picture.get("path") if isinstance(picture, dict) else picture
        if isinstance(data, bytes):
            return self._written(data, where)
        if not isinstance(name, str) or not name:
            raise UserError(f"{where} has a picture that is neither a path nor bytes: give the published file")
        path = self._found(name)
        if path is None:
            raise UserError(
                f"{where} shows {name}, which is neither in {self.folder} nor in a .zip there: put the published "
                "pictures beside the file"
            )
        try:
            read_picture(path, PictureSize())
        except PictureError as error:
            raise UserError(f"{where} shows {path}, which cannot be read ({error}): copy it again") from error
        return path

    def _found(self, name: str) -> Path | None:
        """Below the folder or an unpacked archive, with all the folders of its name or the last ones alone."""
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
        for root in (self.folder, *self.unpacked):
            for start in range(len(parts)):
                if (path := root.joinpath(*parts[start:])).is_file():
                    return path
        return None

    @cached_property
    def unpacked(self) -> list[Path]:
        """The archives beside the file, unpacked once, when a picture is not there without. Raises UserError."""
        archives = sorted(self.folder.rglob("*.zip"))
        alike = [path for path in archives if any(path.match(pattern) for pattern in self.patterns)]
        return [self._unpack(archive) for archive in alike or archives]

    def _unpack(self, archive: Path) -> Path:
        target = self.own / archive.stem
        if not target.is_dir():
            try:
                with zipfile.ZipFile(archive) as packed, whole_folder(target) as aside:
                    packed.extractall(aside)
            except zipfile.BadZipFile as error:
                raise UserError(f"{archive} cannot be unpacked ({error}): copy it again") from error
        return target

    def _written(self, data: bytes, where: str) -> Path:
        """Named by its content: the same picture is there once, and making a set again changes nothing."""
        try:
            with opened(data, FORMATS) as image:
                kind = str(image.format).lower()
                image.load()
        except PictureError as error:
            raise UserError(f"{where} holds a picture that cannot be read ({error}): copy the file again") from error
        path = self.own / f"{hashlib.sha256(data).hexdigest()[:20]}.{kind}"
        if not path.is_file():
            with aside_of(path) as aside:
                aside.write_bytes(data)
        return path
