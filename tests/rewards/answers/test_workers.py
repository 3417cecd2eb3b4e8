"""Processes that grade: what hangs or dies costs its own answer alone."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.answers import workers as module
from rewards.answers.workers import Verdict, Workers
from rewards.errors import RewardError

HANGING = ("9**9**9**9", "10**10**10", "2**3**3**3", "9999999!")  # against a truth that is no integer
SECONDS = 0.2


@pytest.fixture(scope="module")
def shared() -> Iterator[Workers]:
    workers = Workers("mathruler", SECONDS, most=2)
    yield workers
    workers.close()


def pid(workers: Workers) -> int:
    process = workers.workers[0].process
    assert process is not None
    return process.pid


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def gone(process: int, seconds: float = 20) -> bool:
    """Whether it ends within so many seconds."""
    until = time.monotonic() + seconds
    while is_there(process) and time.monotonic() < until:
        time.sleep(0.05)
    return not is_there(process)


def test_what_never_ends_costs_its_seconds_and_nothing_else(shared: Workers) -> None:
    asked = [(one, "1/2") for one in (*HANGING, "0.5", "0.6")]
    *hung, right, wrong = shared.grade(asked)
    assert (right, wrong) == (Verdict(True), Verdict(False))
    for verdict in hung:
        assert verdict == Verdict(False, "took more than 0.2 s of the processor")


def test_the_same_answer_is_graded_once(shared: Workers) -> None:
    began = time.monotonic()
    found = shared.grade([(HANGING[0], "1/2"), ("3", "3.0")] * 50)
    assert [verdict.right for verdict in found] == [False, True] * 50
    assert time.monotonic() - began < 50 * SECONDS


def test_a_worker_killed_from_outside_is_replaced(shared: Workers) -> None:
    shared.grade([("1", "1")])
    killed = pid(shared)
    os.kill(killed, signal.SIGKILL)
    assert shared.grade([("1/3", "\\frac13")]) == [Verdict(True)]
    assert pid(shared) != killed and not is_there(killed)


FAKE = """
import os

def grade_answer(answer, truth):
    if answer == "memory":
        bytearray(2**40)
    if answer == "broken":
        raise SyntaxError("no answer")
    if answer == "deadly":
        os._exit(3)
    if answer == "forged":
        os.write(1, b'{"right": true}\\n')
    print("loud")
    return answer == truth
"""


def test_what_a_grader_does_instead_of_grading_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mathruler").mkdir()
    (tmp_path / "mathruler/__init__.py").touch()
    (tmp_path / "mathruler/grader.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    workers = Workers("mathruler", most=1)
    found = workers.grade([(answer, "1") for answer in ("memory", "broken", "deadly", "forged", "1")])
    workers.close()
    assert found == [
        Verdict(False, "took more than 1 GiB of memory"),
        Verdict(False, "cannot be read (SyntaxError)"),
        Verdict(False, "ended the grader twice (exit status 3)"),
        Verdict(False),
        Verdict(True),
    ]


def test_a_stopped_worker_is_given_up(shared: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.grade([("1", "1")])
    monkeypatch.setattr(module, "CLOCK", 1.0)
    os.kill(pid(shared), signal.SIGSTOP)
    assert shared.grade([("1", "1")]) == [Verdict(False, "took more than 0.2 s of the processor")]


def test_a_worker_may_not_take_all_memory_or_write() -> None:
    workers = Workers("mathruler", memory=2**29, most=1)
    workers.grade([("1", "1")])
    limits = [resource.prlimit(pid(workers), kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE)]
    workers.close()
    assert limits == [(2**29, 2**29), (0, 0)]


def test_several_threads_ask_at_once(shared: Workers) -> None:
    found: dict[int, list[Verdict]] = {}

    def ask(number: int) -> None:
        found[number] = shared.grade([(str(number), str(one)) for one in range(20)])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, verdicts in found.items():
        assert [verdict.right for verdict in verdicts] == [one == number for one in range(20)]


def test_closed_workers_are_gone() -> None:
    workers = Workers("mathruler", most=1)
    workers.grade([("1", "1")])
    process = pid(workers)
    workers.close()
    assert not is_there(process)


@pytest.mark.parametrize("answer", ["1", HANGING[0]], ids=["idle", "busy"])
def test_workers_end_with_whoever_asks(answer: str) -> None:
    """Also where that was killed and could close nothing."""
    asking = (
        "import sys, threading\n"
        "from rewards.answers.workers import Workers\n"
        "workers = Workers('mathruler', seconds=1.0, most=1)\n"
        "workers.grade([('1', '1')])\n"
        "print(workers.workers[0].process.pid, flush=True)\n"
        f"workers.grade([({answer!r}, '1/2')])\n"
        "threading.Event().wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", asking], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    assert gone(worker)


def test_a_grader_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pylatexenc.py").write_text("raise ImportError('no LaTeX here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RewardError, match=r"grader mathruler does not start \(.*\): run pip install"):
        Workers("mathruler", most=1).grade([("1", "1")])
