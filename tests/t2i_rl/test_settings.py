"""Settings as files and words say them."""

from pathlib import Path

import pytest

from t2i_rl.cli import main
from t2i_rl.configuration.config import TrainConfig
from t2i_rl.settings import from_home, override


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("--out=~/x", "--out=/home/me/x"),
        ("a ~/x", "a ~/x"),
        ("~other/x", "~other/x"),
        ("--text=a=~/x", "--text=a=~/x"),
    ],
)
def test_a_path_from_the_home_folder(text: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert from_home(text) == path


def test_the_home_folder_in_a_run_file_and_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = override(TrainConfig(), {"out": "~/run", "model": "~/model", "prompts": "~/p.txt"}, "run.toml")
    assert (config.out, config.model, config.prompts) == (tmp_path / "run", f"{tmp_path}/model", f"{tmp_path}/p.txt")
    assert main(["generate", "x", "--model=~/model", "--out=~/out"]) == 2
    assert str(tmp_path / "model") in capsys.readouterr().err
