"""Who trains in a run folder: one process, and who is dead does not count."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_rl.errors import UserError
from t2i_rl.training.lock import owned

# Holds the lock, says so, and is killed while it does.
HOLDER = """
import sys
from pathlib import Path
from t2i_rl.training.lock import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
HERE = socket.gethostname()


def test_the_second_is_refused_and_told_who_is_first(tmp_path: Path):
    with (
        owned(tmp_path),
        pytest.raises(UserError, match=f"is being trained by process {os.getpid()} on {HERE}"),
        owned(tmp_path),
    ):
        pass
    assert (tmp_path / "lock").read_text() == ""
    with owned(tmp_path):
        pass


def test_an_error_lets_go(tmp_path: Path):
    with pytest.raises(ValueError, match="inside"), owned(tmp_path):
        raise ValueError("inside")
    with owned(tmp_path):
        pass


def test_a_dead_owners_lock_is_free_at_once(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as it:
        assert it.stdout is not None and it.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"process {it.pid} on"), owned(tmp_path):
            pass
        it.kill()
        it.wait()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == it.pid
    with owned(tmp_path):
        pass


def a_dead_process() -> int:
    it = subprocess.Popen(["true"])
    it.wait()
    return it.pid


@pytest.mark.parametrize(
    ("pid", "host", "free"),
    [
        (os.getppid(), HERE, False),
        (1, HERE, False),  # it may be another user's
        (os.getpid(), HERE, True),  # of before the machine started again
        (a_dead_process(), HERE, True),
        (a_dead_process(), "elsewhere", False),
        (None, None, True),
    ],
    ids=["a parent", "the first process", "this one", "a dead one", "a dead one elsewhere", "unnamed"],
)
def test_without_locks_the_file_is_believed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    pid: int | None,
    host: str | None,
    free: bool,
):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    if pid is not None:
        (tmp_path / "lock").write_text(json.dumps({"pid": pid, "host": host}))
    if free:
        with owned(tmp_path):
            assert json.loads((tmp_path / "lock").read_text()) == {"pid": os.getpid(), "host": HERE}
        assert (tmp_path / "lock").read_text() == ""
    else:
        with pytest.raises(UserError, match=f"process {pid} on {host}: .*if it is gone, delete"), owned(tmp_path):
            pass
        assert json.loads((tmp_path / "lock").read_text()) == {"pid": pid, "host": host}
    assert "is on a file system without locks" in capsys.readouterr().err
