"""A run goes on from the model and with the rewards that it began with, whatever stands behind their names now."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewards.catalogue import REWARDS, RewardEntry
from rewards.files.noted import note_file
from t2i_rl.cli import main
from t2i_rl.training.origins import RECORD
from tests.rewards.servers import serving
from tests.t2i_rl.small_runs import Brightness, train_words


def shake(model: Path) -> None:
    """Other weights under the same name."""
    path = model / "model.safetensors"
    torch.manual_seed(0)
    weights = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def go_on(run: Path, *words: str) -> int:
    return main(["train", "--resume", str(run), "--steps", "2", *words])


@pytest.mark.usefixtures("brightness")
@pytest.mark.parametrize("words", [("critical",), ("grpo", "--lora.rank", "2")], ids=["reference", "adapters"])
def test_another_model_of_that_name_is_refused(
    words: tuple[str, ...], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(model, base)
    assert main(train_words(base, run, *words, "--steps", "1")) == 0
    assert len(json.loads((run / RECORD).read_text())["model"]) == 64
    before = (base / "model.safetensors").read_bytes()
    shake(base)
    assert go_on(run) == 2
    error = capsys.readouterr().err
    assert ("began with another model" in error or "was trained on other weights" in error) and error.count("\n") == 1
    (base / "model.safetensors").write_bytes(before)
    assert go_on(run) == 0


def test_a_reward_may_be_served_elsewhere_but_has_to_be_the_same(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(REWARDS, "brightness", RewardEntry(lambda device: Brightness()))
    run = tmp_path / "run"
    with serving(Brightness(), "brightness", weights="ab" * 32) as first:
        assert main(train_words(model, run, "grpo", "--reward", f"brightness@{first}", "--steps", "1")) == 0
    assert json.loads((run / RECORD).read_text())["rewards"] == {"brightness": "ab" * 32}
    with serving(Brightness(), "brightness", weights="cd" * 32) as other:
        assert go_on(run, "--reward", f"brightness@{other}") == 2
    assert "began with another reward brightness than there is now (SHA-256 abababab" in capsys.readouterr().err
    with serving(Brightness(), "brightness", weights="ab" * 32) as second:
        assert go_on(run, "--reward", "shapes") == 2
        assert "config.json has reward 'shapes'" in capsys.readouterr().err
        assert go_on(run, "--reward", f"brightness@{second}") == 0
    assert json.loads((run / "config.json").read_text())["reward"] == f"brightness@{second}"


def test_weights_that_changed_behind_a_reward_are_noticed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights"

    def built(device: str) -> Brightness:
        note_file(weights)
        return Brightness()

    monkeypatch.setitem(REWARDS, "brightness", RewardEntry(built))
    run = tmp_path / "run"
    weights.write_text("one")
    assert main(train_words(model, run, "grpo", "--reward", "brightness", "--steps", "1")) == 0
    weights.write_text("another")
    assert go_on(run) == 2
    assert "began with another reward brightness" in capsys.readouterr().err
