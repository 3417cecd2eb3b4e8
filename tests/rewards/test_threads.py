"""Calls in threads: in their order, cancelled or failed, and never what keeps a process alive."""

import subprocess
import sys
import threading

import pytest

from rewards.threads import begin

HANGS = """
import threading
from rewards.threads import begin
begin(begin(None, threading.Event().wait), print, "never")
print("done")
"""


def test_calls_in_a_chain_keep_their_order():
    said, go = [], threading.Event()
    first = begin(None, lambda: (go.wait(60), said.append(1)))
    second = begin(first, said.append, 2)
    third = begin(second, said.append, 3)
    assert not said and not third.done()
    go.set()
    third.result(60)
    assert said == [1, 2, 3]


def test_what_waits_can_be_cancelled_and_what_fails_fails_alone():
    go = threading.Event()
    first = begin(None, go.wait, 60)
    second = begin(first, int, "no number")
    third = begin(second, go.wait, 60)
    assert third.cancel() and not first.cancel()
    go.set()
    with pytest.raises(ValueError, match="no number"):
        second.result(60)
    assert first.result() and third.cancelled()


def test_what_hangs_keeps_no_process_alive():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "done\n"
