"""The log of a reward server stays small, whatever clients send."""

import logging

import pytest

from rewards.http.sparing import LENGTH, MOST, Sparing


def test_of_many_messages_some_are_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    log, sparing, now = logging.getLogger("tests.sparing"), Sparing(), [100.0]
    monkeypatch.setattr("rewards.http.sparing.time.monotonic", lambda: now[0])
    log.addFilter(sparing)
    sparing.began = now[0]
    for number in range(1000):
        log.warning("no %s %s", number, "x" * 10**5)
    assert len(caplog.messages) == MOST and sum(map(len, caplog.messages)) < MOST * (LENGTH + 100)
    assert caplog.messages[0].startswith("no 0 x") and caplog.messages[-1].endswith("is left out)")
    now[0] += 60
    log.warning("again")
    assert caplog.messages[-1] == "again"
