"""Output folders that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from t2i_rl.errors import UserError


def check_free(folder: Path) -> None:
    """The folder can be written to: it does not exist yet, or is empty. Raises UserError."""
    if folder.is_dir():
        if any(folder.iterdir()):
            raise UserError(f"the output folder {folder} is not empty: name another one, or remove it")
    elif folder.exists():
        raise UserError(f"the output folder {folder} is a file: name another one")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its name when all is written, and vanishes when something fails."""
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield aside
        aside.chmod(0o755)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file in one move."""
    aside = path.with_name(f".{path.name}.new")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write into that takes its name when all is written, and vanishes when something fails."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
