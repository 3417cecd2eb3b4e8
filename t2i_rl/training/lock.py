"""One process at a time trains in a run folder: two would write over each other's numbers and checkpoints."""

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from t2i_rl.errors import UserError

LOCK = (
    "lock"  # in the run folder; empty where nobody trains, and never deleted, for a lock is on the file, not its name
)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # how a file system says that it has none


@contextmanager
def owned(run: Path) -> Iterator[None]:
    """The run is this process's alone. Raises UserError, which names the owner, where it is another's.

    The operating system lets go of the lock when its owner ends, in whatever way. On a file system without locks the
    file alone says who the owner is, and is believed unless that process was on this machine and is gone.
    """
    path = run / LOCK
    with path.open("a+", encoding="utf-8") as file:
        free = _lock(file)
        pid, host = _owner(file)
        if free is None:
            print(f"warning: {run} is on a file system without locks: start only one process in it", file=sys.stderr)
            free = not host or _gone(pid, host)
        if not free:
            raise UserError(
                f"{run} is being trained by {f'process {pid} on {host}' if host else 'another process'}: wait for it, "
                f"or stop it (if it is gone, delete {path})"
            )
        _write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        try:
            yield
        finally:
            _write(file, "")


def is_owned(run: Path) -> bool:
    """Whether a process trains in the run, as far as its file says."""
    if not (run / LOCK).is_file():
        return False
    with (run / LOCK).open(encoding="utf-8") as file:
        pid, host = _owner(file)
    return bool(host) and not _gone(pid, host)


def _gone(pid: int, host: str) -> bool:
    """Whether an owner was on this machine and runs no more."""
    return host == socket.gethostname() and not _runs(pid)


def _lock(file: TextIO) -> bool | None:
    """Whether the lock is ours now; None where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def _owner(file: TextIO) -> tuple[int, str]:
    """Process and machine of who wrote the file last; (0, "") for nobody, or who is about to write."""
    file.seek(0)
    try:
        found = json.loads(file.read())
        return int(found["pid"]), str(found["host"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 0, ""


def _runs(pid: int) -> bool:
    """Whether another process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is someone else's
        return True
    return pid != os.getpid()


def _write(file: TextIO, text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()
