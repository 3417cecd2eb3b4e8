"""A run's folder as a model: its best checkpoint, its newest, or that of a step."""

import json
import os
import socket
from pathlib import Path

import pytest

from t2i_rl.cli import main
from t2i_rl.commands.train import resolve
from t2i_rl.configuration.presets import preset
from t2i_rl.errors import UserError
from t2i_rl.training.run_folder import checkpoint_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (30, 60, 90):
        (tmp_path / "first/checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    (tmp_path / "first/config.json").write_text("{}")
    (tmp_path / "first/best.json").write_text(json.dumps({"step": 60}))
    return tmp_path / "first"


def test_which_checkpoint(run: Path):
    folder = run / "checkpoints"
    assert checkpoint_of(str(run)) == str(folder / "step-000060")
    assert checkpoint_of(f"{run}@last") == str(folder / "step-000090")
    assert checkpoint_of(f"{run}@30") == str(folder / "step-000030")
    (run / "best.json").write_text('{"step": null}')  # a run that is never evaluated
    assert checkpoint_of(str(run)) == str(folder / "step-000090")


@pytest.mark.parametrize("model", ["tiny", "some/model", "some/model@last", "nowhere@3", "@last"])
def test_all_else_stays(model: str):
    assert checkpoint_of(model) == model


def test_a_folder_that_is_a_model_stays(run: Path):
    inside = str(run / "checkpoints/step-000030")
    assert checkpoint_of(inside) == inside


@pytest.mark.parametrize("which", ["31", "best", "-1"])
def test_a_checkpoint_that_is_not_there(run: Path, which: str):
    with pytest.raises(UserError, match=rf"no checkpoint {which}: choose {run}@STEP of 30, 60, 90, or {run}@last"):
        checkpoint_of(f"{run}@{which}")


def test_a_run_without_checkpoints(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match=f"ended before its first checkpoint: t2i-rl train --resume {tmp_path} begins"):
        checkpoint_of(str(tmp_path))
    owner = {"pid": os.getppid(), "host": socket.gethostname()}
    (tmp_path / "lock").write_text(json.dumps(owner))  # it is being trained
    with pytest.raises(UserError, match="has no checkpoint yet: wait for its first one"):
        checkpoint_of(str(tmp_path))


def test_wherever_a_model_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = Path(__file__).parents[3] / "models/tiny/config.json"
    (run / "checkpoints/step-000060/config.json").write_bytes(config.read_bytes())
    best = str(run / "checkpoints/step-000060")
    assert resolve(["--model", str(run)]) == preset(best, None, "cfg")  # of the tiny model, so its preset
    (tmp_path / "run.json").write_text(json.dumps({"model": str(run)}))
    assert resolve(["--config", str(tmp_path / "run.json")]).model == best
    for words in ("generate ring", "export --out o", "heatmap ring", "check", "eval geneval"):
        assert main([*words.split(), "--model", f"{run}@31"]) == 2
        assert "no checkpoint 31" in capsys.readouterr().err
