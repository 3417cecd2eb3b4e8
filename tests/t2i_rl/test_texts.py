"""What people ask to be drawn: words, files of prompts, sets by name; never the name of a file as words."""

import json
from pathlib import Path

import pytest

from t2i_rl.cli import main


def drawn(out: Path) -> list[str]:
    return [one["prompt"] for one in json.loads((out / "generation.json").read_text(encoding="utf-8"))["files"]]


def test_files_of_every_kind_beside_words(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("prompt\na red circle\na blue ring\n")
    Path("B.JSONL").write_text('{"prompt": "a cross"}\n')
    words = ["a.csv", "two squares", "B.JSONL", "--model", str(model), "--images-per-prompt", "1", "--out", "out"]
    assert main(["generate", *words]) == 0
    assert drawn(Path("out")) == ["a red circle", "a blue ring", "two squares", "a cross"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("generate", "bad.jsonl --images-per-prompt 1"),
        ("generate", "ring bad.jsonl --images-per-prompt 1"),
        ("eval", "geneval --prompts bad.jsonl"),
        ("train", "--method grpo --prompts bad.jsonl --heldout shapes:heldout"),
        ("train", "--method grpo --prompts shapes:train --heldout bad.jsonl"),
    ],
)
def test_half_a_character_is_found_before_anything_is_written(
    command: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"prompt": "a ring"}\n{"prompt": "a ring \\ud83d"}\n')
    assert main([command, *words.split(), "--model", "tiny", "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert "bad.jsonl, line 2 holds half of a character (\\ud83d): mend the text" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]
