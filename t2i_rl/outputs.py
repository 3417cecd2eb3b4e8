"""Output folders and files that are there whole or not at all.

What cannot be written is an OSError that names the place: full disks, quotas and file systems that fail say none.
"""

import fcntl
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from t2i_rl.errors import UserError

ASIDE = ".whole"  # how the name of a folder ends that is being written


def check_free(folder: Path) -> None:
    """The folder can be written to: it does not exist yet, or is empty. Raises UserError."""
    if folder.is_dir():
        if any(folder.iterdir()):
            raise UserError(f"the output folder {folder} is not empty: name another one, or remove it")
    elif folder.exists():
        raise UserError(f"the output folder {folder} is a file: name another one")


def free_or_next(folder: Path, default: Path) -> Path:
    """The folder that was asked for; where that is the default and is taken, NAME-2, NAME-3, ..., whichever is free."""
    number, found = 1, folder
    while folder == default and found.exists() and not (found.is_dir() and not any(found.iterdir())):
        number += 1
        found = folder.with_name(f"{folder.name}-{number}")
    return found


def is_of_files(error: OSError) -> bool:
    """Whether an OSError is of files: what connections, processes and time limits raise have classes of their own."""
    return error.filename is not None or type(error) in (OSError, PermissionError)


@contextmanager
def naming(place: Path, aside: Path | None = None) -> Iterator[None]:
    """What fails while it writes, and names no file or one in the place aside, names this one. Raises OSError."""
    try:
        yield
    except OSError as error:
        inside = aside is not None and str(error.filename).startswith(str(aside))
        if inside or (error.filename is None and is_of_files(error)):
            error.filename = str(place)
        raise
    except SafetensorError as error:  # which says it in words of its own
        raise OSError(None, " ".join(str(error).split()), str(place)) from error


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its name when all is written, and vanishes when something fails."""
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{glob.escape(folder.name)}-*{ASIDE}"):  # by a process that was killed
        with suppress(OSError), _owned(left) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=ASIDE, dir=folder.parent))
    try:
        with naming(folder, aside), _owned(aside):
            yield aside
            open_to_others(aside)
            aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _owned(folder: Path) -> Iterator[bool]:
    """Whether nobody else writes into a folder aside: the lock on it ends with its owner, in whatever way.

    On a file system without locks nobody can tell.
    """
    place = os.open(folder, os.O_RDONLY)
    try:
        yield _locked(place)
    finally:
        os.close(place)


def _locked(place: int) -> bool:
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def open_to_others(folder: Path) -> None:
    """Give a folder and all in it the rights that this process's new files have: safetensors' are for their owner."""
    hidden = os.umask(0o077)
    os.umask(hidden)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~hidden)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file in one move, whoever else does the same."""
    with whole_file(path) as file:
        file.write(text)


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write into that takes its name when all is written, and vanishes when something fails."""
    with aside_of(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def aside_of(path: Path) -> Iterator[Path]:
    """The place to write a file at before it takes its name; it vanishes when something fails."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with naming(path, aside):
            yield aside
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
