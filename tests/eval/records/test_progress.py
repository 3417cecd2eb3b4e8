"""How far an evaluation is: bars on a terminal, lines elsewhere, nothing from the other processes."""

import io
import re

from rich.console import Console

from eval.records import progress
from eval.records.progress import display


def shown(terminal: bool, silent: bool = False) -> str:
    file = io.StringIO()
    with display(silent, console=Console(file=file, force_terminal=terminal, width=120)) as stages:
        for label, total in (("generating", 4), ("judging ([/a])", 2), ("judging (b)", 0)):
            advance = stages(label, total)
            for _ in range(total):
                advance(1)
    return file.getvalue()


def test_lines_where_there_is_no_terminal(monkeypatch):
    ends = shown(terminal=False).splitlines()
    assert [line.partition(",")[0] for line in ends] == ["generating: 4/4", "judging ([/a]): 2/2"]
    assert all(re.fullmatch(r".*, [\d.]+ images/s, 0:00:00 left", line) for line in ends)
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    assert len(shown(terminal=False).splitlines()) == 6


def test_bars_on_a_terminal():
    text = shown(terminal=True)
    assert "generating" in text and "4/4" in text and "images/s" in text


def test_other_processes_are_silent():
    assert shown(terminal=False, silent=True) == ""
