"""Pins: none is lost where several processes record at once, and a damaged file is refused with a sentence."""

import multiprocessing
from pathlib import Path

import pytest

from rewards.errors import RewardError
from rewards.files.pins import PINS, pin, pins

EACH = 20


def record(process: int, folder: Path) -> None:
    for number in range(EACH):
        pin(f"key {process} {number}", folder / "file")


def test_pins_that_are_recorded_at_once_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path))
    (tmp_path / "file").write_bytes(b"weights")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=record, args=(number, tmp_path)) for number in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert len(pins()) == 6 * EACH


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1}', '{"a": {}}', '{"a": {"sha256": 3}}', "[" * 10**5])
def test_a_damaged_file_is_one_sentence(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_RL_CACHE", str(tmp_path))
    (tmp_path / PINS).write_text(text)
    with pytest.raises(RewardError, match=r"pins\.json is damaged .*: repair it") as raised:
        pins()
    assert "\n" not in str(raised.value)
