"""What scorers are made of: the SHA-256 of whatever they are read from, noted while they are built, if anybody asks.

    with noted() as found:
        reward = build("geneval hpsv2")
        reward.check(prompts, metadata)
    found  # {"geneval": "ab12...", "hpsv2": "..."}: one digest of all files of each, wherever they lie

What is served is noted by its server's digest, once `check` has asked for it.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from rewards.files.pins import sha256
from rewards.files.sources import sources

_found: ContextVar[dict[str, str] | None] = ContextVar("found", default=None)


@contextmanager
def noted() -> Iterator[dict[str, str]]:
    """What is noted inside of the context, by name."""
    found: dict[str, str] = {}
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def note(name: str, digest: str) -> None:
    """Nothing, where nobody asks."""
    if (found := _found.get()) is not None:
        found[name] = digest


@contextmanager
def noted_as(name: str) -> Iterator[None]:
    """What is noted inside of the context, as one digest under this name."""
    if _found.get() is None:
        yield
        return
    with noted() as files:
        yield
    note(name, hashlib.sha256("".join(sorted(files.values())).encode()).hexdigest() if files else "")


def note_file(path: Path) -> None:
    """A file that weights, or what says how they are used, are read from. About a second per GB, if anybody asks."""
    if _found.get() is not None:
        note(str(path), sha256(path))


def note_code(module: str | None) -> None:
    """The files of a module, or of its package, that a person brought along (`rewards.files.sources`)."""
    for path in sources(module):
        note_file(path)
